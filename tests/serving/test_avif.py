"""What an AVIF may cost, whatever its container says about it."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from serving import av1, avif
from serving.errors import ImageError, TooLargeError
from serving.image import open_image
from tests.fuzz.make_corpus import encoded, exif
from tests.serving import avif_files as files
from tests.serving.avif_files import Item
from tests.serving.refusals import refusal

PAINTED = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
AV1, CODING = files.av1_of(PAINTED, subsampling="4:4:4")
PLAIN = Item(AV1, (64, 64), more=(CODING,))
ALPHA = files.full(b"auxC", 0, 0, b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
FRAMES = "100 million pixels in all frames and layers"


def square(side, count, cell=PLAIN):
    """Return a grid of `count` by `count` cells that ends up with `side` pixels a side."""
    description = Item(files.grid(count, count, side, side), (side, side), b"grid")
    cells = range(2, count * count + 2)
    return files.avif([description] + [cell] * count**2, [(b"dimg", 1, cells)])


# Legal files.


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (301, 203), (203, 1030)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("frames", [1, 3])
def test_what_libavif_writes_is_accepted(size, mode, frames):
    image = PAINTED.resize(size).convert("RGBA").convert(mode)
    options = {"save_all": True, "append_images": [image.rotate(180)] * 2} if frames > 1 else {}
    for subsampling in ("4:2:0", "4:2:2", "4:4:4", "4:0:0"):
        for tiles in (0, 2):
            data = encoded(
                image,
                "AVIF",
                subsampling=subsampling,
                speed=10,
                tile_rows=tiles,
                tile_cols=tiles,
                **options,
            )
            assert open_image(data).size == size


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (301, 203)])
def test_the_size_of_every_frame_is_read(size):
    frames = [PAINTED.resize(size).rotate(angle) for angle in range(0, 90, 10)]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], speed=8)
    place = data.index(b"stsz")
    count, *lengths = struct.unpack_from(">10I", data, place + 12)
    assert count == len(lengths) == 9
    [begin] = struct.unpack_from(">I", data, data.index(b"stco") + 12)
    content = data[begin : begin + sum(lengths)]
    found = [found for found in av1.frame_sizes(content) if found]
    assert len(found) >= count
    assert set(found) == {size}


def test_a_file_that_was_built_by_hand_is_accepted():
    painted = np.asarray(open_image(encoded(PAINTED, "AVIF", subsampling="4:4:4")))
    alpha, coding = files.av1_of(Image.new("L", (64, 64), 255), subsampling="4:0:0")
    for data in (
        files.avif([PLAIN]),
        files.avif([PLAIN], version=0),
        files.avif([PLAIN._replace(pieces=7)]),
        files.avif([PLAIN._replace(inside=True)]),
        files.avif(
            [PLAIN, Item(alpha, (64, 64), more=(coding, ALPHA))],
            [(b"auxl", 2, [1])],
        ),
        files.sequence(AV1, CODING),
        files.sequence(AV1, CODING, wide=True),
    ):
        assert np.array_equal(open_image(data), painted)


@pytest.mark.parametrize("inside", [False, True])
def test_cells_of_a_grid_are_accepted_though_they_share_their_bytes(inside):
    cells = square(1000, 16)
    assert open_image(cells).size == (1000, 1000)
    wide = Item(files.grid(1, 2, 100, 64, wide=True), (100, 64), b"grid", inside=inside)
    assert open_image(files.avif([wide, PLAIN, PLAIN], [(b"dimg", 1, [2, 3])])).size == (100, 64)


def test_a_last_box_without_a_length_is_accepted():
    data = files.avif([PLAIN])
    place = data.rindex(b"mdat") - 4
    assert open_image(data[:place] + bytes(4) + data[place + 4 :]).size == (64, 64)
    long = data[:place] + struct.pack(">I4sQ", 1, b"free", 16) + data[place:]
    with pytest.raises(ImageError):  # its items are where they were
        open_image(long)


def test_exif_is_dropped_and_the_orientation_stays():
    data = encoded(PAINTED.resize((60, 40)), "AVIF", exif=exif(6))
    assert b"none" in avif.strip(data)
    assert len(avif.strip(data)) == len(data)
    assert open_image(data).size == (40, 60)


# Frames that are larger than the container says.


@pytest.mark.parametrize("kind", [b"av01", b"grid", b"track"])
def test_the_size_in_a_frame_counts(kind):
    frame = files.still(8000, 6251)
    if kind == b"track":
        data = files.sequence(frame, CODING)
    elif kind == b"grid":
        data = square(64, 1, PLAIN._replace(content=frame))
    else:
        data = files.avif([PLAIN._replace(content=frame)])
    assert "50 million pixels. Received: 8000×6251" in refusal(data)


@pytest.mark.parametrize("kind", [b"av01", b"grid", b"track", b"thumbnail"])
def test_a_frame_is_not_scaled_to_more_than_is_accepted(kind):
    large = PLAIN._replace(size=(8000, 6251))
    data = {
        b"av01": files.avif([large]),
        b"grid": square(64, 1, large),
        b"track": files.sequence(AV1, CODING, (8000, 6251)),
        b"thumbnail": files.avif([PLAIN, large], [(b"thmb", 2, [1])]),
    }[kind]
    assert "50 million pixels. Received: 8000×6251" in refusal(data)


@pytest.mark.parametrize("wide", [False, True])
def test_the_size_of_a_grid_is_that_in_its_description(wide):
    described = Item(files.grid(1, 1, 8000, 6251, wide), (64, 64), b"grid")
    data = files.avif([described, PLAIN], [(b"dimg", 1, [2])])
    assert "50 million pixels. Received: 8000×6251" in refusal(data)


def test_all_frames_count():
    frame = files.still(7000, 7000)
    hidden = PLAIN._replace(content=frame * 3)
    assert f"at most {FRAMES}. Received: more" in refusal(files.avif([hidden]))
    assert f"at most {FRAMES}. Received: more" in refusal(files.sequence(frame * 3, CODING))
    assert f"at most {FRAMES}. Received: more" in refusal(files.sequence(frame, CODING, tracks=3))
    cell = PLAIN._replace(content=frame)
    assert f"at most {FRAMES}. Received: more" in refusal(square(64, 2, cell))
    assert refusal(files.avif([PLAIN._replace(content=frame * 2)]), ImageError)  # passes


def test_a_frame_may_have_a_size_of_its_own():
    """Then it counts as large as its header has bits for; dav1d does not compare."""
    sequence = files.bits(
        *((0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (0, 5), (0, 12), (8, 5), (0, 1)),
        *((15, 4), (15, 4), (63, 16), (63, 16), (0, 1), (0, 3), (0, 5), (1, 1), (1, 1), (0, 9)),
    )
    for own, size in ((0, (64, 64)), (1, (65536, 65536))):
        frame = files.bits((0, 1), (0, 2), (1, 1), (0, 1), (0, 1), (own, 1), (0, 99))
        data = files.obu(1, sequence) + files.obu(3, frame)
        assert [found for found in av1.frame_sizes(data) if found] == [size]


def test_a_frame_without_a_length_ends_with_its_item():
    frame = files.still(7000, 7001)
    last = frame.index(b"\x32")
    without = frame[:last] + files.obu(6, bytes(16), sized=False)
    assert list(av1.frame_sizes(without)) == list(av1.frame_sizes(frame)) == [None, (7000, 7001)]


@pytest.mark.parametrize(
    "data",
    [
        files.obu(6, bytes(16)),
        files.still(64, 64)[:3],
        files.still(64, 64)[:6],
        b"\x0a" + b"\xff" * 8 + bytes(99),
        b"\x0a\x02\0\0",
        b"\x0a",
    ],
    ids=["no sequence", "cut header", "cut sequence", "endless size", "too short", "no size"],
)
def test_damaged_frames_are_refused(data):
    with pytest.raises(ValueError, match="."):
        list(av1.frame_sizes(data))
    assert "truncated" in refusal(files.avif([PLAIN._replace(content=data)]), ImageError)


# Much of anything else.


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (files.avif([PLAIN] + [Item(b"", None, b"none")] * 4000), "4000 parts"),
        (square(64 * 64, 64), "4000 parts"),
        (files.avif([PLAIN._replace(content=AV1 + bytes(10_000), pieces=10_001)]), "pieces"),
        (files.avif([PLAIN._replace(content=AV1 + b"\x7a\0" * 20_001)]), "20000 units of AV1"),
        (
            files.avif([PLAIN] + [Item(AV1 + bytes(1_000_000), None, b"none")] * 3),
            "as many bytes in all parts as the file has",
        ),
        (
            files.avif([PLAIN] + [Item(b"", None, b"none", more=(files.box(b"a"),) * 250)] * 120),
            "30000 properties",
        ),
        (
            files.avif(
                [PLAIN] + [Item(b"", None, b"none", more=(files.box(b"abcd", bytes(9999)),))] * 1001
            ),
            "30000 properties",
        ),
        (files.avif([PLAIN], [(b"dimg", 1, range(2, 16_100))]), "32000 bytes of references"),
        (files.avif([PLAIN], (), files.box(b"grpl", bytes(32_000))), "32000 bytes of references"),
        (files.sequence(AV1, CODING, tracks=17), "16 tracks"),
        (files.sequence(AV1, CODING, chunks=130_000), "500000 bytes about a sequence"),
        (files.sequence(AV1, CODING, per_chunk=[(1, 100_001)]), "100000 images"),
        (files.sequence(AV1, CODING, descriptions=17), "100000 images"),
        (
            files.sequence(
                AV1, CODING, chunks=50_000, per_chunk=[(1, 1), *((n, 1) for n in range(9, 9999))]
            ),
            "100000 images",
        ),
    ],
    ids=[
        *("items", "cells", "extents", "units", "bytes", "properties", "copies", "references"),
        *("groups", "tracks", "tables", "images", "descriptions", "steps"),
    ],
)
def test_too_much_of_anything_is_refused(data, sentence):
    assert sentence in refusal(data)


def test_too_many_boxes_are_refused():
    assert refusal(files.avif([PLAIN])[:28] + files.box(b"free") * 900_000, ImageError)
    assert refusal(files.avif([PLAIN], (), *[files.box(b"free")] * 10_000), ImageError)


def test_what_readers_may_understand_differently_is_refused():
    data = files.avif([PLAIN])
    iloc = data[data.index(b"iloc") - 4 : data.index(b"iinf") - 4]
    assert refusal(files.avif([PLAIN], (), iloc), ImageError)
    two = data.replace(struct.pack(">BBH", 0x44, 0, 1), struct.pack(">BBH", 0x44, 0, 2))
    assert refusal(two, ImageError)
    twice = files.avif([PLAIN, PLAIN])
    place = twice.index(b"iloc")
    assert refusal(twice[: place + 28] + b"\0\1" + twice[place + 30 :], ImageError)


def test_cut_and_changed_files_end_in_an_answer():
    for data in (square(100, 2), files.sequence(AV1, CODING), encoded(PAINTED, "AVIF")):
        for place in range(12, min(len(data), 900), 7):
            for changed in (
                data[:place],
                data[:place] + b"\xff" + data[place + 1 :],
                data[:place] + b"\0\0" + data[place + 2 :],
            ):
                with suppress(ImageError, TooLargeError):
                    open_image(changed)
