"""Compare how soon containers answer, from `docker run` to the first answer.

    python -m benchmarks.cold_start flowers flowers-openvino
    python -m benchmarks.cold_start before after --rounds 30

Prints a Markdown table. In each round, a container of each image is started for a request with an
image, another for one with a URL, and one with a handler that does nothing: that one shows what
Docker, the emulator and Python take. The order is a new one each time, so that other work on the
machine slows all of them alike. Ratios are to the first image's container of the same round and
request.
"""

import argparse
import base64
import contextlib
import json
import random
import statistics
import sys
import time
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.load import LoadError, docker, image_server, is_scores, post, read_images
from serving.function_url import INVOCATIONS
from tools.emulator import free_port
from tools.function_url import UnreachableError
from tools.ministack import bridge
from training.cli import make_parser, run_command
from training.markdown import markdown_table

BASES = "public.ecr.aws/lambda/python"
NOTHING = "operator.is_"  # a handler that answers false
MEMORY = ("--env", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=1769")  # so the model runs on one thread
# Where a container reads its own CPU time: in microseconds, and before cgroup 2 in nanoseconds.
CPU_TIME = (
    "sed -n 's/usage_usec //p' /sys/fs/cgroup/cpu.stat 2>/dev/null"
    " || expr $(cat /sys/fs/cgroup/cpuacct/cpuacct.usage) / 1000"
)


class Start(NamedTuple):
    """What a start took, in seconds.

    Attributes:
        answer: from `docker run` to the first answer.
        cpu: CPU time of the container until then.
    """

    answer: float
    cpu: float


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: benchmark(options), "benchmarks.cold_start")


def benchmark(options: argparse.Namespace) -> None:
    """Print sizes and starts of the container images.

    Raises:
        LoadError: there is no image to send, or a container does not answer it with scores.
        MiniStackError: this machine has no address that containers reach.
    """
    small, *_ = read_images(options.data).values()
    host = bridge()
    with image_server({"/small.jpg": small}, slow=0, host=host) as address:
        events = {
            "image": {"image": base64.b64encode(small).decode()},
            "url": {"url": f"{address}/small.jpg"},
            "nothing": None,
        }
        starts = measure(options.container_images, events, host, options.rounds)
    sizes = {image: size_above_base(image) for image in options.container_images}
    print_starts(sizes, starts)


def measure(
    images: Sequence[str], events: dict[str, dict | None], host: str, rounds: int
) -> dict[tuple[str, str], list[Start]]:
    """Return the starts of each of `images` with each of `events`, by both names.

    `host` is where the events' URLs lead, which containers may fetch from.
    """
    starts = {(image, request): [] for request in events for image in images}
    order = random.Random(0)  # noqa: S311
    for _ in range(rounds):
        for image, request in order.sample(list(starts), len(starts)):
            starts[image, request].append(start(image, events[request], host))
    return starts


def start(image: str, event: dict | None, host: str) -> Start:
    """Start a container of `image`, send it `event` and remove it; None is for `NOTHING`.

    Raises:
        LoadError: it does not answer with scores.
    """
    started = time.monotonic()
    with container(image, host, *([NOTHING] if event is None else [])) as (name, endpoint):
        answer = first_answer(endpoint, event or {})
        answered = time.monotonic()
        if answer is not False if event is None else not is_scores(answer):
            raise LoadError(f"Expected scores of {image}. Received: {answer}")
        cpu = docker("exec", name, "sh", "-c", CPU_TIME)
        return Start(answered - started, int(cpu) / 1e6)


@contextlib.contextmanager
def container(image: str, host: str, *command: str) -> Generator[tuple[str, str]]:
    """Run a container of `image`; yield its name and its endpoint for events.

    `command` is its handler, if that is to be another one.
    """
    name, port = f"flowers-start-{uuid.uuid4().hex[:8]}", free_port()
    publish = ("--publish", f"127.0.0.1:{port}:8080", "--env", f"FETCH_ALLOW={host}")
    docker("run", "--detach", "--name", name, "--read-only", *publish, *MEMORY, image, *command)
    try:
        yield name, f"http://127.0.0.1:{port}{INVOCATIONS}"
    finally:
        docker("rm", "--force", name)


def first_answer(endpoint: str, event: dict) -> object:
    """Return the answer to `event`, once `endpoint` gives one."""
    latest = time.monotonic() + 60
    while time.monotonic() < latest:
        try:
            return post(endpoint, event)
        except UnreachableError:  # nothing listens yet
            time.sleep(0.01)
    raise LoadError(f"Expected an answer at {endpoint} within a minute. Received: none.")


def print_starts(sizes: dict[str, int], starts: dict[tuple[str, str], list[Start]]) -> None:
    """Print a table of `starts`, as `measure` returns them, and of `sizes` in bytes."""
    reference, *_ = sizes
    rows = []
    for (image, request), taken in starts.items():
        pairs = list(zip(taken, starts[reference, request], strict=True))
        cells = [image, f"{sizes[image] / 1e6:.0f}", request]
        for values in zip(*taken, strict=True):
            cells.append(f"{statistics.median(values) * 1000:.0f}")
        for part in range(len(Start._fields)):
            ratio = statistics.median(each[part] / first[part] for each, first in pairs)
            cells.append(f"{ratio:.2f}")
        rows.append(cells)
    count = len(next(iter(starts.values())))
    head = ("container image", "above its base MB", f"request, {count} starts each")
    head += ("to the first answer ms", "CPU ms", "ratio", "ratio of CPU")
    print(markdown_table(head, rows))


def size_above_base(container_image: str) -> int:
    """Return the bytes that `container_image` adds to its base image."""
    layers, size = layers_and_size(container_image)
    bases = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", BASES).split()
    for base in bases:
        below, base_size = layers_and_size(base)
        if layers[: len(below)] == below:
            return size - base_size
    raise LoadError(
        f"Expected {container_image} to be built on {BASES}. Received: none of {bases}."
    )


def layers_and_size(container_image: str) -> tuple[list[str], int]:
    """Return the layers' digests and the size in bytes of `container_image`."""
    [details] = json.loads(docker("image", "inspect", container_image))
    return details["RootFS"]["Layers"], details["Size"]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m benchmarks.cold_start")
    add = parser.add_argument
    add("container_images", nargs="+", metavar="IMAGE", help="container image of the service")
    add("--data", type=Path, default=Path("flowers"), help="a small image to send [flowers/]")
    add("--rounds", type=int, default=15, help="starts of each [%(default)s]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
