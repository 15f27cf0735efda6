"""serving.metadata, jpeg and orientation: what stands beside the pixels decides nothing."""

import random
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, WebPImagePlugin

from serving import metadata
from serving.errors import ImageError, TooLargeError
from serving.image import open_image
from serving.orientation import read_orientation
from tests.fuzz.make_corpus import (
    GREY,
    PALETTE,
    RGB,
    RGB_ALPHA,
    chunk,
    encoded,
    exif,
    insert,
    png,
    rgba,
    riff,
    scanlines,
    segment,
    tiff,
)

# pytest replaces the filters that serving.pillow_limits sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")


def painted() -> Image.Image:
    """Return an image in which few blocks are alike."""
    y, x = np.mgrid[:90, :120]
    noise = np.random.default_rng(0).normal(0, 30, (90, 120, 3))
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 15)], -1) * 90 + 128
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


PAINTED = painted()
JPEG, PNG, WEBP, TIFF, AVIF = (
    encoded(PAINTED, name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
)
GIF = encoded(PAINTED.quantize(16), "GIF")
XMP = b"<rdf:Description tiff:Orientation='1'/>"
ANCILLARY_KINDS = (
    *(b"iCCP", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"sRGB", b"cHRM", b"tIME", b"eXIf"),
    *(b"bKGD", b"hIST", b"sBIT", b"sPLT", b"acTL", b"fcTL", b"fdAT", b"cICP", b"prVt"),
)


def same(data: bytes, plain: bytes) -> bool:
    return np.array_equal(open_image(data), open_image(plain))


def refused(data: bytes) -> bool:
    with pytest.raises(ImageError, match=r"^Expected a complete image\. "):
        open_image(data)
    return True


def oriented(orientation: int) -> bytes:
    """Return XMP with `orientation`."""
    return f'<x tiff:Orientation="{orientation}"/>'.encode()


# PNG.


@pytest.mark.parametrize("kind", ANCILLARY_KINDS)
def test_a_damaged_chunk_beside_the_pixels_of_a_png_changes_nothing(kind):
    two_megabytes = b"x\0\0" + zlib.compress(bytes(2_000_000))
    for content in (b"", b"\0", b"name", b"name\0\1", bytes(range(33)), two_megabytes):
        whole = chunk(kind, content)
        for damaged in (whole, whole[:-4] + b"\1\2\3\4"):
            assert same(PNG[:33] + damaged + PNG[33:], PNG)
            assert same(PNG[:-12] + damaged + PNG[-12:], PNG)
    assert same(PNG[:-12] + chunk(kind, bytes(99))[:-50], PNG)


def test_a_png_without_its_last_chunk_is_whole():
    for end in (4, 8, 11, 12):
        assert same(PNG[:-end], PNG)


def test_a_damaged_chunk_that_decides_about_the_pixels_is_refused():
    lines, palette = scanlines(4, PALETTE, False), chunk(b"PLTE", bytes(range(48)))
    transparency = chunk(b"tRNS", bytes(range(0, 256, 17)))
    plain = png(24, 16, 4, PALETTE, lines, palette, transparency)
    assert not same(plain, png(24, 16, 4, PALETTE, lines, palette))
    for part in (plain[8:33], palette, transparency):
        assert refused(plain.replace(part, part[:-4] + b"\1\2\3\4"))
    assert refused(PNG[:33] + chunk(b"QrSt", b"")[:-1] + b"\0" + PNG[33:])
    assert refused(PNG[: len(PNG) - 40])


@pytest.mark.parametrize(("color", "length"), [(GREY, 1), (RGB, 5), (PALETTE, 257), (RGB_ALPHA, 6)])
def test_transparency_that_says_nothing_changes_nothing(color, length):
    depth = 4 if color == PALETTE else 8
    palette = [chunk(b"PLTE", bytes(range(48)))] if color == PALETTE else []
    plain = png(24, 16, depth, color, scanlines(depth, color, False), *palette)
    more = chunk(b"tRNS", bytes(length))
    assert same(png(24, 16, depth, color, scanlines(depth, color, False), *palette, more), plain)


def test_nothing_behind_the_pixels_of_a_png_is_read():
    bomb = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000), 9))
    end = PNG.rindex(b"IEND") - 4
    for behind in (bomb, chunk(b"ab12", b""), chunk(b"ABCD", b"x"), chunk(b"IHDR", b""), b"\0" * 9):
        for data in (PNG[:end] + behind + bomb + PNG[end:], PNG[:33] + bomb + PNG[33:end] + behind):
            assert same(data, PNG)
            assert metadata.strip(data) == metadata.strip(PNG)
    odd = PNG[:33] + chunk(b"ab12", b"") + PNG[33:end] + bomb * 9
    assert same(odd, PNG)
    assert metadata.strip(odd).data.count(b"iCCP") == 0


def test_pixels_of_a_png_may_come_in_the_smallest_pieces():
    start, end = PNG.index(b"IDAT") - 4, PNG.rindex(b"IEND") - 4
    pixels = PNG[start + 8 : end - 4]
    pieces = b"".join(chunk(b"IDAT", bytes([byte])) + chunk(b"IDAT", b"") for byte in pixels)
    assert same(PNG[:start] + pieces + PNG[end:], PNG)
    assert metadata.strip(PNG[:start] + pieces + PNG[end:]).data.count(b"IDAT") == 1
    interrupted = pieces[: 24 * 99] + chunk(b"PLTE", bytes(3)) + pieces[24 * 99 :]
    assert refused(PNG[:start] + interrupted + PNG[end:])


@pytest.mark.parametrize("missing", [0, 1, 4, 12])
def test_a_png_may_lack_its_end(missing):
    assert same(PNG[: len(PNG) - missing], PNG)


def test_a_png_without_pixels_is_broken():
    assert refused(PNG[:33])
    assert refused(PNG[:33] + chunk(b"IEND", b""))
    assert refused(PNG[: len(PNG) // 2])


# JPEG.


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
def test_a_damaged_segment_beside_the_pixels_of_a_jpeg_changes_nothing(marker):
    index = b"MPF\0MM\0*\0\0\0\x08\0\2\xb0\1\0\4\0\0\0\1\0\0\0\x09\xb0\2\0\7\0\0\0\2\0\1\0\0"
    for content in (
        *(b"", b"\0", b"JFIF", b"JFIF\0", b"Adobe", b"Adobe\0\x64\0\0", b"ICC_PROFILE\0"),
        *(
            b"ICC_PROFILE\0\1",
            b"ICC_PROFILE\0\1\2x",
            index,
            b"MPF\0",
            b"MPF\0II*\0\xff\xff\xff\xff",
        ),
        *(b"Photoshop 3.0\0", b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\2ab", b"FPXR\0", b"Exif\0\0"),
        *(b"Photoshop 3.0\x008BIM\4\4\xff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no EXIF"),
        b"http://ns.adobe.com/xap/1.0/\0\xff\xfe",
    ):
        assert same(insert(JPEG, segment(marker, content)), JPEG)
    assert same(insert(JPEG, b"\xff" + bytes([marker, 0, 0])), JPEG)


def test_what_decides_about_the_colours_of_a_jpeg_is_kept():
    rgb = encoded(PAINTED, "JPEG", keep_rgb=True)
    assert b"Adobe" in rgb or b"JFIF" not in rgb
    assert np.abs(np.asarray(open_image(rgb), int) - np.asarray(PAINTED)).mean() < 30
    cmyk = encoded(PAINTED.convert("CMYK"), "JPEG")
    place = cmyk.index(b"Adobe") + 11
    assert not same(cmyk[:place] + b"\2" + cmyk[place + 1 :], cmyk)


JPEG_KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True, "quality": 95},
    "restarts": {"restart_marker_blocks": 3},
    "few bytes": {"progressive": True, "quality": 10},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEG_KINDS.values(), ids=JPEG_KINDS)
def test_a_jpeg_that_lacks_only_its_end_is_whole(mode, options):
    data = encoded(PAINTED.convert(mode), "JPEG", **options)
    pixels = data[:-2]
    for end in (
        b"",
        b"\xff",
        bytes(2),
        bytes(60_000),
        b"\xff" + bytes(9),
        b"\xff" * 90,
        b"garbage",
    ):
        for size in (None, (20, 30)):
            opened = open_image(pixels + end, size)
            assert np.array_equal(opened, open_image(data, size))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEG_KINDS.values(), ids=JPEG_KINDS)
def test_a_jpeg_that_lacks_pixels_is_refused(mode, options):
    """Where what is missing is too little to be seen, the pixels are the same.

    A few zeros at the end may be pixels.
    """
    data = encoded(PAINTED.convert(mode), "JPEG", **options)
    pixels, whole = data[:-2], np.asarray(open_image(data))
    for missing in (1, 2, 3, 4, 5, 6, 7, 8, 9, 30, len(data) // 9, len(data) // 3):
        for end in (b"", b"\xff", bytes(9_000)):
            if len(end) > 1 and missing < 30:
                continue
            try:
                opened = open_image(pixels[:-missing] + end)
            except ImageError:
                continue
            assert missing < 4
            assert np.array_equal(opened, whole)


def test_a_jpeg_that_lacks_a_scan_is_refused():
    data = encoded(PAINTED, "JPEG", progressive=True)
    scans = [place for place in range(len(data)) if data.startswith(b"\xff\xda", place)]
    assert len(scans) > 5
    for place in scans[1:]:
        assert refused(data[: data.rindex(b"\xff\xc4", 0, place)])


# The others.


def webp_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP of (kind, content)s."""
    packed = (kind + struct.pack("<I", len(content)) + content for kind, content in chunks)
    return riff(b"".join(packed))


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        (b"VP8X", bytes(4) + (9_999).to_bytes(3, "little") + (5_000).to_bytes(3, "little")),
        (b"VP8L", b"\x2f" + (9_999 | 5_000 << 14).to_bytes(4, "little") + bytes(5)),
        (b"VP8 ", bytes(6) + struct.pack("<HH", 10_000 | 0x4000, 5_001 | 0xC000)),
    ],
    ids=["extended", "lossless", "lossy"],
)
def test_the_canvas_of_a_webp_is_measured_before_it_is_allocated(kind, header, monkeypatch):
    monkeypatch.setattr(WebPImagePlugin._webp, "WebPAnimDecoder", pytest.fail)
    whole = webp_of((kind, header))
    for data in (whole, whole + b"abcd\xff\0\0\0"):
        with pytest.raises(TooLargeError, match="50 million pixels. Received: 10000×5001"):
            open_image(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])


@pytest.mark.parametrize("length", range(16, 30))
def test_a_webp_without_a_whole_header_is_broken(length):
    assert refused(WEBP[:length])


def test_only_the_first_frame_of_a_webp_is_read():
    frames = {"save_all": True, "append_images": [PAINTED.rotate(180), PAINTED], "lossless": True}
    whole = encoded(PAINTED, "WEBP", **frames)
    [stripped, _] = metadata.strip(whole)
    assert whole.count(b"ANMF") == 3
    assert stripped.count(b"ANMF") == 1
    assert same(whole, encoded(PAINTED, "WEBP", lossless=True))


def test_unknown_chunks_of_a_webp_are_dropped():
    unknown = chunks_of_webp(*[b"abcd" + struct.pack("<I", 3) + b"xyz\0"] * 9)
    assert metadata.strip(unknown) == metadata.strip(WEBP)


def chunks_of_webp(*more: bytes) -> bytes:
    content = WEBP[12:] + b"".join(more)
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


def test_damaged_metadata_of_a_webp_changes_nothing():
    options = {"exif": exif(1), "xmp": XMP, "icc_profile": b"no profile"}
    whole = encoded(PAINTED, "WEBP", **options)
    assert whole.endswith(XMP + b"\0" * (len(XMP) % 2))
    for missing in range(1, len(XMP) + len(exif(1))):
        assert same(whole[:-missing], WEBP)
    for kind in (b"EXIF", b"XMP ", b"ICCP"):
        assert same(chunks_of_webp(kind + struct.pack("<I", 99) + b"x"), WEBP)
        assert same(whole.replace(kind, kind.lower()), WEBP)
    assert same(WEBP[:4] + struct.pack("<I", 2**32 - 1) + WEBP[8:], WEBP)
    assert refused(whole[: len(whole) // 2])


def test_of_two_orientations_in_a_webp_the_first_counts():
    first, second = (b"EXIF" + struct.pack("<I", len(exif(n))) + exif(n) for n in (6, 3))
    assert same(chunks_of_webp(first, second), chunks_of_webp(first))
    assert not same(chunks_of_webp(second), chunks_of_webp(first))


def test_comments_and_applications_blocks_of_a_gif_change_nothing():
    start = 13 + 3 * 16
    for extension in (
        *(b"!\xfe\0", b"!\xfe\3abc\0", b"!\xff\0", b"!\xff\x0bNETSCAPE2.0\0", b"!\1\1x\0"),
        b"!\xf9\2\1\0\0",
        b"!\xff\x0bXMP DataXMP\x03abc\x02de\0",
        b"!\xfe" + (b"\xff" + b"x" * 255) * 3_000 + b"\0",
    ):
        assert same(GIF[:start] + extension + GIF[start:], GIF)
    clear = encoded(PAINTED.quantize(16), "GIF", transparency=3)
    assert not same(clear, GIF)
    assert same(clear[:start] + b"!\xfe\3abc\0" + clear[start:], clear)


@pytest.mark.parametrize(
    "tag", [254, 270, 271, 282, 305, 315, 700, 33723, 34377, 34665, 34675, 65000]
)
def test_a_damaged_tag_beside_the_pixels_of_a_tiff_changes_nothing(tag):
    pixels = PAINTED.convert("L").tobytes()
    shape = {256: 120, 257: 90, 258: 8}
    plain = tiff(shape, pixels)
    whole = tiff(shape | {tag: (1, 2, 3)}, pixels)
    place = whole.rindex(struct.pack(">HHI", tag, 3, 3))
    for kind in (0, 2, 5, 7, 12, 99):
        for count, value in ((9, 2**32 - 1), (2**32 - 1, 8), (0, 0), (2**31, 2**31)):
            entry = struct.pack(">HHII", tag, kind, count, value)
            assert same(whole[:place] + entry + whole[place + 12 :], plain)


def test_broken_exif_of_an_avif_changes_nothing():
    whole = encoded(PAINTED, "AVIF", exif=exif(1))
    place = whole.index(b"MM\0*")
    for broken in (b"XX\0*", b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"):
        assert same(whole[:place] + broken + whole[place + len(broken) :], AVIF)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_orientation_survives(name):
    mode = {} if name == "AVIF" else {"xmp": oriented(3)} if name in ("JPEG", "WEBP") else {}
    for orientation in range(2, 9):
        data = encoded(PAINTED, name, exif=exif(orientation), **mode)
        plain = open_image(encoded(PAINTED, name))
        turned = plain.transpose(
            (None, None, 0, 3, 1, 5, 4, 6, 2)[orientation]  # of Image.Transpose
        )
        assert np.array_equal(open_image(data), turned)


def test_an_orientation_in_other_places_is_applied():
    upside_down = open_image(JPEG).transpose(Image.Transpose.ROTATE_180)
    assert np.array_equal(open_image(encoded(PAINTED, "JPEG", xmp=oriented(3))), upside_down)
    upside_down = PAINTED.transpose(Image.Transpose.ROTATE_180)
    digits = exif(3).hex()
    for key, value, packed in (
        ("XML:com.adobe.xmp", oriented(3).decode(), False),
        ("XML:com.adobe.xmp", oriented(3).decode(), True),
        ("Raw profile type exif", f"\nexif\n  {len(digits) // 2}\n{digits}\n", True),
        ("Raw profile type exif", f"\nexif\n  {len(digits) // 2}\n{digits}\n", False),
    ):
        info = PngImagePlugin.PngInfo()
        add = info.add_itxt if key.startswith("XML") else info.add_text
        add(key, value, zip=packed)
        assert np.array_equal(open_image(encoded(PAINTED, "PNG", pnginfo=info)), upside_down)


def test_an_orientation_with_a_wrong_checksum_is_not_applied():
    turned = chunk(b"eXIf", exif(6)[6:])
    assert open_image(PNG[:33] + turned + PNG[33:]).size == (90, 120)
    assert same(PNG[:33] + turned[:-4] + b"\1\2\3\4" + PNG[33:], PNG)


def test_orientation_is_read_as_pillow_reads_it():
    rng = random.Random(0)  # noqa: S311
    for _ in range(2000):
        data = bytearray(exif(rng.randrange(10)))
        for _ in range(rng.randrange(3)):
            data[rng.randrange(6, len(data))] = rng.choice((0, 1, 3, 4, 8, 255, rng.randrange(256)))
        pillow = Image.Exif()
        try:
            pillow.load(bytes(data))
            expected = pillow.get(0x0112, 1)
        except Exception:  # Pillow raises many
            expected = 1
        if not isinstance(expected, int) or not 1 <= expected <= 8:
            expected = 1
        assert read_orientation(bytes(data)) == expected, bytes(data).hex()


@pytest.mark.parametrize(
    "data",
    [
        PNG[:-12] + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000))) * 4_000 + PNG[-12:],
        PNG[:33]
        + chunk(b"zTXt", metadata.PNG_XMP + b"\0" + zlib.compress(bytes(9**7))) * 999
        + PNG[33:],
        PNG[:33]
        + chunk(b"eXIf", exif(1)[6:16] + struct.pack(">HHII", 274, 5, 10**6, 26) * 9**5)
        + PNG[33:],
        PNG[:33] + chunk(b"abCd", b"") * 200_000 + PNG[33:],
        JPEG[:2] + b"\xff\0" * 4_000_000 + JPEG[2:],
        JPEG[:-2] + b"\xff\xd0" * 4_000_000,
    ],
    ids=["profiles", "texts", "rationals", "chunks", "junk", "restarts"],
)
def test_what_hides_beside_the_pixels_costs_little(data):
    started = time.process_time()
    assert open_image(data).size == (120, 90)
    assert time.process_time() - started < 1


def test_alpha_is_still_laid_on_white():
    for name in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if name == "WEBP" else {}
        opened = np.asarray(open_image(encoded(rgba(), name, exif=exif(1), **options)))
        assert (opened[:, -1] != opened[:, 0]).any()
        assert same(
            encoded(rgba(), name, exif=exif(1), **options), encoded(rgba(), name, **options)
        )


def test_a_text_behind_the_exif_of_a_png_does_not_hide_it():
    plain = encoded(PAINTED, "PNG")
    more = chunk(b"eXIf", exif(6)[6:]) + chunk(b"tEXt", b"Comment\0none")
    turned = plain[:33] + more + plain[33:]  # behind the header
    assert open_image(turned).size == PAINTED.size[::-1]
    assert np.array_equal(open_image(turned), PAINTED.transpose(Image.Transpose.ROTATE_270))


def test_comments_of_a_gif_without_a_palette_of_its_own_are_dropped():
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
    comment, rest = b"\x21\xfe\x04rose\0", b"\x2c the image"
    assert metadata.strip(head + comment + rest).data == head + rest
