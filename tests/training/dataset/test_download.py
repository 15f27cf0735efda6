"""training.dataset.download: from Kaggle or else from TensorFlow, whole or not at all."""

import errno
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types

import pytest
import requests
from conftest import ROOT
from PIL import Image

from training.dataset import download
from training.dataset.download import DownloadError, main
from training.files import STAGING

CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
COUNTS = {"daisy": 1, "dandelion": 2, "rose": 3, "sunflower": 4, "tulip": 5}
PLURALS = {"rose": "roses", "sunflower": "sunflowers", "tulip": "tulips"}


def image(label):
    """Return a JPEG's bytes, another for each label."""
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (40 * CLASSES.index(label), 90, 60)).save(file, "JPEG")
    return file.getvalue()


def archive(*more):
    """Return a .tgz with the layout of flower_photos, and `more` (name, bytes) in it."""
    members = [("flower_photos/LICENSE.txt", b"CC-BY")]
    for label, count in COUNTS.items():
        folder = f"flower_photos/{PLURALS.get(label, label)}"
        members += [(f"{folder}/{i}.jpg", image(label)) for i in range(count)]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in (*members, *more):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def kaggle_with(monkeypatch, dataset_download):
    """Put a stand-in for kagglehub in place that has `dataset_download`."""
    module = types.SimpleNamespace(dataset_download=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", module)


def fill(folder, counts=COUNTS):
    """Make folders of images named as Kaggle names them."""
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / label / f"{label}{i}.jpg").write_bytes(image(label))


def files(folder):
    """Return the files in `folder`, hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in paths)


@pytest.fixture
def no_kaggle(monkeypatch):
    """A Kaggle that is out of reach."""

    def dataset_download(handle, output_dir):
        request = requests.Request("GET", "https://api.kaggle.com/v1/x").prepare()
        raise requests.ConnectionError("HTTPSConnectionPool(...): 300 letters", request=request)

    kaggle_with(monkeypatch, dataset_download)


@pytest.fixture
def flowers(tmp_path):
    """A folder as git has it: with only a README."""
    folder = tmp_path / "flowers"
    folder.mkdir()
    (folder / "README.md").write_text("what goes here")
    return folder


def tensorflow_at(monkeypatch, url):
    monkeypatch.setattr(download, "FLOWER_PHOTOS", url)


@pytest.mark.parametrize("nesting", ["", "flowers", "flowers/flowers"])
def test_kaggles_folders_in_any_nesting(flowers, monkeypatch, capsys, nesting):
    asked = []

    def dataset_download(handle, output_dir):
        asked.append(handle)
        folder = flowers.parent.joinpath(output_dir)
        fill(folder / nesting)
        (folder / nesting / "dandelion" / "flickr.py").write_text("left in the data set")
        (folder / nesting / "notes").mkdir()
        return str(folder)

    kaggle_with(monkeypatch, dataset_download)
    tensorflow_at(monkeypatch, "http://127.0.0.1:1/never asked")
    assert main(["--out", str(flowers)]) == 0
    assert asked == ["alxmamaev/flowers-recognition"]
    expected = [f"{label}/{label}{i}.jpg" for label, n in COUNTS.items() for i in range(n)]
    assert files(flowers) == sorted(["README.md", *expected])
    assert (flowers / "tulip" / "tulip4.jpg").read_bytes() == image("tulip")
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{flowers}: daisy 1, dandelion 2, rose 3, sunflower 4, tulip 5.",
        f"Next: python train.py --data {flowers}",
    ]


def test_the_same_images_twice_in_kaggles_archive_come_once(flowers, monkeypatch):
    def dataset_download(handle, output_dir):
        folder = flowers.parent.joinpath(output_dir)
        fill(folder / "flowers")
        fill(folder / "flowers" / "flowers")
        return str(folder)

    kaggle_with(monkeypatch, dataset_download)
    assert download.download(flowers) == COUNTS


def test_kaggles_own_disk_is_copied_from(flowers, monkeypatch, tmp_path):
    """In its notebooks the images are mounted already, where nothing can be renamed."""
    fill(tmp_path / "input" / "flowers")
    before = files(tmp_path / "input")
    rename = type(tmp_path).rename

    def read_only(path, target):
        if "input" in path.parts:
            raise OSError(30, "Read-only file system")
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", read_only)
    kaggle_with(monkeypatch, lambda handle, output_dir: str(tmp_path / "input"))
    assert download.download(flowers) == COUNTS
    assert files(tmp_path / "input") == before


def test_without_kaggle_flower_photos_come_under_the_same_names(
    flowers, monkeypatch, capsys, no_kaggle, http_server
):
    tensorflow_at(monkeypatch, http_server({"/x.tgz": (200, {}, archive())}) + "/x.tgz")
    assert main(["--out", str(flowers)]) == 0
    captured = capsys.readouterr()
    assert (
        "Kaggle: no connection to api.kaggle.com. Fetching TensorFlow's flower_photos instead ..."
    ) in captured.out.splitlines()
    assert f"{flowers}: daisy 1, dandelion 2, rose 3, sunflower 4, tulip 5." in captured.out
    assert "MB" in captured.err
    images = [f"{label}/{i}.jpg" for label, n in COUNTS.items() for i in range(n)]
    assert files(flowers) == sorted(["README.md", "LICENSE.txt", *images])
    assert (flowers / "rose" / "2.jpg").read_bytes() == image("rose")


def test_what_kaggle_sends_without_a_class_is_not_used(flowers, monkeypatch, capsys, http_server):
    def dataset_download(handle, output_dir):
        folder = flowers.parent.joinpath(output_dir)
        fill(folder, {"daisy": 9, "rose": 9, "tulip": 0})
        return str(folder)

    kaggle_with(monkeypatch, dataset_download)
    tensorflow_at(monkeypatch, http_server({"/x.tgz": (200, {}, archive())}) + "/x.tgz")
    assert main(["--out", str(flowers)]) == 0
    out = capsys.readouterr().out
    assert "Kaggle: no images of dandelion, sunflower, tulip in what came." in out
    assert "daisy 1," in out


def test_a_missing_kagglehub_is_a_reason_like_any_other(flowers, monkeypatch, capsys, http_server):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    tensorflow_at(monkeypatch, http_server({"/x.tgz": (200, {}, archive())}) + "/x.tgz")
    assert main(["--out", str(flowers)]) == 0
    assert "Kaggle: import of kagglehub halted" in capsys.readouterr().out


def outside():
    return archive(("../../../outside.jpg", b"x"))


def linked():
    """An archive with a link out of the folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("flower_photos/daisy")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(member)
    return file.getvalue()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((404, {}, b""), "HTTP 404 from 127.0.0.1"),
        ((200, {}, archive()[:-200]), "a damaged archive (Compressed file ended"),
        ((200, {}, b"<html>Sign in</html>"), "a damaged archive (not a gzip file"),
        ((200, {"Content-Length": "999999"}, archive()), "the connection broke off"),
        ((200, {}, outside()), "a damaged archive ('../../../outside.jpg' would be extracted"),
        ((200, {}, linked()), "a damaged archive ('flower_photos/daisy' is a link"),
        ((200, {}, archive()[:20] + b"\0" * 90 + archive()[110:]), "a damaged archive ("),
    ],
)
def test_where_both_fail_one_sentence_says_why_and_what_else_there_is(
    flowers, monkeypatch, capsys, no_kaggle, http_server, answer, why
):
    tensorflow_at(monkeypatch, http_server({"/x.tgz": answer}) + "/x.tgz")
    assert main(["--out", str(flowers)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "MB" not in line]
    assert len(said) == 1
    assert said[0].startswith("download: Expected to fetch the images. Received: from Kaggle, ")
    assert f"no connection to api.kaggle.com; from TensorFlow, {why}" in said[0]
    assert "`make sample`" in said[0]
    assert files(flowers.parent) == ["flowers/README.md"]
    assert os.listdir(flowers) == ["README.md"]


def test_a_server_that_is_not_there(flowers, no_kaggle):
    with pytest.raises(DownloadError, match=r"from TensorFlow, no connection to 127.0.0.1:1\."):
        download.download(flowers, "http://127.0.0.1:1/x.tgz")
    assert os.listdir(flowers) == ["README.md"]


def test_a_server_that_falls_silent(flowers, monkeypatch, no_kaggle, http_server):
    released = threading.Event()

    def silent(request):
        released.wait(20)
        return 200, {}, b""

    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with pytest.raises(DownloadError, match=r"from TensorFlow, no answer from 127.0.0.1:\d+ in"):
        download.download(flowers, http_server({"/x.tgz": silent}) + "/x.tgz")
    released.set()


@pytest.mark.parametrize("ends", [KeyboardInterrupt, MemoryError])
def test_interrupted_half_way_through_kaggle_nothing_is_left(flowers, monkeypatch, ends):
    def dataset_download(handle, output_dir):
        fill(flowers.parent.joinpath(output_dir), {"daisy": 5})
        raise ends

    kaggle_with(monkeypatch, dataset_download)
    tensorflow_at(monkeypatch, "http://127.0.0.1:1/x.tgz")
    assert main(["--out", str(flowers)]) == (130 if ends is KeyboardInterrupt else 1)
    assert os.listdir(flowers) == ["README.md"]


def test_a_full_disk_is_one_sentence(flowers, monkeypatch, capsys):
    def full(source, target):
        raise OSError(28, "No space left on device")

    def dataset_download(handle, output_dir):
        fill(flowers.parent.joinpath(output_dir))
        return output_dir

    kaggle_with(monkeypatch, dataset_download)
    monkeypatch.setattr(download, "take", full)
    assert main(["--out", str(flowers)]) == 1
    assert capsys.readouterr().err == (
        f"download: Expected to write to {flowers}. Received: No space left on device. "
        "Free disk space, fix the permissions, or name another folder with --out.\n"
    )
    assert os.listdir(flowers) == ["README.md"]


@pytest.mark.parametrize("code", download.UNWRITABLE)
@pytest.mark.parametrize("step", ["save", "unpack"])
def test_a_disk_that_takes_no_archive_is_no_matter_of_the_connection(
    flowers, monkeypatch, capsys, no_kaggle, http_server, step, code
):
    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    tensorflow_at(monkeypatch, http_server({"/x.tgz": (200, {}, archive())}) + "/x.tgz")
    holder, name = (download, "save") if step == "save" else (tarfile.TarFile, "extractall")
    monkeypatch.setattr(holder, name, full)
    assert main(["--out", str(flowers)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "MB" not in line]
    assert said == [
        f"download: Expected to write to {flowers}. Received: {os.strerror(code)}. "
        "Free disk space, fix the permissions, or name another folder with --out."
    ]
    assert os.listdir(flowers) == ["README.md"]


def test_a_disk_that_kaggle_fills_is_not_filled_again(flowers, monkeypatch, capsys):
    def dataset_download(handle, output_dir):
        raise OSError(errno.ENOSPC, "No space left on device")

    kaggle_with(monkeypatch, dataset_download)
    monkeypatch.setattr(download, "save", lambda *_: pytest.fail("it was asked"))
    assert main(["--out", str(flowers)]) == 1
    assert "Received: No space left on device. Free disk space" in capsys.readouterr().err


@pytest.mark.parametrize("error", [PermissionError, requests.ConnectionError])
def test_what_kaggle_alone_may_not_do_leaves_the_other_source(
    flowers, monkeypatch, capsys, http_server, error
):
    def dataset_download(handle, output_dir):
        raise error(errno.EACCES, "Permission denied")

    kaggle_with(monkeypatch, dataset_download)
    tensorflow_at(monkeypatch, http_server({"/x.tgz": (200, {}, archive())}) + "/x.tgz")
    assert main(["--out", str(flowers)]) == 0


def test_a_connection_that_is_not_permitted_is_no_matter_of_the_disk(
    flowers, monkeypatch, no_kaggle
):
    def save(url, path):
        raise requests.ConnectionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download, "save", save)
    with pytest.raises(DownloadError, match="from TensorFlow, no connection"):
        download.download(flowers)


def test_a_folder_with_images_is_refused_before_anything_is_fetched(flowers, monkeypatch, capsys):
    fill(flowers, {"tulip": 2})
    kaggle_with(monkeypatch, lambda *_, **__: pytest.fail("it was asked"))
    assert main(["--out", str(flowers)]) == 1
    error = capsys.readouterr().err
    assert "Received: one with tulip in it." in error
    assert len(error.splitlines()) == 1
    assert files(flowers) == ["README.md", "tulip/tulip0.jpg", "tulip/tulip1.jpg"]


ALONE = """
import signal, sys
sys.modules["kagglehub"] = None
from training.dataset import download
download.FLOWER_PHOTOS = sys.argv[2]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.exit(download.main(["--out", sys.argv[1]]))
"""


def test_ctrl_c_leaves_nothing(flowers, http_server):
    body = archive()
    released = threading.Event()

    def half(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2])
        released.wait(60)
        return 200, {}, b""

    url = http_server({"/x.tgz": half}) + "/x.tgz"
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(flowers), url],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (flowers / STAGING / "fetched" / "flower_photos.tgz").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    released.set()
    assert process.returncode == 130
    assert error.strip() == "download: Stopped; nothing was kept."
    assert os.listdir(flowers) == ["README.md"]
