"""Compare the engines of large jobs with one process of predict.py.

    python -m benchmarks.large_jobs                                  # 320 images of flowers/
    python -m benchmarks.large_jobs --data flowers/ --images 320 --rounds 3
    python -m benchmarks.large_jobs --runtime openvino --model models/mine.int8.tflite

Each labels a few images and all of them, which tells the cost of one more image from that of the
start. Processor time and memory are those of all processes. Prints a Markdown table with the
medians of the rounds; the ratios are to its first row. Without Ray, its row is left out. With
--runtime there is no row of predict.py without --out, which takes the first that is installed.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.decoder import children
from serving.errors import UserError
from serving.runtimes import RUNTIMES
from training import cli
from training.files import IMAGE_SUFFIXES
from training.markdown import markdown_table
from training.streams import print_error

ROOT = Path(__file__).resolve().parents[1]
FEW = 8  # the shorter run labels this part of the images
SHARD_SIZE = 10  # so that all processors have work to the end
SAMPLE_S = 0.2  # seconds between two looks at the processes
TICKS = os.sysconf("SC_CLK_TCK")  # of processor time in a second
HEAD = ("predict.py", "images per second", "ratio", "processor time per image")
HEAD = (*HEAD, "start", "processor time to start", "peak memory")


class LargeJobsError(UserError):
    """There are not enough images, or a run failed."""


class Cost(NamedTuple):
    """What a run took.

    Attributes:
        wall_s: seconds.
        cpu_s: seconds of processor time of all processes.
        memory: bytes that these had together at most; what they share counts once.
    """

    wall_s: float
    cpu_s: float
    memory: int


class Speed(NamedTuple):
    """What a short and a long run tell.

    Attributes:
        image_s: seconds for one more image.
        image_cpu_s: seconds of processor time for it.
        start_s: seconds for all that does not depend on the number of images.
        start_cpu_s: seconds of processor time for that.
        memory: bytes of the longer run at most.
    """

    image_s: float
    image_cpu_s: float
    start_s: float
    start_cpu_s: float
    memory: int


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return cli.run_command(lambda: benchmark(options), "benchmarks.large_jobs")


def benchmark(options: argparse.Namespace) -> None:
    """Measure each engine and print the table.

    Raises:
        LargeJobsError: there are not enough images, or a run failed.
    """
    images = find_images(options.data, options.images)
    same = [f"--model={options.model}"] if options.model else []
    same += [f"--runtime={options.runtime}"] if options.runtime else []
    ways = {
        "`--json`": ["--json"],
        "`--out`, one process": ["--processes=1"],
        "`--out`, a process for each processor": [],
        "`--out --engine ray`": ["--engine=ray"],
    }
    ways = {
        name: flags + same
        for name, flags in ways.items()
        if not ("--json" in flags and options.runtime)
        and not ("--engine=ray" in flags and not find_spec("ray"))
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, flags in ways.items():
            few, many = (label(part, flags) for part in (images[: len(images) // FEW], images))
            speed = compare(few, many, len(images) // FEW, len(images))
            print_error(f"round {number + 1}, {name}: {1 / speed.image_s:.1f} images per second")
            speeds[name].append(speed)
    medians = {name: Speed(*map(median, zip(*each, strict=True))) for name, each in speeds.items()}
    slowest = next(iter(medians.values())).image_s
    print(markdown_table(HEAD, [row(name, each, slowest) for name, each in medians.items()]))


def find_images(folder: Path, count: int) -> list[Path]:
    """Return `count` images below `folder`, spread over its sub-folders.

    Raises:
        LargeJobsError: there are fewer.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(found) < count:
        raise LargeJobsError(
            f"Expected {count} images in {folder}. Received: {len(found)}. Name another folder "
            "with --data, or take fewer with --images."
        )
    return found[:: len(found) // count][:count]


def label(images: list[Path], flags: list[str]) -> Cost:
    """Run predict.py on `images` and return what it took.

    Raises:
        LargeJobsError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            Path(folder, f"{number:05d}{image.suffix}").symlink_to(image.resolve())
        if "--json" not in flags:
            flags = [*flags, f"--shard-size={SHARD_SIZE}", f"--out={folder}/.out"]
        command = [sys.executable, str(ROOT / "predict.py"), folder, *flags]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            cost = watch(process)
            errors.seek(0)
            *_, last = ["", *errors.read().decode(errors="replace").splitlines()]
    if process.returncode:
        raise LargeJobsError(
            f"Expected {' '.join(command)} to label all images. Received: exit code "
            f"{process.returncode} ({last}). Run it alone to see why."
        )
    return cost


def watch(process: subprocess.Popen) -> Cost:
    """Wait until `process` ends, and return what it and all processes below it took."""
    started = time.monotonic()
    ticks: dict[int, int] = {}
    memory = 0
    while process.poll() is None:
        seen = [process.pid, *descendants(process.pid)]
        for pid in seen:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks[pid] = int(fields[11]) + int(fields[12])  # in user mode, and in the kernel
        memory = max(memory, sum(map(proportional_bytes, seen)))
        time.sleep(SAMPLE_S)
    return Cost(time.monotonic() - started, sum(ticks.values()) / TICKS, memory)


def descendants(process: int) -> list[int]:
    """Return the processes below `process`."""
    try:
        found = children(process)
    except OSError:  # it has ended
        return []
    return found + [below for child in found for below in descendants(child)]


def proportional_bytes(process: int) -> int:
    """Return the memory of `process`, with its part of what it shares with others."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def compare(few: Cost, many: Cost, count: int, total: int) -> Speed:
    """Return what runs on `count` and on `total` images tell.

    Raises:
        LargeJobsError: the longer one took no longer.
    """
    image_s, image_cpu_s = (
        (long - short) / (total - count) for short, long in zip(few[:2], many[:2], strict=True)
    )
    if image_s <= 0:
        raise LargeJobsError(
            f"Expected {total} images to take longer than {count}. Received: {many.wall_s:.1f} and "
            f"{few.wall_s:.1f} s. Take more --images, or measure when less else runs."
        )
    start_s, start_cpu_s = few.wall_s - count * image_s, few.cpu_s - count * image_cpu_s
    return Speed(image_s, image_cpu_s, start_s, start_cpu_s, many.memory)


def row(name: str, speed: Speed, slowest: float) -> list[str]:
    """Return a row of the table; the ratio is to `slowest` seconds for an image."""
    return [
        name,
        f"{1 / speed.image_s:.1f}",
        f"{slowest / speed.image_s:.2f}",
        f"{speed.image_cpu_s:.3f} s",
        f"{speed.start_s:.1f} s",
        f"{speed.start_cpu_s:.1f} s",
        f"{speed.memory / 1e6:.0f} MB",
    ]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = cli.make_parser(__doc__, "python -m benchmarks.large_jobs")
    add = parser.add_argument
    add("--data", type=Path, default=Path("flowers"), help="folder of images [flowers/]")
    add("--images", type=cli.at_least(FEW), default=320, help="that are labelled [320]")
    add("--rounds", type=cli.at_least(1), default=3, help="of which the median counts [3]")
    add("--model", type=Path, help="a .tflite file [the best in models/]")
    add("--runtime", choices=RUNTIMES, help="package that runs it [the first that is installed]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
