"""Reads the orientation of an image from EXIF or XMP.

The result is Pillow's; the work is bounded.
"""

import re
import struct

UPRIGHT = 1
TAG = 0x0112
# Bytes of a value of each type of a TIFF's tags, and how the integers among them are written.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
INTEGERS = {3: "H", 4: "L", 8: "h", 9: "l"}
BYTE_ORDERS = {b"II*\0": "<", b"II\0*": "<", b"MM\0*": ">", b"MM*\0": ">"}
EXIF_HEAD = b"Exif\0\0"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_orientation(exif: bytes, xmp: bytes = b"") -> int:
    """Return the orientation in `exif`, or else in `xmp`: 1 (upright) to 8."""
    orientation = _of_exif(exif)
    if orientation is None:
        found = XMP_ORIENTATION.search(xmp)
        orientation = int(found[1]) if found else UPRIGHT
    return orientation if 1 <= orientation <= 8 else UPRIGHT


def _of_exif(exif: bytes) -> int | None:
    """Return the value of the orientation tag of `exif`, or None without one.

    What follows a tag whose value is not there is not read.
    """
    begun = 0
    while exif.startswith(EXIF_HEAD, begun):
        begun += len(EXIF_HEAD)
    exif = exif[begun:]
    order = BYTE_ORDERS.get(exif[:4])
    if order is None or len(exif) < 10:
        return None
    [start] = struct.unpack_from(f"{order}L", exif, 4)
    count = struct.unpack(f"{order}H", exif[start : start + 2].rjust(2, b"\0"))[0]
    tags = exif[start + 2 : start + 2 + 12 * count]
    orientation = None
    for tag, kind, number, value in struct.iter_unpack(
        f"{order}HHL4s", tags[: len(tags) // 12 * 12]
    ):
        size = number * SIZES.get(kind, 0)
        if size > 4 and struct.unpack(f"{order}L", value)[0] + size > len(exif):
            break
        if tag == TAG and kind in INTEGERS and number == 1:
            [orientation] = struct.unpack_from(order + INTEGERS[kind], value)
    return orientation
