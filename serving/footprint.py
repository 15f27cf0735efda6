"""How much memory decoding an image takes, known before it is decoded.

serving/decoder_process.py guarantees that no image takes more than it may; what would fail there
is refused here, before it is decoded. `python -m benchmarks.decoding` measures the figures.
"""

import math
import re

from PIL import ImageFile, JpegImagePlugin, TiffImagePlugin
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PLANAR_CONFIGURATION,
    ROWSPERSTRIP,
    SAMPLESPERPIXEL,
    TILELENGTH,
    TILEWIDTH,
)

from serving.errors import TooLargeError
from serving.limits import STRIP_PIXELS
from serving.metadata import webp_size

# Bytes of a pixel in Pillow; 4 in all other modes.
CANVAS = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
COEFFICIENT = 2  # bytes; a JPEG in several scans needs all of them at once
WEBP = 12  # two frames, then the pixels and a copy or two
AVIF_TABLES = 1.15  # times the pixels; the decoder's tables and threads are the rest
RLE = 2  # as Python's bytes, and a copy of them
CONVERTED = 24  # bytes of a pixel while it is converted, with `STRIP_PIXELS` others
# The third byte says how many bits a channel has, and which pixels have colour.
AV1_CONFIGURATION = re.compile(rb"av1C\x81.(.)", re.DOTALL)
SCAN = b"\xff\xda"


def check_webp(data: bytes, memory: int) -> None:
    """Raise TooLargeError if decoding `data`, if it is a WebP, takes more than `memory` bytes.

    libwebp takes its memory already where a file is opened.
    """
    if data[8:12] == b"WEBP":
        _compare("WEBP", webp_size(data), WEBP, memory - len(data))


def check_memory(image: ImageFile.ImageFile, data: bytes, least: int, memory: int) -> None:
    """Raise TooLargeError if decoding `image`, the file `data`, takes more than `memory` bytes.

    A JPEG is reduced while it is decoded, but no side to less than `least` pixels.
    """
    each = bytes_per_pixel(image, data, least)
    _compare(image.format or "", image.size, each, memory - len(data))


def _compare(name: str, size: tuple[int, int], each: float, memory: int) -> None:
    """Raise TooLargeError if `size` pixels take more than `memory`, at `each` bytes a pixel."""
    width, height = size
    pixels = width * height
    left = max(0, memory - CONVERTED * min(pixels, STRIP_PIXELS))
    if pixels * each > left:
        raise TooLargeError(
            f"Expected at most {left / each / 1_000_000:.1f} million pixels of this kind of {name} "
            f"in the memory that is left. Received: {width}×{height}. Use a smaller image, or give "
            "the function more memory."
        )


def bytes_per_pixel(image: ImageFile.ImageFile, data: bytes, least: int) -> float:
    """Return the most memory that a pixel of `image`, the file `data`, needs at a time."""
    canvas = CANVAS.get(image.mode, 4)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        return _jpeg(image, data, least, canvas)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return canvas + _tiff_strip(image)
    if image.format == "AVIF":
        return _avif(image, data)
    if image.format == "WEBP":
        return WEBP
    return canvas + RLE * (image.format == "BMP" and image.tile[0][0] == "bmp_rle")


def _jpeg(image: JpegImagePlugin.JpegImageFile, data: bytes, least: int, canvas: int) -> float:
    """Return the bytes of a pixel of the JPEG `image`; its coefficients come first."""
    scale = next((s for s in (8, 4, 2) if min(image.size) >= s * least), 1)
    if data.count(SCAN) == 1:
        return canvas / scale**2
    factors = [(across, down) for _, across, down, _ in image.layer]
    most = max(across for across, _ in factors) * max(down for _, down in factors)
    return COEFFICIENT * sum(map(math.prod, factors)) / most + canvas / scale**2


def _tiff_strip(image: TiffImagePlugin.TiffImageFile) -> float:
    """Return the bytes that the largest strip or tile of `image` takes, by pixel of the image."""
    if image.tile and image.tile[0][0] != "libtiff":  # uncompressed
        return 0
    tags, (width, height) = image.tag_v2, image.size
    samples = tags.get(SAMPLESPERPIXEL, 1)
    bits = max(tags.get(BITSPERSAMPLE, (1,))) * (
        1 if tags.get(PLANAR_CONFIGURATION) == 2 else samples
    )
    if TILEWIDTH in tags:
        pixels = tags[TILEWIDTH] * tags.get(TILELENGTH, height)
    else:
        pixels = width * min(height, tags.get(ROWSPERSTRIP, height))
    coefficients = COEFFICIENT * samples if image.info.get("compression") == "jpeg" else 0
    return (bits / 8 + coefficients) * pixels / (width * height)


def _avif(image: ImageFile.ImageFile, data: bytes) -> float:
    """Return the bytes of a pixel of the AVIF `image`: as AV1 has it, as RGB, and a copy of it.

    Film grain, which is rare, takes 10 more.
    """
    channels = len(image.getbands())
    planes = [1.5 + (channels > 3)]
    for found in AV1_CONFIGURATION.finditer(data):
        deep, _, grey, halved, quartered = (found[1][0] >> bit & 1 for bit in (6, 5, 4, 3, 2))
        colours = 0 if grey else 2 / ((1 + halved) * (1 + quartered))
        planes.append((1 + colours + (channels > 3)) * (1 + deep))
    return (max(planes) + channels + max(channels, 4)) * AVIF_TABLES
