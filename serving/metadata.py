"""Drops the metadata of an image, after reading its orientation.

What a camera, an editor or a network did to a colour profile, a text or a preview then decides
nothing, and what hostile files hide there is not read. Browsers, too, show an image whose metadata
is damaged. Bounded work: linear in the file, of which one copy is made.
"""

import math
import re
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from serving import avif, jpeg, tiff
from serving.limits import check_sides
from serving.orientation import UPRIGHT, read_orientation

MAX_TEXT = 1_000_000  # bytes of a text in a PNG, unpacked, in which an orientation is looked for
MAX_BLOCKS = 4_000  # of a GIF's metadata, of up to 255 bytes each
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_GREY, PNG_RGB, PNG_PALETTE = 0, 2, 3  # colour types
# tRNS belongs to the pixels, though it is no critical chunk: the fewest and most bytes that it has.
PNG_TRANSPARENCY = {PNG_GREY: (2, math.inf), PNG_RGB: (6, math.inf), PNG_PALETTE: (1, 256)}
PNG_ORIENTATION = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # may be in these
LOWER_CASE = ord("a")
PNG_KIND = re.compile(rb"[A-Za-z0-9_]{4}")  # Pillow gives up at others
PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
PNG_EXIF, PNG_XMP = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"  # the texts' keywords
WEBP_METADATA = {b"ICCP", b"EXIF", b"XMP "}
WEBP_FRAME = b"ANMF"
WEBP_PIXELS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", WEBP_FRAME}
WEBP_FLAGS = 0b0010_1100  # of the same three, in the chunk VP8X
GIF_EXTENSION, GIF_METADATA = 0x21, {0x01, 0xFE, 0xFF}  # plain text, comment, application
GIF_TRANSPARENCY = 0xF9  # of 4 bytes


class Stripped(NamedTuple):
    """An image without metadata.

    Attributes:
        data: the file.
        orientation: EXIF orientation, 1 to 8, of its pixels.
    """

    data: bytes
    orientation: int = UPRIGHT


def strip(data: bytes) -> Stripped:
    """Return the image `data` without its metadata. Broken files may come back as they are.

    Raises:
        ImageError: it is a TIFF or an AVIF, and broken.
        TooLargeError, UnsupportedTypeError: decoding it takes too long.
    """
    strippers: tuple[tuple[bytes, Callable[[bytes], Stripped]], ...] = (
        (jpeg.START, _strip_jpeg),
        (PNG_START, _strip_png),
        (b"RIFF", _strip_webp),
        (b"GIF8", _strip_gif),
        (b"II", lambda data: Stripped(tiff.strip(data))),  # turned as Pillow finds it there
        (b"MM", lambda data: Stripped(tiff.strip(data))),
    )
    for start, stripper in strippers:
        if data.startswith(start):
            return stripper(data)
    return Stripped(avif.strip(data) if data[4:8] == b"ftyp" else data)


def _strip_jpeg(data: bytes) -> Stripped:
    stripped, exif, xmp = jpeg.strip(data)
    return Stripped(stripped, read_orientation(exif, xmp))


def _strip_png(data: bytes) -> Stripped:
    """Keep the critical chunks and tRNS up to the pixels, whatever their checksums, as one IDAT.

    Pillow takes a microsecond for each IDAT, and reads what is behind them without a limit.
    """
    kept, pixels, found, place = [PNG_START], [], {}, len(PNG_START)
    fewest, most = PNG_TRANSPARENCY.get(int.from_bytes(data[25:26]), (1, 0))
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        start, place = place, place + 12 + length
        if kind == b"IDAT":
            pixels.append(data[start + 8 : place - 4])
        elif kind in PNG_ORIENTATION:
            found |= _keyword_chunk(data[start + 4 : place])
        elif kind[0] < LOWER_CASE or (kind == b"tRNS" and fewest <= length <= most):
            if pixels or not PNG_KIND.fullmatch(kind):
                break
            kept.append(data[start:place] if kind != b"tRNS" else _scaled(data[start:place], data))
    if pixels:
        compressed = b"".join(pixels)
        # Pillow does not compare the checksum of these.
        kept += struct.pack(">I4s", len(compressed), b"IDAT"), compressed, bytes(4), PNG_END
    exif = found.get(b"eXIf", b"") or _from_hexadecimal(_text(found.get(PNG_EXIF, b"")))
    return Stripped(b"".join(kept), read_orientation(exif, _text(found.get(PNG_XMP, b""))))


def _scaled(transparency: bytes, data: bytes) -> bytes:
    """Return the chunk `transparency` of the PNG `data` with the values that Pillow compares.

    Those are of 8 bits, except for grey of 16, and of 1, which stays as it is. Of a colour of 16
    bits, the lower 8 do not count.
    """
    depth, color = data[24:26]
    content, checksum = transparency[8:-4], transparency[-4:]
    if zlib.crc32(transparency[4:-4]).to_bytes(4, "big") != checksum:
        return transparency
    if color == PNG_GREY and depth in (2, 4):
        most = 2**depth - 1
        content = struct.pack(">H", (content[1] & most) * 255 // most)
    elif color == PNG_RGB and depth == 16:
        content = b"".join(bytes([0, high]) for high in content[:6:2])
    chunk = transparency[4:8] + content
    return struct.pack(">I", len(content)) + chunk + zlib.crc32(chunk).to_bytes(4, "big")


def _keyword_chunk(chunk: bytes) -> dict[bytes, bytes]:
    """Return {name: content} of a `chunk` with EXIF or XMP, else {}."""
    kind, content, checksum = chunk[:4], chunk[4:-4], chunk[-4:]
    names = (kind,) if kind == b"eXIf" else (PNG_EXIF, PNG_XMP)
    name = next((name for name in names if content.startswith(name) or name == kind), b"")
    if not name or zlib.crc32(chunk[:-4]) != int.from_bytes(checksum, "big"):
        return {}
    return {name: content if name == kind else kind + content.removeprefix(name)}


def _text(content: bytes) -> bytes:
    """Return the text of a chunk, given its kind and what follows its keyword."""
    kind, content = content[:4], content[4:]
    packed = kind == b"zTXt"
    content = content[1:] if packed else content
    if kind == b"iTXt":
        packed = content[:1] == b"\1"
        content = content[2:].split(b"\0", 2)[-1]  # behind the language and the translated keyword
    try:
        return zlib.decompressobj().decompress(content, MAX_TEXT) if packed else content
    except zlib.error:
        return b""


def _from_hexadecimal(text: bytes) -> bytes:
    """Return the bytes that ImageMagick wrote as `text`, behind three lines about them."""
    try:
        return bytes.fromhex(text.split(b"\n", 3)[-1].replace(b"\n", b"").decode("ascii"))
    except ValueError:
        return b""


def _strip_webp(data: bytes) -> Stripped:
    """Keep the first image, and correct the length of what remains.

    Raises:
        TooLargeError: its canvas is too large. libwebp would allocate it twice, unseen by Pillow.
    """
    kept, found, place = [], {}, 12
    last = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while place + 8 <= last:
        kind, length = struct.unpack_from("<4sI", data, place)
        start, end = place, place + 8 + length
        place = end + length % 2
        if kind in WEBP_METADATA:
            found.setdefault(kind, data[start + 8 : end])  # the first counts, as for libwebp
        elif end > len(data):
            check_sides(*webp_size(data))
            return Stripped(data)
        elif kind in WEBP_PIXELS and not (kind == WEBP_FRAME and kind in found):
            kept.append(data[start:end] + bytes(length % 2))
            found[kind] = b""
    content = bytearray(b"WEBP" + b"".join(kept))
    if content.startswith(b"VP8X", 4) and len(content) > 12:
        content[12] &= ~WEBP_FLAGS
    stripped = b"RIFF" + len(content).to_bytes(4, "little") + content
    check_sides(*webp_size(stripped))
    return Stripped(stripped, read_orientation(found.get(b"EXIF", b""), found.get(b"XMP ", b"")))


def webp_size(data: bytes) -> tuple[int, int]:
    """Return the (width, height) of the WebP `data`."""
    kind, header = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(header[4:7], "little") + 1, int.from_bytes(header[7:], "little") + 1
    if kind == b"VP8L":
        both = int.from_bytes(header[1:5], "little")
        return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<2H", header[6:])
    return width & 0x3FFF, height & 0x3FFF


def _strip_gif(data: bytes) -> Stripped:
    """Drop comments and what applications wrote before the first image."""
    place = 13 + (3 << (data[10] & 7) + 1 if data[10:11] >= b"\x80" else 0)
    kept, blocks = [data[:place]], 0
    while data[place : place + 1] == bytes([GIF_EXTENSION]):
        end = place + 2
        while end < len(data) and data[end]:
            end, blocks = end + 1 + data[end], blocks + 1
        blocks += 1
        if blocks > MAX_BLOCKS or end >= len(data):
            return Stripped(data)
        too_short = data[place + 1] == GIF_TRANSPARENCY and data[place + 2] < 4
        if data[place + 1] not in GIF_METADATA and not too_short:
            kept.append(data[place : end + 1])
        place = end + 1
    return Stripped(b"".join([*kept, data[place:]]))
