"""Draws EXIF: directories of tags with values of any type, number and place."""

import random
import struct

from tests.fuzz.hostile.draw import MAX_BYTES, log_uniform, usually

ORIENTATION = 0x0112
POINTERS = (0x8769, 0x8825, 0xA005, 0x014A)  # to sub-directories
TYPES = range(17)
# Bytes of a value by its type.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
SIZES |= {17: 8, 18: 8}


def draw_exif(rng: random.Random, most: int = MAX_BYTES) -> bytes:
    """Return EXIF of at most about `most` bytes, without its head."""
    order = rng.choice("<>")
    place, directories = 8, []
    for _ in range(rng.choice((1, 1, 1, 2, log_uniform(rng, 1, 50)))):
        directories.append(_directory(rng, order, place, most // 2))
        place += len(directories[-1])
    head = b"II*\0" if order == "<" else b"MM\0*"
    return (head + struct.pack(f"{order}I", 8) + b"".join(directories))[:most]


def _directory(rng: random.Random, order: str, place: int, most: int) -> bytes:
    """Return a directory at `place`, its values behind it, followed by the next one."""
    number = usually(rng, rng.randrange(1, 9), log_uniform(rng, 1, max(1, min(65_535, most // 12))))
    count = log_uniform(rng, 1, max(1, most // 8))
    start = place + 6 + 12 * number
    tags = []
    for _ in range(min(number, 64)):
        tag = rng.choice((ORIENTATION, *POINTERS, rng.randrange(65_536)))
        kind = usually(rng, rng.choice((2, 3, 4, 5, 7, 10)), rng.choice(TYPES))
        values = usually(rng, 1, count, rng.getrandbits(32), odds=0.5)
        value = usually(rng, start, 8, rng.randrange(9), rng.getrandbits(32), odds=0.6)
        tags.append(struct.pack(f"{order}HHII", tag, kind, values, value))
    listed = (b"".join(tags) * (1 + number // len(tags)))[: 12 * number]
    values = struct.pack(f"{order}II", 123_456_789, 987_654_321) * usually(rng, count, 1, 0)
    behind = usually(rng, 0, start + len(values), 8, rng.getrandbits(32), odds=0.5)
    return struct.pack(f"{order}H", number) + listed + struct.pack(f"{order}I", behind) + values
