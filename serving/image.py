"""Decodes a file into an upright RGB image."""

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

# Importing a plugin registers its format. Without these, Pillow registers a few, or all forty.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from serving import file_types, jpeg, metadata, pillow_limits
from serving.errors import ImageError, TooLargeError, UnsupportedTypeError
from serving.footprint import check_memory, check_webp
from serving.limits import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    STRIP_PIXELS,
    check_sides,
    damaged,
    too_large,
)
from serving.orientation import read_orientation

# Pillow's other formats stay unreachable for strangers.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
REDUCED = 2  # an image is reduced while it is read to at least this many times the wanted size
# Pillow reads metadata before the pixels in pieces, and joins some of them in quadratic time. A
# few hundred are usual.
OPENING_READS = 4_000

SIXTEEN_BITS = 65_535
RANGES = (1, 255, SIXTEEN_BITS, 2**32 - 1)  # usual highest values of 32-bit pixels
# Of a TIFF: tags, and a value of each.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, UNSIGNED = 0, 1
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

pillow_limits.apply()


class Scale(NamedTuple):
    """What the values of grey pixels with more than 8 bits mean.

    Attributes:
        most: the highest value.
        negative: whether it is black, and 0 white.
        unsigned: whether Pillow's 32-bit integers, which are signed, stand for unsigned ones.
        transparent: the value of transparent pixels.
    """

    most: int
    negative: bool = False
    unsigned: bool = False
    transparent: int | None = None


def open_image(
    source: bytes | str | Path, size: tuple[int, int] | None = None, memory: int | None = None
) -> Image.Image:
    """Return the image in `source` as upright RGB.

    `source` is a file's bytes or path. Applies EXIF orientation, blends transparency with white,
    scales other depths to 8 bits, and takes the first of several images. Metadata, damaged or not,
    changes nothing else. `info` becomes {"format": ..., "size": ...}: one of `FORMATS`, and (width,
    height) as stored, or upright for a TIFF.

    Pass `size`, the (height, width) to resize to later, to save memory: an image that is at least
    twice `REDUCED` times larger is reduced to no less than `REDUCED` times `size`. After
    `resize`, pixels differ by 0.3 of 255 on average from those of the whole image.

    Pass `memory` to refuse, before decoding, what would take more bytes.

    Raises:
        UnsupportedTypeError: it is not an image in one of `FORMATS`; the message says what it is.
        ImageError: it cannot be decoded completely, or the path is no file.
        TooLargeError: it has more than `MAX_PIXELS` pixels, `MAX_SIDE` pixels a side or what
            `jpeg.check_cost` allows, checked before decoding; the file has more than
            `MAX_FILE_BYTES`, or memory is full.
        OSError: the path `source` cannot be opened.
    """
    try:
        data = source if isinstance(source, bytes) else read_image_file(source)
        check_type(data[: file_types.HEAD])
        return _decode(metadata.strip(data), size, memory)
    except MemoryError:
        raise too_large("what fits into memory", "more") from None


def read_image_file(path: str | Path) -> bytes:
    """Return the content of the image file at `path`.

    Raises:
        TooLargeError: memory is full.
        Other errors: as `check_image_file`.
    """
    check_image_file(path)
    try:
        return Path(path).read_bytes()
    except MemoryError:
        raise too_large("what fits into memory", "more") from None


def check_image_file(path: str | Path) -> int:
    """Return how many bytes the image file at `path` has.

    Of a large file, the first bytes are read.

    Raises:
        UnsupportedTypeError: it has more than `file_types.HEAD` bytes, and is not an image by them.
        ImageError: it is a folder, pipe or device.
        TooLargeError: it has more than `MAX_FILE_BYTES`.
        OSError: it cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        received = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ImageError(f"Expected an image file. Received: {received}. Check the path.")
    if status.st_size > file_types.HEAD:
        with open(path, "rb") as file:
            check_type(file.read(file_types.HEAD))
    if status.st_size > MAX_FILE_BYTES:
        raise too_large(f"{MAX_FILE_BYTES // 1_000_000} MB", "more")
    return status.st_size


def check_type(head: bytes) -> None:
    """Raise UnsupportedTypeError unless a file that begins with `head` is supported."""
    accepts = [Image.OPEN[name][1] for name in FORMATS]
    if file_types.is_heif(head) or not any(accept(head[:16]) for accept in accepts if accept):
        received, advice = file_types.describe(head)
        raise UnsupportedTypeError(
            f"Expected an image ({', '.join(FORMATS)}). Received: {received}. {advice}"
        )


def _decode(
    stripped: metadata.Stripped, size: tuple[int, int] | None, memory: int | None
) -> Image.Image:
    """Return the image in the file `stripped` as `open_image` does."""
    data, orientation = stripped
    try:
        if not data.startswith(jpeg.START):
            return _open(data, orientation, size, memory)
        completed = jpeg.completions(data) if jpeg.lacks_end(data) else [data]
        jpeg.check_cost(data, len(completed))
        noisy = {_digest(_open(c, orientation, size, memory)) for c in completed[1:]}
        opened = _open(completed[0], orientation, size, memory)
        if noisy and noisy != {_digest(opened)}:
            raise EOFError("pixels are missing")
        return opened
    except Image.DecompressionBombError:
        raise too_large(f"{MAX_PIXELS // 1_000_000} million pixels", "far more") from None
    except (TooLargeError, UnsupportedTypeError, MemoryError):
        raise
    except Exception as error:
        # Pillow raises nearly anything on broken files: OSError, SyntaxError, ValueError,
        # struct.error, EOFError, zlib.error, ...
        raise damaged() from error


def _open(
    data: bytes, orientation: int, size: tuple[int, int] | None, memory: int | None
) -> Image.Image:
    """Return the image in the file `data`."""
    if memory is not None:
        check_webp(data, memory)
    file = pillow_limits.BoundedFile(BytesIO(data), reads=OPENING_READS)
    with Image.open(cast("IO[bytes]", file), formats=FORMATS) as image:
        check_sides(*image.size)
        if memory is not None:
            check_memory(image, data, REDUCED * max(size or image.size), memory)
        stored: dict[Any, Any] = {"format": image.format, "size": image.size}
        file.reads = math.inf
        if image.format == "AVIF":  # turned by its container alone, which Pillow gives as EXIF
            orientation = read_orientation(image.info.get("exif", b""))
        upright = _upright_rgb(image, orientation, size)
    upright.info = stored
    return upright


def _digest(image: Image.Image) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _upright_rgb(image: Image.Image, orientation: int, size: tuple[int, int] | None) -> Image.Image:
    if image.format != "JPEG":  # which draft() may still reduce
        image.load()
    factors, extent = (1, 1), image.size
    if size:
        height, width = size[::-1] if orientation in SWAPS_SIDES else size
        least = (REDUCED * width, REDUCED * height)
        drafted = image.draft(None, least)  # for JPEG, decodes fewer pixels of each block
        extent = drafted[1][2:] if drafted else extent
        factors = (max(1, image.width // least[0]), max(1, image.height // least[1]))
    reduced = _reduced_rgb(image, factors)
    # The last row and column may cover less than a whole factor of the image.
    extent = (extent[0] / factors[0], extent[1] / factors[1])
    if extent != reduced.size:
        reduced = reduced.resize(reduced.size, Image.Resampling.BICUBIC, (0, 0, *extent))
    return reduced.transpose(TURNS[orientation]) if orientation in TURNS else reduced


def _reduced_rgb(image: Image.Image, factors: tuple[int, int]) -> Image.Image:
    """Return `image` as RGB with blocks of `factors` (across, down) pixels averaged.

    Converts strip by strip, so only the stored image is completely in memory.
    """
    image.load()
    scale = _scale(image)
    across, down = factors
    width, height = image.size
    rows = max(1, STRIP_PIXELS // (width * down)) * down
    if rows >= height:
        return _to_rgb(image, scale).reduce(factors)
    reduced = Image.new("RGB", (-(-width // across), -(-height // down)))
    for top, strip in _strips(image, rows):
        reduced.paste(_to_rgb(strip, scale).reduce(factors), (0, top // down))
    return reduced


def _strips(image: Image.Image, rows: int) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of `rows` rows of `image`, with the number of the first row of each."""
    width, height = image.size
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _scale(image: Image.Image) -> Scale | None:
    """Return what pixel values mean; None leaves it to Pillow.

    32-bit pixels have no usual range, so it is the smallest of `RANGES` that holds all pixels.
    """
    tags = getattr(image, "tag_v2", {})
    negative = image.format == "TIFF" and tags.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO
    if image.mode.startswith("I;16"):
        most = 4095 if tags.get(BITS) == (12,) else SIXTEEN_BITS
        return Scale(most, negative, transparent=image.info.get("transparency"))
    if image.mode not in ("I", "F"):
        return None
    unsigned = image.format == "TIFF" and tags.get(SAMPLE_FORMAT, (UNSIGNED,)) == (UNSIGNED,)
    strips = _strips(image, max(1, STRIP_PIXELS // image.width))
    # Not to copy the whole image at once; fmax skips NaN.
    highest = np.fmax.reduce([np.fmax.reduce(_values(s, unsigned), axis=None) for _, s in strips])
    most = next((most for most in RANGES if highest <= most), RANGES[-1])
    return Scale(most, negative, unsigned)


def _values(image: Image.Image, unsigned: bool) -> np.ndarray:
    values = np.asarray(image)
    return values.view(np.uint32) if unsigned else values


def _to_rgb(image: Image.Image, scale: Scale | None) -> Image.Image:
    if scale:  # convert() would clip at 255
        values = _values(image, scale.unsigned).astype(np.float32, copy=False)
        grey = np.nan_to_num(values).clip(0, scale.most) * (255 / scale.most)
        grey = 255 - grey if scale.negative else grey
        if scale.transparent is not None:
            grey[values == scale.transparent] = 255
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image if image.mode == "RGB" else image.convert("RGB")
