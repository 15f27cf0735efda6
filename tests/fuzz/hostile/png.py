"""Draws PNGs: chunks of every kind before, between and behind the pixels, and bombs in them."""

import random
import struct

from tests.fuzz.hostile.draw import MAX_BYTES, deflated, draw_sides, flood, log_uniform, usually
from tests.fuzz.hostile.exif import draw_exif
from tests.fuzz.make_corpus import CHANNELS, chunk

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
KINDS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"tRNS", b"PLTE")
KINDS += (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tIME", b"IDAT", b"IHDR", b"IEND", b"prIv", b"ABCD")
KINDS += (b"cICP", b"hIST", b"sPLT", b"sBIT", b"bKGD", b"\0\0\0\0", b"a1b2")


def draw_png(rng: random.Random) -> bytes:
    """Return a PNG of at most about `MAX_BYTES`."""
    width, height = draw_sides(rng, usually(rng, 65_535, 2**31 - 1))
    color = rng.choice(tuple(CHANNELS))
    depth = usually(rng, rng.choice(DEPTHS[color]), 1, 2, 4, 8, 16)
    interlaced = usually(rng, 0, 1, 7, odds=0.6)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    stride = 1 + (width * CHANNELS[color] * depth + 7) // 8
    parts = [chunk(b"IHDR", header)]
    parts.append(chunk(b"PLTE", bytes(768)) if usually(rng, color == 3, color != 3) else b"")
    parts.append(flood(rng, lambda: _chunk(rng)))
    parts.append(_pixels(rng, stride, stride * height))
    parts.append(flood(rng, lambda: _chunk(rng)) + chunk(b"IEND", b""))
    parts.append(flood(rng, lambda: _chunk(rng), odds=0.1))
    return (b"\x89PNG\r\n\x1a\n" + b"".join(parts))[:MAX_BYTES]


def _pixels(rng: random.Random, stride: int, size: int) -> bytes:
    """Return IDAT chunks with lines of one filter, `size` bytes unless it lies."""
    size = usually(rng, size, size // 2, size * 3)
    line = bytes([usually(rng, rng.randrange(5), 9, odds=0.97)]) + bytes(min(stride, 1 << 20) - 1)
    packed = deflated(line, min(size, 1 << 30))
    if rng.random() < 0.7:
        return chunk(b"IDAT", packed)
    step = max(log_uniform(rng, 1, len(packed)), len(packed) // 200_000)
    pieces = [chunk(b"IDAT", packed[n : n + step]) for n in range(0, len(packed), step)]
    room = max(0, MAX_BYTES - len(packed)) // len(pieces)
    between = usually(rng, b"", chunk(b"IDAT", b""), _chunk(rng, room))
    return between.join(pieces) + flood(rng, lambda: chunk(b"IDAT", b""), odds=0.3)


def _chunk(rng: random.Random, most: int = 1_000_000) -> bytes:
    """Return a chunk of any kind, of about `most` bytes at most, which may unpack to gigabytes."""
    kind = rng.choice(KINDS)
    bomb = deflated(b"\0", log_uniform(rng, 1, 1 << 30))
    exif = draw_exif(rng, log_uniform(rng, 16, max(17, most))) if kind == b"eXIf" else b""
    contents = {
        b"iCCP": b"name\0\0" + bomb,
        b"zTXt": rng.choice((b"name", b"Raw profile type exif")) + b"\0\0" + bomb,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + bomb,
        b"tEXt": b"Raw profile type exif\0\n\n\n" + b"4d" * log_uniform(rng, 1, max(2, most // 2)),
        b"acTL": struct.pack(">II", log_uniform(rng, 1, 2**31), 0),
        b"fcTL": struct.pack(">IIIIIHHBB", 0, *draw_sides(rng), 0, 0, 1, 1, 0, 0),
        b"fdAT": struct.pack(">I", 1) + bomb,
    }
    short = bytes(usually(rng, log_uniform(rng, 1, 20), log_uniform(rng, 1, 1 + most)))
    content = (exif or contents.get(kind, short))[:most]
    written = chunk(kind, usually(rng, content, short))
    if rng.random() < 0.05:
        written = struct.pack(">I", usually(rng, 2**31, 2**32 - 1, len(content) + 9)) + written[4:]
    return written
