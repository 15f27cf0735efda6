"""serving.image: bytes to upright RGB."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from serving import image as module
from serving import limits
from serving.errors import ImageError, TooLargeError, UnsupportedTypeError
from serving.image import FORMATS, open_image
from serving.preprocess import resize
from tests.fuzz.make_corpus import GREY, GREY_ALPHA, RGB, chunk, encoded, exif, png, tiff

# pytest replaces the filters that serving.pillow_limits sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

SIZE = (30, 40)  # of a network's input; what is 160 pixels wide and 120 high is reduced for it


def smooth(width: int, height: int) -> Image.Image:
    """Waves as slow as large things, and some noise."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / width * a + y / height * b) * 90 + 128 for a, b in ((9, 3), (4, 8), (2, 2))]
    noise = np.random.default_rng(0).normal(0, 5, (height, width, 3))
    return Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def image() -> Image.Image:
    rows = np.linspace(0, 255, 40 * 60).reshape(40, 60)
    return Image.fromarray(np.stack([rows, rows[::-1], rows.T.reshape(40, 60)], -1).astype("uint8"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_opens_as_rgb(image, name):
    opened = open_image(encoded(image, name))
    assert (opened.mode, opened.size) == ("RGB", (60, 40))
    assert np.abs(np.asarray(opened, int) - np.asarray(image, int)).mean() < 30


def test_mpo_opens_as_the_jpeg_it_looks_like(image):
    data = encoded(image, "MPO", save_all=True, append_images=[image])
    assert open_image(data).size == (60, 40)


def test_of_an_mpo_the_first_image_counts_and_lies_as_its_exif_says(image):
    lying = image.transpose(Image.Transpose.ROTATE_90)
    data = encoded(
        lying, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))], exif=exif(6)
    )
    opened = open_image(data)
    assert opened.size == (60, 40)
    assert np.abs(np.asarray(opened, int) - np.asarray(image, int)).mean() < 30


def test_a_path_gives_what_its_bytes_give(image, tmp_path):
    path = tmp_path / "image.png"
    image.save(path)
    assert np.array_equal(open_image(path), open_image(path.read_bytes()))
    assert np.array_equal(open_image(path), image)


def test_the_name_of_a_file_says_nothing(image, tmp_path):
    path = tmp_path / "image.txt"
    path.write_bytes(encoded(image, "PNG") + b"PK\x03\x04 and other garbage")
    assert np.array_equal(open_image(path), image)


@pytest.mark.parametrize("name", FORMATS)
def test_format_and_size_as_stored_are_noted_and_nothing_else(image, name):
    options = {} if name in ("GIF", "BMP") else {"exif": exif(6)}
    opened = open_image(encoded(image, name, **options), SIZE)
    assert opened.info == {"format": name, "size": (40, 60) if name == "TIFF" else (60, 40)}
    assert opened.size == ((40, 60) if options else (60, 40))


def test_an_mpo_is_noted_as_jpeg(image):
    data = encoded(image, "MPO", save_all=True, append_images=[image])
    assert open_image(data).info == {"format": "JPEG", "size": (60, 40)}


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "lay"),  # how the image was laid down when it was stored
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_orientation_is_applied(image, name, orientation, lay):
    lying = image if lay is None else image.transpose(lay)
    opened = open_image(encoded(lying, name, exif=exif(orientation)))
    assert np.array_equal(opened, image)


def test_avif_and_webp_turn_as_their_files_say(image):
    lying = image.transpose(Image.Transpose.ROTATE_90)
    for name in ("AVIF", "WEBP"):
        opened = open_image(encoded(lying, name, exif=exif(6), quality=95))
        assert np.abs(np.asarray(opened, int) - np.asarray(image, int)).mean() < 30


@pytest.mark.parametrize(
    "broken",
    [
        exif(0),
        exif(9),
        b"Exif\0\0",
        b"Exif\0\0no TIFF at all",
        exif(6)[:-8],
    ],
)
def test_an_image_with_broken_exif_lies_as_it_is_stored(image, broken):
    plain = open_image(encoded(image, "JPEG"))
    assert np.array_equal(open_image(encoded(image, "JPEG", exif=broken)), plain)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    clear = Image.new(mode, (4, 4), 0)
    assert open_image(encoded(clear, "PNG")).getpixel((1, 1)) == (255, 255, 255)


def test_a_transparent_palette_entry_is_laid_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    opened = open_image(encoded(image, "PNG", transparency=0))
    assert opened.getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bits_become_eight():
    grey = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    opened = np.asarray(open_image(encoded(grey, "PNG")))[0, :, 0]
    assert opened.tolist() == [0, 128, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_a_tiff_become_eight_in_either_byte_order(order):
    pixels = np.array([[0, 32768, 65535]], np.uint16).astype(f"{order}u2")
    data = tiff({256: 3, 257: 1, 258: 16}, pixels.tobytes())
    if order == "<":
        data = encoded(Image.fromarray(pixels), "TIFF")
    assert np.asarray(open_image(data))[0, :, 0].tolist() == [0, 128, 255]


def test_sixteen_bits_of_colour_or_of_grey_with_alpha_become_eight():
    colour = struct.pack(">xHHH", 0xFF00, 0x8000, 0x1234)
    assert open_image(png(1, 1, 16, RGB, colour)).getpixel((0, 0)) == (255, 128, 18)
    rows = struct.pack(">xHHHH", 0x4000, 0xFFFF, 0x4000, 0)
    opened = np.asarray(open_image(png(2, 1, 16, GREY_ALPHA, rows)))[0, :, 0]
    assert opened.tolist() == [64, 255]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.float32([0, 0.5, 1]), [0, 128, 255]),
        (np.float32([-1, 51, 204]), [0, 51, 204]),
        (np.float32([np.nan, -np.inf, 1]), [0, 0, 255]),
        (np.float32([0, np.inf, 0]), [0, 255, 0]),
        (np.int32([0, 1, 255]), [0, 1, 255]),
        (np.int32([-5, 32768, 65535]), [0, 128, 255]),
        (np.int32([0, 2**30, 2**31 - 1]), [0, 64, 128]),
    ],
)
def test_pixels_of_32_bits_fill_the_smallest_usual_range_that_holds_them(pixels, expected):
    opened = open_image(encoded(Image.fromarray(pixels.reshape(1, 3)), "TIFF"))
    assert np.asarray(opened)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_has_its_right_colours(name):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = open_image(encoded(red, name)).getpixel((4, 4))
    assert np.abs(np.array(pixel) - (255, 0, 0)).max() < 5


def test_ycck_has_its_right_colours():
    # As Adobe stores red: Y, Cb and Cr of its inks, then K, all upside down.
    upside_down = tuple(255 - value for value in (179, 171, 1, 255))
    data = encoded(Image.new("CMYK", (8, 8), (*upside_down[:3], 0)), "JPEG", quality=95)
    transform = data.index(b"Adobe") + 11
    opened = open_image(data[:transform] + b"\2" + data[transform + 1 :])
    assert np.abs(np.array(opened.getpixel((4, 4))) - (255, 0, 0)).max() < 5


@pytest.mark.parametrize(
    ("depth", "values", "transparent", "expected"),
    [
        (1, [0, 1], 0, [255, 255]),
        (1, [0, 1], 1, [0, 255]),
        (2, [0, 1, 2], 1, [0, 255, 170]),
        (2, [0, 1, 2], 2, [0, 85, 255]),
        (4, [0, 1, 15], 1, [0, 255, 255]),
        (4, [0, 1, 2], 0, [255, 17, 34]),
        (8, [0, 1, 2], 1, [0, 255, 2]),
        (16, [0, 256, 512], 0, [255, 1, 2]),
        (16, [0, 256, 512], 256, [0, 255, 2]),
    ],
)
def test_a_transparent_grey_of_any_depth_is_white(depth, values, transparent, expected):
    bits = "".join(f"{value:0{depth}b}" for value in values)
    line = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    tone = chunk(b"tRNS", struct.pack(">H", transparent))
    opened = np.asarray(open_image(png(len(values), 1, depth, GREY, b"\0" + line, tone)))
    assert opened[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_16_bits_is_white():
    line = struct.pack(">x6H", 0x1200, 0x3400, 0x5600, 0, 0, 0)
    for tone, expected in (
        ((0, 0, 0), [(0x12, 0x34, 0x56), (255, 255, 255)]),
        ((0x1200, 0x3400, 0x5600), [(255, 255, 255), (0, 0, 0)]),
    ):
        more = chunk(b"tRNS", struct.pack(">3H", *tone))
        opened = np.asarray(open_image(png(2, 1, 16, RGB, line, more)))
        assert [tuple(pixel) for pixel in opened[0].tolist()] == expected


def test_half_transparent_is_half_white():
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 51))
    assert open_image(encoded(half, "PNG")).getpixel((1, 1)) == (255, 204, 204)


def test_strips_join_without_a_seam(image, monkeypatch):
    whole = open_image(encoded(image.convert("RGBA"), "PNG"))
    monkeypatch.setattr(module, "STRIP_PIXELS", 60 * 7)
    assert np.array_equal(open_image(encoded(image.convert("RGBA"), "PNG")), whole)


def test_an_image_of_one_strip_is_not_copied_piece_by_piece(image, monkeypatch):
    """That took as long as decoding it."""
    data = encoded(image, "JPEG")
    monkeypatch.setattr(Image.Image, "crop", lambda *_: pytest.fail("copied"))
    monkeypatch.setattr(Image, "new", lambda *_: pytest.fail("copied"))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("copied"))
    assert open_image(data, SIZE).size == image.size


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(640, 480), (647, 481), (90, 700), (1000, 60)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_while_it_is_read_it_resizes_to_the_same(name, size, orientation):
    options = {"quality": 95} if name == "JPEG" else {}
    data = encoded(smooth(*size), name, exif=exif(orientation), **options)
    whole, reduced = open_image(data), open_image(data, SIZE)
    height, width = SIZE
    assert reduced.width >= min(2 * width, whole.width)
    assert reduced.height >= min(2 * height, whole.height)
    difference = np.abs(resize(reduced, SIZE).astype(int) - resize(whole, SIZE))
    assert difference.mean() < 0.6
    assert difference.max() <= 5


def test_a_large_image_comes_reduced():
    for name, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        assert open_image(encoded(smooth(640, 480), name, **options), SIZE).size == (80, 60)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_of_a_large_image_no_more_is_in_memory_than_has_to_be(tmp_path):
    """Of a JPEG the reduced pixels; of others those that are stored, and a strip of others."""
    large = Image.new("RGB", (4000, 3000), "red")  # 48 MB
    large.save(tmp_path / "1.jpg")
    large.save(tmp_path / "2.mpo", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    large.convert("RGBA").save(tmp_path / "3.png", compress_level=1)
    code = """
import re, sys
from pathlib import Path
from serving.image import open_image
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    assert open_image(path, (30, 40)).getpixel((9, 9))[0] > 250
    print(peak() - before)
"""
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    jpeg, mpo, png = map(float, process.stdout.split())
    assert max(jpeg, mpo) < 24, process.stderr
    assert png < 48 + 36


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_an_image_below_four_times_the_size_comes_whole(name):
    data = encoded(smooth(159, 119), name)
    assert np.array_equal(open_image(data, SIZE), open_image(data))


def test_cmyk_and_grey_become_rgb(image):
    for mode in ("CMYK", "L", "1"):
        name = "TIFF" if mode == "1" else "JPEG"
        assert open_image(encoded(image.convert(mode), name)).mode == "RGB"


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg></svg>", b"%PDF-1.4 ..."])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(UnsupportedTypeError, match=r"^Expected an image \(JPEG, PNG"):
        open_image(data)


def test_formats_outside_the_list_are_refused(image):
    for name in ("PPM", "ICO", "TGA", "JPEG2000"):
        with pytest.raises(UnsupportedTypeError, match="^Expected an image"):
            open_image(encoded(image, name))


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_that_breaks_off_is_refused(image, name):
    data = encoded(image, name)
    for length in (16, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(ImageError, match=r"^Expected a complete image\. Received: "):
            open_image(data[:length])


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    data = encoded(Image.new("1", (8000, 8000)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(TooLargeError, match=r"at most 50 million pixels. Received: 8000×8000"):
        open_image(data)


def test_pillows_own_alarm_is_answered_the_same_way(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TooLargeError, match="million pixels"):
        open_image(encoded(Image.new("1", (100, 100)), "PNG"))


def test_a_column_or_a_row_of_absurd_length_is_refused():
    for width, height in ((1, 50_000_000), (65_536, 1)):
        with pytest.raises(TooLargeError, match="65535 pixels a side"):
            open_image(png(width, height, 8, GREY, b""))


def test_the_longest_row_fits_into_the_input():
    data = encoded(Image.new("RGB", (65_500, 1), "red"), "JPEG")
    assert (resize(open_image(data, SIZE), SIZE)[..., 0] > 250).all()


def test_metadata_in_thousands_of_pieces_is_refused(image):
    jpeg, gif = encoded(image, "JPEG"), encoded(image.convert("P"), "GIF")
    empty = b"\xff\xe1\0\x08Exif\0\0"
    assert open_image(jpeg[:2] + empty * 500 + jpeg[2:]).size == (60, 40)
    with pytest.raises(TooLargeError, match="at most 4000 segments"):
        open_image(jpeg[:2] + empty * 5000 + jpeg[2:])
    comments = b"\x21\xfe\x01c\0" * 5000
    with pytest.raises(ImageError):
        open_image(gif[:781] + comments + gif[781:])


def test_pixels_may_come_in_as_many_pieces_as_they_like(image):
    """Some programs write a PNG in chunks of 4 kB, of which a few MB are thousands."""
    rows = np.asarray(image)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 0)
    pieces = [chunk(b"IDAT", pixels[i : i + 1]) for i in range(len(pixels))]
    assert len(pieces) > module.OPENING_READS
    whole = png(60, 40, 8, RGB, b"")
    head, tail = whole.split(chunk(b"IDAT", zlib.compress(b"", 9)))
    assert np.array_equal(open_image(head + b"".join(pieces) + tail), image)


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, received in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe.jpg", "a pipe or a device"),
        ("/dev/zero", "a pipe or a device"),
    ):
        with pytest.raises(ImageError) as caught:
            open_image(path)
        assert str(caught.value) == (
            f"Expected an image file. Received: {received}. Check the path."
        )


def test_the_first_bytes_of_a_large_file_decide(tmp_path, monkeypatch):
    """A video may be larger than the memory."""
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    for begins, error, sentence in (
        (b"\0\0\0\x18ftypmp42", UnsupportedTypeError, r"Received: a video \(MP4\)\. "),
        (b"", UnsupportedTypeError, "Received: only zeros"),
        (encoded(Image.new("L", (9, 9)), "TIFF"), TooLargeError, "at most 400 MB. Received: more"),
    ):
        path = tmp_path / "large"
        path.write_bytes(begins)
        os.truncate(path, 6_000_000_000)  # takes no space
        with pytest.raises(error, match=sentence):
            open_image(path)


def test_a_file_as_large_as_allowed_is_read(image, tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(image, "PNG"))
    monkeypatch.setattr(module, "MAX_FILE_BYTES", path.stat().st_size)
    assert np.array_equal(open_image(path), image)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(TooLargeError, match="Received: more"):
        open_image(path)


def test_a_full_memory_is_told(image, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError

    path = tmp_path / "image.png"
    path.write_bytes(encoded(image, "PNG"))
    sentence = r"^Expected at most what fits into memory\. Received: more\. Use a smaller image\.$"
    for owner, name in ((Path, "read_bytes"), (Image.Image, "reduce")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(TooLargeError, match=sentence):
                open_image(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.jpg")


@pytest.mark.parametrize(
    ("most", "more", "sentence"),
    [
        ((10_000, 5_000), (10_000, 5_001), "at most 50 million pixels. Received: 10000×5001."),
        ((65_535, 1), (65_536, 1), "at most 65535 pixels a side. Received: 65536×1."),
        ((1, 65_535), (1, 65_536), "at most 65535 pixels a side. Received: 1×65536."),
    ],
)
def test_limits_are_what_the_sentences_say(most, more, sentence):
    with pytest.raises(ImageError):  # it passes, then there are no pixels
        open_image(png(*most, 8, GREY, b""))
    with pytest.raises(TooLargeError, match=sentence):
        open_image(png(*more, 8, GREY, b""))


# Each limit at its edge, and the whole sentence.


def refusal(data):
    with pytest.raises((ImageError, TooLargeError, UnsupportedTypeError)) as caught:
        open_image(data)
    return str(caught.value)


def too_large(most, received):
    return f"Expected at most {most}. Received: {received}. Use a smaller image."


def test_a_file_that_is_no_image_is_refused_with_the_formats():
    assert refusal(b"hello") == (
        "Expected an image (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF). Received: text. "
        "Use the image itself, as JPEG or PNG."
    )


def test_the_error_for_an_image_that_breaks_off_keeps_its_cause(image):
    with pytest.raises(ImageError) as caught:
        open_image(encoded(image, "PNG")[:-100])
    assert str(caught.value) == (
        "Expected a complete image. Received: one that is truncated, damaged or of an unusual "
        "kind. Save it again as JPEG or PNG."
    )
    assert isinstance(caught.value.__cause__, Exception)


def test_as_many_pixels_as_are_allowed_open(image, monkeypatch):
    data = encoded(image, "PNG")
    monkeypatch.setattr(limits, "MAX_PIXELS", 2400)
    assert open_image(data).size == (60, 40)
    monkeypatch.setattr(limits, "MAX_PIXELS", 2399)
    assert refusal(data) == too_large("0 million pixels", "60×40")


def test_pixels_are_counted_in_millions():
    data = encoded(Image.new("1", (8000, 8000)), "PNG")
    assert refusal(data) == too_large("50 million pixels", "8000×8000")


def test_what_pillow_itself_refuses_has_the_same_sentence(image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert refusal(encoded(image, "PNG")) == too_large("50 million pixels", "far more")


@pytest.mark.parametrize("size", [(60, 1), (1, 60)])
def test_a_side_as_long_as_allowed_opens(size, monkeypatch):
    data = encoded(Image.new("RGB", size), "PNG")
    monkeypatch.setattr(limits, "MAX_SIDE", 60)
    assert open_image(data).size == size
    monkeypatch.setattr(limits, "MAX_SIDE", 59)
    assert refusal(data) == too_large("59 pixels a side", f"{size[0]}×{size[1]}")


# Reading.


def test_pixels_may_be_read_as_often_as_decoding_wants(image, monkeypatch):
    data = encoded(image, "PNG")
    monkeypatch.setattr(module, "OPENING_READS", 30)
    assert open_image(data).size == (60, 40)
    monkeypatch.setattr(module, "OPENING_READS", 3)
    assert refusal(data).startswith("Expected a complete image")
