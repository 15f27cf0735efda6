"""Drops the EXIF of an AVIF, and says what decoding it costs.

What a container says of an image's size need not be that of its AV1 frames, and frames may be
decoded that are never shown. So all coded items count, each with all frames that it has: the cells
of a grid, the transparency, layers, and what is not shown at all. The AV1 decoder is only asked
for the first image of a sequence. Bounded work: linear in the file, of which one copy is made.
"""

import re
from collections.abc import Iterator
from itertools import islice

from serving import av1
from serving.limits import MAX_PIXELS, check_sides, damaged, too_large

# The largest image and its transparency. Gain maps and thumbnails count, too.
MAX_CODED_PIXELS = 2 * MAX_PIXELS
MAX_ITEMS = 4_000  # libavif looks for each among all; a large grid has some hundred
MAX_EXTENTS = 10_000
MAX_BOXES = 10_000  # side by side
MAX_UNITS = 20_000  # of AV1
MAX_PROPERTIES = 30_000  # of all items together; five of each are usual
MAX_COPIED_BYTES = 10_000_000  # of properties: each item has a copy
# Of all items, beyond the file itself: those that are alike may share bytes.
MAX_SHARED_BYTES = 1_000_000
MAX_REFERENCES = 32_000  # bytes, 2 or 4 for each cell of a grid
MAX_TRACKS = 16
MAX_TRACKS_BYTES = 500_000  # 40 for each image and its transparency are many
MAX_IMAGES = 100_000
EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)
FULL = 4  # bytes of version and flags before the content of some boxes


def strip(data: bytes) -> bytes:
    """Return the AVIF `data` without EXIF.

    Raises:
        ImageError: its boxes or its frames are damaged.
        TooLargeError: decoding it takes too long, or too much memory.
    """
    data = EXIF.sub(rb"\1none", data)
    try:
        for kind, start, end in _boxes(data, 0, len(data), nested=False):
            if kind == b"meta":
                _check_items(data, start + FULL, end)
            if kind == b"moov":
                _check_tracks(data, start, end)
    except (KeyError, ValueError) as error:
        raise damaged() from error
    return data


class _Cursor:
    """Reads one number behind the other."""

    def __init__(self, data: bytes, place: int, end: int):
        """Start at `place` of `data`; nothing is read from `end` on."""
        self._data, self._place, self._end = data, place, end

    def read(self, size: int) -> int:
        """Return the next `size` bytes as a number, 0 if there are none to read.

        Raises:
            ValueError: there are fewer.
        """
        place = self._place
        self._place += size
        if self._place > self._end:
            raise ValueError("a box ends too early")
        return int.from_bytes(self._data[place : self._place])


def _boxes(
    data: bytes, place: int, end: int, nested: bool = True
) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of the content of each box in `data` from `place` to `end`.

    Raises:
        ValueError: there are too many, or one does not fit if they are `nested` in another.
    """
    for _ in range(MAX_BOXES):
        if place + 8 > end:
            return
        size, kind, start = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8], 8
        if size == 1:
            size, start = int.from_bytes(data[place + 8 : place + 16]), 16
        size = size if size or nested else end - place
        if size < start or (nested and place + size > end):
            raise ValueError("a box does not fit")
        yield kind, place + start, min(place + size, end)
        place += size
    raise ValueError("too many boxes")


def _children(data: bytes, start: int, end: int, *kinds: bytes) -> dict[bytes, tuple[int, int]]:
    """Return {kind: (start, end)} of those `kinds` of boxes that another contains.

    Raises:
        ValueError: there are two of a kind, of which it is unclear which one counts.
    """
    found: dict[bytes, tuple[int, int]] = {}
    for kind, begun, ended in _boxes(data, start, end):
        if kind in found:
            raise ValueError("a box comes twice")
        if kind in kinds:
            found[kind] = (begun, ended)
    return found


def _check_items(data: bytes, start: int, end: int) -> None:
    """Raise TooLargeError if the items of a box meta cost too much.

    Raises:
        TooLargeError, ValueError: as `strip`, and if it is damaged.
    """
    kinds = (b"iloc", b"iinf", b"idat", b"iprp", b"iref", b"grpl")
    boxes = _children(data, start, end, *kinds)
    if sum(boxes[kind][1] - boxes[kind][0] for kind in kinds[4:] if kind in boxes) > MAX_REFERENCES:
        raise too_large(f"{MAX_REFERENCES} bytes of references between its parts", "more")
    types = _types(data, *boxes.get(b"iinf", (0, 0)))
    sizes = _sizes(data, *boxes.get(b"iprp", (0, 0)))
    work = _Work(data)
    idat = boxes.get(b"idat", (0, 0))
    for item, extents in _locations(data, *boxes.get(b"iloc", (0, 0)), idat).items():
        content = work.read(extents)
        if b"grid" in types.get(item, ()):
            check_sides(*_grid_size(content))
        if b"av01" in types.get(item, ()):
            work.decode(content, sizes.get(item, set()))


class _Work:
    """Adds up what decoding costs."""

    def __init__(self, data: bytes):
        """Start with nothing of the file `data`."""
        self._data, self._bytes, self._units, self._pixels = data, 0, 0, 0
        self._known: dict[bytes, list[tuple[int, int]]] = {}

    def read(self, extents: list[tuple[int, int]]) -> bytes:
        """Return the bytes in `extents`, each (start, end).

        Raises:
            TooLargeError: that is far more than the file has, in total.
        """
        self._bytes += sum(max(0, end - start) for start, end in extents)
        if self._bytes > len(self._data) + MAX_SHARED_BYTES:
            raise too_large("as many bytes in all parts as the file has", "more")
        return b"".join(self._data[start:end] for start, end in extents)

    def decode(self, content: bytes, said: set[tuple[int, int]]) -> None:
        """Add the frames in `content`, AV1, which is scaled if it `said` other sizes.

        Raises:
            TooLargeError: this is too much.
            ValueError: it is damaged.
        """
        if content not in self._known:
            self._known[content] = sizes = []
            for size in av1.frame_sizes(content):
                self._units += 1
                if self._units > MAX_UNITS:
                    raise too_large(f"{MAX_UNITS} units of AV1", "more")
                if size:
                    sizes.append(size)
        sizes = self._known[content]
        for size in {*sizes, *said}:
            check_sides(*size)
        self._pixels += sum(width * height for width, height in (*sizes, *(said - set(sizes))))
        if self._pixels > MAX_CODED_PIXELS:
            most = f"{MAX_CODED_PIXELS // 1_000_000} million pixels in all frames and layers"
            raise too_large(most, "more")


def _types(data: bytes, start: int, end: int) -> dict[int, set[bytes]]:
    """Return {item: its types}, given the box iinf; of several, another reader may take any.

    Raises:
        TooLargeError, ValueError: as `strip`.
    """
    types: dict[int, set[bytes]] = {}
    wide = data[start : start + 1] > b"\0"  # the number of items has 4 bytes, not 2
    for kind, begun, ended in _boxes(data, start + FULL + (4 if wide else 2), end):
        if kind == b"infe":
            cursor = _Cursor(data, begun, ended)
            item = (cursor.read(FULL), cursor.read(4 if data[begun] > 2 else 2))[1]
            cursor.read(2)  # protection
            types.setdefault(item, set()).add(cursor.read(4).to_bytes(4))
    if len(types) > MAX_ITEMS:
        raise too_large(f"{MAX_ITEMS} parts", str(len(types)))
    return types


def _sizes(data: bytes, start: int, end: int) -> dict[int, set[tuple[int, int]]]:
    """Return {item: the (width, height)s that it is said to have}, given the box iprp.

    Raises:
        TooLargeError, ValueError: as `strip`.
    """
    properties, associated = [], []
    for kind, begun, ended in _boxes(data, start, end):
        if kind == b"ipco":
            properties = list(_boxes(data, begun, ended))
        if kind == b"ipma":
            associated += islice(_associations(data, begun, ended), MAX_PROPERTIES + 1)
    sizes: dict[int, set[tuple[int, int]]] = {}
    copied = 0
    for item, index in associated:
        said = sizes.setdefault(item, set())
        kind, begun, ended = properties[index - 1] if 0 < index <= len(properties) else (b"", 0, 0)
        copied += 0 if kind == b"colr" else ended - begun  # of a profile there is no copy
        if kind == b"ispe":
            cursor = _Cursor(data, begun + FULL, ended)
            said.add((cursor.read(4), cursor.read(4)))
    if len(associated) > MAX_PROPERTIES or copied > MAX_COPIED_BYTES:
        raise too_large(f"{MAX_PROPERTIES} properties of its parts", "more")
    return sizes


def _associations(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (item, number of a property, from 1 on) of a box ipma."""
    cursor = _Cursor(data, start, end)
    version, flags = divmod(cursor.read(FULL), 1 << 24)
    for _ in range(cursor.read(4)):
        item = cursor.read(4 if version else 2)
        for _ in range(cursor.read(1)):
            yield item, cursor.read(2) & 0x7FFF if flags & 1 else cursor.read(1) & 0x7F


def _locations(
    data: bytes, start: int, end: int, idat: tuple[int, int]
) -> dict[int, list[tuple[int, int]]]:
    """Return {item: its extents}, given the box iloc.

    Raises:
        TooLargeError, ValueError: as `strip`.
    """
    if start == end:
        return {}
    cursor = _Cursor(data, start, end)
    version = cursor.read(FULL) >> 24
    fields = cursor.read(2)
    offset, length, base, index = (fields >> shift & 15 for shift in (12, 8, 4, 0))
    items: dict[int, list[tuple[int, int]]] = {}
    extents = 0
    for _ in range(cursor.read(4 if version == 2 else 2)):
        item = cursor.read(4 if version == 2 else 2)
        if item in items:
            raise ValueError("an item is in two places")
        begin, last = idat if version and cursor.read(2) & 15 else (0, len(data))
        cursor.read(2)  # which file
        begin += cursor.read(base)
        items[item] = []
        for _ in range(cursor.read(2)):
            cursor.read(index if version else 0)
            place = begin + cursor.read(offset)
            items[item].append((place, min(place + cursor.read(length), last)))
        extents += len(items[item])
        if len(items) > MAX_ITEMS or extents > MAX_EXTENTS:
            raise too_large(f"{MAX_ITEMS} parts in {MAX_EXTENTS} pieces", "more")
    return items


def _grid_size(content: bytes) -> tuple[int, int]:
    """Return the (width, height) of a grid of which `content` is the description."""
    cursor = _Cursor(content, 4, len(content))
    size = 4 if content[1:2] and content[1] & 1 else 2
    return cursor.read(size), cursor.read(size)


def _check_tracks(data: bytes, start: int, end: int) -> None:
    """Raise TooLargeError if the first images of a sequence's tracks in a box moov cost too much.

    Raises:
        TooLargeError, ValueError: as `strip`, and if it is damaged.
    """
    if end - start > MAX_TRACKS_BYTES:
        raise too_large(f"{MAX_TRACKS_BYTES} bytes about a sequence", str(end - start))
    tracks = [(begun, ended) for kind, begun, ended in _boxes(data, start, end) if kind == b"trak"]
    if len(tracks) > MAX_TRACKS:
        raise too_large(f"{MAX_TRACKS} tracks", str(len(tracks)))
    work = _Work(data)
    for track in tracks:
        boxes = _children(data, *track, b"tkhd", b"mdia", b"meta")
        if b"meta" in boxes:
            _check_items(data, boxes[b"meta"][0] + FULL, boxes[b"meta"][1])
        media = _children(data, *boxes.get(b"mdia", (0, 0)), b"minf")
        information = _children(data, *media.get(b"minf", (0, 0)), b"stbl")
        if b"stbl" in information:
            content = work.read([_first_image(data, *information[b"stbl"])])
            work.decode(content, {_track_size(data, *boxes[b"tkhd"])})


def _track_size(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the (width, height) in the box tkhd."""
    cursor = _Cursor(data, start, end)
    cursor.read(FULL + (32 if data[start] else 20) + 52)
    return cursor.read(4) >> 16, cursor.read(4) >> 16


def _first_image(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return where the first image of a track with this box stbl starts and ends.

    Raises:
        TooLargeError, ValueError: as `strip`.
    """
    kinds = (b"stco", b"co64", b"stsc", b"stsz", b"stsd")
    tables = {k: _Cursor(data, *v) for k, v in _children(data, start, end, *kinds).items()}
    [chunks] = [tables[kind] for kind in kinds[:2] if kind in tables]
    for cursor in tables.values():
        cursor.read(FULL)
    size, count = tables[b"stsz"].read(4), chunks.read(4)
    per_chunk = [
        (tables[b"stsc"].read(4), tables[b"stsc"].read(4), tables[b"stsc"].read(4))[1]
        for _ in range(tables[b"stsc"].read(4))
    ]
    kinds_of_images = tables[b"stsd"].read(4)
    steps = count * len(per_chunk)  # libavif looks for each chunk among all
    if (
        max(count * max(per_chunk, default=0), steps // 1000) > MAX_IMAGES
        or kinds_of_images > MAX_TRACKS
    ):
        raise too_large(f"{MAX_IMAGES} images", "more")
    place = chunks.read(8 if b"co64" in tables else 4)
    tables[b"stsz"].read(4)
    return place, min(place + (size or tables[b"stsz"].read(4)), len(data))
