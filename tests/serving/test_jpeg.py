"""serving.jpeg: what decoding a JPEG costs is counted as libjpeg does it."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from serving import jpeg
from serving.errors import ImageError, TooLargeError, UnsupportedTypeError
from serving.image import open_image
from tests.fuzz.make_corpus import encoded, segment

QUANTIZATION = segment(0xDB, bytes([0]) + bytes([1]) * 64)
GREY, COLOURS = [0x11], [0x11, 0x11, 0x11]


def table(kind: int, *symbols: int) -> bytes:
    """Return a Huffman table in which `symbols` have codes of 1, 2, ... bits."""
    counts = bytes([1] * len(symbols)).ljust(16, b"\0")
    return segment(0xC4, bytes([kind << 4]) + counts + bytes(symbols))


TABLES = QUANTIZATION + table(0, 0, 1) + table(1, 0xE0, 0)  # E0: up to 32,767 empty blocks


def frame(width: int, height: int, factors: list[int], marker: int = 0xC2) -> bytes:
    header = struct.pack(">BHHB", 8, height, width, len(factors))
    components = (bytes([number, each, 0]) for number, each in enumerate(factors, 1))
    return segment(marker, header + b"".join(components))


def scan(*components: int, bands: tuple[int, int, int] = (1, 63, 0x10)) -> bytes:
    named = b"".join(bytes([component, 0]) for component in components)
    return segment(0xDA, bytes([len(components)]) + named + bytes(bands))


def jpeg_of(*pieces: bytes) -> bytes:
    return b"".join([b"\xff\xd8", *pieces, b"\xff\xd9"])


def counted(data: bytes, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> int:
    """Return the blocks counted in `data`, by the fewest that may be visited."""
    low, high = 0, 2**40
    while low < high:
        most = (low + high) // 2
        monkeypatch.setattr(jpeg, "MAX_SCANNED_BLOCKS", most)
        try:
            jpeg.check_cost(data, times)
            high = most
        except TooLargeError:
            low = most + 1
    return low


@pytest.mark.parametrize(
    ("width", "height", "factors", "components", "blocks"),
    [
        (8, 8, GREY, [1], 2),  # one block, and one for its row
        (9, 8, GREY, [1], 3),
        (8, 9, GREY, [1], 4),
        (1, 65_500, GREY, [1], 2 * 8188),
        (1, 65_500, [0x41, 0x11, 0x11], [1], 5 * 8188),  # whole units
        (1, 65_500, [0x41, 0x11, 0x11], [2], 2 * 8188),
        (16, 16, [0x22, 0x11, 0x11], [1, 2, 3], 3 * 2 + 2 + 2),
        (17, 17, [0x22, 0x11, 0x11], [1, 2, 3], 5 * 4 + 3 * 2 + 3 * 2),
        (17, 17, [0x22, 0x11, 0x11], [3], 3 * 2),
        (17, 17, [0x22, 0x11, 0x11], [7], 0),  # libjpeg refuses it
        (8, 8, [0x00], [1], 0),
    ],
)
def test_a_scan_counts_the_blocks_that_it_visits(
    width, height, factors, components, blocks, monkeypatch
):
    one = frame(width, height, factors) + scan(*components)
    assert counted(jpeg_of(one), monkeypatch) == blocks
    assert counted(jpeg_of(one, scan(*components)), monkeypatch) == 2 * blocks
    assert counted(jpeg_of(one), monkeypatch, times=3) == 3 * blocks


HIDDEN = [
    b"\xff" * 9,  # fill bytes
    b"\xff\0" * 5,  # pixels that look like markers
    b"junk",
    b"\xff\xd0\xff\xd5",  # restarts out of place
    b"\xff\x01",
    segment(0xFE, b"\xff\xd9"),
    segment(0xDC, b"\0\x08"),  # number of lines
    segment(0xDD, b"\0\1"),
    segment(0xE1, b"Exif\0\0\xff\xd9"),
]


@pytest.mark.parametrize("before", HIDDEN, ids=[f"before_{n}" for n in range(len(HIDDEN))])
def test_nothing_between_scans_hides_them(before, monkeypatch):
    scans = scan(1, bands=(0, 0, 0)), scan(1, bands=(1, 63, 0)), scan(1)
    data = jpeg_of(frame(8, 8, GREY), TABLES, before.join([b"", *scans]))
    assert counted(data, monkeypatch) == 6
    tables = jpeg_of(TABLES)  # a datastream of tables alone may come first
    assert counted(tables + data, monkeypatch) == 6


def test_scans_in_previews_and_behind_the_end_do_not_count(monkeypatch):
    preview = jpeg_of(frame(640, 480, COLOURS), scan(1))
    data = jpeg_of(segment(0xE1, b"Exif\0\0" + preview), frame(8, 8, GREY, 0xC0), scan(1))
    assert counted(data + preview, monkeypatch) == 2


def test_scans_without_an_end_count_as_often_as_they_are_decoded(monkeypatch):
    data = encoded(Image.new("RGB", (120, 90), "red"), "JPEG", progressive=True)
    monkeypatch.setattr(jpeg, "MAX_SCANNED_BLOCKS", counted(data, monkeypatch))
    assert open_image(data).size == (120, 90)
    with pytest.raises(TooLargeError, match="blocks of pixels in all scans"):
        open_image(data[:-2])


def test_a_large_image_in_ten_scans_is_decoded():
    data = encoded(Image.new("RGB", (8100, 6100)), "JPEG", progressive=True, subsampling=0)
    assert open_image(data, (299, 299)).info["size"] == (8100, 6100)


def test_more_blocks_than_two_seconds_take_are_refused():
    data = jpeg_of(frame(8000, 6000, COLOURS), TABLES, scan(1, 2, 3, bands=(0, 0, 0)), scan(1) * 90)
    message = "at most 50 million blocks of pixels in all scans. Received: 69.8 million. Use a"
    with pytest.raises(TooLargeError, match=message):
        open_image(data)


def test_scans_are_counted_in_the_smallest_image():
    data = encoded(Image.new("L", (8, 8)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    usual, more = data.count(b"\xff\xda"), data[last:-2]
    assert open_image(data[:-2] + more * (1000 - usual) + data[-2:]).size == (8, 8)
    with pytest.raises(TooLargeError, match=r"at most 1000 scans\. Received: 1001"):
        open_image(data[:-2] + more * (1001 - usual) + data[-2:])


@pytest.mark.parametrize("kind", [0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)])
@pytest.mark.parametrize("size", [None, (299, 299)])
def test_a_jpeg_that_browsers_do_not_show_is_refused(kind, size):
    data = jpeg_of(frame(4000, 4000, GREY, kind), TABLES, scan(1, bands=(1, 0, 0)))
    with pytest.raises(UnsupportedTypeError, match="lossless, hierarchical or arithmetic-coded"):
        open_image(data, size)


def test_tables_of_an_unused_arithmetic_coder_change_nothing():
    data = encoded(Image.new("L", (8, 8), 200), "JPEG")
    conditioned = data[:2] + segment(0xCC, b"\0\x10") + data[2:]
    assert np.array_equal(open_image(conditioned), open_image(data))


def test_thousands_of_segments_between_scans_are_refused():
    data = encoded(Image.new("L", (8, 8)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(TooLargeError, match="at most 4000 segments of a JPEG. Received: more"):
        open_image(data[:last] + segment(0xFE, b"") * 4000 + data[last:])


@pytest.mark.parametrize("length", range(9))
def test_a_frame_of_few_bytes_is_broken(length):
    data = jpeg_of(segment(0xC0, frame(8, 8, GREY)[4 : 4 + length]), TABLES, scan(1))
    jpeg.check_cost(data)
    with pytest.raises(ImageError):
        open_image(data)


def test_a_preview_of_another_kind_changes_nothing():
    data = encoded(Image.new("L", (8, 8), 200), "JPEG")
    preview = segment(0xE1, b"Exif\0\0" + jpeg_of(frame(8, 8, GREY, 0xC9), scan(1)))
    with Image.open(BytesIO(data)) as plain:
        assert open_image(data[:2] + preview + data[2:]).size == plain.size
