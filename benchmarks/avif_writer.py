"""Writes AVIF images whose pixels are whatever AV1 makes of arbitrary bytes.

An AV1 decoder turns any bytes into pixels, so only headers have to be written: an image of any
size, depth and tools, without an encoder. Names in comments are those of AV1's specification.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

SEQUENCE_HEADER, FRAME = 1, 6  # kinds of units
LEVEL = 31  # without limits
SUPERBLOCK = 64  # pixels a side
TILE = 4096, 4096 * 2304  # the most pixels across and in total


class Av1(NamedTuple):
    """How a plane, or three, are coded.

    Attributes:
        size: (width, height).
        deep: 10 bits of a channel, not 8.
        full_colour: chroma has all pixels (4:4:4), not a quarter (4:2:0).
        grey: there is no chroma.
        grain: noise is added after decoding.
        filters: all filters are used after decoding.
    """

    size: tuple[int, int]
    deep: bool = False
    full_colour: bool = False
    grey: bool = False
    grain: bool = False
    filters: bool = False


class Bits:
    """Collects numbers of some bits each."""

    def __init__(self) -> None:
        """Start with none."""
        self.text = ""

    def write(self, bits: int, *values: int) -> None:
        """Write `values` of as many `bits`, the highest first."""
        self.text += "".join(f"{value:0{bits}b}" for value in values)

    def to_bytes(self) -> bytes:
        """Return what was written, filled with zeros."""
        size = -(-len(self.text) // 8)
        return int(self.text.ljust(8 * size, "0"), 2).to_bytes(size, "big")


def avif(colour: tuple[Av1, bytes], alpha: tuple[Av1, bytes] | None = None) -> bytes:
    """Return an AVIF image: how its colour is coded and with what bytes, and its alpha."""
    coded = [colour, alpha] if alpha else [colour]
    planes = [plane for plane, _ in coded]
    streams = [sequence_header(plane) + frame(plane, content) for plane, content in coded]
    types = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    start = len(types) + len(meta(planes, streams, 0)) + 8
    return types + meta(planes, streams, start) + box(b"mdat", *streams)


def box(name: bytes, *parts: bytes) -> bytes:
    """Return a box of an ISO media file."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), name) + content


def full_box(name: bytes, *parts: bytes, version: int = 0) -> bytes:
    """Return a box with a version."""
    return box(name, struct.pack(">I", version << 24), *parts)


def meta(planes: Sequence[Av1], streams: Sequence[bytes], start: int) -> bytes:
    """Return the box that describes `planes`, whose `streams` begin at `start` of the file."""
    places, infos, properties, uses = [], [], [], []
    for number, (plane, stream) in enumerate(zip(planes, streams, strict=True), 1):
        places.append(struct.pack(">HHHII", number, 0, 1, start, len(stream)))
        start += len(stream)
        infos.append(full_box(b"infe", struct.pack(">HH4sB", number, 0, b"av01", 0), version=2))
        own = [full_box(b"ispe", struct.pack(">II", *plane.size)), configuration(plane)]
        if number == 2:
            own.append(full_box(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"))
        indices = range(len(properties) + 1, len(properties) + len(own) + 1)
        uses.append(struct.pack(">HB", number, len(own)) + bytes(indices))
        properties += own
    count = struct.pack(">H", len(planes))
    associations = full_box(b"ipma", struct.pack(">I", len(planes)), *uses)
    alpha_of_colour = full_box(b"iref", box(b"auxl", struct.pack(">HHH", 2, 1, 1)))
    return full_box(
        b"meta",
        full_box(b"hdlr", struct.pack(">I4s12xB", 0, b"pict", 0)),
        full_box(b"pitm", struct.pack(">H", 1)),
        full_box(b"iloc", b"\x44\0", count, *places),
        full_box(b"iinf", count, *infos),
        alpha_of_colour if len(planes) > 1 else b"",
        box(b"iprp", box(b"ipco", *properties), associations),
    )


def configuration(plane: Av1) -> bytes:
    """Return the box that says how `plane` is coded."""
    bits = Bits()
    bits.write(8, 0x81)
    bits.write(3, plane.full_colour)
    bits.write(5, LEVEL)
    halved = not plane.full_colour
    bits.write(1, 0, plane.deep, 0, plane.grey, halved, halved)
    bits.write(10, 0)
    return box(b"av1C", bits.to_bytes())


def unit(kind: int, content: bytes) -> bytes:
    """Return a unit of an AV1 stream, with its length in four times 7 bits."""
    lengths = [len(content) >> shift & 127 | 128 for shift in (0, 7, 14)]
    return bytes([kind << 3 | 2, *lengths, len(content) >> 21]) + content


def sequence_header(plane: Av1) -> bytes:
    """Return the unit that says which size and format `plane` has."""
    bits = Bits()
    bits.write(3, plane.full_colour)  # seq_profile
    bits.write(1, 1, 1)  # still_picture, reduced_still_picture_header
    bits.write(5, LEVEL)
    bits.write(4, 15, 15)  # 16 bits for each side
    bits.write(16, plane.size[0] - 1, plane.size[1] - 1)
    bits.write(1, 0, 1, 1)  # use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    bits.write(1, 0, plane.filters, plane.filters)  # superres, cdef, restoration
    bits.write(1, plane.deep)
    if not plane.full_colour:
        bits.write(1, plane.grey)
    bits.write(1, 0, 1)  # color_description_present_flag, full range
    if not plane.full_colour and not plane.grey:
        bits.write(2, 0)  # chroma_sample_position
    if not plane.grey:
        bits.write(1, 0)  # separate_uv_delta_q
    bits.write(1, plane.grain, 1)  # the last bit ends the unit
    return unit(SEQUENCE_HEADER, bits.to_bytes())


def frame(plane: Av1, content: bytes) -> bytes:
    """Return the unit with the pixels of `plane`, which `content` stands for."""
    bits = Bits()
    bits.write(1, 0, 0, 0)  # disable_cdf_update, screen content, another render size
    tiles = write_tiles(bits, plane)
    bits.write(8, 60)  # base_q_idx
    bits.write(1, *[0] * (1 if plane.grey else 3), 0)  # no deltas, no matrices
    bits.write(1, 0, 0)  # segmentation_enabled, delta_q_present
    write_filters(bits, plane)
    bits.write(1, 1, 0)  # tx_mode_select, reduced_tx_set
    if plane.grain:
        write_grain(bits, plane)
    head = bits.to_bytes()
    if tiles == 1:
        return unit(FRAME, head + content)
    share = len(content) // tiles
    pieces = [content[n * share : (n + 1) * share] for n in range(tiles)]
    sized = [struct.pack("<I", len(piece) - 1) + piece for piece in pieces[:-1]]
    return unit(FRAME, head + b"\0" + b"".join(sized) + pieces[-1])


def write_tiles(bits: Bits, plane: Av1) -> int:
    """Write that there are as few tiles as AV1 allows, and return their number."""
    columns, rows = (-(-side // SUPERBLOCK) for side in plane.size)
    across = doublings(columns * SUPERBLOCK, TILE[0])
    down = max(doublings(columns * rows * SUPERBLOCK**2, TILE[1]) - across, 0)
    bits.write(1, 1)  # uniform_tile_spacing_flag
    bits.write(1, *[0] * (across < doublings(min(columns, 64), 1)))
    bits.write(1, *[0] * (down < doublings(min(rows, 64), 1)))
    if across or down:
        bits.write(across + down, 0)  # context_update_tile_id
        bits.write(2, 3)  # sizes of 4 bytes
    return parts(columns, across) * parts(rows, down)


def doublings(count: int, most: int) -> int:
    """Return how often `most` has to be doubled to be at least `count`."""
    return (-(-count // most) - 1).bit_length()


def parts(superblocks: int, doubled: int) -> int:
    """Return the number of tiles that cover `superblocks`."""
    return -(-superblocks // -(-superblocks // 2**doubled))


def write_filters(bits: Bits, plane: Av1) -> None:
    """Write the loop filter, CDEF and loop restoration: at their strongest, or none."""
    level, planes = (63 if plane.filters else 0), (1 if plane.grey else 3)
    bits.write(6, level, level)
    if plane.filters and not plane.grey:
        bits.write(6, level, level)
    bits.write(4, 0)  # loop_filter_sharpness, loop_filter_delta_enabled
    if plane.filters:
        bits.write(2, 3, 0)  # cdef_damping, cdef_bits
        bits.write(6, *[63] * (1 if plane.grey else 2))
        bits.write(2, *[1] * planes)  # RESTORE_SWITCHABLE
        bits.write(1, 0)  # lr_unit_shift
        if not plane.grey and not plane.full_colour:
            bits.write(1, 0)  # lr_uv_shift


def write_grain(bits: Bits, plane: Av1) -> None:
    """Write film grain of every kind."""
    bits.write(1, 1)  # apply_grain
    bits.write(16, 1)  # grain_seed
    bits.write(4, 1)  # one point of the scaling function
    bits.write(8, 128, 255)
    if not plane.grey:
        bits.write(1, 1)  # chroma_scaling_from_luma
    bits.write(2, 0, 3)  # grain_scaling, ar_coeff_lag
    bits.write(8, *[128] * (24 if plane.grey else 74))
    bits.write(4, 0)  # ar_coeff_shift, grain_scale_shift
    bits.write(1, 1, 0)  # overlap_flag, clip_to_restricted_range
