"""Draws JPEGs: any frame and sampling, and scans, restarts, tables and comments by the thousand."""

import random
import struct

from serving.limits import MAX_SIDE
from tests.fuzz.hostile.draw import MAX_BYTES, draw_sides, flood, log_uniform, usually
from tests.fuzz.hostile.exif import draw_exif

PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
FRAMES = (0xC0, 0xC0, 0xC1, 0xC2, 0xC2, 0xC2)
OTHER_FRAMES = (0xC9, 0xCA, 0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)
SAMPLINGS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 2), (3, 1))
# Of Huffman codes: an end of block, one coefficient, sixteen zeros, and ends of many blocks.
SYMBOLS = (0x00, 0x01, 0x02, 0x11, 0xF0, 0xE0, 0x50, 0x0F)


def segment(marker: int, content: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def draw_jpeg(rng: random.Random) -> bytes:
    """Return a JPEG of at most about `MAX_BYTES`."""
    return (b"\xff\xd8" + flood(rng, lambda: _metadata(rng)) + draw_stream(rng))[:MAX_BYTES]


def draw_stream(
    rng: random.Random,
    sides: tuple[int, int] | None = None,
    components: int = 0,
    sampling: tuple[int, int] | None = None,
) -> bytes:
    """Return a JPEG behind its metadata.

    Args:
        rng: what is not given is drawn from it.
        sides: (width, height).
        components: number of.
        sampling: (across, down) of the first component.
    """
    kind = usually(rng, rng.choice(FRAMES), *OTHER_FRAMES)
    width, height = sides or draw_sides(rng)
    if not sides and rng.random() < 0.1:
        width, height = rng.choice(((1, MAX_SIDE), (MAX_SIDE, 1), (7071, 7071)))
    components = components or usually(rng, rng.choice((1, 3, 3, 4)), 2, 5, odds=0.98)
    samplings = [sampling or rng.choice(SAMPLINGS)] + [(1, 1)] * (components - 1)
    if rng.random() < 0.1:
        samplings = [(rng.randrange(6), rng.randrange(6)) for _ in range(components)]
    precision = usually(rng, 8, 12, 2, 16, odds=0.97)
    rows = usually(rng, height & 0xFFFF, 0, odds=0.98)
    frame = struct.pack(">BHHB", precision, rows, width & 0xFFFF, components)
    frame += b"".join(bytes([n, (x << 4 | y) & 255, 0]) for n, (x, y) in enumerate(samplings))
    head = segment(0xDB, b"\0" + bytes([rng.choice((1, 1, 16, 255))]) * 64) + _huffman(rng)
    head += flood(rng, lambda: _between(rng), odds=0.1) + segment(kind, frame)
    if rng.random() < 0.2:
        head += segment(0xDD, struct.pack(">H", log_uniform(rng, 1, 65_535)))
    scans = _scans(rng, kind, components, MAX_BYTES - len(head))
    return head + scans + usually(rng, b"\xff\xd9", b"", b"\xff\xd9" * 3 + scans[:1000])


def _metadata(rng: random.Random) -> bytes:
    content = rng.choice((b"", bytes(log_uniform(rng, 1, 65_000)), b"ICC_PROFILE\0\1\1x"))
    if rng.random() < 0.3:
        content = b"Exif\0\0" + draw_exif(rng, 65_000)
    return segment(rng.choice((0xFE, *range(0xE0, 0xF0))), content)


def _huffman(rng: random.Random) -> bytes:
    """Return tables in which a zero bit is a code, for DC and AC, in both places."""
    symbol = rng.choice(SYMBOLS)
    lengths = usually(rng, bytes([1, *bytes(15)]), bytes([1] * 16))
    symbols = bytes([symbol, *range(1, sum(lengths))])
    differences = bytes([usually(rng, 0, 1, 11, odds=0.8)])
    tables = [bytes([0, 1, *bytes(15)]) + differences, b"\x01\1" + bytes(15) + differences]
    tables += [bytes([place]) + lengths + symbols for place in (0x10, 0x11)]
    return segment(0xC4, b"".join(tables))


def _between(rng: random.Random) -> bytes:
    """Return what may be between scans."""
    comment = segment(0xFE, bytes(usually(rng, 0, log_uniform(rng, 1, 60_000))))
    restart = struct.pack(">BB", 0xFF, rng.randrange(0xD0, 0xD8))
    tables = segment(0xDB, b"\0" + bytes([1]) * 64), segment(0xCC, b"\0\x10"), _huffman(rng)
    rows = segment(0xDC, struct.pack(">H", log_uniform(rng, 1, 65_535)))
    return rng.choice((comment, restart, b"\xff", b"\xff\0", b"\0", rows, *tables))


def _scans(rng: random.Random, kind: int, components: int, room: int) -> bytes:
    """Return scans with what is between them, in at most `room` bytes."""
    chosen = list(range(components))
    each = [_scan(rng, kind, [component]) for component in chosen]
    first = _scan(rng, kind, chosen)
    if kind not in PROGRESSIVE and rng.random() < 0.9:
        # Of several scans, none may have all components.
        first = usually(rng, b"".join(each), first, odds=0.5)
        if components == 1 or first != b"".join(each):
            return first
    repeated = b"".join(rng.choices([*each, first], k=rng.choice((1, 1, 1, 2, 5))))
    if kind not in PROGRESSIVE:
        repeated = b"".join(rng.choices(each, k=2))
    repeated += flood(rng, lambda: _between(rng), 100)
    times = usually(rng, log_uniform(rng, 1, 100), log_uniform(rng, 1, 300_000), odds=0.6)
    return first + repeated * max(1, min(times, room // len(repeated)))


def _scan(rng: random.Random, kind: int, chosen: list[int]) -> bytes:
    """Return a scan of the `chosen` components."""
    first, last, bits = 0, 63, 0
    if kind in PROGRESSIVE:
        low = usually(rng, 0, rng.randrange(14), odds=0.6)
        high = usually(rng, 0, low + 1, odds=0.6)
        first = 0 if len(chosen) > 1 else rng.choice((0, 1, 1, rng.randrange(1, 64)))
        last = rng.choice((first, 63)) if first else 0
        bits = (high << 4 | low) & 255
    tables = usually(rng, 0x00, 0x11)
    header = bytes([len(chosen)]) + b"".join(bytes([c, tables]) for c in chosen)
    length = usually(rng, log_uniform(rng, 1, 20), log_uniform(rng, 1, 5_000_000), odds=0.95)
    fill = rng.choice((b"\0", b"\0", b"\x55", b"\xfe", rng.randbytes(50).replace(b"\xff", b"\0")))
    pixels = (fill * -(-length // len(fill)))[:length]
    if rng.random() < 0.05:
        restarts = b"".join(pixels[:3] + struct.pack(">BB", 0xFF, 0xD0 + n) for n in range(8))
        pixels = restarts * log_uniform(rng, 1, 100_000)
    return segment(0xDA, header + bytes([first, last, bits])) + pixels
