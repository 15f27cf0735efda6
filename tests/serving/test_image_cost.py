"""What small files cost that were made to cost much: seconds of CPU time and memory."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.make_corpus import GREY, RGB_ALPHA, bmp, chunk, png, riff, segment
from tests.serving.test_jpeg import TABLES, frame, jpeg_of, scan

ROOT = Path(__file__).resolve().parents[2]
# Of the largest images; a machine that does other things needs up to twice as long.
MAX_CPU_S = 6
MAX_MB = 700
MEASURE = """
import re, sys, time
from pathlib import Path
from serving.errors import ServingError
from serving.image import open_image
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000
data = sys.stdin.buffer.read()
Path("/proc/self/clear_refs").write_text("5")
before, started = status("VmRSS"), time.process_time()
try:
    outcome = "opened" if open_image(data, (299, 299)) else ""
except ServingError as error:
    outcome = type(error).__name__
print(outcome, time.process_time() - started, status("VmHWM") - before)
"""


def small_png(before: bytes = b"", behind: bytes = b"") -> bytes:
    whole = png(1, 1, 8, GREY, b"\0\x80")
    return whole[:33] + before + whole[33:-12] + behind + whole[-12:]


def scans(width: int, height: int, factors: list[int], count: int) -> bytes:
    """Return a JPEG whose scans visit all blocks in a few bytes, each up to 32,767 of them."""
    components = range(1, len(factors) + 1)
    blocks = -(-width // 8) * -(-height // 8)
    runs = (b"\x7f\xfe" * (blocks // 32_767 + 1)).ljust(9, b"\x7f")
    one = b"".join(scan(component) + runs for component in components)
    first = scan(*components, bands=(0, 0, 0)) + bytes(blocks // 2)
    return jpeg_of(frame(width, height, factors), TABLES, first, one * count)


def zeros(count: int) -> bytes:
    packer, piece = zlib.compressobj(9), bytes(1_000_000)
    packed = [packer.compress(piece) for _ in range(count // 1_000_000)]
    return b"".join([*packed, packer.flush()])


def large_png(width: int, height: int, interlaced: bool) -> bytes:
    """Return a PNG of 64 bits a pixel, packed as zeros."""
    header = struct.pack(">IIBBBBB", width, height, 16, RGB_ALPHA, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zeros(8 * width * height + 9_000_000))
    return small_png()[:8] + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    """Return a lossless WebP of one colour."""
    # Both sides, no alpha, version 0, no transforms or caches; five codes of a single symbol.
    bits = (width - 1) | (height - 1) << 14 | 0b01_0001_0001_0001_0001_0001 << 35
    return riff(b"VP8L" + struct.pack("<I", 18) + b"\x2f" + bits.to_bytes(17, "little"))


BOMB = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000), 9))
MOVE_PAST_ALL = b"\0\2\0\xff" * 40
OPENS: dict[str, Callable[[], bytes]] = {
    "jpeg_of_many_scans": lambda: scans(7000, 7000, [0x11] * 3, 15),
    "jpeg_of_many_scans_of_a_column": lambda: scans(1, 65_500, [0x41, 0x11, 0x11], 300),
    "jpeg_of_restarts": lambda: (
        scans(64, 64, [0x11], 1)[:-2] + b"\xff\xd0" * 4_000_000 + b"\xff\xd9"
    ),
    "png_with_bombs_behind_an_odd_chunk": lambda: small_png(
        behind=chunk(b"a1b2", b"") + BOMB * 9000
    ),
    "png_with_a_text_of_lines": lambda: small_png(
        chunk(b"tEXt", b"Raw profile type exif\0" + b"\n" * 9_000_000)
    ),
    "png_with_heads_of_exif": lambda: small_png(chunk(b"eXIf", b"Exif\0\0" * 1_500_000)),
    "png_with_rationals": lambda: small_png(
        chunk(
            b"eXIf",
            b"MM\0*\0\0\0\x08\0\1"
            + struct.pack(">HHII", 0x112, 5, 1_000_000, 26)
            + bytes(8_000_004),
        )
    ),
    "png_in_empty_pieces": lambda: small_png(chunk(b"IDAT", b"") * 750_000),
    "png_of_64_bits": lambda: large_png(7000, 7000, interlaced=False),
    "png_of_64_bits_interlaced": lambda: large_png(7000, 7000, interlaced=True),
    "webp_of_38_bytes": lambda: webp(16_383, 3_051),
    "bmp_of_the_shortest_runs": lambda: bmp(7000, 7000, 8, 1, b"\1\5" * 4_900_000 + MOVE_PAST_ALL),
    "bmp_of_runs_of_nothing": lambda: bmp(7000, 7000, 4, 2, b"\xff\5" * 4_900_000 + MOVE_PAST_ALL),
    "bmp_of_the_shortest_literals": lambda: bmp(
        7000, 7000, 4, 2, b"\0\3\x12\x30" * 2_450_000 + MOVE_PAST_ALL
    ),
    "bmp_of_moves": lambda: bmp(7000, 7000, 8, 1, b"\0\2\0\0" * 2_450_000 + MOVE_PAST_ALL),
}
IS_REFUSED: dict[str, Callable[[], bytes]] = {
    "UnsupportedTypeError_jpeg_of_arithmetic_code": lambda: scans(7000, 7000, [0x11], 99).replace(
        b"\xff\xc2", b"\xff\xca"
    ),
    "TooLargeError_jpeg_of_more_scans": lambda: scans(7000, 7000, [0x11], 99),
    "TooLargeError_jpeg_of_scans_of_a_column": lambda: scans(1, 65_500, [0x11], 50_000),
    "TooLargeError_jpeg_of_comments": lambda: jpeg_of(
        frame(8, 8, [0x11]), TABLES, scan(1), segment(0xFE, b"") * 2_000_000
    ),
    "ImageError_jpeg_of_frames": lambda: jpeg_of(frame(8, 8, [0x11] * 3 + [0] * 252) * 3_000),
    "TooLargeError_webp_of_a_gigabyte": lambda: webp(16_384, 16_384),
    "ImageError_png_of_critical_chunks": lambda: small_png(chunk(b"ABCD", b"") * 750_000),
}


def cost(data: bytes) -> tuple[str, float, float]:
    """Return the outcome of `open_image`, its seconds of CPU time and MB of memory."""
    process = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT, input=data, capture_output=True
    )
    outcome, cpu_s, peak = process.stdout.decode().split() or (process.stderr, 0, 0)
    return outcome, float(cpu_s), float(peak)


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read in /proc"
)


@pytest.mark.parametrize("name", OPENS)
def test_a_legal_image_costs_no_more_than_the_largest(name):
    data = OPENS[name]()
    assert len(data) < 10_000_000
    outcome, cpu_s, peak = cost(data)
    assert outcome == "opened"
    assert cpu_s < MAX_CPU_S
    assert peak < MAX_MB


@pytest.mark.parametrize("name", IS_REFUSED)
def test_what_costs_more_is_refused_early(name):
    data = IS_REFUSED[name]()
    outcome, cpu_s, peak = cost(data)
    assert outcome == name.partition("_")[0]
    assert cpu_s < MAX_CPU_S / 3
    assert peak < MAX_MB / 3
