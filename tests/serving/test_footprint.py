"""serving/footprint.py: what an image takes is known before it is decoded."""

import struct
import sys
from io import BytesIO

import pytest
from PIL import Image

from benchmarks.avif_writer import Av1, avif
from benchmarks.decoding import in_new_process, measure
from benchmarks.worst_images import (
    DEFLATE,
    FLOATS,
    PALETTED,
    RGBA,
    SIXTEEN_BITS_RGBA,
    deflate,
    deflated_tiff,
    gif,
    jpeg,
    jpeg_tiff,
    lossy_webp,
    plain_bmp,
    png,
    rle_bmp,
    save,
    tiff,
    webp,
    zeros,
)
from serving.errors import TooLargeError
from serving.footprint import CONVERTED, bytes_per_pixel
from serving.image import open_image
from serving.limits import STRIP_PIXELS

SIZE = (2000, 1600)
LOW = (5000, 640)  # too low for a JPEG to be reduced
LEAST = 598
WORKING_BYTES = STRIP_PIXELS * CONVERTED
AV1_BYTES = bytes(200_000)


def baseline(size, mode="RGB", **options):
    return save(Image.new(mode, size), "JPEG", **options)


def many_strips(size):
    return save(Image.new("RGBA", size), "TIFF", compression="tiff_adobe_deflate")


def tiles(size):
    """A TIFF of one tile that is twice as wide and as high as the image."""
    width, height = (side * 2 for side in size)
    content = deflate(zeros(8 * width * height))
    places = {322: width, 323: height, 324: 8, 325: len(content)}
    return tiff(size, {259: DEFLATE, **SIXTEEN_BITS_RGBA, **places}, content)


def coded(size, alpha=False, **how):
    transparency = Av1(size, deep=how.get("deep", False), grey=True)
    planes = [(Av1(size, **how), AV1_BYTES), (transparency, AV1_BYTES)]
    return avif(*planes[: 1 + alpha])


# {name: (file, bytes per pixel)}
KINDS = {
    "baseline": (lambda: baseline(LOW), 4),
    "baseline grey": (lambda: baseline(LOW, "L"), 1),
    "baseline reduced": (lambda: baseline(SIZE), 1),
    "progressive 4:2:0": (lambda: baseline(LOW, progressive=True), 3 + 4),
    "progressive 4:4:4": (lambda: jpeg(LOW, "RGB"), 6 + 4),
    "progressive CMYK": (lambda: jpeg(LOW, "CMYK"), 8 + 4),
    "progressive CMYK reduced": (lambda: jpeg(SIZE, "CMYK"), 8 + 1),
    "PNG with a palette": (lambda: png(SIZE, 8, PALETTED), 1),
    "PNG of 16 bits": (lambda: png(SIZE, 16, RGBA), 4),
    "grey PNG of 16 bits": (lambda: png(SIZE, 16, 0), 2),
    "lossless WebP": (lambda: webp(SIZE), 12),
    "lossy WebP": (lambda: lossy_webp(SIZE), 12),
    "GIF": (lambda: gif(SIZE), 1),
    "BMP of 1 bit": (lambda: plain_bmp(SIZE, 1), 1),
    "BMP in runs": (lambda: rle_bmp(SIZE, 250), 3),
    "TIFF in one strip": (lambda: deflated_tiff(SIZE, SIXTEEN_BITS_RGBA), 8 + 4),
    "TIFF of floats": (lambda: deflated_tiff(SIZE, FLOATS), 4 + 4),
    "TIFF in strips": (lambda: many_strips(SIZE), 4 + 4 * 8 / 1600),
    "TIFF in a larger tile": (lambda: tiles(SIZE), 4 * 8 + 4),
    "uncompressed TIFF": (lambda: save(Image.new("RGB", SIZE), "TIFF"), 4),
    "JPEG in TIFF": (lambda: jpeg_tiff(LOW), 4 + 8 + 4),
    "AVIF 4:2:0": (lambda: coded(SIZE), 1.15 * (1.5 + 3 + 4)),
    "AVIF 4:4:4": (lambda: coded(SIZE, full_colour=True), 1.15 * (3 + 3 + 4)),
    "grey AVIF": (lambda: coded(SIZE, grey=True), 1.15 * (1.5 + 3 + 4)),
    "AVIF of 10 bits with alpha": (
        lambda: coded(SIZE, alpha=True, deep=True, full_colour=True),
        1.15 * (8 + 4 + 4),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_pixel_follow_from_how_it_is_stored(kind):
    make, expected = KINDS[kind]
    data = make()
    with Image.open(BytesIO(data)) as image:
        assert bytes_per_pixel(image, data, LEAST) == pytest.approx(expected, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_that_and_not_far_less(kind, tmp_path):
    make, each = KINDS[kind]
    path = tmp_path / "image"
    path.write_bytes(make())
    cost = in_new_process(measure, path)
    needed = each * cost.pixels + path.stat().st_size + WORKING_BYTES
    assert cost.address_space < needed
    assert cost.address_space > 0.6 * each * cost.pixels


@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_more_than_is_left_is_refused_at_once(kind, monkeypatch):
    data = KINDS[kind][0]()
    with pytest.raises(TooLargeError) as refused:
        open_image(data, (299, 299), WORKING_BYTES + len(data))
    name = Image.open(BytesIO(data)).format
    assert str(refused.value).startswith(
        f"Expected at most 0.0 million pixels of this kind of {name} in the memory that is left. "
    )


def test_the_sentence_says_how_many_pixels_fit():
    data = webp((2000, 2000))
    with pytest.raises(TooLargeError) as refused:
        open_image(data, (299, 299), WORKING_BYTES + len(data) + 12 * 2_300_000)
    assert str(refused.value) == (
        "Expected at most 2.3 million pixels of this kind of WEBP in the memory that is left. "
        "Received: 2000×2000. Use a smaller image, or give the function more memory."
    )


def test_what_just_fits_is_decoded():
    data = webp((2000, 2000))
    most = WORKING_BYTES + len(data) + 12 * 4_000_000
    assert open_image(data, (299, 299), most).info["size"] == (2000, 2000)
    with pytest.raises(TooLargeError):
        open_image(data, (299, 299), most - 1)


def test_a_small_image_needs_little():
    data = save(Image.new("RGB", (100, 100)), "PNG")
    assert open_image(data, (299, 299), len(data) + 10_000 * (4 + CONVERTED)).size == (100, 100)
    with pytest.raises(TooLargeError):
        open_image(data, (299, 299), len(data) + 10_000 * (4 + CONVERTED) - 1)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"MM\0*\0\0\0\x08\0\0"}])
def test_the_size_of_a_webp_is_read_before_it_is_opened(options, monkeypatch):
    data = save(Image.new("RGBA" if "exif" in options else "RGB", (300, 200)), "WEBP", **options)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(TooLargeError, match="Received: 300×200"):
        open_image(data, None, 1000)


def test_a_webp_that_ends_early_is_left_to_the_decoder():
    for kind in (b"VP8 ", b"VP8L", b"VP8X"):
        head = b"RIFF" + struct.pack("<I", 14) + b"WEBP" + kind + struct.pack("<IH", 2, 0)
        with pytest.raises(Exception, match="Expected a complete image"):
            open_image(head, None, 100_000_000)
