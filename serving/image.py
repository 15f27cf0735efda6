"""Bytes or a file to an upright RGB image."""

import ctypes
import logging
import math
import warnings
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import IO

import numpy as np

# Importing a plugin registers its format; Pillow does that by itself only for a few common ones,
# or else for all of its forty.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from serving.errors import ImageError, TooLargeError, UnsupportedTypeError

# Pillow knows many more formats; those need not be reachable from outside. JPEG brings MPO, what
# phones call a JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 50_000_000  # a 48-megapixel phone image passes, 150 MB when decoded
MAX_RLE_PIXELS = 20_000_000  # of a BMP in that compression, which Pillow decodes in Python: 2 s
MAX_SIDE = 65_535  # what JPEG can hold; Pillow needs far more memory for a column than for a square
# Each scan of a JPEG goes through all of its pixels again, be it of ten bytes: a hundred scans of
# the largest image take two seconds. Usual are one to twelve.
MAX_SCANNED_PIXELS = 100 * MAX_PIXELS
REDUCED = 2  # times the wanted size, at least, is what an image is reduced to while it is read
STRIP_PIXELS = 1_000_000  # converted at a time
# What stands before the pixels is read in pieces, some of which Pillow joins in a time that grows
# with the square of their number. Usual are a few hundred.
OPENING_READS = 4_000

SIXTEEN_BITS = 65_535
RANGES = (1, 255, SIXTEEN_BITS, 2**32 - 1)  # from 0, of pixels that could have any
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = (5, 6, 7, 8)  # the orientations that exchange width and height

# What strangers send is full of oddities, and the log is for what somebody has to look at. Not by
# a context around each call: threads share the list of filters.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def open_image(source: bytes | str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Return the image in `source` (a file's bytes, or its path) as upright RGB.

    EXIF orientation is applied, transparency laid on white, other numbers brought to 8 bits; of
    several images in a file the first counts. Its `info` is {"format": ..., "size": ...}: one
    of `FORMATS`, and (width, height) as they are stored, those of a TIFF upright.

    With `size`, (height, width) of what it will be resized to, an image at least twice `REDUCED`
    times as large comes reduced, to no less than `REDUCED` times that. What `resize` then makes of
    it differs by 0.3 of 255 on average from what it makes of the whole image.

    Raises:
        UnsupportedTypeError: no image of `FORMATS`.
        ImageError: one that cannot be decoded to its end.
        TooLargeError: more than `MAX_PIXELS` pixels, `MAX_SIDE` pixels a side or
            `MAX_SCANNED_PIXELS`; found out before they are decoded.
        OSError: `source` is a path that cannot be opened.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not _is_known(data[:16]):
        raise UnsupportedTypeError(
            f"Expected an image ({', '.join(FORMATS)}). Received: something else. "
            "Send it as JPEG or PNG."
        )
    file = _BoundedFile(BytesIO(data), reads=OPENING_READS)
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image, data)
            stored = {"format": image.format, "size": image.size}
            file.reads = math.inf
            upright = _upright_rgb(image, size)
    except Image.DecompressionBombError:
        raise _too_large(f"{MAX_PIXELS // 1_000_000} million pixels", "far more") from None
    except TooLargeError:
        raise
    except Exception as error:
        # Pillow's decoders raise nearly anything on broken files: OSError, SyntaxError,
        # ValueError, struct.error, EOFError, zlib.error, ...
        raise ImageError(
            "Expected a whole image. Received: one that breaks off, is damaged or of a rare "
            "kind. Save it anew as JPEG or PNG."
        ) from error
    upright.info = stored | {"format": "JPEG"} if stored["format"] == "MPO" else stored
    return upright


def _is_known(head: bytes) -> bool:
    """Return whether a file that begins with the 16 bytes `head` says it is one of `FORMATS`."""
    return any(Image.OPEN[name][1](head) for name in FORMATS)


def _check_size(image: Image.Image, data: bytes) -> None:
    """Raise `TooLargeError` where decoding `image`, opened from `data`, would take too long."""
    width, height = image.size
    most = MAX_RLE_PIXELS if image.tile and image.tile[0][0] == "bmp_rle" else MAX_PIXELS
    if width * height > most:
        raise _too_large(f"{most // 1_000_000} million pixels", f"{width}×{height}")
    if max(width, height) > MAX_SIDE:
        raise _too_large(f"{MAX_SIDE} pixels a side", f"{width}×{height}")
    if image.format == "TIFF":
        tags = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
        tile = [side for side in map(image.tag_v2.get, tags) if isinstance(side, int)]
        if math.prod(tile) > MAX_PIXELS:  # decoded as a whole, however small the image
            raise _too_large(f"{MAX_PIXELS // 1_000_000} million pixels", "far more")
    if image.format in ("JPEG", "MPO"):
        scans = data.count(b"\xff\xda")
        if scans * width * height > MAX_SCANNED_PIXELS:
            raise _too_large(f"{MAX_SCANNED_PIXELS // (width * height)} scans", str(scans))


def _too_large(most: str, received: str) -> TooLargeError:
    return TooLargeError(f"Expected at most {most}. Received: {received}. Send a smaller image.")


def _upright_rgb(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    orientation = _orientation(image)
    factors, extent = (1, 1), image.size
    if size:
        height, width = size[::-1] if orientation in SWAPS_SIDES else size
        least = (REDUCED * width, REDUCED * height)
        drafted = image.draft(None, least)  # JPEG: computes fewer pixels of each block
        extent = drafted[1][2:] if drafted else extent
        factors = tuple(max(1, have // need) for have, need in zip(image.size, least, strict=True))
    reduced = _reduced_rgb(image, factors)
    # The last row and column may stand for less than a whole factor of the image's.
    extent = (extent[0] / factors[0], extent[1] / factors[1])
    if extent != reduced.size:
        reduced = reduced.resize(reduced.size, Image.Resampling.BICUBIC, (0, 0, *extent))
    return reduced.transpose(TURNS[orientation]) if orientation in TURNS else reduced


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8, what the EXIF of `image` says of how it lies; upright, 1, if nothing."""
    if image.format not in ("JPEG", "MPO"):
        image.load()  # getexif() would, for EXIF behind a PNG's pixels, which may be broken
    if image.format == "TIFF":  # Pillow has turned it
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever broken EXIF makes Pillow raise: the image is whole without it
        return 1
    return orientation if isinstance(orientation, int) and orientation in TURNS else 1


def _reduced_rgb(image: Image.Image, factors: tuple[int, int]) -> Image.Image:
    """Return `image` as RGB, each `factors` (across, down) of its pixels averaged to one.

    In strips, so that only the image as it is stored is in memory as a whole.
    """
    image.load()
    white = _white(image)
    across, down = factors
    width, height = image.size
    reduced = Image.new("RGB", (-(-width // across), -(-height // down)))
    rows = max(1, STRIP_PIXELS // (width * down)) * down
    for top in range(0, height, rows):
        strip = _to_rgb(image.crop((0, top, width, min(top + rows, height))), white)
        reduced.paste(strip.reduce(factors), (0, top // down))
    return reduced


def _white(image: Image.Image) -> int | None:
    """Return the number that stands for white in `image`; None where that is Pillow's matter.

    32 bits a pixel have no usual range: it is the smallest of `RANGES` that holds all pixels.
    """
    if image.mode.startswith("I;16"):
        return SIXTEEN_BITS
    if image.mode not in ("I", "F"):
        return None
    highest = np.fmax.reduce(np.asarray(image), axis=None)  # skips NaN
    return next((most for most in RANGES if highest <= most), RANGES[-1])


def _to_rgb(image: Image.Image, white: int | None) -> Image.Image:
    if white:  # convert() would clip at 255
        grey = np.nan_to_num(np.asarray(image, np.float32)).clip(0, white) * (255 / white)
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


class _BoundedFile:
    """A file that may be read so many times, and so many bytes of it.

    Attributes:
        reads: how many times more.
    """

    def __init__(self, file: IO[bytes], reads: float = math.inf, count: float = math.inf):
        """Allow `file` to be read `reads` times, and `count` bytes of it in all."""
        self._file, self.reads, self._left = file, reads, count
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        """Return the next `count` bytes; raise `OSError` behind the bounds."""
        piece = self._file.read(count)
        self.reads -= 1
        self._left -= len(piece)
        if self.reads < 0 or self._left < 0:
            raise OSError("read too often or too much")
        return piece


class _BoundedDirectory(TiffImagePlugin.ImageFileDirectory_v2):
    """The tags of a TIFF or of EXIF, whose values are together no longer than the whole of it.

    Without that, 10 MB hold 30,000 tags of 10 MB each, all of the same bytes, and Pillow 12 keeps
    a copy of each. Pillow 13 has a bound of its own.
    """

    def load(self, fp: IO[bytes]) -> None:
        """Read the tags at the place where `fp` stands, as many as the bound allows."""
        place = fp.tell()
        length = fp.seek(0, SEEK_END)
        fp.seek(place)
        super().load(_BoundedFile(fp, count=length))


TiffImagePlugin.ImageFileDirectory_v2 = _BoundedDirectory


def _silence_libtiff() -> None:
    """Keep libtiff from writing what it thinks of a file to the standard error stream.

    Pillow has no way to; its wheels bring libtiff as a file of its own.
    """
    for library in Path(Image.__file__).parents[1].glob("pillow.libs/libtiff*"):
        for kind in ("Error", "Warning"):
            getattr(ctypes.CDLL(library), f"TIFFSet{kind}Handler")(None)


_silence_libtiff()
