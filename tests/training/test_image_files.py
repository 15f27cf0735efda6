"""training/image_files.py: the images that a command line names."""

import os
import threading

import pytest
from PIL import Image

from serving.errors import ImageError, TooLargeError
from training import image_files
from training.image_files import expand, read_images

SIZE = (40, 60)


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (60, 40), (230, 20, 10)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def reason(image):
    with pytest.raises(ImageError) as caught:
        read_images(str(image), [SIZE])
    return str(caught.value)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("", "an empty name (No such file or directory). Check the path."),
        ("none.jpg", "none.jpg (No such file or directory). Check the path."),
        ("a.jpg/x", "a.jpg/x (No such file or directory). If it is a URL, write https:// before"),
        ("file:///home/a%20b.jpg", "Give its path: '/home/a b.jpg'"),
        ("file://localhost/a.jpg", "Give its path: /a.jpg"),
        ("FILE:/a.jpg", "Give its path: /a.jpg"),
        (
            "s3://bucket/a.jpg",
            "To label images in a bucket, add --out with a place for the results.",
        ),
        ("http:/x.org/a.jpg", "If it is a URL, write https://x.org/a.jpg"),
        ("https//x.org/a.jpg", "If it is a URL, write https://x.org/a.jpg"),
        ("https:x.org/{a}.jpg", "If it is a URL, write https://x.org/{a}.jpg"),
        ("www.x.org/a.jpg", "write https:// before it: https://www.x.org/a.jpg"),
        ("localhost.lan:80/a", "write https:// before it: https://localhost.lan:80/a"),
        ("C:\\photos\\a.jpg", r"on WSL, C:\ is /mnt/c/."),
        ("*.jpg", "If it is a pattern, no name matches it"),
        ("x" * 300, "(File name too long). Check the path."),
        ("/dev/null", "(a device). Save the image as a file."),
    ],
)
def test_what_is_no_file_is_told_with_what_was_probably_meant(
    image, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert reason(image).startswith("Expected a file that can be read. Received: ")
    assert sentence in reason(image)


def test_a_file_that_looks_like_a_url_is_read(red, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("www.x.org/a.png", "http:/x.org/a.png", "file:/a.png", "C:\\a.png", "[*].png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(red)
        assert read_images(name, [SIZE])[0].size == (60, 40)


@pytest.mark.parametrize("text", ["\ufeff{}", "<{}>", "[a rose]({})", "{}\u200b "])
def test_a_url_may_be_as_people_copy_it(text, red, monkeypatch):
    answers = {"https://x.org/a.png": red.read_bytes()}
    monkeypatch.setattr(image_files, "fetch", answers.__getitem__)
    assert read_images(text.format(*answers), [SIZE])[0].size == (60, 40)


def test_a_folder_is_read_to_its_end_whatever_is_in_it(red, tmp_path, monkeypatch):
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for folder in (".hidden", "closed", "sub"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").hardlink_to(red)
    list_folder = os.listdir

    def listdir(folder):
        if folder == str(tmp_path / "closed"):  # the tests may run as root, who may read all
            raise PermissionError(13, "Permission denied", folder)
        return list_folder(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    found = [os.path.relpath(path, tmp_path) for path in expand([f"{tmp_path}/"])]
    assert found == ["broken", "circle", "closed", "pipe", "red.png", "sub/a.png"]
    assert "(No such file or directory). Check its permissions" in reason(tmp_path / "broken")
    assert "(Too many levels of symbolic links)" in reason(tmp_path / "circle")
    assert "closed (Permission denied). Check its permissions" in reason(tmp_path / "closed")
    assert "(a named pipe)" in reason(tmp_path / "pipe")


def test_a_folder_without_files_is_told(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden.png").touch()
    [image] = expand([str(tmp_path)])
    assert reason(image) == (
        f"Expected a folder of images. Received: {tmp_path}, which holds no files to "
        "classify. Name another."
    )


def test_names_come_while_later_folders_are_unread(tmp_path, monkeypatch):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
    listed, list_folder = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path[-1]) or list_folder(path))
    assert next(expand([str(tmp_path)])).endswith("a/1.png")
    assert listed[1:] == ["a"]


def test_the_tilde_is_ones_home_unless_a_file_is_called_so(red, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert list(expand(["~/red.png", "~/"])) == [str(red), str(red)]
    (tmp_path / "~").hardlink_to(red)
    assert list(expand(["~", "https://x.org/~a/", ""])) == ["~", "https://x.org/~a/", ""]


def test_a_pipe_of_the_shell_is_read_within_bounds(red, monkeypatch):
    def read(content):
        reader, writer = os.pipe()

        def write():
            with open(writer, "wb") as pipe:
                pipe.write(content)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            return read_images(f"/dev/fd/{reader}", [SIZE])[0]
        finally:
            thread.join()
            os.close(reader)

    assert read(red.read_bytes()).size == (60, 40)
    with pytest.raises(ImageError, match=r"Received: /dev/fd/\d+, a pipe without content\. Check"):
        read(b"")
    monkeypatch.setattr(image_files, "MAX_BYTES", 10)
    with pytest.raises(TooLargeError):
        read(red.read_bytes())
