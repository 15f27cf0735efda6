"""Drops the metadata of a JPEG, and completes one without an end marker."""

import re
from collections.abc import Iterator
from typing import NamedTuple

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
MAX_SEGMENTS = 1000  # before the pixels; a few dozen are usual
MAX_SCANS = 1000  # between the pixels of a file without an end
MARKER = re.compile(rb"\xff[\x01-\xfe]", re.DOTALL)
# Between the pixels, FF 00 is a byte of theirs and FF D0 to D7 are restarts.
MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
SCAN, COMMENT, TEM = 0xDA, 0xFE, 0x01
APPLICATION = range(0xE0, 0xF0)
RESTARTS = range(0xD0, 0xD8)
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
WITHOUT_LENGTH = {TEM, *RESTARTS, 0xD8, 0xD9}
# The decoder takes the colours from these, if they are as long as this.
COLORS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
NOISES = tuple(bytes(noise) * 16 for noise in ((0xAA, 0x55, 0x33, 0xC9), (0x5B, 0xD6, 0x8C, 0x31)))
ZEROS = 4  # at the end may be the pixels' own; more are what a card or a disk had there


class Segment(NamedTuple):
    """A marker and what belongs to it.

    Attributes:
        marker: the byte behind FF.
        start: where FF is.
        end: where the next segment may begin.
    """

    marker: int
    start: int
    end: int


def strip(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the JPEG `data` without metadata, its EXIF and its XMP.

    Both are empty if it has none.
    """
    kept, exif, xmp, place = [data[:2]], [], b"", 2
    for segment in _segments(data):
        marker, start, place = segment
        content = data[start + 4 : place]
        if not _is_metadata(marker, content):
            kept.append(data[start:place])
        elif content.startswith(EXIF):
            exif.append(content.removeprefix(EXIF))
        elif content.startswith(XMP):
            xmp = content
    return b"".join([*kept, data[place:]]), b"".join(exif), xmp


def _segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments before the first scan, as far as they are complete."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, place)
        if not found:
            return
        start, marker = found.start(), data[found.start() + 1]
        place = start + 2
        if marker not in WITHOUT_LENGTH:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
        if marker in (SCAN, 0xD8, 0xD9) or TEM < marker < 0xC0 or place > len(data):
            return
        yield Segment(marker, start, place)


def _is_metadata(marker: int, content: bytes) -> bool:
    """Return whether a segment says nothing about the pixels."""
    if marker in COLORS:
        name, length = COLORS[marker]
        return not content.startswith(name) or len(content) < length
    return marker in APPLICATION or marker in (COMMENT, TEM) or marker in RESTARTS


def lacks_end(data: bytes) -> bool:
    """Return whether the JPEG `data` has no end marker behind its first scan."""
    return data.rfind(END, max(data.find(b"\xff\xda"), 0)) < 0


def completions(data: bytes) -> list[bytes]:
    """Return `data` completed by an end marker, alone and behind noise.

    If no pixels are missing, all have the same ones.

    Raises:
        EOFError: a scan is missing.
    """
    if not _has_all_scans(data):
        raise EOFError("a scan is missing")
    filled = len(data.rstrip(b"\0\xff"))
    whole = data if len(data) - filled <= ZEROS else data[: filled + 2]
    whole = whole.rstrip(b"\xff")  # half a marker
    scan = whole.rfind(bytes([0xFF, SCAN]))
    latest = max(RESTARTS, key=lambda n: whole.rfind(bytes([0xFF, n]), scan))
    restarts = [bytes([0xFF, 0xD0 + (latest + n) % 8]) for n in range(1, 9)]
    return [whole + END, *(whole + noise.join([b"", *restarts, END]) for noise in NOISES)]


def _has_all_scans(data: bytes) -> bool:
    """Return whether all components were scanned and, if progressive, all coefficients."""
    place, progressive, missing = 2, False, None
    for segment in _segments(data):
        place = segment.end
        if segment.marker in FRAMES:
            progressive = segment.marker in PROGRESSIVE
            components = data[segment.start + 10 : segment.end : 3]
            missing = {(component, k) for component in components for k in range(64)}
    if missing is None:
        return False
    for _ in range(MAX_SCANS):
        found = MARKER_IN_SCAN.search(data, place)
        if not found:
            break
        place = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
        if data[found.start() + 1] == SCAN:
            missing -= _scanned(data[found.end() + 2 : place], progressive)
    return not missing


def _scanned(header: bytes, progressive: bool) -> set[tuple[int, int]]:
    """Return the (component, coefficient)s that are complete after the scan with `header`."""
    components = header[1 : 1 + 2 * header[0] : 2] if header else b""
    first, last, bits = header[-3:] if progressive and len(header) > 3 else (0, 63, 0)
    if bits & 15:  # the lowest bits are in a later scan
        return set()
    return {(component, k) for component in components for k in range(first, last + 1)}
