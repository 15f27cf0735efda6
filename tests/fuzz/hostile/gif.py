"""Draws GIFs: huge screens, frames beyond them, blocks and extensions by the million."""

import functools
import random
import struct

from tests.fuzz.hostile.draw import MAX_BYTES, draw_sides, flood, log_uniform, usually


def draw_gif(rng: random.Random) -> bytes:
    """Return a GIF of at most about `MAX_BYTES`."""
    screen = draw_sides(rng)
    head = rng.choice((b"GIF87a", b"GIF89a")) + struct.pack("<HH", *screen)
    palette = rng.choice((0, 0x80, 0x81, 0x87))
    head += bytes([palette, rng.randrange(256), 0])
    head += (
        bytes(range(256)) * 3
        if palette == 0x87
        else bytes((palette > 127) * 3 << (palette & 7) + 1)
    )
    frames = [_frame(rng, usually(rng, screen, draw_sides(rng), odds=0.7)) for _ in range(2)]
    parts = [flood(rng, lambda: _extension(rng)), frames[0]]
    parts.append(flood(rng, lambda: usually(rng, frames[1], _extension(rng))))
    return (head + b"".join(parts) + b";")[:MAX_BYTES]


def _extension(rng: random.Random) -> bytes:
    kind = rng.choice((0x01, 0xF9, 0xF9, 0xFE, 0xFF, rng.randrange(256)))
    if kind == 0xF9:
        return b"!\xf9\4" + bytes([rng.randrange(32), 0, 0, rng.randrange(256), 0])
    length = rng.choice((1, 11, 255))
    content = usually(rng, b"NETSCAPE2.0", b"XMP DataXMP", b"ICCRGBG1012")[:length]
    blocks = (bytes([length]) + content.ljust(length, b"x")) * log_uniform(rng, 1, 3000)
    return b"!" + bytes([kind]) + blocks + b"\0"


def _frame(rng: random.Random, sides: tuple[int, int]) -> bytes:
    """Return a frame of zeros in blocks of any length."""
    x, y = usually(rng, 0, rng.randrange(65_536)), usually(rng, 0, rng.randrange(65_536))
    flags = rng.choice((0, 0x40, 0x87, 0xC7))  # interlaced, with a palette
    head = b"," + struct.pack("<HHHHB", x, y, *sides, flags)
    head += bytes(768) if flags & 0x80 else b""
    bits = usually(rng, 8, 2, 1, 12, 13)
    pixels = _lzw(bits, usually(rng, sides[0] * sides[1], 10))
    step = usually(rng, 255, rng.randrange(1, 255), 1, odds=0.7)
    step = max(step, 1 + len(pixels) // 2_000_000)
    blocks = [pixels[n : n + step] for n in range(0, len(pixels), step)]
    return head + bytes([bits]) + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"


def _lzw(bits: int, size: int) -> bytes:
    """Return LZW codes of at least `size` zeros, of `bits` each, or of 5 MB."""
    clear = 1 << min(bits, 11)
    cycles = _lzw_cycles(clear)
    # A cycle of codes has strings of one pixel to as many as there are codes, and there are eight.
    pixels = 4 * (4096 - clear) ** 2
    cycles *= max(1, min(1 + size // pixels, 5_000_000 // len(cycles)))
    width = clear.bit_length()  # of the first clear code
    codes = (int.from_bytes(cycles, "little") << width) | clear
    return codes.to_bytes(len(cycles) + 2, "little")[: 100 + size]


@functools.lru_cache(11)
def _lzw_cycles(clear: int) -> bytes:
    """Return LZW codes of ever longer strings of zeros until a clear code, eight times."""
    codes = [(0, clear.bit_length())]
    codes += [(code, max(clear, code).bit_length()) for code in range(clear + 2, 4096)]
    text = "".join(format(code, f"0{width}b")[::-1] for code, width in [*codes, (clear, 12)]) * 8
    return int(text[::-1], 2).to_bytes(len(text) // 8, "little")
