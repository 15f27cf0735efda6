"""The most expensive images that the service accepts, made by code.

Each is legal, has at most `MAX_PIXELS`, and at most the bytes that a fetched file may have. Most
are written byte by byte, since an encoder would take minutes and gigabytes.
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from itertools import repeat
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.avif_writer import Av1, Bits, avif

# (width, height) here and below, of 50 megapixels.
SQUARE = (7071, 7071)
STRIPE = (65_500, 763)  # too low to be reduced while a JPEG is decoded
WEBP = (16_383, 3_051)  # the format's longest side
RUN = 11  # pixels of a BMP; so many fill the bytes that a file may have
RUNS = (643 * RUN, 7_069)
SCANS = 57  # of a JPEG; each visits 786,000 of the 50 million blocks that are allowed
FILE_BYTES = 9_900_000
# Adam7: where the columns and rows of each pass of a PNG begin, and their steps.
ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2))
ADAM7 = (*ADAM7, (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG by its colour type
SIXTEEN_BITS_RGBA = {258: [16] * 4, 262: 2, 277: 4, 338: 2}  # tags of a TIFF
DEFLATE, JPEG = 8, 7  # its compressions


class WorstImage(NamedTuple):
    """An image that costs much.

    Attributes:
        format: one of `serving.image.FORMATS`.
        what: what is special about it.
        make: returns its file.
    """

    format: str
    what: str
    make: Callable[[], bytes]


def noise(size: tuple[int, int], channels: int, spread: int) -> Image.Image:
    """Return an image of `size` of noise, 128 ± `spread`, that repeats."""
    values = np.random.default_rng(0).integers(128 - spread, 128 + spread, (512, 512, channels))
    tile = Image.fromarray(values.astype(np.uint8).squeeze())
    image = Image.new(tile.mode, size)
    for top in range(0, size[1], 512):
        for left in range(0, size[0], 512):
            image.paste(tile, (left, top))
    return image


def save(image: Image.Image, name: str, **options: object) -> bytes:
    """Return the file of `image` as Pillow writes the format `name`."""
    buffer = BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def jpeg(size: tuple[int, int], mode: str) -> bytes:
    """Return a progressive JPEG of one colour, whose components all have all pixels."""
    return save(Image.new(mode, size), "JPEG", progressive=True, subsampling=0)


def noisy_jpeg(size: tuple[int, int]) -> bytes:
    """Return a baseline JPEG of noise."""
    return save(noise(size, 3, 40), "JPEG", quality=40, subsampling=0)


def with_scans(data: bytes, scans: int) -> bytes:
    """Return the JPEG `data` with its last scan repeated, so that it has `scans`."""
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def deflate(pieces: Iterable[bytes]) -> bytes:
    """Return `pieces` compressed, one after the other."""
    packer = zlib.compressobj()
    return b"".join([*map(packer.compress, pieces), packer.flush()])


def zeros(count: int) -> Iterator[bytes]:
    """Yield `count` zeros in pieces."""
    yield from repeat(bytes(1 << 20), count >> 20)
    yield bytes(count & ((1 << 20) - 1))


def png(size: tuple[int, int], depth: int, colour: int) -> bytes:
    """Return an interlaced PNG of zeros with the slowest filter, Paeth, on all rows."""
    width, height = size

    def rows() -> Iterator[bytes]:
        for left, across, top, down in ADAM7:
            pixels = len(range(left, width, across))
            row = b"\x04" + bytes(-(-pixels * CHANNELS[colour] * depth // 8))
            yield from repeat(row, len(range(top, height, down)))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 1)
    palette = png_chunk(b"PLTE", bytes(768)) + png_chunk(b"tRNS", bytes(256))
    pixels = png_chunk(b"IDAT", deflate(rows())) + png_chunk(b"IEND", b"")
    colours = palette if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + colours + pixels


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def webp(size: tuple[int, int]) -> bytes:
    """Return a lossless WebP of one colour with alpha, in which pixels take no bits."""
    bits = Bits()  # to be read from the lowest to the highest, so written backwards
    bits.write(4, *[0b0001] * 5)  # five codes of one symbol, 0
    bits.write(3, 0, 0)  # no transforms, cache and groups; version 0
    bits.write(1, 1)  # alpha
    bits.write(14, size[1] - 1, size[0] - 1)
    content = b"\x2f" + int(bits.text, 2).to_bytes(-(-len(bits.text) // 8), "little")
    chunk = b"VP8L" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def lossy_webp(size: tuple[int, int]) -> bytes:
    """Return a lossy WebP of noise with an alpha channel of noise."""
    image = noise(size, 3, 20)
    image.putalpha(noise(size, 1, 40))
    return save(image, "WEBP", quality=1, method=0)


def gif(size: tuple[int, int]) -> bytes:
    """Return an interlaced GIF of noise with a transparent colour."""
    return save(noise(size, 1, 1).convert("P"), "GIF", interlace=1, transparency=127)


def bmp(size: tuple[int, int], bits: int, compression: int, content: bytes) -> bytes:
    """Return a BMP with a palette of blues."""
    palette = b"".join(bytes([blue, 0, 0, 0]) for blue in range(1 << bits))
    offset = 54 + len(palette)
    head = struct.pack("<2sIII", b"BM", offset + len(content), 0, offset)
    fields = (40, *size, 1, bits, compression, len(content), 0, 0, 1 << bits, 0)
    return head + struct.pack("<IiiHHIIiiII", *fields) + palette + content


def plain_bmp(size: tuple[int, int], bits: int) -> bytes:
    """Return an uncompressed BMP."""
    return bmp(size, bits, 0, bytes(-(-size[0] * bits // 32) * 4 * size[1]))


def rle_bmp(size: tuple[int, int], run: int) -> bytes:
    """Return a run-length encoded BMP, in runs of `run` pixels."""
    return bmp(size, 8, 1, (bytes([run, 7]) * (size[0] // run) + bytes(2)) * size[1] + b"\0\1")


def tiff(size: tuple[int, int], tags: dict[int, int | list[int]], content: bytes) -> bytes:
    """Return a TIFF with `tags` and `content` as its only strip."""
    tags = {256: size[0], 257: size[1], 273: 8, 278: size[1], 279: len(content), **tags}
    offset = 8 + len(content) + len(content) % 2
    further, entries = b"", []
    for tag, value in sorted(tags.items()):
        values, letter, kind = ([value], "I", 4) if isinstance(value, int) else (value, "H", 3)
        data = struct.pack(f"<{len(values)}{letter}", *values)
        if len(data) > 4:
            place = offset + 2 + 12 * len(tags) + 4 + len(further)
            data, further = struct.pack("<I", place), further + data
        entries.append(struct.pack("<HHI4s", tag, kind, len(values), data))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    head = struct.pack("<2sHI", b"II", 42, offset)
    return head + content.ljust(offset - 8, b"\0") + directory + further


def deflated_tiff(size: tuple[int, int], tags: dict[int, int | list[int]]) -> bytes:
    """Return a TIFF of zeros."""
    bits = sum(np.atleast_1d(tags[258]))
    return tiff(size, {259: DEFLATE, **tags}, deflate(zeros(int(bits) * size[0] * size[1] // 8)))


def jpeg_tiff(size: tuple[int, int]) -> bytes:
    """Return a TIFF with a progressive JPEG in it."""
    tags: dict[int, int | list[int]] = {258: [8] * 4, 259: JPEG, 262: 5, 277: 4}
    return tiff(size, tags, jpeg(size, "CMYK"))


def noisy_avif(size: tuple[int, int], **tools: bool) -> bytes:
    """Return an AVIF of noise, with alpha if it is `deep`."""
    content = random.Random(0).randbytes(FILE_BYTES * 9 // 10)  # noqa: S311
    if not tools.get("deep"):
        return avif((Av1(size, **tools), content))
    alpha = Av1(size, **{**tools, "full_colour": False, "grey": True})
    return avif((Av1(size, **tools), content), (alpha, bytes(FILE_BYTES // 20)))


FLOATS = {258: 32, 262: 1, 277: 1, 339: [3]}
PALETTED, RGBA = 3, 6  # colour types of a PNG
FULL = {"deep": True, "full_colour": True, "filters": True}
WORST: Sequence[WorstImage] = (
    WorstImage("JPEG", "baseline, noise", lambda: noisy_jpeg(SQUARE)),
    WorstImage("JPEG", "baseline, noise, low", lambda: noisy_jpeg(STRIPE)),
    WorstImage("JPEG", "the same without an end", lambda: noisy_jpeg(STRIPE)[:-2]),
    WorstImage("JPEG", "progressive, CMYK", lambda: jpeg(SQUARE, "CMYK")),
    WorstImage("JPEG", "progressive, CMYK, low", lambda: jpeg(STRIPE, "CMYK")),
    WorstImage(
        "JPEG", f"the same with {SCANS} scans", lambda: with_scans(jpeg(STRIPE, "CMYK"), SCANS)
    ),
    WorstImage("PNG", "palette with alpha, interlaced", lambda: png(SQUARE, 8, PALETTED)),
    WorstImage("PNG", "16-bit RGBA, interlaced", lambda: png(SQUARE, 16, RGBA)),
    WorstImage("WEBP", "lossless, alpha, one colour", lambda: webp(WEBP)),
    WorstImage("WEBP", "lossy, alpha, noise", lambda: lossy_webp(WEBP)),
    WorstImage("GIF", "interlaced, transparent, noise", lambda: gif(SQUARE)),
    WorstImage("BMP", "1 bit", lambda: plain_bmp(SQUARE, 1)),
    WorstImage("BMP", f"RLE, runs of {RUN}", lambda: rle_bmp(RUNS, RUN)),
    WorstImage(
        "TIFF",
        "16-bit RGBA, Deflate, one strip",
        lambda: deflated_tiff(SQUARE, {**SIXTEEN_BITS_RGBA, 317: 2}),
    ),
    WorstImage("TIFF", "float32, Deflate, one strip", lambda: deflated_tiff(SQUARE, FLOATS)),
    WorstImage("TIFF", "progressive JPEG, CMYK, one strip", lambda: jpeg_tiff(STRIPE)),
    WorstImage("AVIF", "8 bits, 4:2:0, noise", lambda: noisy_avif(SQUARE)),
    WorstImage("AVIF", "10 bits, 4:4:4, alpha, noise", lambda: noisy_avif(SQUARE, **FULL)),
    WorstImage("AVIF", "the same, film grain", lambda: noisy_avif(SQUARE, **FULL, grain=True)),
)
