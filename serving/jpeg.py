"""Says what decoding a JPEG costs, drops its metadata, and completes one without an end marker."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from serving.errors import UnsupportedTypeError
from serving.limits import MAX_SCANNED_BLOCKS, MAX_SCANS, too_large

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
MAX_SEGMENTS = 4000  # a few dozen are usual
# libjpeg looks for the next marker in the same way. FF 00 is a byte of the pixels, FF D0 to D7 are
# restarts among them; what is below C0 has no length, and mostly no meaning.
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]", re.DOTALL)
START_OF_IMAGE, END_OF_IMAGE, SCAN, COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
APPLICATION = range(0xE0, 0xF0)
RESTARTS = range(0xD0, 0xD8)
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = 0xC2
SUPPORTED = {0xC0, 0xC1, PROGRESSIVE}
SIDE = 8  # pixels of a block
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


def check_cost(data: bytes, times: int = 1) -> None:
    """Raise an error if decoding the JPEG `data` takes too long.

    The work is counted as libjpeg does it: however few its bytes, a scan visits all blocks of its
    components. `times` is how often it is decoded.

    Raises:
        UnsupportedTypeError: it is lossless, hierarchical or arithmetic-coded. A few bytes of
            arithmetic code keep the decoder busy for as long as the image is large. libjpeg-turbo
            does not reduce a lossless image while it is decoded, and Pillow 12 expects that it
            does: it writes beyond its memory.
        TooLargeError: it has more than `MAX_SCANNED_BLOCKS`, `MAX_SCANS` or `MAX_SEGMENTS`.
    """
    frame, scans, visited = None, 0, 0
    for segment in _segments(data):
        content = data[segment.start + 4 : segment.end]
        if segment.marker in FRAMES and frame is None:
            if segment.marker not in SUPPORTED:
                raise UnsupportedTypeError(
                    "Expected a baseline or progressive JPEG with Huffman coding. Received: one "
                    "that is lossless, hierarchical or arithmetic-coded, which browsers do not "
                    "show. Save it again as JPEG or PNG."
                )
            frame = _blocks(content)
        if segment.marker == SCAN:
            scans += 1
            visited += sum((frame or {}).get(name, 0) for name in set(_scan_components(content)))
    if scans > MAX_SCANS:
        raise too_large(f"{MAX_SCANS} scans", str(scans))
    if visited * times > MAX_SCANNED_BLOCKS:
        raise too_large(
            f"{MAX_SCANNED_BLOCKS // 1_000_000} million blocks of pixels in all scans",
            f"{visited * times / 1_000_000:.1f} million",
        )


def frame_size(data: bytes) -> tuple[int, int]:
    """Return the (width, height) of the JPEG `data` in pixels, as its frame says; 0 without one."""
    for marker, start, end in _segments(data):
        if marker in FRAMES and end >= start + 9:
            height, width = struct.unpack_from(">HH", data, start + 5)
            return width, height
    return 0, 0


def _blocks(frame: bytes) -> dict[int, int]:
    """Return how many blocks a scan of each component visits, by the component's number.

    Blocks fill whole units, of up to 4×4 blocks a component. Another block a row stands for what
    a row costs.
    """
    if len(frame) < 9:
        return {}
    height, width = struct.unpack_from(">HH", frame, 1)
    components = [(name, factors >> 4, factors & 15) for name, factors in _pairs(frame[6:], 3)]
    units_across = -(-width // (SIDE * max(1, *(across for _, across, _ in components))))
    units_down = -(-height // (SIDE * max(1, *(down for _, _, down in components))))
    blocks: dict[int, int] = {}
    for name, across, down in components:
        count = (units_across * across + 1) * units_down * down
        blocks[name] = blocks.get(name, 0) + count
    return blocks


def _pairs(content: bytes, step: int) -> Iterator[tuple[int, int]]:
    """Return the first two of every `step` bytes."""
    return zip(content[::step], content[1::step], strict=False)


def _scan_components(header: bytes) -> bytes:
    """Return the numbers of the components in the scan with `header`."""
    return header[1 : 1 + 2 * header[0] : 2] if header else b""


def strip(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the JPEG `data` without metadata, its EXIF and its XMP.

    Both are empty if it has none.

    Raises:
        TooLargeError: it has more than `MAX_SEGMENTS`.
    """
    kept, exif, xmp, place = [data[:2]], [], b"", 2
    for marker, start, end in _segments(data):
        content = data[start + 4 : end]
        if marker == SCAN:
            break
        place = end
        if not _is_metadata(marker, content):
            kept.append(data[start:place])
        elif content.startswith(EXIF):
            exif.append(content.removeprefix(EXIF))
        elif content.startswith(XMP):
            xmp = content
    return b"".join([*kept, data[place:]]), b"".join(exif), xmp


def _segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments up to the image's end, as far as they are complete.

    Raises:
        TooLargeError: there are more than `MAX_SEGMENTS`.
    """
    place, scanned = 2, False
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, place)
        if not found:
            return
        start, marker = found.start(), data[found.start() + 1]
        place = start + 2
        if marker not in (START_OF_IMAGE, END_OF_IMAGE):
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
        # Tables may have an end of their own.
        if place > len(data) or (marker == END_OF_IMAGE and scanned):
            return
        scanned |= marker == SCAN
        yield Segment(marker, start, place)
    raise too_large(f"{MAX_SEGMENTS} segments of a JPEG", "more")


def _is_metadata(marker: int, content: bytes) -> bool:
    """Return whether a segment says nothing about the pixels."""
    if marker in COLORS:
        name, length = COLORS[marker]
        return not content.startswith(name) or len(content) < length
    return marker in APPLICATION or marker == COMMENT


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
    progressive, missing = False, None
    for segment in _segments(data):
        content = data[segment.start + 4 : segment.end]
        if segment.marker in FRAMES and missing is None:
            progressive = segment.marker == PROGRESSIVE
            missing = {(component, k) for component in content[6::3] for k in range(64)}
        elif segment.marker == SCAN and missing:
            missing -= _scanned(content, progressive)
    return missing is not None and not missing


def _scanned(header: bytes, progressive: bool) -> set[tuple[int, int]]:
    """Return the (component, coefficient)s that are complete after the scan with `header`."""
    first, last, bits = header[-3:] if progressive and len(header) > 3 else (0, 63, 0)
    if bits & 15:  # the lowest bits are in a later scan
        return set()
    return {(name, k) for name in _scan_components(header) for k in range(first, last + 1)}
