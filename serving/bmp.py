"""Decodes run-length encoded BMPs."""

from collections.abc import Iterator
from itertools import islice
from typing import IO, cast

from PIL import Image, ImageFile

NIBBLES = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))
LONGEST_RUN = 255
END_OF_IMAGE, MOVE = 1, 2  # behind a zero; 0 ends a line, and more are pixels that follow
# The pixels of a run, by its byte, with 8 and 4 bits a pixel.
RUNS = (
    [bytes([byte]) * LONGEST_RUN for byte in range(256)],
    [(bytes([byte >> 4, byte & 15]) * LONGEST_RUN)[:LONGEST_RUN] for byte in range(256)],
)


class RunLengthDecoder(ImageFile.PyDecoder):
    """Decodes RLE8 and RLE4, with a step for each run.

    Pillow's own takes a step for each pixel, and two reads for each run, which took 2 s for 20
    million pixels and more for runs of none. It is not exact either: it takes a row without pixels
    for none, and loses a byte where an odd number of 4-bit pixels follows.
    """

    _pulls_fd = True

    def decode(self, buffer: bytes | Image.SupportsArrayInterface) -> tuple[int, int]:
        """Decode the rest of the file.

        Raises:
            EOFError: rows are missing.
        """
        _, four_bits, direction = self.args
        width, height = self.state.xsize, self.state.ysize
        pixels = unpack(cast("IO[bytes]", self.fd).read(), width, height, four_bits)
        self.set_as_raw(pixels, "L" if self.mode == "L" else "P", (0, direction))
        return -1, 0


def unpack(data: bytes, width: int, height: int, four_bits: bool) -> bytes:
    """Return the `width` × `height` pixels in `data`, a byte each; those left out are 0.

    Raises:
        EOFError: it ends before the last row.
    """
    rows, runs = bytearray(width * height), RUNS[four_bits]
    place, left = 0, width  # in `rows`; pixels that this row lacks
    rest = iter(data)
    for count, code in zip(rest, rest, strict=False):
        if count:
            run = runs[code][: min(count, left)]
        elif code > MOVE:
            run = _literal(rest, code, four_bits)[:left]
        elif code == END_OF_IMAGE:
            break
        else:
            right, down = (next(rest, 0), next(rest, 0)) if code == MOVE else (left, 0)
            right = min(right, left)
            place += right + down * width
            left = left - right if code == MOVE else width
            if place >= len(rows):
                break
            continue
        rows[place : place + len(run)] = run
        place += len(run)
        left -= len(run)
    if place < len(rows):
        raise EOFError("rows are missing")
    return bytes(rows)


def _literal(rest: Iterator[int], count: int, four_bits: bool) -> bytes:
    """Return the next `count` pixels of `rest`, whose bytes fill whole words."""
    length = (count + 1) // 2 if four_bits else count
    content = bytes(islice(rest, length + length % 2))[:length]
    return content.hex().encode().translate(NIBBLES)[:count] if four_bits else content
