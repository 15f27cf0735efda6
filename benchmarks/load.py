"""Send many requests to one service, and measure time, failures and memory.

    python -m benchmarks.load --data flowers/                    # behind AWS's Lambda emulator
    python -m benchmarks.load --data flowers/ --image flowers    # a container of that image
    python -m benchmarks.load --data flowers/ --slow 0.1         # a tenth of the images arrive late

Lambda sends a container one request at a time, and so does this. Half of the requests contain
their image, half its URL on a server of this machine. Prints a Markdown table with a row for each
tenth of the requests; exits with 1 if a request fails or if memory grows.
"""

import argparse
import base64
import contextlib
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from serving.errors import UserError
from serving.function_url import INVOCATIONS
from tools.emulator import free_port, local_service
from tools.function_url import AnswerError, UnreachableError, invoker
from training.cli import make_parser, run_command
from training.markdown import markdown_row, markdown_table

IMAGES = 50  # different images
PARTS = 10  # rows of the table
WARM = 100  # requests after which memory should no longer grow
GROWTH = 0.05  # at most, as a share of the memory after those
LATE = 2.0  # seconds that a late image takes
TRIES, WAIT_S = 150, 0.2  # until the service has started, seconds between them
ALLOW = {"FETCH_ALLOW": "127.0.0.1"}
HEAD = ("requests", "failed", "a second", "p50 ms", "p99 ms", "longest ms", "memory MB")


class LoadError(UserError):
    """Something cannot be measured, or a request failed, or memory grew."""


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: benchmark(options), "benchmarks.load")


def benchmark(options: argparse.Namespace) -> None:
    """Start a server of images and the service, and measure.

    Raises:
        LoadError: there are no images or no service, or it failed.
        EmulatorError: AWS's emulator does not run.
    """
    images = read_images(options.data)
    with (
        image_server(images, options.slow) as address,
        service(options.image, options.model) as (endpoint, memory),
    ):
        measure(endpoint, make_events(images, address), options.requests, memory)


def read_images(folder: Path) -> dict[str, bytes]:
    """Return {URL path: content} of `IMAGES` files below `folder`."""
    found = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise LoadError(
            f"Expected JPEG files in the sub-folders of {folder}. Received: none. "
            "Name another folder with --data."
        )
    chosen = found[:: max(1, len(found) // IMAGES)][:IMAGES]
    return {f"/{number}.jpg": path.read_bytes() for number, path in enumerate(chosen)}


@contextlib.contextmanager
def image_server(images: dict[str, bytes], slow: float, host: str = "127.0.0.1") -> Generator[str]:
    """Serve `images` on `host`, the share `slow` of them after `LATE` seconds."""
    rng = random.Random(0)  # noqa: S311

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if rng.random() < slow:
                time.sleep(LATE)
            self.send_response(200)
            self.send_header("Content-Length", str(len(images[self.path])))
            self.end_headers()
            self.wfile.write(images[self.path])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def service(image: str | None, model: Path | None) -> Generator[tuple[str, Callable[[], int]]]:
    """Start the service in a container of `image`, or with `model`.

    Yields its endpoint and a function that returns the memory of its processes in kilobytes.
    """
    if image is None:
        port = free_port()
        chosen = {"MODEL_PATH": str(model.resolve())} if model else {}
        with local_service(port, ALLOW | chosen) as endpoint:
            yield endpoint, lambda: resident(handler_processes(port))
        return
    name = f"flowers-load-{uuid.uuid4().hex[:8]}"
    # The host's network, so that the container reaches the images.
    docker(
        *("run", "--detach", "--rm", "--name", name, "--network", "host", "--read-only"),
        *("--env", "FETCH_ALLOW=127.0.0.1", "--env", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=1769"),
        image,
    )
    try:
        # The handler's process starts with the first request, and again after it was killed.
        processes = ("top", name, "-eo", "pid")
        yield f"http://127.0.0.1:8080{INVOCATIONS}", lambda: resident(docker(*processes).split())
    finally:
        docker("stop", "--time", "2", name)


def docker(*arguments: str) -> str:
    """Run the Docker client and return its output."""
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    except OSError:
        raise LoadError("Expected Docker's client. Received: none. Leave --image out.") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LoadError(f"Expected docker {arguments[0]} to work. Received: {reason}")
    return done.stdout


def handler_processes(port: int) -> list[str]:
    """Return the process ids of the emulator on `port` and its children."""
    mark = f"127.0.0.1:{port}".encode()
    commands = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            commands[path.name] = (parent, path.joinpath("cmdline").read_bytes())
    found = [pid for pid, (_, command) in commands.items() if mark in command.split(b"\0")]
    for pid in found:
        found += [child for child, (parent, _) in commands.items() if parent == pid]
    return found


def resident(pids: list[str]) -> int:
    """Return the resident memory of the processes `pids` together, in kilobytes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path("/proc", pid, "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
    return total


def make_events(images: dict[str, bytes], address: str) -> list[dict]:
    """Return events for `images`, by turns the image and its URL."""
    return [
        {"url": address + path} if number % 2 else {"image": base64.b64encode(data).decode()}
        for number, (path, data) in enumerate(images.items())
    ]


def measure(endpoint: str, events: list[dict], requests: int, memory: Callable[[], int]) -> None:
    """Send `requests` requests and print times, failures and memory.

    Raises:
        LoadError: the service does not start, a request failed, or memory grew.
    """
    for _ in range(TRIES):  # the service starts, and loads its model
        with contextlib.suppress(UnreachableError):
            post(endpoint, events[0])
            break
        time.sleep(WAIT_S)
    else:
        raise LoadError(
            f"Expected the service to answer within {TRIES * WAIT_S:.0f} s of its start. Received: "
            f"nothing at {endpoint}. Look at its log."
        )
    print(markdown_table(HEAD, []))
    failures, warm, used, done = 0, 0, 0, 0
    size = max(1, requests // PARTS)
    while done < requests:
        times, failed = [], 0
        for _ in range(min(size, requests - done)):
            started = time.monotonic()
            failed += not has_scores(endpoint, events[done % len(events)])
            times.append((time.monotonic() - started) * 1000)
            done += 1
            if done == min(WARM, requests):
                warm = memory()
        used = memory()
        p50, p99 = np.percentile(times, [50, 99])
        speed = 1000 * len(times) / sum(times)
        milliseconds = (f"{value:.0f}" for value in (p50, p99, max(times)))
        cells = (done, failed, f"{speed:.1f}", *milliseconds, f"{used / 1000:.1f}")
        print(markdown_row(cells), flush=True)
        failures += failed
    growth = used / warm - 1
    print(f"\n{failures} of {requests} failed; memory {growth:+.1%} since request {WARM}.")
    if failures or growth > GROWTH:
        raise LoadError(
            f"Expected no failure, and memory to grow by at most {GROWTH:.0%}. Received: "
            f"{failures} failures, and growth by {growth:.1%}."
        )


def post(endpoint: str, event: dict) -> object:
    """Return the service's answer to `event`."""
    return invoker(endpoint)(event)


def has_scores(endpoint: str, event: dict) -> bool:
    """Return whether the service's answer to `event` is {label: score}."""
    try:
        return is_scores(post(endpoint, event))
    except AnswerError:  # also where it has ended
        return False


def is_scores(answer: object) -> bool:
    """Return whether `answer` is {label: score}."""
    return isinstance(answer, dict) and all(isinstance(v, float | int) for v in answer.values())


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m benchmarks.load")
    add = parser.add_argument
    add("--data", type=Path, default=Path("flowers"), help="images to classify [flowers/]")
    add("--requests", type=int, default=10_000, help="[%(default)s]")
    add("--image", help="container image of the service, on port 8080 [none: no Docker]")
    add("--model", type=Path, help="a .tflite file, without --image [the best of models/]")
    add("--slow", type=float, default=0.0, help="share of the images that arrive late [0]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
