"""Draws AVIFs: frames of other sizes than the boxes say, grids, items by the million."""

import functools
import random
import struct
from io import BytesIO

from PIL import Image

from tests.fuzz.hostile.draw import MAX_BYTES, draw_sides, flood, log_uniform, usually
from tests.fuzz.hostile.exif import draw_exif

ALPHA_URN = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"
SEQUENCE_HEADER, TEMPORAL_DELIMITER = 0x0A, b"\x12\0"
LONGEST = 32_768  # pixels, for libavif
SIDES = (16, 64, 256, 1024, 4096)  # of the frames that are encoded


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box."""
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


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


@functools.lru_cache(32)
def _encoded(side: int, kind: str, subsampling: str) -> tuple[bytes, bytes]:
    """Return (av1C, AV1 frame) of a square of one color."""
    buffer = BytesIO()
    image = Image.new(kind, (side, side), 80)
    image.save(buffer, "AVIF", speed=10, subsampling=subsampling, max_threads=1)
    data = buffer.getvalue()
    at = data.index(b"av1C")
    configuration = data[at - 4 : at - 4 + int.from_bytes(data[at - 4 : at])]
    return configuration, data[data.index(b"mdat") + 4 :]


def resized(frame: bytes, width: int, height: int) -> bytes:
    """Return the AV1 `frame` with another size in its reduced sequence header."""
    at = frame.index(bytes([SEQUENCE_HEADER]), 2)
    length = frame[at + 1]
    bits = "".join(f"{byte:08b}" for byte in frame[at + 2 : at + 2 + length])
    across, down = (int(bits[n : n + 4], 2) + 1 for n in (10, 14))  # behind profile, flags, level
    rest = bits[18 + across + down :].rstrip("0")[:-1]  # without the trailing bits
    changed = bits[:10] + "11111111" + f"{width - 1:016b}{height - 1:016b}" + rest + "1"
    changed += "0" * (-len(changed) % 8)
    header = int(changed, 2).to_bytes(len(changed) // 8)
    return frame[:at] + bytes([SEQUENCE_HEADER, len(header)]) + header + frame[at + 2 + length :]


def lengthened(frame: bytes, more: bytes) -> bytes:
    """Return the AV1 `frame` with `more` bytes of pixels."""
    header = frame.index(bytes([SEQUENCE_HEADER]), 2)
    at = header + 2 + frame[header + 1] + 1  # of the length, 7 bits a byte
    end = at + 1
    while frame[end - 1] & 0x80:
        end += 1
    pixels = frame[end:] + more
    length = len(pixels)
    written = bytes(length >> 7 * n & 0x7F | (n < 3) << 7 for n in range(4))
    return frame[:at] + written + pixels


def _draw_frame(rng: random.Random, sides: tuple[int, int], grey: bool = False) -> tuple:
    """Return (av1C, AV1 data): of `sides`, of a square, or both; once or again and again."""
    side = rng.choice((*SIDES, 16, 64))
    subsampling = "4:0:0" if grey else rng.choice(("4:2:0", "4:4:4", "4:2:2", "4:0:0"))
    configuration, frame = _encoded(side, "L" if grey else "RGB", subsampling)
    kind = rng.random()
    if kind < 0.5:
        frame = resized(frame, *sides)
    if kind < 0.4:  # any bytes are coefficients of some kind
        frame = lengthened(frame, rng.randbytes(100) * log_uniform(rng, 1, 20_000))
    if rng.random() < 0.1:
        frame = (frame + resized(frame, *draw_sides(rng)))[: MAX_BYTES // 4]
    if rng.random() < 0.2:
        frame *= max(1, min(log_uniform(rng, 1, 10_000), MAX_BYTES // 2 // len(frame)))
    return configuration, frame


def _meta(rng: random.Random, place: int) -> tuple[bytes, bytes]:
    """Return (content of mdat at `place`, box meta) of an image, or of a grid of them."""
    sides = draw_sides(rng, usually(rng, LONGEST, 65_535))
    rows, columns = usually(rng, (0, 0), (1, 2), _grid(rng), odds=0.6)
    lie = usually(rng, sides, (64, 64), draw_sides(rng), odds=0.6)
    color, frame = _draw_frame(rng, sides)
    alpha, transparency = _draw_frame(rng, sides, grey=True)
    if len(frame) + len(transparency) > MAX_BYTES // 2:
        transparency = b"\x12\0"
    whole = (lie[0] * max(1, columns) & 0xFFFFFFFF, lie[1] * max(1, rows) & 0xFFFFFFFF)
    grid = struct.pack(">BBBBII", 0, 1, max(0, rows - 1), max(0, columns - 1), *whole)
    properties = [
        full_box(b"ispe", 0, 0, struct.pack(">II", *whole)),
        full_box(b"ispe", 0, 0, struct.pack(">II", *lie)),
        full_box(b"pixi", 0, 0, b"\3\x08\x08\x08"),
        *(color, alpha, full_box(b"auxC", 0, 0, ALPHA_URN)),
        box(b"irot", bytes([rng.randrange(4)])),
        box(b"clap", struct.pack(">8I", *(log_uniform(rng, 1, 2**31) for _ in range(8)))),
        flood(rng, lambda: box(rng.choice((b"free", b"abcd", b"colr"))), odds=0.05),
    ]
    number = rows * columns
    spots = [(place, len(grid)), (place + len(grid), len(frame))]
    spots.append((spots[1][0] + len(frame), len(transparency)))
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
    content = grid + frame + transparency
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
    color, frame = _draw_frame(rng, sides)
    width, height = usually(rng, sides, draw_sides(rng))
    entry = bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HH", width, height)
    entry += struct.pack(">II", 0x480000, 0x480000) + bytes(4) + struct.pack(">H", 1) + bytes(32)
    entry += struct.pack(">Hh", 24, -1)
    chunks = usually(rng, 2, log_uniform(rng, 1, 1_000_000), odds=0.5)
    together = usually(rng, 1, log_uniform(rng, 1, max(2, 3_000_000 // chunks)), odds=0.7)
    samples = chunks * together
    size, sizes = (len(frame) if together == 1 else usually(rng, 1, 0)), b""
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
    return frame, box(b"moov", full_box(b"mvhd", 0, 0, bytes(96)), tracks, exif)
