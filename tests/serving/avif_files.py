"""Builds AVIF files box by box, and AV1 bit by bit."""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from PIL import Image

from tests.fuzz.make_corpus import encoded

FTYP = b"avif\0\0\0\0avifmif1miaf"


class Item(NamedTuple):
    """A part of an AVIF.

    Attributes:
        content: its bytes; parts with equal ones share them.
        size: the (width, height) that it is said to have.
        kind: what it is.
        pieces: how many extents its bytes are in.
        inside: whether it is in the box idat.
        more: further properties.
    """

    content: bytes
    size: tuple[int, int] | None = None
    kind: bytes = b"av01"
    pieces: int = 1
    inside: bool = False
    more: tuple[bytes, ...] = ()


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def bits(*fields: tuple[int, int]) -> bytes:
    """Return (value, count) of each field, one behind the other, and zeros."""
    text = "".join(f"{value:0{count}b}" for value, count in fields if count)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


def obu(kind: int, content: bytes, sized: bool = True) -> bytes:
    length, left = b"", len(content)
    while sized and (left or not length):
        left, low = left >> 7, left & 127
        length += bytes([low | (128 if left else 0)])
    return bytes([kind << 3 | sized << 1]) + length + content


def still(width: int, height: int) -> bytes:
    """Return a sequence header with a reduced one for its frame, and a frame without pixels."""
    across, down = (width - 1).bit_length() or 1, (height - 1).bit_length() or 1
    header = bits(
        *((0, 3), (1, 1), (1, 1), (8, 5)),
        *((across - 1, 4), (down - 1, 4), (width - 1, across), (height - 1, down)),
        *((0, 3), (0, 3), (0, 9), (1, 1)),
    )
    return obu(1, header) + obu(6, bytes(16))


def av1_of(image: Image.Image, **options: object) -> tuple[bytes, bytes]:
    """Return `image` as Pillow writes it: its AV1, and the box about its coding."""
    data = encoded(image, "AVIF", **options)
    place = data.index(b"av1C") - 4
    coding = data[place : place + struct.unpack_from(">I", data, place)[0]]
    return data[data.index(b"mdat") + 4 :], coding


def sequence(
    content: bytes,
    coding: bytes,
    size: tuple[int, int] = (64, 64),
    *,
    chunks: int = 1,
    per_chunk: Sequence[tuple[int, int]] = ((1, 1),),
    descriptions: int = 1,
    tracks: int = 1,
    wide: bool = False,
) -> bytes:
    """Return a sequence of which each of the `tracks` has the first image `content`.

    `per_chunk` are (first chunk, images of each from there on).
    """
    brand, moov = b"avis\0\0\0\0avismsf1miaf", b""
    for _ in range(2):  # the first time, to know how long it is
        place = struct.pack(">Q" if wide else ">I", len(brand) + 8 + len(moov) + 8)
        steps = [struct.pack(">III", first, count, 1) for first, count in per_chunk]
        samples = box(b"av01", bytes(78), coding) + box(b"none") * (descriptions - 1)
        tables = box(
            b"stbl",
            full(b"stsd", 0, 0, struct.pack(">I", descriptions), samples),
            full(b"co64" if wide else b"stco", 0, 0, struct.pack(">I", chunks), place * chunks),
            full(b"stsc", 0, 0, struct.pack(">I", len(steps)), *steps),
            full(b"stsz", 0, 0, struct.pack(">III", 0, 1, len(content))),
            full(b"stts", 0, 0, struct.pack(">III", 1, 1, 1)),
        )
        shape = struct.pack(">II", size[0] << 16, size[1] << 16)
        times = struct.pack(">IIIII", 0, 0, 1, 0, 1000)
        track = box(
            b"trak",
            full(b"tkhd", 0, 0, times, bytes(52), shape),
            box(
                b"mdia",
                full(b"mdhd", 0, 0, struct.pack(">IIIII", 0, 0, 1000, 1000, 0)),
                full(b"hdlr", 0, 0, struct.pack(">I4sIII", 0, b"pict", 0, 0, 0), b"\0"),
                box(b"minf", tables),
            ),
        )
        moov = box(b"moov", track * tracks)
    return box(b"ftyp", brand) + moov + box(b"mdat", content)


def grid(rows: int, columns: int, width: int, height: int, wide: bool = False) -> bytes:
    """Return the description of a grid."""
    return struct.pack(">BBBB", 0, wide, rows - 1, columns - 1) + struct.pack(
        ">II" if wide else ">HH", width, height
    )


def avif(
    items: Sequence[Item],
    references: Sequence[tuple[bytes, int, Sequence[int]]] = (),
    *further: bytes,
    version: int = 1,
    brand: bytes = FTYP,
) -> bytes:
    """Return an AVIF of `items`, with numbers from 1 on, of which the first is shown.

    `references` are (kind, from, to); `further` boxes go into the box meta.
    """
    properties: list[bytes] = []
    associations, infos, idat = [], [], b""
    for number, item in enumerate(items, 1):
        size = (full(b"ispe", 0, 0, struct.pack(">II", *item.size)),) if item.size else ()
        has = []
        for content in (*size, *item.more):
            if content not in properties:
                properties.append(content)
            has.append(properties.index(content) + 1)
        associations.append(struct.pack(">HB", number, len(has)) + bytes(has))
        infos.append(full(b"infe", 2, 0, struct.pack(">HH4s", number, 0, item.kind), b"\0"))
        idat += item.content if item.inside else b""
    contents = list(dict.fromkeys(item.content for item in items if not item.inside))
    meta = b""
    for _ in range(2):  # the first time, to know how long it is
        begun, inside, located = len(brand) + 8 + len(meta) + 8, 0, []
        for number, item in enumerate(items, 1):
            place = inside
            if item.inside:
                inside += len(item.content)
            else:
                earlier = contents[: contents.index(item.content)]
                place = begun + sum(map(len, earlier))
            step = -(-len(item.content) // item.pieces)
            cuts = [min(step * n, len(item.content)) for n in range(item.pieces + 1)]
            extents = b"".join(struct.pack(">II", place + a, b - a) for a, b in pairwise(cuts))
            method = struct.pack(">H", item.inside) if version else b""
            located.append(
                struct.pack(">H", number) + method + struct.pack(">HH", 0, item.pieces) + extents
            )
        meta = full(
            *(b"meta", 0, 0),
            full(b"hdlr", 0, 0, struct.pack(">I4sIII", 0, b"pict", 0, 0, 0), b"\0"),
            full(b"pitm", 0, 0, struct.pack(">H", 1)),
            full(b"iloc", version, 0, struct.pack(">BBH", 0x44, 0, len(items)), *located),
            full(b"iinf", 0, 0, struct.pack(">H", len(items)), *infos),
            full(
                *(b"iref", 0, 0),
                *(
                    box(kind, struct.pack(f">HH{len(to)}H", source, len(to), *to))
                    for kind, source, to in references
                ),
            ),
            box(
                b"iprp",
                box(b"ipco", *properties),
                full(b"ipma", 0, 0, struct.pack(">I", len(associations)), *associations),
            ),
            *([box(b"idat", idat)] if idat else []),
            *further,
        )
    return box(b"ftyp", brand) + meta + box(b"mdat", *contents)
