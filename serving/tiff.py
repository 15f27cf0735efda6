"""Writes the directory of a TIFF anew, with the tags that decide about its pixels.

Pillow and libtiff both read the file, each in its own way: of two equal tags, Pillow takes the last
and libtiff the first, and tags of an odd type are read by one of them alone. Here each tag is read
once and checked, and what both find is the same. Bounded work: linear in the file, of which one
copy is made.
"""

import struct
from typing import NamedTuple

import numpy as np

from serving import jpeg
from serving.errors import UnsupportedTypeError
from serving.limits import MAX_PIXELS, check_sides, damaged, too_large
from serving.orientation import SIZES

MAX_TAGS = 4096  # libtiff's own limit
MAX_SAMPLES = 16  # values a pixel; Pillow reads up to 6
# Strips or tiles, which Pillow decodes one by one. Strips of one row are legal, in four planes too.
MAX_PIECES = 150_000
# Tiles are decoded completely, those at the right and the lower edge too, which are partly empty.
MAX_TILED_PIXELS = MAX_PIXELS * 3 // 2
# Of all strips or tiles together, beyond the file itself: those that are alike may share bytes.
MAX_SHARED_BYTES = 1_000_000
MAX_TABLES_BYTES = 100_000  # of JPEG; below 2 kB are usual

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
ORIENTATION, SAMPLES, ROWS = 274, 277, 278
PLANES, TILE_WIDTH, TILE_LENGTH, XMP = 284, 322, 323, 700
STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS = 273, 279, 324, 325
PIECES = {STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS}
# The other tags are FillOrder, T4Options, T6Options, Predictor,
# InkSet, NumberOfInks, JPEGProc, JPEGInterchangeFormat, its length, JPEGRestartInterval and
# YCbCrPositioning; ExtraSamples, SampleFormat, the predictors, point transforms and tables of old
# JPEG and YCbCrSubSampling; the palette; JPEGTables, YCbCrCoefficients and ReferenceBlackWhite.
ONCE = {WIDTH, LENGTH, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, ROWS, PLANES}
ONCE |= {TILE_WIDTH, TILE_LENGTH, 266, 292, 293, 317, 332, 334, 512, 513, 514, 515, 531}
PER_SAMPLE = {BITS, 338, 339, 517, 518, 519, 520, 521, 530}
# Tag: the most integers that it may have.
MOST = dict.fromkeys(ONCE, 1) | dict.fromkeys(PER_SAMPLE, MAX_SAMPLES) | {320: 3 << 16}
MOST |= dict.fromkeys(PIECES, 2**63)  # of which `MAX_PIECES` are read
INTEGERS = {3: "u2", 4: "u4", 16: "u8"}  # SHORT, LONG and LONG8
LONG, MOST_LONG = 4, 2**32 - 1
UNCOMPRESSED, OLD_JPEG, JPEG, SEPARATE, CIELAB = 1, 6, 7, 2, 8
# Tag: its types, and the most bytes.
OTHERS = {347: ((1, 7), MAX_TABLES_BYTES), 529: ((5,), 3 * 8), 532: ((5,), 6 * 8)}
OTHERS |= {XMP: ((1, 7), 2**63)}  # Pillow reads the orientation of a TIFF in it


class Kind(NamedTuple):
    """How a TIFF is written.

    Attributes:
        order: byte order, as struct has it.
        at: where the address of its directory is.
        address: how addresses and the numbers of values are written.
        number: how the number of tags is.
    """

    order: str
    at: int
    address: str
    number: str


# By the first bytes. Pillow reads two that libtiff does not, and not the last.
KINDS = {
    b"II*\0": Kind("<", 4, "L", "H"),
    b"MM\0*": Kind(">", 4, "L", "H"),
    b"II\0*": Kind("<", 4, "L", "H"),
    b"MM*\0": Kind(">", 4, "L", "H"),
    b"II+\0": Kind("<", 8, "Q", "Q"),
    b"MM\0+": Kind(">", 8, "Q", "Q"),
}
ORDERS = {"<": b"II*\0", ">": b"MM\0*"}
Numbers = dict[int, np.ndarray]
Others = dict[int, tuple[int, bytes]]


def strip(data: bytes) -> bytes:
    """Return the TIFF `data` with a short directory, without further pages and metadata.

    Keeps XMP, where it is complete: Pillow reads the orientation of a TIFF, and turns it. A BigTIFF
    comes back as a TIFF.

    Raises:
        ImageError: its directory is damaged, or strips or tiles are missing.
        TooLargeError: decoding it takes too long.
        UnsupportedTypeError: its colours are CIELAB, which Pillow reads with colour management that
            the container image does not have; or a JPEG in it is of an unusual kind.
    """
    kind = KINDS.get(data[:4])
    if kind is None:
        raise damaged()
    try:
        numbers, others = _read_tags(data, kind)
        _keep_pieces(data, numbers)
    except (KeyError, struct.error, OverflowError, ValueError) as error:
        raise damaged() from error
    return _written(data, kind.order, numbers, others)


def _read_tags(data: bytes, kind: Kind) -> tuple[Numbers, Others]:
    """Return the first directory's tags about pixels: integers, and (type, content) of others.

    Raises:
        ValueError: one that decides about the pixels is not as it has to be.
        struct.error, OverflowError: the file is shorter.
    """
    numbers, others = {}, {}
    for tag, (form, count, value) in _listed(data, kind).items():
        read = min(count, MAX_PIECES) if tag in PIECES else count
        size = read * SIZES.get(form, 0)
        content = value
        if count * SIZES.get(form, 0) > len(value):
            [place] = struct.unpack(kind.order + kind.address, value)
            content = data[place : place + size]
        complete = 0 < size <= len(content)
        if tag in OTHERS:
            forms, most = OTHERS[tag]
            if complete and form in forms and size <= most:
                others[tag] = (form, content[:size])
        elif complete and form in INTEGERS and read <= MOST[tag]:
            values = np.frombuffer(content[:size], kind.order + INTEGERS[form])
            numbers[tag] = np.minimum(values.astype(np.uint64), MOST_LONG).astype(np.int64)
        elif tag != ORIENTATION:
            raise ValueError(f"tag {tag} is odd")
    return numbers, others


def _listed(data: bytes, kind: Kind) -> dict[int, tuple[int, int, bytes]]:
    """Return {tag: (type, number of values, value or its address)} of tags about pixels.

    Raises:
        ValueError, struct.error, OverflowError: as `_read_tags`.
    """
    order, at, address, number = kind
    entry = struct.Struct(f"{order}HH{address}{struct.calcsize(order + address)}s")
    [start] = struct.unpack_from(order + address, data, at)
    [count] = struct.unpack_from(order + number, data, start)
    begun = start + struct.calcsize(order + number)
    if count > MAX_TAGS or begun + count * entry.size > len(data):
        raise ValueError("too many tags")
    listed = entry.iter_unpack(data[begun : begun + count * entry.size])
    # A tag without a value is as good as none.
    return {tag: tuple(rest) for tag, *rest in listed if (tag in MOST or tag in OTHERS) and rest[1]}


def _keep_pieces(data: bytes, numbers: Numbers) -> None:
    """Keep strips or tiles among `numbers`, as many as the image has, if that is not too much.

    Raises:
        ImageError, TooLargeError, UnsupportedTypeError: as `strip`.
        KeyError, ValueError: a tag or a value is missing.
    """
    one = {tag: int(numbers[tag][0]) for tag in ONCE & numbers.keys()}
    check_sides(one[WIDTH], one[LENGTH])
    if one.get(PHOTOMETRIC) == CIELAB:
        raise UnsupportedTypeError(
            "Expected a TIFF in grey, RGB, CMYK or YCbCr. Received: one in CIELAB colours. Save it "
            "again as JPEG or PNG."
        )
    tiled = TILE_WIDTH in one and TILE_LENGTH in one
    count = _count_pieces(one, tiled)
    found = {tag: numbers.pop(tag)[:count] for tag in PIECES & numbers.keys()}
    compression = one.get(COMPRESSION, UNCOMPRESSED)
    if compression == OLD_JPEG and not found:
        return  # other tags say where the only strip is
    # Some programs give tiles in the tags of strips, as libtiff allows.
    places = found[TILES if tiled and TILES in found else STRIPS]
    if len(places) < count:
        raise ValueError("strips or tiles are missing")
    lengths = found.get(TILE_LENGTHS if tiled and TILE_LENGTHS in found else STRIP_LENGTHS)
    lengths = _lengths(places, lengths, len(data))
    numbers[TILES if tiled else STRIPS] = places
    numbers[TILE_LENGTHS if tiled else STRIP_LENGTHS] = lengths
    if compression != UNCOMPRESSED and lengths.sum() > len(data) + MAX_SHARED_BYTES:
        raise too_large("as many bytes in strips or tiles as the file has", "more")
    if compression == JPEG:
        columns = one[TILE_WIDTH] if tiled else one[WIDTH]
        rows = _rows_of_pieces(one, tiled, count)
        for place, length, needed in zip(places.tolist(), lengths.tolist(), rows, strict=True):
            _check_jpeg(data[place : place + length], columns, needed, count)


def _check_jpeg(piece: bytes, columns: int, rows: int, count: int) -> None:
    """Raise an error unless the JPEG `piece`, one of `count`, is complete and not too expensive.

    Raises:
        TooLargeError, UnsupportedTypeError: as `jpeg.check_cost`.
        ValueError: it has fewer than `columns` or `rows`, or no end.
    """
    jpeg.check_cost(piece, count)
    width, height = jpeg.frame_size(piece)
    # Pillow 12 would take what was in memory for the pixels that are missing.
    if width < columns or height < rows:
        raise ValueError("rows or columns are missing")
    if jpeg.lacks_end(piece):  # libtiff would give it one, behind grey
        raise ValueError("an end is missing")


def _rows_of_pieces(one: dict[int, int], tiled: bool, count: int) -> list[int]:
    """Return how many rows each of `count` strips or tiles has."""
    if tiled:
        return [one[TILE_LENGTH]] * count
    height = one[LENGTH]
    rows = min(one.get(ROWS, height), height)
    a_plane = -(-height // rows)
    return [min(rows, height - index % a_plane * rows) for index in range(count)]


def _count_pieces(one: dict[int, int], tiled: bool) -> int:
    """Return how many strips or tiles the image needs.

    Raises:
        TooLargeError: there are too many, or they are too large.
        ValueError: they are empty.
    """
    width, height = one[WIDTH], one[LENGTH]
    across, down = width, min(one.get(ROWS, height), height)
    if tiled:
        across, down = one[TILE_WIDTH], one[TILE_LENGTH]
    if not across or not down:
        raise ValueError("empty strips or tiles")
    columns, rows = -(-width // across), -(-height // down)
    if tiled and columns * across * rows * down > MAX_TILED_PIXELS:
        most = f"{MAX_TILED_PIXELS // 1_000_000} million pixels in all tiles"
        raise too_large(most, f"{columns * rows} tiles of {across}×{down}")
    planes = one.get(SAMPLES, 1) if one.get(PLANES) == SEPARATE else 1
    if columns * rows * planes > MAX_PIECES:
        raise too_large(f"{MAX_PIECES} strips or tiles", str(columns * rows * planes))
    return columns * rows * planes


def _lengths(places: np.ndarray, lengths: np.ndarray | None, end: int) -> np.ndarray:
    """Return the bytes of each strip or tile in a file of `end` bytes.

    Those without a length go on until the next one begins.
    """
    places = places.clip(0, end)
    starts = np.append(np.unique(places), end)
    gaps = starts[np.searchsorted(starts, places, "right").clip(0, len(starts) - 1)] - places
    if lengths is None or len(lengths) < len(places):
        return gaps
    return np.where(lengths == 0, gaps, np.minimum(lengths, end - places))


def _written(data: bytes, order: str, numbers: Numbers, others: Others) -> bytes:
    """Return the TIFF `data` with a directory at its end, of `numbers` and `others`."""
    tags = {tag: (LONG, len(v), v.astype(f"{order}u4").tobytes()) for tag, v in numbers.items()}
    tags |= {tag: (form, len(v) // SIZES[form], v) for tag, (form, v) in others.items()}
    pieces = [ORDERS[order], b"", data[8:], bytes(len(data) % 2)]
    place, directory = len(data) + len(data) % 2, b""
    for tag, (form, count, content) in sorted(tags.items()):
        directory += struct.pack(f"{order}HHL", tag, form, count)
        if len(content) <= 4:
            directory += content.ljust(4, b"\0")
        else:
            directory += struct.pack(f"{order}L", place)
            pieces.append(content.ljust(len(content) + len(content) % 2, b"\0"))
            place += len(pieces[-1])
    pieces[1] = struct.pack(f"{order}L", place)
    number, last = struct.pack(f"{order}H", len(tags)), bytes(4)  # no further page
    return b"".join([*pieces, number, directory, last])
