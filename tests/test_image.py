"""serving.image: bytes to upright RGB."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from serving import image
from serving.errors import ImageError, TooLargeError
from serving.image import FORMATS, open_picture


def encoded(picture: Image.Image, name: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    rows = np.linspace(0, 255, 40 * 60).reshape(40, 60)
    return Image.fromarray(np.stack([rows, rows[::-1], rows.T.reshape(40, 60)], -1).astype("uint8"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_opens_as_rgb(picture, name):
    opened = open_picture(encoded(picture, name))
    assert (opened.mode, opened.size) == ("RGB", (60, 40))
    assert np.abs(np.asarray(opened, int) - np.asarray(picture, int)).mean() < 30


def test_mpo_opens_as_the_jpeg_it_looks_like(picture):
    data = encoded(picture, "MPO", save_all=True, append_images=[picture])
    assert open_picture(data).size == (60, 40)


def test_a_path_gives_what_its_bytes_give(picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    assert np.array_equal(open_picture(path), open_picture(path.read_bytes()))
    assert np.array_equal(open_picture(path), picture)


def test_exif_orientation_is_applied(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    lying = picture.transpose(Image.Transpose.ROTATE_90)
    opened = open_picture(encoded(lying, "PNG", exif=exif))
    assert np.array_equal(opened, picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    clear = Image.new(mode, (4, 4), 0)
    assert open_picture(encoded(clear, "PNG")).getpixel((1, 1)) == (255, 255, 255)


def test_a_transparent_palette_entry_is_laid_on_white():
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    opened = open_picture(encoded(picture, "PNG", transparency=0))
    assert opened.getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bits_become_eight():
    grey = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    opened = np.asarray(open_picture(encoded(grey, "PNG")))[0, :, 0]
    assert opened.tolist() == [0, 127, 255]


def test_cmyk_and_grey_become_rgb(picture):
    for mode in ("CMYK", "L", "1"):
        name = "TIFF" if mode == "1" else "JPEG"
        assert open_picture(encoded(picture.convert(mode), name)).mode == "RGB"


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg></svg>", b"%PDF-1.4 ..."])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ImageError, match=r"^Expected a picture \(JPEG, PNG"):
        open_picture(data)


def test_formats_outside_the_list_are_refused(picture):
    with pytest.raises(ImageError, match="^Expected a picture"):
        open_picture(encoded(picture, "PPM"))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_that_breaks_off_is_refused(picture, name):
    data = encoded(picture, name)
    with pytest.raises(ImageError, match="^Expected a"):
        open_picture(data[: len(data) // 2])


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    data = encoded(Image.new("1", (8000, 8000)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(TooLargeError, match=r"at most 50 million pixels. Received: 8000×8000"):
        open_picture(data)


def test_pillows_own_alarm_is_answered_the_same_way(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TooLargeError, match="million pixels"):
        open_picture(encoded(Image.new("1", (100, 100)), "PNG"))


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "none.jpg")


def test_limits_are_what_the_sentences_say():
    assert image.MAX_PIXELS == 50_000_000
