"""What the generators of hostile files draw from, and data that unpacks to far more."""

import functools
import lzma
import math
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from serving.limits import MAX_PIXELS, MAX_SIDE

MAX_BYTES = 10_000_000  # of a file, as many as the service fetches
MAX_UNPACKED = 2**31  # bytes that packed data unpacks to
PIECE = 1 << 20  # bytes of a repeated piece of packed data

T = TypeVar("T")


def log_uniform(rng: random.Random, low: float, high: float) -> int:
    """Return an integer from `low` to `high`, each magnitude as often; one in 25 is `high`."""
    return int(low * (high / low) ** min(1.0, rng.uniform(0, 1.04)))


def usually(rng: random.Random, usual: T, *others: T, odds: float = 0.9) -> T:
    """Return `usual` with probability `odds`, otherwise one of the `others`."""
    return usual if rng.random() < odds else rng.choice(others)


def draw_sides(rng: random.Random, longest: int = MAX_SIDE) -> tuple[int, int]:
    """Return a (width, height): squares, columns and rows, a few larger than is accepted."""
    area = log_uniform(rng, 1, usually(rng, MAX_PIXELS, 8 * MAX_PIXELS))
    ratio = 1.0 if rng.random() < 0.5 else area ** rng.uniform(-1, 1)
    width = min(longest, max(1, round(math.sqrt(area * ratio))))
    return width, min(longest, max(1, area // width))


def flood(
    rng: random.Random, make: Callable[[], bytes], most: int = MAX_BYTES // 3, odds: float = 0.3
) -> bytes:
    """Return nothing, or what `make` returns, repeated to at most `most` bytes."""
    if most < 1 or rng.random() > odds:
        return b""
    kinds = [make() for _ in range(rng.choice((1, 1, 3)))]
    length = log_uniform(rng, 1, most)
    return b"".join(kinds) * (length // max(1, sum(map(len, kinds))))


def mix(rng: random.Random, parts: Sequence[bytes]) -> bytes:
    """Return the `parts` joined in another order."""
    return b"".join(rng.sample(parts, len(parts)))


def deflated(pattern: bytes, size: int) -> bytes:
    """Return zlib data that unpacks to `pattern` again and again, `size` bytes or a few more."""
    whole = pattern * max(1, min(size, PIECE) // len(pattern))
    piece, checksum = _piece(whole)
    times = max(1, min(-(-size // len(whole)), MAX_UNPACKED // len(whole), MAX_BYTES // len(piece)))
    base, low, high = 65_521, (checksum & 0xFFFF) - 1, checksum >> 16  # of Adler-32
    low, high = 1 + times * low, times * high + len(whole) * low * (times * (times - 1) // 2)
    return b"\x78\xda" + piece * times + b"\x03\0" + struct.pack(">HH", high % base, low % base)


@functools.lru_cache(16)
def _piece(content: bytes) -> tuple[bytes, int]:
    """Return `content` as a piece of zlib data that may be repeated, and its checksum."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH), zlib.adler32(content)


@functools.lru_cache(32)
def lzma_zeros(exponent: int) -> bytes:
    """Return xz data of 2 to the power of `exponent` zeros, at most 64 MB."""
    return lzma.compress(bytes(1 << min(exponent, 26)), preset=0)


CLEAR = 256  # of LZW


@functools.lru_cache(1)
def _lzw_cycles() -> bytes:
    """Return LZW codes of 59 MB of zeros: ever longer strings until a clear code, 8 times."""
    codes = [format(0, "09b")]
    codes += [format(code, f"0{max(9, (code + 1).bit_length())}b") for code in range(258, 4094)]
    bits = "".join([*codes, format(CLEAR, "012b")]) * 8
    return int(bits, 2).to_bytes(len(bits) // 8)


def lzw_zeros(size: int) -> bytes:
    """Return LZW data, as TIFF packs it, of at least `size` zeros or 9 MB of codes."""
    cycles = _lzw_cycles()
    cycles *= min(1 + size // 58_000_000, 9_000_000 // len(cycles))
    codes = CLEAR << 8 * len(cycles) | int.from_bytes(cycles)  # clears the table first, in 9 bits
    return (codes << 7).to_bytes(len(cycles) + 2)[: 1000 + size // 8]


def packbits_zeros(size: int) -> bytes:
    """Return PackBits data of `size` zeros or 9 MB of codes."""
    return b"\x81\0" * min(1 + size // 128, 4_500_000)


def zstd_zeros(size: int) -> bytes:
    """Return a zstd frame of `size` zeros."""
    block = b"\x02\x00\x10\0"  # 128 kB of a byte
    last = b"\x03\x00\x10\0"
    return b"\x28\xb5\x2f\xfd\0\x38" + block * min(size >> 17, 2_000_000) + last
