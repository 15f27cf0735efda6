"""Reads the size of each frame in a piece of AV1.

It follows section 5 of the AV1 specification as far as to the frames' size. AV1 is made of OBUs
(open bitstream units), each with a header that says what and how long it is.
"""

from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE, FRAMES = 1, {3, 6, 7}  # a frame, or the header of one; 7 is a repeated header
EXTENDED, SIZED = 0b100, 0b10
HEADER = 64  # the bytes of a frame header that are read; the size follows within 20
SEQUENCE_HEADER = 512  # with 32 operating points it has 400
KEY, SWITCH, SELECT = 0, 3, 2


class _Bits:
    """Reads one number behind the other."""

    def __init__(self, content: bytes):
        self._number, self._left = int.from_bytes(content), 8 * len(content)

    def read(self, count: int = 1) -> int:
        """Return the next `count` bits.

        Raises:
            ValueError: there are fewer.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError("a header ends too early")
        return self._number >> self._left & (1 << count) - 1

    def skip_variable(self) -> None:
        """Skip a number of variable length."""
        zeros = 0
        while not self.read():
            zeros += 1
        self.read(zeros if zeros < 32 else 0)


class Sequence(NamedTuple):
    """What a sequence header says that matters for the size of frames.

    Attributes:
        width: of its frames, unless they say otherwise.
        height: likewise.
        most: (width, height) that a frame may say.
        reduced: whether frames have short headers, without a size.
        time_bits: bits of the time when a frame is shown.
        id_bits: bits of a frame's number.
        screen_content: 0, 1, or `SELECT` if each frame says it.
        integer_motion: likewise.
    """

    width: int
    height: int
    most: tuple[int, int]
    reduced: bool
    time_bits: int
    id_bits: int
    screen_content: int
    integer_motion: int


def frame_sizes(data: bytes) -> Iterator[tuple[int, int] | None]:
    """Yield (width, height) of each frame in `data`, and None for what is no new frame.

    Of a frame with a size of its own, it is the largest that its header has bits for.

    Raises:
        ValueError: it is damaged.
    """
    place, sequence = 0, None
    while place < len(data):
        header = data[place]
        place += 2 if header & EXTENDED else 1
        size = len(data) - place
        if header & SIZED:
            size, place = _variable(data, place)
        if not 0 <= size <= len(data) - place:
            raise ValueError("an OBU is longer than its item")
        kind = header >> 3 & 15
        if kind == SEQUENCE:
            sequence = _read_sequence(_Bits(data[place : place + min(size, SEQUENCE_HEADER)]))
        if kind in FRAMES:
            if sequence is None:
                raise ValueError("a frame comes before its sequence header")
            yield _read_size(_Bits(data[place : place + min(size, HEADER)]), sequence)
        else:
            yield None
        place += size


def _variable(data: bytes, place: int) -> tuple[int, int]:
    """Return a number of up to 8 groups of 7 bits, and where it ends."""
    number = 0
    for i, byte in enumerate(data[place : place + 8]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, place + i + 1
    raise ValueError("the size of an OBU does not end")


def _read_sequence(bits: _Bits) -> Sequence:
    bits.read(4)  # profile, still picture
    reduced = bool(bits.read())
    time_bits = 0
    if reduced:
        bits.read(5)  # level
    else:
        time_bits = _read_timing(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    id_bits = 0
    if not reduced and bits.read():
        id_bits = bits.read(4) + bits.read(3) + 3
    bits.read(3)  # block size, intra filters
    screen_content = integer_motion = SELECT
    if not reduced:
        bits.read(4)  # kinds of prediction
        if bits.read():  # order hints
            bits.read(2)
        screen_content = SELECT if bits.read() else bits.read()
        if screen_content and not bits.read():
            integer_motion = bits.read()
    most = (1 << width_bits, 1 << height_bits)
    return Sequence(
        width, height, most, reduced, time_bits, id_bits, screen_content, integer_motion
    )


def _read_timing(bits: _Bits) -> int:
    """Read times and operating points; return the bits of the time when a frame is shown."""
    time_bits = delay_bits = 0
    if bits.read():  # timing info
        bits.read(64)
        equal = bits.read()
        if equal:
            bits.skip_variable()
        if bits.read():  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5)
            time_bits = bits.read(5) + 1
            time_bits = 0 if equal else time_bits
    delayed = bits.read()
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # level
            bits.read()
        if delay_bits and bits.read():
            bits.read(2 * delay_bits + 1)
        if delayed and bits.read():
            bits.read(4)
    return time_bits


def _read_size(bits: _Bits, sequence: Sequence) -> tuple[int, int] | None:
    """Return the most (width, height) of a frame, or None if it shows an earlier one."""
    usual = (sequence.width, sequence.height)
    if sequence.reduced:
        return usual
    if bits.read():
        return None
    kind, shown = bits.read(2), bits.read()
    if shown:
        bits.read(sequence.time_bits)
    else:
        bits.read()
    if not (kind == SWITCH or (kind == KEY and shown)):
        bits.read()  # resilience
    bits.read()
    screen_content = sequence.screen_content
    if screen_content == SELECT:
        screen_content = bits.read()
    if screen_content and sequence.integer_motion == SELECT:
        bits.read()
    bits.read(sequence.id_bits)
    return sequence.most if kind == SWITCH or bits.read() else usual
