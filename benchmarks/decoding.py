"""Measure what the most expensive images that the service accepts cost.

    python -m benchmarks.decoding                        # a table; about three minutes
    python -m benchmarks.decoding --formats WEBP AVIF

Each image is made in one process and decoded in another, as the service does it. Memory is what is
needed above the process before it opens the image: what it has at most, and the address space,
which a limit of memory counts. Bytes per pixel are those of the address space.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.worst_images import WORST
from serving.image import FORMATS, open_image
from serving.preprocess import resize
from training.cli import make_parser, run_command
from training.markdown import markdown_row, markdown_table

SIZE = (299, 299)  # (height, width) of the shipped model's input
HEAD = ("format", "image", "bytes", "megapixels", "CPU s", "peak MB", "address space MB")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


class Cost(NamedTuple):
    """What decoding an image cost.

    Attributes:
        pixels: of the image.
        seconds: of CPU time.
        peak: bytes of memory.
        address_space: bytes.
    """

    pixels: int
    seconds: float
    peak: int
    address_space: int

    @property
    def cells(self) -> tuple[str, ...]:
        """The last cells of its row: megapixels, seconds, megabytes, bytes per pixel."""
        counts = (f"{count / 1e6:.0f}" for count in (self.peak, self.address_space))
        each = f"{self.address_space / self.pixels:.1f}"
        return f"{self.pixels / 1e6:.1f}", f"{self.seconds:.1f}", *counts, each


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: print_costs(options.formats), "benchmarks.decoding")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = make_parser(__doc__, "python -m benchmarks.decoding")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=FORMATS, help="formats [all]"
    )
    return parser.parse_args(arguments)


def print_costs(formats: Sequence[str]) -> None:
    """Print the costs of each of the worst images of `formats`.

    Raises:
        ServingError: an image is refused.
    """
    print(markdown_table((*HEAD, "bytes per pixel"), ()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        for number, image in enumerate(WORST):
            if image.format not in formats:
                continue
            in_new_process(make, number, path)
            cost = in_new_process(measure, path)
            size = f"{path.stat().st_size:,}"
            print(markdown_row((image.format, image.what, size, *cost.cells)), flush=True)


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Return what `function` returns in a process that did nothing before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def make(number: int, path: Path) -> None:
    """Write the image of this number to `path`."""
    path.write_bytes(WORST[number].make())


def measure(path: Path) -> Cost:
    """Decode the image in `path` as the service does, and return what it cost.

    Raises:
        ServingError: it is refused.
    """
    data = path.read_bytes()
    RESET.write_text(RESET_PEAK)
    memory, space = read_status("VmRSS"), read_status("VmSize")
    started = time.process_time()
    image = open_image(data, SIZE)
    resize(image, SIZE)
    seconds = time.process_time() - started
    width, height = image.info["size"]
    peak, most = read_status("VmHWM") - memory, read_status("VmPeak") - space
    return Cost(width * height, seconds, peak, most)


def read_status(name: str) -> int:
    """Return this process's number of bytes that Linux calls `name`."""
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
