"""Measure what decoding images in a process of its own costs.

    python -m benchmarks.decoder                # a table; half a minute

Each image is decoded and resized by the service's decoder and in this process, by turns; times are
medians. The lines below say how long it takes to start the decoder, to replace its process after
one that was stopped, and how much memory its two processes have of their own.
"""

import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from PIL import Image

from serving.decoder import CpuLimitError, Decoder
from serving.image import open_image
from serving.preprocess import resize
from training.cli import make_parser, run_command
from training.markdown import markdown_row, markdown_table

SIZE = (299, 299)  # (height, width) of the shipped model's input
SIDES = ((299, 299), (1024, 768), (4000, 3000))  # (width, height) of the images
MEMORY, ENOUGH_S, TOO_LITTLE_S = 1_000_000_000, 4.0, 0.001
HEAD = ("image", "bytes", "in this process, ms", "in its own, ms", "more, ms")


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    parser = make_parser(__doc__, "python -m benchmarks.decoder")
    parser.add_argument("--repeats", type=int, default=200, help="of each image [%(default)s]")
    options = parser.parse_args(arguments)
    return run_command(lambda: print_costs(options.repeats), "benchmarks.decoder")


def print_costs(repeats: int) -> None:
    """Print what `repeats` of each image cost, and the lines below."""
    started = time.perf_counter()
    decoder = Decoder()
    start_ms = (time.perf_counter() - started) * 1000
    first_ms = take(lambda: decode(decoder, draw(SIDES[0])))
    print(markdown_table(HEAD, ()), flush=True)
    for sides in SIDES:
        data = draw(sides)
        pairs = [
            (
                take(lambda d=data: resize(open_image(d, SIZE), SIZE)),
                take(lambda d=data: decode(decoder, d)),
            )
            for _ in range(max(5, repeats * 299 // sides[0]))
        ]
        here, there = (median(times) for times in zip(*pairs, strict=True))
        name = f"JPEG, {sides[0]}×{sides[1]}"
        cells = (f"{len(data):,}", f"{here:.2f}", f"{there:.2f}", f"{there - here:+.2f}")
        print(markdown_row((name, *cells)), flush=True)
    print(f"\nStarting it took {start_ms:.1f} ms, and its first image {first_ms:.1f} ms.")
    print(f"After it was stopped, an image took {replaced(decoder):.1f} ms.")
    own = [private_bytes(pid) for pid in processes()]
    print(
        f"Its processes have {' and '.join(f'{count / 1e6:.1f}' for count in own)} MB of their own."
    )
    decoder.close()


def draw(sides: tuple[int, int]) -> bytes:
    """Return a JPEG of `sides` (width, height) with some detail."""
    small = Image.effect_noise((sides[0] // 8, sides[1] // 8), 80)
    file = io.BytesIO()
    small.resize(sides).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def decode(decoder: Decoder, data: bytes, cpu_s: float = ENOUGH_S) -> None:
    """Decode `data` in the process of `decoder`."""
    decoder.decode(data, SIZE, memory=MEMORY, cpu_s=cpu_s)


def take(function: Callable[[], object]) -> float:
    """Return how many milliseconds `function` takes."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1000


def replaced(decoder: Decoder) -> float:
    """Return the median milliseconds for a small image after the process was stopped."""
    times = []
    small, large = draw(SIDES[0]), draw(SIDES[-1])
    for _ in range(20):
        try:
            decode(decoder, large, TOO_LITTLE_S)
        except CpuLimitError:
            times.append(take(lambda: decode(decoder, small)))
    return median(times)


def processes() -> Sequence[int]:
    """Return the decoder's processes: the one that forks, and its worker."""
    server = children(os.getpid())[-1]
    [worker] = children(server)
    return server, worker


def children(process: int) -> list[int]:
    """Return the processes that `process` has forked."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()]


def private_bytes(process: int) -> int:
    """Return the memory of `process` that it shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    sys.exit(main())
