"""Draws BMPs: run lengths with the most codes for a pixel, lying headers, any depth."""

import random
import struct

from tests.fuzz.hostile.draw import MAX_BYTES, draw_sides, log_uniform, usually

RAW, RLE8, RLE4, BITFIELDS = range(4)
HEADERS = (12, 40, 52, 56, 64, 108, 124)
# Run lengths: runs, ends of lines, jumps and pixels as they are.
CODES = (b"\1\1", b"\2\x11", b"\xff\x12", b"\0\0", b"\0\2\0\0", b"\0\2\1\0", b"\0\2\0\1")
CODES += (b"\0\2\xff\xff", b"\0\3abc\0", b"\0\xff" + bytes(256), b"\0\1")


def draw_bmp(rng: random.Random) -> bytes:
    """Return a BMP of at most about `MAX_BYTES`."""
    size = usually(rng, 40, *HEADERS)
    width, height = draw_sides(rng, usually(rng, 65_535, 2**31 - 1))
    depth = rng.choice((1, 4, 8, 16, 24, 32, 2))
    compression = rng.choice((RAW, RLE8, RLE8, RLE4, RLE4, BITFIELDS, usually(rng, 0, 4, 5)))
    if compression in (RLE8, RLE4) and rng.random() < 0.9:
        depth = 8 if compression == RLE8 else 4
    colors = usually(rng, 0, 1, 2, 256, 65_536, 2**32 - 1, odds=0.7)
    masks = rng.choice(((0xFF0000, 0xFF00, 0xFF, 0), (0xF800, 0x7E0, 0x1F, 0)))
    if size == 12:
        head = struct.pack("<IHHHH", 12, width & 0xFFFF, height & 0xFFFF, 1, depth)
    else:
        down = usually(rng, height, 2**32 - height)
        head = struct.pack("<IIIHHI", size, width & 0xFFFFFFFF, down, 1, depth, compression)
        head += struct.pack("<IIIII4I", 0, 0, 0, colors, 0, *masks)
        head = head[: max(size, 52 if compression == BITFIELDS else size)].ljust(size, b"\0")
    head += usually(rng, bytes(range(256)) * 4, b"", bytes(262_144))
    start = usually(rng, 14 + len(head), 0, 14 + size, 2**32 - 1)
    head = struct.pack("<2sIII", b"BM", 0, 0, start) + head
    stride = (width * depth + 31) // 32 * 4
    pixels = _runs(rng) if compression in (RLE8, RLE4) else bytes(min(stride * height, MAX_BYTES))
    return (head + pixels)[:MAX_BYTES]


def _runs(rng: random.Random) -> bytes:
    """Return run lengths: the same few again and again."""
    codes = b"".join(rng.choices(CODES[:-1], k=usually(rng, 1, 2, 5, 9, odds=0.4)))
    return codes * (log_uniform(rng, 100, MAX_BYTES) // len(codes)) + rng.choice(CODES)
