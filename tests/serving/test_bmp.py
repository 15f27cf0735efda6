"""serving.bmp: run-length encoded BMPs."""

import numpy as np
import pytest

from serving.bmp import unpack
from serving.errors import ImageError
from serving.image import open_image
from tests.fuzz.make_corpus import bmp

END = b"\0\1"
LINE = b"\0\0"


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"\3\x07" + LINE + b"\3\x08" + END, ["777", "888"]),
        (b"\3\x07\3\x08" + LINE + b"\3\x08", ["777", "888"]),  # no more than the row has
        (b"\1\x07" + LINE + b"\2\x08" + LINE, ["700", "880"]),
        (LINE + b"\3\x08", ["000", "888"]),  # a row without pixels is a row
        (b"\1\x07\0\2\1\1\1\x08" + END, ["700", "008"]),
        (b"\1\x07\0\2\xff\1" + LINE, ["700", "000"]),
        (b"\0\2\0\2", ["000", "000"]),
        (b"\0\2\0\xff\3\x07", ["000", "000"]),  # behind the last row
        (b"\0\3\1\2\3\0" + LINE + b"\0\3\4\5\6\0", ["123", "456"]),
        (b"\0\4\1\2\3\4" + LINE + b"\1\5" + LINE, ["123", "500"]),
    ],
)
def test_runs_of_eight_bits(data, rows):
    assert unpack(data, 3, 2, False) == bytes(int(pixel) for row in rows for pixel in row)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"\5\x12" + LINE + b"\4\x34" + LINE, ["12121", "34340"]),
        (b"\0\5\x12\x34\x50\0" + b"\0\0" + b"\0\3\x67\x80" + LINE, ["12345", "67800"]),
        (b"\0\7\x12\x34\x56\x70" + LINE + b"\1\x90" + LINE, ["12345", "90000"]),
    ],
)
def test_runs_of_four_bits(data, rows):
    assert unpack(data, 5, 2, True) == bytes(int(pixel) for row in rows for pixel in row)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        END,
        b"\3",
        b"\3\7",
        b"\3\7" + LINE,
        b"\3\7" + LINE + b"\2\7" + END,
        b"\0\2\1",
        b"\0\3\1",
    ],
)
@pytest.mark.parametrize("four_bits", [False, True])
def test_a_file_that_lacks_rows_is_broken(data, four_bits):
    with pytest.raises(EOFError):
        unpack(data, 3, 2, four_bits)
    with pytest.raises(ImageError):
        open_image(bmp(3, 2, 4 if four_bits else 8, 2 if four_bits else 1, data))


@pytest.mark.parametrize("depth", [4, 8])
@pytest.mark.parametrize("upside_down", [False, True])
def test_runs_become_the_pixels_that_they_are_written_for(depth, upside_down):
    pixels = np.random.default_rng(0).integers(0, 16, (8, 16), dtype=np.uint8)
    runs = b"".join(
        b"".join(bytes([1, pixel if depth == 8 else pixel << 4]) for pixel in row) + LINE
        for row in (pixels if upside_down else pixels[::-1])
    )
    height = -8 if upside_down else 8
    image = open_image(bmp(16, height, depth, 1 if depth == 8 else 2, runs + END))
    assert np.array_equal(np.asarray(image)[..., 0], pixels)
