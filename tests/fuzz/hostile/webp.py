"""Draws WebPs: lossless ones of a few bytes and millions of pixels, canvases, frames, alpha."""

import functools
import random
import struct
from io import BytesIO

from PIL import Image

from tests.fuzz.hostile.draw import MAX_BYTES, draw_sides, flood, log_uniform, usually
from tests.fuzz.hostile.exif import draw_exif

LONGEST = 16_383
PREDICTOR, CROSS_COLOR, SUBTRACT_GREEN, COLOR_INDEXING = range(4)
METADATA = (b"ICCP", b"EXIF", b"XMP ", b"ABCD")
MOST_CACHED = 11  # bits of the index of a color
ALPHA, ANIMATION = 0x10, 0x02  # flags of VP8X


class Bits:
    """Bits, the lowest of each byte first."""

    def __init__(self) -> None:
        self.number, self.length = 0, 0

    def add(self, value: int, length: int) -> None:
        """Append `length` bits of `value`."""
        self.number |= (value & ((1 << length) - 1)) << self.length
        self.length += length

    def add_bytes(self, data: bytes) -> None:
        """Append the bits of `data`."""
        self.add(int.from_bytes(data, "little"), 8 * len(data))

    def written(self) -> bytes:
        """Return all, filled up with zeros."""
        return self.number.to_bytes(self.length // 8 + 1, "little")


def draw_webp(rng: random.Random) -> bytes:
    """Return a WebP of at most about `MAX_BYTES`."""
    sides = draw_sides(rng, LONGEST)
    if rng.random() < 0.4:
        return _riff(rng, _image(rng, sides))
    flags = usually(rng, rng.choice((0, ALPHA, ANIMATION, ANIMATION | ALPHA)), rng.randrange(256))
    canvas = usually(rng, sides, draw_sides(rng, 1 << 24), odds=0.8)
    extended = struct.pack("<II", flags, (canvas[0] - 1) | (canvas[1] - 1) << 24 & 0xFFFFFFFF)
    extended += struct.pack("<H", (canvas[1] - 1) >> 8 & 0xFFFF)
    parts = [_chunk(b"VP8X", extended), flood(rng, lambda: _metadata(rng))]
    if flags & ANIMATION:
        parts.append(_chunk(b"ANIM", bytes(6)))
        frame = _frame(rng, sides)
        parts.append(frame + flood(rng, lambda: usually(rng, frame, _frame(rng, (1, 1))), odds=0.6))
    else:
        parts.append(_image(rng, sides, flags & ALPHA))
    parts.append(flood(rng, lambda: _metadata(rng)))
    return _riff(rng, b"".join(parts))


def _riff(rng: random.Random, content: bytes) -> bytes:
    content = content[: MAX_BYTES - 12]
    length = usually(rng, len(content) + 4, 2**32 - 1, len(content) // 2, odds=0.98)
    return b"RIFF" + struct.pack("<I", length) + b"WEBP" + content


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _metadata(rng: random.Random) -> bytes:
    kind = usually(rng, rng.choice(METADATA), b"ALPH", b"VP8 ", b"ANMF", b"VP8X", odds=0.95)
    if kind == b"EXIF":
        return _chunk(kind, draw_exif(rng, log_uniform(rng, 100, MAX_BYTES // 4)))
    return _chunk(kind, bytes(usually(rng, log_uniform(rng, 1, 30), log_uniform(rng, 1, 10**6))))


def _frame(rng: random.Random, sides: tuple[int, int]) -> bytes:
    """Return a frame of an animation."""
    x, y = usually(rng, 0, rng.randrange(1 << 24)), usually(rng, 0, rng.randrange(1 << 24))
    numbers = (x, y, sides[0] - 1, sides[1] - 1, 1)
    head = b"".join(struct.pack("<I", number)[:3] for number in numbers)
    image = _image(rng, sides, rng.random() < 0.3)
    return _chunk(b"ANMF", head + bytes([rng.randrange(4)]) + image)


def _alpha(rng: random.Random, sides: tuple[int, int]) -> bytes:
    """Return transparency: raw, or a lossless image without its head, with any filter."""
    how = rng.randrange(16) << 2
    if rng.random() < 0.2:
        return _chunk(b"ALPH", bytes([how]) + bytes(min(sides[0] * sides[1], 5_000_000)))
    bits = Bits()
    _transforms(rng, bits, sides)
    return _chunk(b"ALPH", bytes([how | 1]) + bits.written())


def _image(rng: random.Random, sides: tuple[int, int], transparent: int = 0) -> bytes:
    if rng.random() < 0.4:
        return (_alpha(rng, sides) if transparent else b"") + _lossy(rng, sides)
    return _lossless(rng, sides)


def _lossy(rng: random.Random, sides: tuple[int, int]) -> bytes:
    """Return pixels of Pillow's with other `sides` (width, height), and perhaps more bytes."""
    data = bytearray(_encoded(rng.choice((16, 256, 1024))))
    struct.pack_into("<HH", data, 6, *sides)
    partition = int.from_bytes(data[:3], "little") >> 5
    data += usually(rng, b"", bytes(log_uniform(rng, 1, 10**6)), odds=0.5)
    if rng.random() < 0.5:  # a longer first partition, or there are too few bits for the rows
        partition = min(len(data) - 20, (1 << 19) - 1)
        data[:3] = (int.from_bytes(data[:3], "little") & 31 | partition << 5).to_bytes(3, "little")
    return _chunk(b"VP8 ", bytes(data))


@functools.cache
def _encoded(side: int) -> bytes:
    """Return the VP8 data of a grey square."""
    buffer = BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(buffer, "WEBP", quality=1)
    return buffer.getvalue()[20:]


def _lossless(rng: random.Random, sides: tuple[int, int]) -> bytes:
    """Return a lossless image of one color, whose pixels take no bits."""
    bits = Bits()
    width, height = sides
    bits.add(0x2F, 8)
    bits.add((width - 1) | (height - 1) << 14 | rng.randrange(2) << 28, 32)
    _transforms(rng, bits, sides)
    return _chunk(b"VP8L", bits.written() + bytes(usually(rng, 0, 9)))


def _transforms(rng: random.Random, bits: Bits, sides: tuple[int, int]) -> None:
    """Add any transforms, and the pixels with groups of codes for parts of them."""
    for transform in rng.sample(range(4), rng.choice((0, 0, 1, 2, 4))):
        bits.add(1 | transform << 1, 3)
        if transform in (PREDICTOR, CROSS_COLOR):
            bits.add(rng.randrange(8), 3)
            _plain(rng, bits)
        elif transform == COLOR_INDEXING:
            bits.add(rng.randrange(256), 8)
            _plain(rng, bits)
    bits.add(0, 1)
    groups = usually(rng, 0, log_uniform(rng, 1, 65_535), odds=0.8)
    cache = usually(rng, 0, rng.randrange(1, 12), MOST_CACHED, odds=0.7)
    bits.add(1 | cache << 1, 5) if cache else bits.add(0, 1)
    if not groups:
        bits.add(0, 1)
        _codes(rng, bits, rng.random() < 0.2)
        return
    block = next((n for n in range(9) if _blocks(sides, n) <= groups), 9) if groups > 99 else 7
    bits.add(1 | max(0, block - 2) << 1, 4)
    _numbered(bits, _blocks(sides, max(2, block)))
    one, eight = Bits(), Bits()
    if cache == MOST_CACHED and rng.random() < 0.5:
        _long_codes(one)
    else:
        _codes(rng, one, rng.random() < 0.2)
    for _ in range(8):
        eight.add(one.number, one.length)
    group = eight.number.to_bytes(eight.length // 8, "little")
    bits.add_bytes(group * (groups // 8 + 1))


def _blocks(sides: tuple[int, int], exponent: int) -> int:
    """Return how many squares of 2 to the power of `exponent` pixels cover an image."""
    return -(-sides[0] // (1 << exponent)) * -(-sides[1] // (1 << exponent))


def _numbered(bits: Bits, count: int) -> None:
    """Add an image whose pixels are numbers from 0 in green (low) and red (high)."""
    bits.add(0, 1)  # no cache of colors
    for channel in range(5):
        if channel < 2:
            _flat_code(bits, 280 if channel == 0 else 256)
        else:
            bits.add(0b0001, 4)
    reversed_bytes = [int(f"{n:08b}"[::-1], 2) for n in range(256)]
    pixels = bytearray()
    for n in range(count):
        pixels += bytes([reversed_bytes[n & 255], reversed_bytes[n >> 8 & 255]])
    bits.add_bytes(bytes(pixels))


def _flat_code(bits: Bits, symbols: int) -> None:
    """Add a code of 8 bits for each of the first 256 of `symbols`."""
    bits.add(0, 1)
    bits.add(8, 4)  # twelve lengths of code lengths follow, in a fixed order: 17, 18, 0, 1, ...
    for length in (0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1):  # 18: many zeros, and 8
        bits.add(length, 3)
    bits.add(0, 1)  # as many lengths as there are symbols
    bits.add_bytes(bytes(32))  # 256 times the shorter code: length 8
    if symbols > 256:
        bits.add(1 | (symbols - 256 - 11) << 1, 8)


def _long_codes(bits: Bits) -> None:
    """Add a code of 11 bits for each of 2048 symbols, whose table takes 9 kB, and four of one."""
    bits.add(0, 1)
    bits.add(11, 4)  # fifteen lengths of code lengths follow: 18, 16 and 11
    for length in (0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2):
        bits.add(length, 3)
    bits.add(0, 1)
    bits.add(0b01, 2)  # 11, and again, six times in each three bits
    for _ in range(341):
        bits.add(0b110, 3)
    bits.add(0b01, 2)
    for zeros in (138, 131, 11):
        bits.add(0b11 | (zeros - 11) << 2, 9)
    for _ in range(4):
        bits.add(0b0001, 4)


def _plain(rng: random.Random, bits: Bits) -> None:
    """Add a smaller image of one color."""
    bits.add(0, 1)  # no cache of colors
    _codes(rng, bits, rng.random() < 0.1)


def _codes(rng: random.Random, bits: Bits, two: bool) -> None:
    """Add the five codes of a group: of one symbol, or of two, which take a bit a pixel."""
    for symbols in (256, 256, 256, 256, 40):
        bits.add(1 | two << 1 | 1 << 2, 3)
        for symbol in rng.sample(range(symbols), 1 + two):
            bits.add(symbol, 8)
