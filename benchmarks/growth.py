"""Measure how the start of a training run grows with the data.

    python -m benchmarks.growth                         # two tables; half an hour, 2 GB of disk
    python -m benchmarks.growth --images 3458 --photographs 0

A start is what train.py does before it builds the network: check the images, look for copies,
split. The first one knows none of the images, the second one all. Each is a process of its own,
with its imports. Images are drawn: small ones of about 80 by 80 pixels, and photographs of 12
megapixels. The second table has the parts that are not done as they once were.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from serving.image import open_image
from training.cli import make_parser, run_command
from training.dataset.near_copies import mirror, near_groups
from training.dataset.perceptual_hash import BITS, MAX_DISTANCE
from training.dataset.scan import CHECKED_SIZE
from training.markdown import markdown_row, markdown_table
from training.sample import LABELS, draw

ROOT = Path(__file__).resolve().parent.parent
IMAGES, PHOTOGRAPHS = (3_458, 30_000, 100_000), 300
PHOTOGRAPH = (4000, 3000)  # (width, height)
LEAST = 25  # images, five of each class: train.py takes no fewer
DRAWN = 6  # flowers of each class, which the images show in part
DECODED = 10  # photographs of the second table
ROWS = 256  # hashes that are compared with all others at once
START = """
import json, re, sys, time
from pathlib import Path
from training.dataset.checks import load_dataset
from training.dataset.split import split_dataset
split_dataset(load_dataset(Path(sys.argv[1])), 1, validation_fraction=0.2, test_fraction=0.2)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps({"cpu": time.process_time(), "peak": int(peak) * 1024}))
"""
STARTS_HEAD = ("images", "start", "s", "CPU s", "ratio", "CPU ms per image", "ratio", "peak MB")
PARTS_HEAD = ("what", "how", "CPU s", "ratio")


class Cost(NamedTuple):
    """What a start cost.

    Attributes:
        seconds: of time.
        cpu: seconds of CPU time.
        peak: bytes of memory.
    """

    seconds: float
    cpu: float
    peak: int


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: benchmark(options), "benchmarks.growth")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m benchmarks.growth")
    add = parser.add_argument
    add("--images", type=int, nargs="*", default=IMAGES, help="numbers of small ones, ascending")
    add("--photographs", type=int, default=PHOTOGRAPHS, help="how many, or 0 [%(default)s]")
    options = parser.parse_args(arguments)
    counts = [*options.images, *filter(None, [options.photographs])]
    if min(counts, default=LEAST) < LEAST or list(options.images) != sorted(options.images):
        received = " ".join(map(str, counts))
        parser.error(f"expected {LEAST} images or more, in ascending order. Received: {received}")
    return options


def benchmark(options: argparse.Namespace) -> None:
    """Print both tables."""
    print(markdown_table(STARTS_HEAD, ()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        drawn, smallest = 0, None
        images = small_images()
        for count in options.images:
            write(images, Path(folder), range(drawn, count))
            drawn = count
            smallest = print_starts(f"{count:,} small", count, Path(folder), smallest)
    with tempfile.TemporaryDirectory() as folder:
        if options.photographs:
            write(photographs(), Path(folder), range(options.photographs))
            name = f"{options.photographs:,} of 12 megapixels"
            print_starts(name, options.photographs, Path(folder), None)
    print(f"\n{markdown_table(PARTS_HEAD, ())}", flush=True)
    if options.photographs:
        print_parts("decode 10 photographs of 12 megapixels", decoding())
    for count in options.images:
        print_parts(f"find copies among {count:,} hashes", searching(count))


def print_starts(name: str, count: int, folder: Path, smallest: float | None) -> float:
    """Print the rows of a first and a second start, and return the CPU time of the first per image.

    `smallest` is that of the smallest data set of its kind, if this is another.
    """
    with tempfile.TemporaryDirectory() as place:
        starts = {which: start(folder, Path(place)) for which in ("first", "second")}
    per_image = starts["first"].cpu / count
    for which, cost in starts.items():
        each = cost.cpu / count
        cells = (
            *(name, which, f"{cost.seconds:.1f}", f"{cost.cpu:.1f}"),
            f"{cost.cpu / starts['first'].cpu:.2f}",
            f"{each * 1000:.2f}",
            f"{each / (smallest or per_image):.2f}",
            f"{cost.peak / 1e6:.0f}",
        )
        print(markdown_row(cells), flush=True)
    return smallest or per_image


def start(folder: Path, place: Path) -> Cost:
    """Check and split the images of `folder` in a new process that works in `place`."""
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", START, folder],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - started
    return Cost(seconds, **json.loads(run.stdout.splitlines()[-1]))


def write(images: Iterator[Image.Image], folder: Path, numbers: range) -> None:
    """Write the next of `images` into the class folders of `folder`, under these `numbers`."""
    for number in numbers:
        place = folder / LABELS[number % len(LABELS)]
        place.mkdir(exist_ok=True)
        next(images).save(place / f"{number:06d}.jpg", quality=85)


def small_images() -> Iterator[Image.Image]:
    """Yield images of 64 to 100 pixels a side, no two of which look alike."""
    rng = np.random.default_rng(0)
    flowers = [draw(label, rng) for label in LABELS for _ in range(DRAWN)]
    while True:
        flower = flowers[rng.integers(len(flowers))]
        size = tuple(rng.integers(64, 101, 2).tolist())
        left, top = rng.integers(0, 100, 2).tolist()
        part = flower.resize(size, Image.Resampling.BILINEAR, (left, top, left + 140, top + 140))
        light = rng.integers(0, 256, (7, 7, 3), np.uint8)
        yield Image.blend(part, Image.fromarray(light).resize(size), 0.5)


def photographs() -> Iterator[Image.Image]:
    """Yield images of 12 megapixels with the noise of a camera."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 6, (PHOTOGRAPH[1], PHOTOGRAPH[0], 1)).astype(np.float32)
    for image in small_images():
        pixels = np.asarray(image.resize(PHOTOGRAPH), np.float32) + noise
        yield Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def print_parts(what: str, ways: dict[str, Callable[[], object]]) -> None:
    """Print a row for each of `ways` to do `what`."""
    first = None
    for how, run in ways.items():
        started = time.process_time()
        run()
        seconds = time.process_time() - started
        first = first or seconds
        print(markdown_row((what, how, f"{seconds:.2f}", f"{seconds / first:.2f}")), flush=True)


def decoding() -> dict[str, Callable[[], object]]:
    """Return ways to decode photographs."""
    with tempfile.TemporaryDirectory() as folder:
        write(photographs(), Path(folder), range(DECODED))
        files = [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))]
    return {
        "in full": lambda: [open_image(content) for content in files],
        "reduced meanwhile": lambda: [open_image(content, CHECKED_SIZE) for content in files],
    }


def searching(count: int) -> dict[str, Callable[[], object]]:
    """Return ways to find near copies among `count` random hashes."""
    rng = np.random.default_rng(0)
    hashes = [int.from_bytes(rng.bytes(BITS // 8), "big") for _ in range(count)]
    return {
        "all with all": lambda: compare_all(hashes),
        "by pieces": lambda: near_groups(hashes),
    }


def compare_all(hashes: Sequence[int]) -> int:
    """Return how many pairs of `hashes` are near, mirrored or not, by a product of matrices."""
    packed = b"".join(value.to_bytes(BITS // 8, "big") for value in hashes)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(-1, BITS)
    signs, mirrored = (each.astype(np.float32) * 2 - 1 for each in (bits, mirror(bits)))
    least, found = BITS - 2 * MAX_DISTANCE, 0
    for first in range(0, len(signs), ROWS):
        rows, others = signs[first : first + ROWS], slice(first, None)
        near = rows @ signs[others].T >= least
        near |= rows @ mirrored[others].T >= least
        found += int(np.triu(near, 1).sum())
    return found


if __name__ == "__main__":
    sys.exit(main())
