"""training.dataset.download and training.files, step by step."""

import io
import logging
import sys
import tarfile
import types
from itertools import pairwise
from pathlib import Path

import pytest
import requests

from training.dataset import download
from training.dataset.download import (
    DownloadError,
    arrange,
    fetch_flower_photos,
    find_classes,
    images_in,
    main,
    reason,
    save,
    show_progress,
)
from training.errors import DataError
from training.files import STAGING, fill_folder, require_empty

CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")


def fill(folder, *names):
    """Make files of one byte."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def kaggle(monkeypatch, dataset_download):
    module = types.SimpleNamespace(dataset_download=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", module)


# Why something could not be had.

ASKED = requests.Request("GET", "https://a.b/c?d").prepare()
ANSWER = requests.Response()
ANSWER.status_code, ANSWER.url = 503, "https://e.f/g"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (requests.Timeout(request=ASKED), "no answer from a.b in time"),
        (requests.Timeout(), "no answer from its host in time"),
        (requests.ConnectionError("Read timed out.", request=ASKED), "no answer from a.b in time"),
        (requests.HTTPError(request=ASKED, response=ANSWER), "HTTP 503 from a.b"),
        (requests.HTTPError(response=ANSWER), "HTTP 503 from e.f"),
        (requests.HTTPError("odd"), "odd"),
        (requests.exceptions.ChunkedEncodingError("300 letters"), "the connection broke off"),
        (requests.ConnectionError("300 letters", request=ASKED), "no connection to a.b"),
        (requests.ConnectionError("300 letters"), "no connection to its host"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("odd."), "odd"),
        (ValueError("\n one line...\nand another"), "one line"),
        (ValueError(" "), "ValueError"),
        (ValueError("x" * 130), "x" * 120),
    ],
)
def test_a_reason_is_a_few_words(error, why):
    assert reason(error) == why


# Progress.


class Terminal(io.StringIO):
    """A standard error stream that is a terminal, and counts how often it is flushed."""

    def __init__(self, terminal=True):
        super().__init__()
        self.terminal, self.flushes = terminal, 0

    def isatty(self):
        return self.terminal

    def flush(self):
        self.flushes += 1


def progress(monkeypatch, terminal, total, *steps):
    stream = Terminal(terminal)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        for before, after in pairwise(steps):
            show_progress(before, after, total)
    return stream


def test_a_terminal_sees_every_piece_in_one_line(monkeypatch):
    stream = progress(monkeypatch, True, 4_000_000, 0, 1_000_000, 2_600_000, 4_000_000)
    assert stream.getvalue() == "\r  1 of 4 MB\r  3 of 4 MB\r  4 of 4 MB\n"
    assert stream.flushes >= 3


def test_a_log_gets_a_line_for_each_quarter(monkeypatch):
    steps = [0, 900_000, 1_000_000, 1_900_000, 2_100_000, 2_200_000, 4_000_000]
    stream = progress(monkeypatch, False, 4_000_000, *steps)
    assert stream.getvalue() == "  1 of 4 MB\n  2 of 4 MB\n  4 of 4 MB\n"
    assert stream.flushes >= 3


@pytest.mark.parametrize("terminal", [True, False])
def test_of_an_unknown_size_nothing_is_shown(monkeypatch, terminal):
    assert progress(monkeypatch, terminal, 0, 0, 1_000_000).getvalue() == ""


def test_what_is_saved_comes_in_pieces_within_a_timeout(tmp_path, monkeypatch, capsys):
    asked = {}

    class Answer:
        def __init__(self, **headers):
            self.headers = headers

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def raise_for_status(self):
            pass

        def iter_content(self, size):
            asked["size"] = size
            yield from (b"ab" * 500_000, b"cd" * 1_000_000)

    def get(url, **options):
        asked.update(options, url=url)
        return answers.pop(0)

    answers = [Answer(**{"Content-Length": "3000000"}), Answer()]
    monkeypatch.setattr(requests, "get", get)
    save("http://a/b", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"ab" * 500_000 + b"cd" * 1_000_000
    assert asked == {"url": "http://a/b", "stream": True, "timeout": 30, "size": 1 << 20}
    assert capsys.readouterr().err == "  1 of 3 MB\n  3 of 3 MB\n"
    save("http://a/b", tmp_path / "a")
    assert capsys.readouterr().err == ""


def test_an_old_python_that_cannot_unpack_safely_is_told(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(DownloadError) as caught:
        fetch_flower_photos(tmp_path / "fetched", "http://127.0.0.1:1/")
    assert str(caught.value) == "unpacking it safely takes Python 3.11.4 or newer"
    assert not (tmp_path / "fetched").exists()


# What came.


def test_image_files_are_sorted_and_nothing_else_is_one(tmp_path):
    fill(tmp_path, "b.JPG", "a.png", ".c.jpg", "d.txt", "e", "f.webp")
    (tmp_path / "g.jpg").mkdir()
    (tmp_path / "h.jpg").symlink_to(tmp_path / "a.png")
    assert [path.name for path in images_in(tmp_path)] == ["a.png", "b.JPG", "f.webp"]


def test_of_each_class_the_nearest_folder_with_images_counts(tmp_path):
    fill(tmp_path, "z/rose/1.jpg", "z/y/roses/2.jpg", "tulips/notes.txt", "a/tulips/3.jpg")
    fill(tmp_path, "b/tulip/4.jpg", "other/5.jpg", "daisy")
    assert find_classes(tmp_path) == {
        "rose": tmp_path / "z" / "rose",
        "tulip": tmp_path / "a" / "tulips",
    }
    assert list(find_classes(tmp_path)) == ["rose", "tulip"]


def test_what_is_arranged_are_images_and_the_licence(tmp_path):
    source = fill(tmp_path / "source", *(f"x/{name}s/1.jpg" for name in CLASSES[2:]))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DownloadError) as caught:
        arrange(source, folder)
    assert str(caught.value) == "no images of daisy, dandelion in what came"
    assert list(folder.iterdir()) == []
    fill(source, "x/daisy/1.jpg", "x/daisy/2.py", "x/dandelion/1.jpg", "x/LICENSE.txt")
    arrange(source, folder)
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == ["LICENSE.txt", *(f"{name}/1.jpg" for name in CLASSES)]
    assert not (source / "x" / "daisy" / "1.jpg").exists()


# The command.


@pytest.mark.parametrize("flags", [[], ["--out", "flowers/"]])
def test_where_the_usual_folder_is_filled_the_next_command_is_plain(
    tmp_path, monkeypatch, capsys, flags
):
    monkeypatch.chdir(tmp_path)
    asked = []

    def dataset_download(handle, output_dir):
        asked.append((handle, output_dir))
        return str(fill(Path(output_dir), *(f"{name}/1.jpg" for name in CLASSES)))

    kaggle(monkeypatch, dataset_download)
    assert main(flags) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Kaggle: fetching alxmamaev/flowers-recognition ...",
        "flowers: daisy 1, dandelion 1, rose 1, sunflower 1, tulip 1.",
        "Next: python train.py",
    ]
    assert asked == [("alxmamaev/flowers-recognition", f"flowers/{STAGING}/fetched")]
    assert logging.getLogger("kagglehub").level == logging.WARNING


def test_the_help_says_how_to_call_it_and_what_is_filled(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert text.startswith(
        "usage: python -m training.dataset.download [-h] [--out OUT] Fetch the real "
    )
    assert "python -m training.dataset.download --out flowers/" in text
    assert text.endswith("--out OUT folder to fill [flowers]")


def test_without_any_source_one_sentence_names_both_reasons(tmp_path, monkeypatch, capsys):
    def dataset_download(handle, output_dir):
        fill(Path(output_dir), "half.jpg")
        raise ValueError("no such user.")

    kaggle(monkeypatch, dataset_download)
    monkeypatch.setattr(download, "FLOWER_PHOTOS", "http://127.0.0.1:1/x.tgz")
    assert main(["--out", str(tmp_path / "a" / "b")]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "Kaggle: fetching alxmamaev/flowers-recognition ...",
        "Kaggle: no such user. Fetching TensorFlow's flower_photos instead ...",
    ]
    assert captured.err == (
        "download: Expected to fetch the images. Received: from Kaggle, no such user; "
        "from TensorFlow, no connection to 127.0.0.1:1. Try again when there is a connection, "
        "or run `make sample` for drawn images.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_told(tmp_path, monkeypatch, capsys):
    def dataset_download(handle, output_dir):
        raise KeyboardInterrupt

    kaggle(monkeypatch, dataset_download)
    assert main(["--out", str(tmp_path / "a")]) == 130
    assert capsys.readouterr().err == "\ndownload: Stopped; nothing was kept.\n"


# Staging.


def test_a_folder_to_fill_may_hold_anything_but_images(tmp_path):
    fill(tmp_path, "README.md", ".hidden.jpg", ".cache/a.jpg")
    (tmp_path / "empty").mkdir()
    require_empty(tmp_path)
    require_empty(tmp_path / "none")
    for name, shown in (("a.JPEG", "a.JPEG"), ("empty/notes.txt", "empty")):
        fill(tmp_path, name)
        with pytest.raises(DataError) as caught:
            require_empty(tmp_path)
        assert str(caught.value) == (
            f"Expected {tmp_path} to hold no images yet, since drawn and real ones are never "
            f"mixed. Received: one with {shown} in it. "
            "Empty it, or name another folder with --out."
        )
        (tmp_path / name).unlink()
    with pytest.raises(DataError) as caught:
        require_empty(tmp_path / "README.md")
    assert str(caught.value) == (
        f"Expected a folder to fill. Received: {tmp_path / 'README.md'}, which is a file. "
        "Name another."
    )


def test_a_folder_that_another_process_fills_is_left_alone(tmp_path):
    with fill_folder(tmp_path), pytest.raises(DataError) as caught, fill_folder(tmp_path):
        pytest.fail("both were let in")
    assert str(caught.value) == (
        f"Expected no other process to use {tmp_path}. Received: one that is filling it. "
        "Wait until that has ended."
    )


def test_what_a_killed_process_left_is_cleared_away_first(tmp_path):
    fill(tmp_path, f"{STAGING}/ready/old.jpg")
    with fill_folder(str(tmp_path)) as folder:
        assert list(folder.iterdir()) == []
        fill(folder, "rose/1.jpg", "tulip/1.jpg")
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["rose/1.jpg", "tulip/1.jpg"]
    assert not (tmp_path / STAGING).exists()


def test_a_move_that_fails_half_way_is_taken_back(tmp_path, monkeypatch):
    replace = Path.replace

    def fail_at_tulip(path, target):
        if path.name == "tulip" and target.parent == tmp_path:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    with pytest.raises(OSError, match="No space"), fill_folder(tmp_path) as folder:  # noqa: PT012
        fill(folder, "rose/1.jpg", "tulip/1.jpg", "zinnia/1.jpg")
        monkeypatch.setattr(Path, "replace", fail_at_tulip)
    assert list(tmp_path.iterdir()) == []
