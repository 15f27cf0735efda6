"""Draws AVIFs: frames of other sizes than the boxes say, grids, items by the million."""

import random
import struct

from benchmarks.avif_writer import Av1, box, configuration, frame, sequence_header
from tests.fuzz.hostile.draw import MAX_BYTES, draw_sides, flood, log_uniform, usually
from tests.fuzz.hostile.exif import draw_exif

ALPHA_URN = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"
TEMPORAL_DELIMITER = b"\x12\0"
LONGEST = 32_768  # pixels, for libavif


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """Return a box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def draw_avif(rng: random.Random) -> bytes:
    """Return an AVIF of at most about `MAX_BYTES`."""
    draw, brand = rng.choice(((_meta, b"avif"), (_meta, b"avif"), (_track, b"avis")))
    head = box(b"ftyp", usually(rng, brand, b"mif1", b"msf1"), bytes(4), brand + b"mif1miafmsf1")
    state = rng.getstate()
    frames, content = draw(rng, 0)
    rng.setstate(state)
    _, content = draw(rng, len(head) + len(content) + 8)  # now their place is known
    filled = flood(rng, lambda: box(rng.choice((b"free", b"skip", b"abcd"))), odds=0.05)
    return (head + content + box(b"mdat", frames) + filled)[:MAX_BYTES]


def _draw_frame(
    rng: random.Random, sides: tuple[int, int], grey: bool = False
) -> tuple[bytes, bytes]:
    """Return (av1C, AV1 data): of `sides` or not, any kind, once or again and again."""
    plane = Av1(
        usually(rng, sides, draw_sides(rng)),
        deep=rng.random() < 0.3,
        full_colour=not grey and rng.random() < 0.5,
        grey=grey,
        grain=rng.random() < 0.2,
        filters=rng.random() < 0.3,
    )
    content = rng.choice((bytes(1000), rng.randbytes(1000))) * log_uniform(
        rng, 1, MAX_BYTES // 4000
    )
    data = TEMPORAL_DELIMITER + sequence_header(plane) + frame(plane, content)
    if rng.random() < 0.1:  # a second size
        other = plane._replace(size=draw_sides(rng))
        data += sequence_header(other) + frame(other, content[:1000])
    if rng.random() < 0.2:
        data *= max(1, min(log_uniform(rng, 1, 10_000), MAX_BYTES // 2 // len(data)))
    return configuration(plane), data


def _meta(rng: random.Random, place: int) -> tuple[bytes, bytes]:
    """Return (content of mdat at `place`, box meta) of an image, or of a grid of them."""
    sides = draw_sides(rng, usually(rng, LONGEST, 65_535))
    rows, columns = usually(rng, (0, 0), (1, 2), _grid(rng), odds=0.6)
    lie = usually(rng, sides, (64, 64), draw_sides(rng), odds=0.6)
    color, pixels = _draw_frame(rng, sides)
    alpha, transparency = _draw_frame(rng, sides, grey=True)
    if len(pixels) + len(transparency) > MAX_BYTES // 2:
        transparency = b"\x12\0"
    whole = (lie[0] * max(1, columns) & 0xFFFFFFFF, lie[1] * max(1, rows) & 0xFFFFFFFF)
    grid = struct.pack(">BBBBII", 0, 1, max(0, rows - 1), max(0, columns - 1), *whole)
    properties = [
        full_box(b"ispe", 0, 0, struct.pack(">II", *whole)),
        full_box(b"ispe", 0, 0, struct.pack(">II", *lie)),
        box(b"pasp", struct.pack(">II", 1, 1)),
        *(color, alpha, full_box(b"auxC", 0, 0, ALPHA_URN)),
        box(b"irot", bytes([rng.randrange(4)])),
        box(b"clap", struct.pack(">8I", *(log_uniform(rng, 1, 2**31) for _ in range(8)))),
        flood(rng, lambda: box(rng.choice((b"free", b"abcd", b"colr"))), odds=0.05),
    ]
    number = rows * columns
    spots = [(place, len(grid)), (place + len(grid), len(pixels))]
    spots.append((spots[1][0] + len(pixels), len(transparency)))
    items = [(1, b"grid" if number else b"av01", spots[0] if number else spots[1])]
    items.append((2, usually(rng, b"av01", b"Exif", b"grid", odds=0.95), spots[2]))
    items += [(3 + n, b"av01", spots[1]) for n in range(number)]
    belongs = {1: [1, 3, 4] if number == 0 else [1, 3], 2: [1, 5, 6]}
    belongs |= {3 + n: [2, 3, 4] for n in range(number)}
    if rng.random() < 0.1:
        belongs[1] += [rng.choice((7, 8))] * log_uniform(rng, 1, 200)
    references = box(b"auxl", struct.pack(">HHH", 2, 1, 1)) if rng.random() < 0.4 else b""
    if number:
        cells = struct.pack(">HH", 1, number) + b"".join(
            struct.pack(">H", usually(rng, 3 + n, 3, odds=0.99)) for n in range(number)
        )
        references += box(b"dimg", cells)
    content = grid + pixels + transparency
    boxes = [
        full_box(b"hdlr", 0, 0, struct.pack(">I4sIII", 0, b"pict", 0, 0, 0), b"\0"),
        full_box(b"pitm", 0, 0, struct.pack(">H", 1)),
        _locations(rng, items),
        _kinds(rng, items),
        full_box(b"iref", 0, 0, references) if references else b"",
        box(b"iprp", box(b"ipco", *properties), _associations(belongs)),
        flood(rng, lambda: box(rng.choice((b"free", b"grpl", b"idat"))), odds=0.05),
    ]
    return content, full_box(b"meta", 0, 0, *boxes)


def _grid(rng: random.Random) -> tuple[int, int]:
    """Return (rows, columns) of a grid, mostly of a few cells."""
    rows = log_uniform(rng, 1, 256)
    return rows, log_uniform(rng, 1, min(256, max(1, usually(rng, 40, 65_000) // rows)))


def _locations(rng: random.Random, items: list) -> bytes:
    """Return where the `items` are: perhaps in many pieces, perhaps among many others."""
    pieces = usually(rng, 1, log_uniform(rng, 1, 65_535), odds=0.9)
    listed = []
    for number, _, (start, length) in items[:1000]:
        count = pieces if length >= pieces and len(items) < 10 else 1
        step = length // count
        listed.append(struct.pack(">IHHH", number, 0, 0, count))
        listed += [struct.pack(">II", start + n * step, step) for n in range(count - 1)]
        listed.append(struct.pack(">II", start + (count - 1) * step, length - (count - 1) * step))
    listed += [struct.pack(">IHHHII", n, 0, 0, 1, s, c) for n, _, (s, c) in items[1000:]]
    number = usually(rng, 0, log_uniform(rng, 1, 800_000), odds=0.95)
    more = b"".join(struct.pack(">IHHH", 100_000 + n, 0, 0, 0) for n in range(number))
    head = struct.pack(">BBI", 0x44, 0, len(items) + number)
    return full_box(b"iloc", 2, 0, head, *listed, more)


def _kinds(rng: random.Random, items: list) -> bytes:
    """Return what the `items` are, perhaps among many others."""
    listed = [
        full_box(b"infe", 2, number > 2, struct.pack(">HH4s", number, 0, kind), b"\0")
        for number, kind, _ in items
    ]
    number = usually(rng, 0, log_uniform(rng, 1, 60_000), odds=0.95)
    for n in range(3 + len(items), min(65_535, 3 + len(items) + number)):
        listed.append(full_box(b"infe", 2, 1, struct.pack(">HH4s", n, 0, b"Exif"), b"\0"))
    return full_box(b"iinf", 1, 0, struct.pack(">I", len(listed)), *listed)


def _associations(belongs: dict[int, list[int]]) -> bytes:
    """Return which properties the items have; those of codecs are essential."""
    listed = []
    for item, numbers in belongs.items():
        marked = [n | (0x80 if n in (4, 5, 7, 8) else 0) for n in numbers]
        listed.append(struct.pack(">HB", item, len(marked)) + bytes(marked))
    return full_box(b"ipma", 0, 0, struct.pack(">I", len(listed)), *listed)


def _track(rng: random.Random, place: int) -> tuple[bytes, bytes]:
    """Return (content of mdat at `place`, box moov) of an image sequence."""
    sides = draw_sides(rng, LONGEST)
    color, pixels = _draw_frame(rng, sides)
    width, height = usually(rng, sides, draw_sides(rng))
    entry = bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HH", width, height)
    entry += struct.pack(">II", 0x480000, 0x480000) + bytes(4) + struct.pack(">H", 1) + bytes(32)
    entry += struct.pack(">Hh", 24, -1)
    chunks = usually(rng, 2, log_uniform(rng, 1, 1_000_000), odds=0.5)
    together = usually(rng, 1, log_uniform(rng, 1, max(2, 3_000_000 // chunks)), odds=0.7)
    samples = chunks * together
    size, sizes = (len(pixels) if together == 1 else usually(rng, 1, 0)), b""
    if samples < 1_000_000 and rng.random() < 0.3:
        size, sizes = 0, struct.pack(">I", size) * samples
    entries = usually(rng, 1, log_uniform(rng, 1, 700_000))
    tables = [
        full_box(b"stsd", 0, 0, struct.pack(">I", 1), box(b"av01", entry, color)),
        full_box(
            b"stts", 0, 0, struct.pack(">I", entries), struct.pack(">II", samples, 1) * entries
        ),
        full_box(b"stsc", 0, 0, struct.pack(">I", 1), struct.pack(">III", 1, together, 1)),
        full_box(b"stsz", 0, 0, struct.pack(">II", size, samples), sizes),
        full_box(b"stco", 0, 0, struct.pack(">I", chunks), struct.pack(">I", place) * chunks),
        full_box(b"stss", 0, 0, struct.pack(">II", 1, 1)),
    ]
    head = (
        struct.pack(">IIIII", 0, 0, 1, 0, 1000)
        + bytes(52)
        + struct.pack(">HHHH", width, 0, height, 0)
    )
    handler = full_box(b"hdlr", 0, 0, struct.pack(">I4sIII", 0, b"pict", 0, 0, 0), b"\0")
    media = full_box(b"mdhd", 0, 0, struct.pack(">IIIIHH", 0, 0, 1000, 1000, 0, 0))
    information = box(b"minf", full_box(b"vmhd", 0, 1, bytes(8)), box(b"stbl", *tables))
    track = box(b"trak", full_box(b"tkhd", 0, 1, head), box(b"mdia", media, handler, information))
    tracks = track + flood(rng, lambda: track, MAX_BYTES // 2, odds=0.2)
    exif = full_box(b"meta", 0, 0, handler, draw_exif(rng, 1000)) if rng.random() < 0.05 else b""
    return pixels, box(b"moov", full_box(b"mvhd", 0, 0, bytes(96)), tracks, exif)
