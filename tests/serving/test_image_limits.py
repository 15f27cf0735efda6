"""serving.image: each limit at its edge, and the sentences that a caller reads, whole."""

import ctypes
from io import BytesIO

import pytest
from PIL import Image

from serving import image
from serving.errors import ImageError, TooLargeError, UnsupportedTypeError
from serving.image import open_image
from tests.fuzz.make_corpus import bmp, encoded, tiff


@pytest.fixture
def image():
    """60 by 40 pixels, 2,400 in all."""
    return Image.effect_noise((60, 40), 80).convert("RGB")


def refusal(data):
    with pytest.raises((ImageError, TooLargeError, UnsupportedTypeError)) as caught:
        open_image(data)
    return str(caught.value)


def too_large(most, received):
    return f"Expected at most {most}. Received: {received}. Send a smaller image."


def test_a_file_that_is_no_image_is_told_what_is_read():
    assert refusal(b"hello") == (
        "Expected an image (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF). Received: something else. "
        "Send it as JPEG or PNG."
    )


def test_an_image_that_breaks_off_is_told_and_why_is_kept(image):
    with pytest.raises(ImageError) as caught:
        open_image(encoded(image, "PNG")[:-100])
    assert str(caught.value) == (
        "Expected a whole image. Received: one that breaks off, is damaged or of a rare kind. "
        "Save it anew as JPEG or PNG."
    )
    assert isinstance(caught.value.__cause__, Exception)


def test_as_many_pixels_as_are_allowed_open(image, monkeypatch):
    data = encoded(image, "PNG")
    monkeypatch.setattr(image, "MAX_PIXELS", 2400)
    assert open_image(data).size == (60, 40)
    monkeypatch.setattr(image, "MAX_PIXELS", 2399)
    assert refusal(data) == too_large("0 million pixels", "60×40")


def test_pixels_are_counted_in_millions():
    data = encoded(Image.new("1", (8000, 8000)), "PNG")
    assert refusal(data) == too_large("50 million pixels", "8000×8000")


def test_what_pillow_itself_refuses_is_told_the_same_way(image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert refusal(encoded(image, "PNG")) == too_large("50 million pixels", "far more")


@pytest.mark.parametrize("size", [(60, 1), (1, 60)])
def test_a_side_as_long_as_allowed_opens(size, monkeypatch):
    data = encoded(Image.new("RGB", size), "PNG")
    monkeypatch.setattr(image, "MAX_SIDE", 60)
    assert open_image(data).size == size
    monkeypatch.setattr(image, "MAX_SIDE", 59)
    assert refusal(data) == too_large("59 pixels a side", f"{size[0]}×{size[1]}")


def test_a_bitmap_in_runs_has_a_limit_of_its_own(image, monkeypatch):
    runs = bmp(60, 40, 8, 1, b"\x3c\x01\0\0" * 40 + b"\0\1")
    monkeypatch.setattr(image, "MAX_RLE_PIXELS", 2400)
    assert open_image(runs).size == (60, 40)
    monkeypatch.setattr(image, "MAX_RLE_PIXELS", 2399)
    assert refusal(runs) == too_large("0 million pixels", "60×40")
    assert open_image(encoded(image, "BMP")).size == (60, 40)


def test_a_tile_counts_as_a_whole(monkeypatch):
    def tiled(width, height):
        tags = {256: 8, 257: 8, 258: 8, 259: 1, 322: width, 323: height, 324: 8}
        return tiff(tags | {325: width * height}, bytes(width * height))

    monkeypatch.setattr(image, "MAX_PIXELS", 64 * 48)
    assert open_image(tiled(64, 48)).size == (8, 8)
    monkeypatch.setattr(image, "MAX_PIXELS", 64 * 48 - 1)
    assert refusal(tiled(64, 48)) == too_large("0 million pixels", "far more")


@pytest.mark.parametrize("name", ["JPEG", "MPO"])
def test_a_jpeg_may_have_as_many_scans_as_its_pixels_allow(image, name, monkeypatch):
    options = {"save_all": True, "append_images": [image]} if name == "MPO" else {}
    data = encoded(image, name, progressive=True, **options)
    scans = data.count(b"\xff\xda")
    assert scans > 5
    monkeypatch.setattr(image, "MAX_SCANNED_PIXELS", scans * 2400)
    assert open_image(data).size == (60, 40)
    monkeypatch.setattr(image, "MAX_SCANNED_PIXELS", scans * 2400 - 1)
    assert refusal(data) == too_large(f"{scans - 1} scans", str(scans))


def test_only_in_jpegs_are_scans_counted(image, monkeypatch):
    data = encoded(image, "PNG") + b"\xff\xda" * 9
    monkeypatch.setattr(image, "MAX_SCANNED_PIXELS", 1)
    assert open_image(data).size == (60, 40)


# Reading.


def test_a_file_may_be_read_so_often_and_so_much_of_it():
    file = image._BoundedFile(BytesIO(b"abcdef"), reads=2)
    assert (file.read(2), file.read()) == (b"ab", b"cdef")
    with pytest.raises(OSError, match=r"^read too often or too much$"):
        file.read(1)
    file = image._BoundedFile(BytesIO(b"abcdef"), count=4)
    assert (file.read(2), file.tell(), file.read(2)) == (b"ab", 2, b"cd")
    with pytest.raises(OSError, match=r"^read too often or too much$"):
        file.read(1)
    file = image._BoundedFile(BytesIO(b"abcdef"))
    assert [file.read(1) for _ in range(9)] == [b"a", b"b", b"c", b"d", b"e", b"f", *[b""] * 3]


def test_pixels_may_be_read_as_often_as_decoding_wants(image, monkeypatch):
    data = encoded(image, "PNG")
    monkeypatch.setattr(image, "OPENING_READS", 30)
    assert open_image(data).size == (60, 40)
    monkeypatch.setattr(image, "OPENING_READS", 3)
    assert refusal(data).startswith("Expected a whole image")


def test_libtiff_is_told_to_write_nothing(monkeypatch):
    told = []

    class Library:
        def __init__(self, path):
            self.name = path.name

        def __getattr__(self, handler):
            return lambda given: told.append((self.name, handler, given))

    monkeypatch.setattr(ctypes, "CDLL", Library)
    image._silence_libtiff()
    names = {name for name, _, _ in told}
    assert names, "Pillow's wheel has a libtiff of its own"
    assert all(name.startswith("libtiff") for name in names)
    assert sorted(told) == sorted(
        (name, f"TIFFSet{kind}Handler", None) for name in names for kind in ("Error", "Warning")
    )
