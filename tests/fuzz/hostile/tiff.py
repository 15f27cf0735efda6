"""Draws TIFFs: tags of any type and number, twice or lying; strips, tiles, every compression."""

import random
import struct
from collections.abc import Callable

from PIL.TiffImagePlugin import OPEN_INFO

from tests.fuzz.hostile import jpeg
from tests.fuzz.hostile.draw import (
    MAX_BYTES,
    deflated,
    draw_sides,
    log_uniform,
    lzma_zeros,
    lzw_zeros,
    packbits_zeros,
    usually,
    zstd_zeros,
)
from tests.fuzz.hostile.exif import SIZES, draw_exif

JPEG, FAX = 7, (2, 3, 4)
PACKERS: dict[int, Callable[[int], bytes]] = {
    1: lambda size: bytes(min(size, MAX_BYTES - 1000)),
    5: lzw_zeros,
    8: lambda size: deflated(b"\0", size),
    32946: lambda size: deflated(b"\0", size),
    32773: packbits_zeros,
    34925: lambda size: lzma_zeros(max(0, size - 1).bit_length()),
    50000: zstd_zeros,
}
OTHERS = (2, 3, 4, 6, 50001, 32771, 32809, 34676, 34677, 9)  # of which any bytes may be pixels
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 1, 2, 3, 4, 5, 7, 16
INTEGERS = {BYTE: "B", SHORT: "H", LONG: "I", 6: "b", 8: "h", 9: "i", 13: "I", LONG8: "Q"}
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
OFFSETS, SAMPLES, ROWS, COUNTS, PLANES, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, SUBSAMPLING = 322, 323, 324, 325, 530
EXTRA, FORMAT, FILL_ORDER, TABLES, XMP, PALETTE = 338, 339, 266, 347, 700, 320

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Tag = tuple[int, int, int, bytes]  # tag, type, number of values, values


class Writer:
    """Writes the tags of a TIFF of one byte order, classic or big."""

    def __init__(self, order: str, big: bool):
        self.order, self.big = order, big
        self.start = 16 if big else 8  # where the pixels are
        self.address, self.number = ("Q", "Q") if big else ("I", "H")

    def tag(self, tag: int, *values: int, kind: int = LONG) -> Tag:
        """Return a tag of integers."""
        form = INTEGERS.get(kind, "I")
        least = 256 ** struct.calcsize(form) - 1 >> form.islower()
        content = struct.pack(f"{self.order}{len(values)}{form}", *(v & least for v in values))
        return tag, kind, len(values), content

    def repeated(self, tag: int, value: int, count: int, kind: int = LONG) -> Tag:
        """Return a tag of `count` times `value`."""
        _, _, _, content = self.tag(tag, value, kind=kind)
        return tag, kind, count, content * count

    def file(self, tags: list[Tag], pixels: bytes, behind: int = 0) -> bytes:
        """Return the file of `pixels` and the directory behind them, which says `behind`."""
        room = struct.calcsize(self.address)
        entry = struct.Struct(f"{self.order}HH{self.address}")
        pixels += bytes(len(pixels) % 2)
        place = self.start + len(pixels)
        head = (b"II" if self.order == "<" else b"MM") + struct.pack(
            *(
                (f"{self.order}HHHQ", 43, 8, 0, place)
                if self.big
                else (f"{self.order}HI", 42, place)
            )
        )
        listed = [struct.pack(self.order + self.number, len(tags) & 0xFFFF)]
        place += len(listed[0]) + (entry.size + room) * len(tags) + room
        values = []
        for tag, kind, count, content in tags:
            written = content
            if len(content) > room:
                written = struct.pack(self.order + self.address, place)
                values.append(content)
                place += len(content)
            listed.append(entry.pack(tag, kind, count) + written.ljust(room, b"\0"))
        listed.append(struct.pack(self.order + self.address, behind))
        return b"".join([head, pixels, *listed, *values])


def draw_tiff(rng: random.Random) -> bytes:
    """Return a TIFF of at most about `MAX_BYTES`."""
    key = rng.choice(tuple(OPEN_INFO))
    prefix, photometric, sample_format, fill_order, bits, extra = key
    compression = rng.choice((*PACKERS, 8, JPEG, JPEG, usually(rng, 8, *OTHERS)))
    if bits == (1,) and rng.random() < 0.5:
        compression = rng.choice(FAX)
    elif compression == JPEG:
        photometric, sample_format, bits, extra = rng.choice(
            ((1, (1,), (8,), ()), (2, (1,), (8, 8, 8), ()), (6, (1,), (8, 8, 8), ()))
        )
        fill_order = 1
    writer = Writer("<" if prefix == b"II" else ">", rng.random() < 0.15)
    sides = width, height = draw_sides(rng, usually(rng, 65_535, 2**31 - 1))
    tag = writer.tag
    tags = [
        *(tag(WIDTH, width), tag(LENGTH, height), tag(BITS, *bits, kind=SHORT)),
        *(tag(COMPRESSION, compression), tag(PHOTOMETRIC, photometric)),
        *(tag(SAMPLES, len(bits)), tag(FORMAT, *sample_format * len(bits), kind=SHORT)),
        *(tag(FILL_ORDER, fill_order), tag(PLANES, usually(rng, 1, 2))),
    ]
    tags += [tag(EXTRA, *extra, kind=SHORT)] if extra else []
    tags += [tag(PREDICTOR, rng.choice((2, 3)))] if rng.random() < 0.2 else []
    if photometric == 6:
        tags.append(tag(SUBSAMPLING, 1, 1, kind=SHORT))
    if photometric == 3:
        tags.append((PALETTE, SHORT, 3 << bits[0], bytes(6 << bits[0])))
    blocks, pixels = _blocks(rng, writer, compression, sides, sum(bits))
    if fill_order == 2:
        pixels = pixels.translate(REVERSED)
    tags = _altered(rng, writer, tags + blocks)
    behind = usually(rng, 0, writer.start + len(pixels), 8)
    return writer.file(tags, pixels, behind)[:MAX_BYTES]


def _blocks(
    rng: random.Random, writer: Writer, compression: int, sides: tuple[int, int], bits: int
) -> tuple[list[Tag], bytes]:
    """Return the tags of strips or tiles, and the pixels."""
    width, height = sides
    tiled = rng.random() < 0.5
    across, down = width, usually(rng, height, log_uniform(rng, 1, height), odds=0.5)
    if tiled:
        across, down = draw_sides(rng, usually(rng, 65_535, 2**31 - 1))
        across, down = (-(-side // 16) * 16 for side in (across, down))
    pixels = _packed(rng, compression, (across, down), bits)[: MAX_BYTES - 2000]
    count = -(-width // across) * -(-height // down) * usually(rng, 1, 2, 3)
    room = (MAX_BYTES - len(pixels)) // 8
    count = max(1, min(room, usually(rng, count, log_uniform(rng, 1, MAX_BYTES // 8))))
    kind = usually(rng, LONG, BYTE, SHORT, LONG8, UNDEFINED, RATIONAL, odds=0.95)
    length = usually(rng, len(pixels), 1, 0, 2**32 - 1, odds=0.95)
    offsets, counts = (TILE_OFFSETS, TILE_COUNTS) if tiled else (OFFSETS, COUNTS)
    tags = [
        writer.repeated(offsets, writer.start, count, kind),
        writer.repeated(counts, length, usually(rng, count, 1, odds=0.95)),
    ]
    if tiled:
        tags += [writer.tag(TILE_WIDTH, across), writer.tag(TILE_LENGTH, down)]
    else:
        tags.append(writer.tag(ROWS, usually(rng, down, 0, 2**32 - 1)))
    return tags, pixels


def _packed(rng: random.Random, compression: int, sides: tuple[int, int], bits: int) -> bytes:
    """Return a block of zeros of `sides` (width, height), `bits` a pixel, or any bytes."""
    if compression == JPEG:
        return b"\xff\xd8" + jpeg.draw_stream(rng, usually(rng, sides, (16, 16)), bits // 8, (1, 1))
    if compression in PACKERS:
        size = min(sides[0] * sides[1] * bits // 8 + 1, 1 << 31)
        return PACKERS[compression](usually(rng, size, size // 3 + 1, min(size * 4, 1 << 31)))
    pattern = rng.choice((b"\0", b"\xff", b"\x80", rng.randbytes(9)))
    return pattern * (log_uniform(rng, 1, MAX_BYTES) // len(pattern))


def _altered(rng: random.Random, writer: Writer, tags: list[Tag]) -> list[Tag]:
    """Return `tags` in order, with lies, tags twice and others in between."""
    tags = list(tags)
    size = sum(len(content) for *_, content in tags)
    if rng.random() < 0.3:
        tags.append((XMP, rng.choice((BYTE, UNDEFINED)), 9, b"tiff:Orientation>6"[:9]))
    if rng.random() < 0.2:
        tags += [_other(rng, MAX_BYTES - size) for _ in range(rng.randrange(1, 5))]
    if rng.random() < 0.03:
        tags += [_other(rng, 40)] * log_uniform(rng, 1, 65_000)
    for _ in range(usually(rng, 0, 1, 2, 3, odds=0.8)):  # lies
        place = rng.randrange(len(tags))
        tag, kind, count, content = tags[place]
        value = usually(rng, log_uniform(rng, 1, 65_535), 0, 2**32 - 1, 2**31)
        lie = rng.choice(
            (
                writer.tag(tag, value, kind=rng.choice(tuple(INTEGERS))),
                (tag, rng.choice(tuple(SIZES)), count, content),
                (tag, kind, usually(rng, count + 1, 0, 2**31), content),
                (tag, RATIONAL, 1, struct.pack(f"{writer.order}II", value, 1)),
            )
        )
        tags[place : place + rng.choice((0, 1))] = rng.choice(([lie], [lie, tags[place]]))
    return tags if rng.random() < 0.05 else sorted(tags, key=lambda tag: tag[0])


def _other(rng: random.Random, room: int) -> Tag:
    """Return a tag that says nothing about the pixels, of about `room` bytes at most."""
    if rng.random() < 0.2:
        exif = draw_exif(rng, max(20, room // 4))
        return 34_665, UNDEFINED, len(exif), exif
    kind = rng.choice(tuple(SIZES))
    count = log_uniform(rng, 1, max(2, room // 4 // SIZES[kind]))
    tag = usually(rng, rng.randrange(65_536), TABLES, XMP, 330, 34_853, 33_723, 34_377, odds=0.5)
    return tag, kind, count, bytes(count * SIZES[kind])
