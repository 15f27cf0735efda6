"""What a TIFF may cost, whatever its directory says about it."""

import io
import itertools
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from serving import tiff
from serving.errors import ImageError, TooLargeError, UnsupportedTypeError
from serving.image import open_image
from tests.fuzz.make_corpus import encoded
from tests.serving.refusals import refusal

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

PAINTED = Image.radial_gradient("L").resize((123, 90)).convert("RGB")
FORMS = {1: "B", 3: "H", 4: "I", 16: "Q", 17: "q", 6: "b", 8: "h"}
# Tag: (type, values) of a grey image of 16 by 16 pixels in one strip.
SHAPE = {256: (4, [16]), 257: (4, [16]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1])}
SHAPE |= {277: (3, [1]), 278: (4, [16]), 273: (4, [16]), 279: (4, [256])}
HEADS = {"II*": b"II*\0", "MM*": b"MM\0*", "II*, the other way round": b"II\0*"}
HEADS |= {"MM*, the other way round": b"MM*\0", "BigTIFF": b"II+\0", "MM BigTIFF": b"MM\0+"}


def written(tags, pixels=bytes(range(256)), head=b"II*\0"):
    """Return a TIFF with `pixels` at 16; `tags` are {tag: (type, values)} or such pairs."""
    order, big = "<" if head[:1] == b"I" else ">", b"+" in head
    address = "Q" if big else "I"
    pairs = sorted(tags.items()) if isinstance(tags, dict) else tags
    start = 16 + len(pixels)
    behind = start + (8 if big else 2) + len(pairs) * (20 if big else 12) + (8 if big else 4)
    directory, values = struct.pack(order + ("Q" if big else "H"), len(pairs)), b""
    for tag, (form, numbers) in pairs:
        content = numbers
        if not isinstance(numbers, bytes):
            content = struct.pack(f"{order}{len(numbers)}{FORMS[form]}", *numbers)
        directory += struct.pack(f"{order}HH{address}", tag, form, len(numbers))
        if len(content) > struct.calcsize(order + address):
            directory += struct.pack(order + address, behind + len(values))
            values += content
        else:
            directory += content.ljust(struct.calcsize(order + address), b"\0")
    first = struct.pack(order + "HHQ", 8, 0, start) if big else struct.pack(order + "I", start)
    return (head + first).ljust(16, b"\0") + pixels + directory + bytes(8 if big else 4) + values


def tiles(width, height, tile, count=1, pixels=b"\0" * 256, compression=1):
    """Return a grey TIFF of which all `count` tiles have the same bytes."""
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [8]), 259: (3, [compression])}
    tags |= {262: (3, [1]), 277: (3, [1]), 322: (4, [tile[0]]), 323: (4, [tile[1]])}
    return written(tags | {324: (4, [16] * count), 325: (4, [len(pixels)] * count)}, pixels)


def loaded(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.mode, image.size, image.tobytes()


def tags_of(data):
    """Return {tag: values} as Pillow finds them."""
    with Image.open(io.BytesIO(data)) as image:
        return dict(image.tag_v2)


# Legal files.


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I", "I;16", "F", "RGB", "RGBA", "CMYK"])
def test_what_libtiff_writes_stays_the_same(mode, big):
    image = PAINTED.convert("L") if mode == "I;16" else PAINTED.convert("RGBA").convert(mode)
    image = Image.fromarray(np.asarray(image, np.uint16) * 257) if mode == "I;16" else image
    compressions = [None, "packbits", "tiff_lzw", "tiff_adobe_deflate", "lzma", "zstd"]
    compressions += ["group3", "group4", "tiff_ccitt"] if mode == "1" else []
    compressions += ["jpeg"] if mode in ("L", "RGB", "CMYK") else []
    for compression, rows in itertools.product(compressions, (16, 90)):
        options = {"compression": compression, "tiffinfo": {278: rows}, "big_tiff": big}
        data = encoded(image, "TIFF", **options)
        assert loaded(tiff.strip(data)) == loaded(data), compression


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_every_head_is_read(head):
    expected = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for compression, pixels in ((1, bytes(range(256))), (8, zlib.compress(bytes(range(256))))):
        lengths = {259: (3, [compression]), 279: (4, [len(pixels)])}
        opened = open_image(written(SHAPE | lengths, pixels, head))
        assert np.array_equal(np.asarray(opened)[..., 0], expected)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_tiles_and_planes_are_read(head):
    planes = bytes(range(256)) + bytes(256) + bytes([9]) * 256
    colors = {258: (3, [8] * 3), 262: (3, [2]), 277: (3, [3]), 284: (3, [2])}
    strips = SHAPE | colors | {273: (4, [16, 272, 528]), 279: (4, [256] * 3)}
    tiled = {tag: strips[tag] for tag in strips if tag not in (273, 278, 279)}
    tiled |= {322: (3, [16]), 323: (3, [16]), 324: (4, [16, 272, 528]), 325: (4, [256] * 3)}
    # libtiff reads tiles that are given as strips
    named = strips | {322: (3, [16]), 323: (3, [16])}
    for tags in (strips, tiled, named):
        opened = np.asarray(open_image(written(tags, planes, head)))
        assert opened.reshape(-1, 3).T.tobytes() == planes


def test_numbers_of_eight_bytes_are_read():
    wide = {tag: (16, values) for tag, (_, values) in SHAPE.items()}
    data = written(wide | {278: (16, [2**64 - 1])}, head=b"II+\0")
    assert open_image(data).size == (16, 16)
    assert tags_of(tiff.strip(data))[278] == 2**32 - 1


def test_strips_without_a_length_go_on_until_the_next():
    rows = [zlib.compress(bytes([n]) * 64) for n in range(4)]
    places = [16 + sum(map(len, rows[:n])) for n in (0, 1, 2, 3)]
    shape = SHAPE | {259: (3, [8]), 278: (4, [4]), 273: (4, places)}
    lengths = [len(row) for row in rows]
    for given in ((), (0, 0, 0, 0), (lengths[0], 0, 2**31, lengths[3])):
        tags = {tag: shape[tag] for tag in shape if tag != 279}
        data = written(tags | ({279: (4, given)} if given else {}), b"".join(rows))
        opened = np.asarray(open_image(data))
        assert opened[::4, 0, 0].tolist() == [0, 1, 2, 3]
    assert tags_of(tiff.strip(data))[279][:2] == (*lengths[:2],)


def test_more_strips_than_the_image_has_are_dropped():
    data = written(SHAPE | {273: (1, b"\x10" * 900_000)})
    assert "truncated" in refusal(data, ImageError)
    data = written(SHAPE | {273: (4, [16] * 200_000), 279: (4, [256] * 200_000)})
    started = time.process_time()
    assert open_image(data).size == (16, 16)
    assert time.process_time() - started < 0.1
    assert tags_of(tiff.strip(data))[273] == (16,)


# Depths that Pillow leaves to us.


@pytest.mark.parametrize(
    ("bits", "form", "values", "expected"),
    [
        (16, 1, np.uint16([0, 32768, 65535]), [0, 128, 255]),
        (32, 1, np.uint32([0, 2**31, 2**32 - 1]), [0, 128, 255]),
        (32, 1, np.uint32([0, 2**30, 2**31 - 1]), [0, 64, 128]),
        (32, 1, np.uint32([0, 128, 255]), [0, 128, 255]),
        (32, 2, np.int32([-1, 128, 255]), [0, 128, 255]),
        (32, 3, np.float32([0, 0.5, 1]), [0, 128, 255]),
    ],
)
def test_grey_of_more_than_8_bits_is_as_bright_as_it_says(bits, form, values, expected):
    tags = SHAPE | {256: (4, [3]), 257: (4, [1]), 258: (3, [bits]), 279: (4, [values.nbytes])}
    tags |= {339: (3, [form])}
    absent = {tag: tags[tag] for tag in tags if tag != 339}
    for given in (tags, absent) if form == 1 else (tags,):
        opened = open_image(written(given, values.tobytes()))
        assert np.asarray(opened)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [np.uint8([0, 64, 255]), np.uint16([0, 16448, 65535])])
def test_where_white_is_zero_grey_is_no_negative(values):
    bits = 8 * values.itemsize
    tags = SHAPE | {256: (4, [3]), 257: (4, [1]), 258: (3, [bits]), 262: (3, [0])}
    packed = zlib.compress(values.tobytes())
    for content, compression in ((values.tobytes(), 1), (packed, 8)):
        given = tags | {259: (3, [compression]), 279: (4, [len(content)])}
        opened = np.asarray(open_image(written(given, content)))
        assert opened[0, :, 0].tolist() == [255, 191, 0]


def test_floats_where_white_is_zero_are_no_negative():
    values = np.float32([0, 0.25, 1])
    tags = SHAPE | {256: (4, [3]), 257: (4, [1]), 258: (3, [32]), 262: (3, [0])}
    tags |= {339: (3, [3]), 279: (4, [12])}
    opened = np.asarray(open_image(written(tags, values.tobytes())))
    assert opened[0, :, 0].tolist() == [255, 191, 0]


def test_twelve_bits_become_eight():
    values = [0x000, 0x800, 0xFFF, 0]
    content = bytes.fromhex("".join(f"{value:03x}" for value in values))
    tags = SHAPE | {256: (4, [4]), 257: (4, [1]), 258: (3, [12]), 279: (4, [6])}
    opened = np.asarray(open_image(written(tags, content)))
    assert opened[0, :, 0].tolist() == [0, 128, 255, 0]


def test_cielab_is_refused():
    """Pillow needs colour management for it, which the container image does not have."""
    colors = {258: (3, [8] * 3), 262: (3, [8]), 277: (3, [3]), 279: (4, [768])}
    sentence = refusal(written(SHAPE | colors, bytes(768)), UnsupportedTypeError)
    assert "Received: one in CIELAB colours." in sentence


# Tags that two readers would understand differently.


def test_of_two_equal_tags_both_readers_find_the_last():
    pixels = zlib.compress(bytes(256))
    for tag in (256, 257):
        pairs = sorted((SHAPE | {259: (3, [8]), 279: (4, [len(pixels)])}).items())
        pairs.insert(0, (tag, (4, [60_000])))
        stripped = tiff.strip(written(pairs, pixels))
        assert open_image(written(pairs, pixels)).size == (16, 16)
        assert tags_of(stripped)[tag] == 16
        assert 60_000 not in tags_of(stripped).values()


@pytest.mark.parametrize("tag", [256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 323])
@pytest.mark.parametrize("form", [1, 2, 5, 6, 7, 8, 11, 12, 17, 0, 99])
def test_integers_of_an_odd_type_are_refused(tag, form):
    tags = SHAPE | {284: (3, [1])} | {tag: (form, b"\x10\0\0\0\0\0\0\0")}
    assert "truncated" in refusal(written(tags, head=b"II+\0"), ImageError)


@pytest.mark.parametrize("tag", [256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323])
def test_two_integers_where_one_belongs_are_refused(tag):
    assert "truncated" in refusal(written(SHAPE | {tag: (4, [16, 16])}), ImageError)


def test_an_odd_orientation_or_xmp_is_dropped():
    upright = loaded(written(SHAPE))
    for odd in ({274: (1, b"\x03")}, {274: (3, [3, 3])}, {700: (2, b"3" * 99)}):
        assert loaded(tiff.strip(written(SHAPE | odd))) == upright
    for more in ({532: (4, [0] * 6)}, {532: (5, b"1" * 99)}, {347: (7, b"1" * 100_001)}):
        assert set(tags_of(tiff.strip(written(SHAPE | more)))) == set(SHAPE)


def test_a_tag_without_a_value_is_dropped():
    for tag in (284, 317, 322, 338, 700):
        assert loaded(tiff.strip(written(SHAPE | {tag: (3, [])}))) == loaded(written(SHAPE))


def test_xmp_turns_a_tiff():
    xmp = b"<x tiff:Orientation='1' tiff:Orientation=\"3\"/>"
    for form in (1, 7):
        opened = np.asarray(open_image(written(SHAPE | {700: (form, xmp)})))
        assert opened[0, 0, 0] == 255


def test_other_data_is_no_tiff():
    with pytest.raises(ImageError, match="truncated"):
        tiff.strip(b"IIII" + bytes(99))


# Damaged directories.


@pytest.mark.parametrize(
    "data",
    [
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\x00" + bytes(90),
        b"MM\0+\0\x08\0\0" + b"\xff" * 8,
        b"MM\0+\0\x08\0\0" + (16).to_bytes(8) + b"\xff" * 8,
        written(list(SHAPE.items()) + [(274, (3, [1]))] * 4096),
        written({tag: SHAPE[tag] for tag in SHAPE if tag != 256}),
        written({tag: SHAPE[tag] for tag in SHAPE if tag != 273}),
        written(SHAPE | {278: (4, [0])}),
        written(SHAPE | {278: (4, [8])}),
        written(SHAPE | {256: (4, [0])}),
        tiles(16, 16, (0, 16)),
        tiles(17, 16, (16, 16)),
    ],
    ids=[
        *("nothing", "far away", "cut", "beyond", "endless", "tags", "width", "strips"),
        *("no rows", "one strip of two", "no columns", "empty tiles", "one tile of two"),
    ],
)
def test_a_damaged_directory_is_refused(data):
    assert "truncated" in refusal(data, ImageError)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_cut_and_changed_files_end_in_an_answer(head):
    data = written(SHAPE | {274: (3, [6]), 317: (3, [1])}, head=head)
    for place in range(4, len(data), 5):
        for changed in (data[:place], data[:place] + b"\xff\xff" + data[place + 2 :]):
            try:
                tiff.strip(changed)
            except (ImageError, TooLargeError) as error:
                assert str(error).startswith("Expected ")  # noqa: PT017


# What decoding costs.


def test_all_tiles_count_with_their_padding():
    assert open_image(tiles(8, 8, (16, 16))).size == (8, 8)
    most = "75 million pixels in all tiles"
    assert f"{most}. Received: 1 tiles of 8192×9156" in refusal(tiles(8, 8, (8192, 9156)))
    assert f"{most}. Received: 4096 tiles of" in refusal(tiles(1, 65535, (3_125_000, 16), 4096))
    assert refusal(tiles(8, 8, (8192, 9155), compression=8), ImageError)  # passes


def test_a_side_or_an_area_too_large_is_refused():
    assert "50 million pixels. Received: 7072×7072" in refusal(
        written(SHAPE | {256: (4, [7072]), 257: (4, [7072])})
    )
    assert "65535 pixels a side. Received: 1×65536" in refusal(
        written(SHAPE | {256: (4, [1]), 257: (4, [65536])})
    )


def test_strips_and_tiles_have_a_limit():
    assert "150000 strips or tiles. Received: 150544" in refusal(tiles(388, 388, (1, 1)))
    rows = SHAPE | {256: (4, [1]), 257: (4, [65535]), 278: (4, [1])}
    planes = rows | {277: (3, [3]), 284: (3, [2])}
    assert "150000 strips or tiles. Received: 196605" in refusal(written(planes))


@pytest.mark.parametrize("lengths", [False, True])
def test_strips_that_share_their_bytes_have_a_limit(lengths):
    """Where bits are in the reverse order, libtiff makes a copy of each."""
    count = 1000
    tags = SHAPE | {257: (4, [count]), 259: (3, [8]), 266: (3, [2]), 278: (4, [1])}
    tags |= {273: (4, [16] * count), 279: (4, [100_000] * count)}
    data = written(tags if lengths else {t: tags[t] for t in tags if t != 279}, bytes(100_000))
    assert "as many bytes in strips or tiles as the file has" in refusal(data)
    shared = zlib.compress(bytes(16))
    tags |= {266: (3, [1]), 279: (4, [len(shared)] * count)}
    assert open_image(written(tags, shared)).size == (16, count)


def jpeg_in_tiff(image, scans=0, length=None, missing=0, narrow=0, **options):
    """Return a TIFF of a JPEG with `missing` rows and `narrow` columns fewer than its strip."""
    data = encoded(image, "JPEG", **options)
    scan = data.rindex(b"\xff\xda")
    data = data[:-2] + data[scan:-2] * scans + data[-2:]
    width, height = image.width + narrow, image.height + missing
    tags = SHAPE | {256: (4, [width]), 257: (4, [height]), 278: (4, [height]), 259: (3, [7])}
    return written(tags | {279: (4, [len(data) if length is None else length])}, data)


def test_scans_of_a_jpeg_in_a_tiff_count():
    grey = Image.new("L", (7056, 7056))
    assert "million blocks" in refusal(jpeg_in_tiff(grey, 90, progressive=True))
    assert "million blocks" in refusal(jpeg_in_tiff(grey, 90, length=0, progressive=True))
    small = PAINTED.convert("L")
    assert open_image(jpeg_in_tiff(small, 9, progressive=True)).size == small.size
    odd = jpeg_in_tiff(small).replace(b"\xff\xc0", b"\xff\xc9")
    assert "arithmetic" in refusal(odd, UnsupportedTypeError)


@pytest.mark.parametrize(("missing", "rows"), [(1, 49), (40, 64), (9, 8)])
def test_a_jpeg_with_fewer_rows_than_its_strip_is_refused(missing, rows):
    """Pillow 12 would take what was in memory for those that are missing."""
    grey = Image.new("L", (64, rows), "grey")
    assert open_image(jpeg_in_tiff(grey)).size == (64, rows)
    refusal(jpeg_in_tiff(grey, missing=missing), ImageError)
    refusal(jpeg_in_tiff(grey).replace(b"\xff\xc0", b"\xff\xe7"), ImageError)  # without a frame


@pytest.mark.parametrize("narrow", [1, 248])
def test_a_jpeg_narrower_than_its_strip_is_refused(narrow):
    """libtiff only warns, and leaves the rest of each row as it was in memory."""
    assert "truncated" in refusal(jpeg_in_tiff(Image.new("L", (8, 64)), narrow=narrow), ImageError)


@pytest.mark.parametrize("size", [(8, 16), (16, 8)])
def test_a_jpeg_smaller_than_its_tile_is_refused(size):
    tile = encoded(Image.new("L", (16, 16)), "JPEG")
    assert open_image(tiles(30, 30, (16, 16), 4, tile, 7)).size == (30, 30)
    small = encoded(Image.new("L", size), "JPEG")
    assert "truncated" in refusal(tiles(30, 30, (16, 16), 4, small, 7), ImageError)


@pytest.mark.parametrize("lost", [1, 2, 300])
def test_a_jpeg_without_its_end_in_a_tiff_is_refused(lost):
    """libtiff would complete it, with grey pixels."""
    image = PAINTED.convert("L")
    whole = encoded(image, "JPEG")
    shape = SHAPE | {256: (4, [123]), 257: (4, [90]), 278: (4, [90]), 259: (3, [7])}
    too_short = written(shape | {279: (4, [len(whole) - lost])}, whole)
    for given in (len(whole), 0):  # 0 is up to the end of the file
        head = written(shape | {273: (4, [130]), 279: (4, [given])}, b"")
        data = head.ljust(130) + whole
        assert open_image(data).size == (123, 90)
        assert "truncated" in refusal(data[:-lost], ImageError)
    assert "truncated" in refusal(too_short, ImageError)


def test_subsampled_jpegs_of_a_tiff_have_all_columns():
    for sampling in (0, 1, 2):
        image = PAINTED.resize((101, 33))
        data = encoded(image, "TIFF", compression="jpeg", subsampling=sampling)
        assert open_image(data).size == (101, 33)


def test_strips_of_jpeg_that_libtiff_writes_have_all_rows():
    image = PAINTED.resize((100, 1001)).convert("RGB")
    data = encoded(image, "TIFF", compression="jpeg")
    with Image.open(io.BytesIO(data)) as opened:
        assert len(opened.tag_v2[273]) > 2
    assert open_image(data).size == (100, 1001)


@pytest.mark.parametrize("kind", ["rows", "tiles", "deflate", "large tile"])
def test_the_worst_that_passes_costs_little(kind):
    empty = zlib.compress(bytes(256))
    rows = {256: (4, [762]), 257: (4, [65535]), 278: (4, [1])}
    data = {
        "rows": lambda: written(SHAPE | rows | {273: (4, [16] * 65535), 279: (4, [1] * 65535)}),
        "tiles": lambda: tiles(6112, 6272, (16, 16), 382 * 392),
        "deflate": lambda: tiles(3200, 3200, (16, 16), 200 * 200, empty, 8),
        "large tile": lambda: tiles(16, 16, (8192, 9155), 1, zlib.compress(bytes(8192 * 9155)), 8),
    }[kind]()
    started = time.process_time()
    open_image(data + bytes(762), (299, 299))
    assert time.process_time() - started < 3
