"""training.heatmaps: images with their heat maps on top, as files."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.errors import UserError
from training.heatmaps import HeatmapFolder, file_stem

LEFT = {"rows": 1, "columns": 2, "values": [1, 0]}


def grey(size=(60, 40)):
    return Image.new("RGB", size, (90, 90, 90))


def test_hot_regions_are_red_and_cold_ones_as_grey_as_they_are(tmp_path):
    path = HeatmapFolder(tmp_path).write("a.jpg", grey(), LEFT)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (60, 40))
        pixels = np.asarray(image, int)
    red, green, _ = pixels[:, 2].mean(axis=0)
    assert red > green + 50
    assert np.abs(pixels[:, -2] - 90).max() < 9


@pytest.mark.parametrize(
    ("size", "written"),
    [
        ((3000, 1500), (1024, 512)),
        ((40, 4000), (10, 1024)),
        ((1024, 9), (1024, 9)),
        ((1, 1), (1, 1)),
    ],
)
def test_the_longest_side_is_1024_pixels_at_most(tmp_path, size, written):
    path = HeatmapFolder(tmp_path).write("a.jpg", grey(size), LEFT)
    with Image.open(path) as image:
        assert image.size == written


def test_files_are_not_overwritten_and_images_of_one_name_get_numbers(tmp_path):
    (tmp_path / "a.heatmap.png").write_text("mine")
    folder = HeatmapFolder(tmp_path)
    names = [folder.write(name, grey(), LEFT).name for name in ("x/a.jpg", "y/a.png", "b.jpg")]
    assert names == ["a_2.heatmap.png", "a_3.heatmap.png", "b.heatmap.png"]
    assert HeatmapFolder(tmp_path).write("a.jpg", grey(), LEFT).name == "a_4.heatmap.png"
    assert (tmp_path / "a.heatmap.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("flowers/rose 1.jpg", "rose_1"),
        ("https://example.com/a%20b/rosé.jpg?size=2", "rosé"),
        ("https://example.com/%2e%2e%2f%2e%2e%2fetc.png", "etc"),
        ("https://example.com", "image"),
        ("/dev/fd/63", "63"),
        ("..", "image"),
        (".hidden.jpg", "hidden"),
        ("caf\udce9\n.png", "caf_"),
        ("", "image"),
        ("x" * 300 + ".jpg", "x" * 100),
        ("花" * 80 + ".jpg", "花" * 33),
        ("x" + "é" * 80 + ".jpg", "x" + "é" * 49),
    ],
)
def test_files_are_named_after_their_images(name, stem):
    assert file_stem(name) == stem


def test_a_long_name_of_any_script_is_written(tmp_path):
    folder = HeatmapFolder(tmp_path)
    written = [folder.write("花" * 84 + ".jpg", grey(), LEFT) for _ in range(2)]
    assert all(path.exists() for path in written)


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert refusal(HeatmapFolder, tmp_path / "file") == (
        f"Expected to write heat maps. Received: {tmp_path / 'file'} (File exists). "
        "Name another folder with --heatmap, or free disk space."
    )
    folder = HeatmapFolder(tmp_path / "new" / "maps")

    def full(image, file, kind):
        file.write(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", full)
    said = refusal(folder.write, "a.jpg", grey(), LEFT)
    assert f"{folder.path / 'a.heatmap.png'} (No space left on device)" in said
    assert list(folder.path.iterdir()) == []

    def failing(*_, **__):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(Path, "unlink", failing)
    said = refusal(folder.write, "a.jpg", grey(), LEFT)
    assert "(No space left on device)" in said
