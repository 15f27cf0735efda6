"""How fast the service answers on each runtime and model kind, beside the original's handler.

    python -m benchmarks.serving --data flowers/                       # the handlers
    python -m benchmarks.serving --data flowers/ --images flowers      # and containers

Prints Markdown tables. Each handler runs in a process of its own and fetches from a server on this
machine. All of them take turns, in a new order each round, so that what else the machine does
weighs on all alike; ratios are of the original's medians.
"""

import argparse
import base64
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.load import (
    LoadError,
    docker,
    image_server,
    is_scores,
    post,
    read_images,
    service,
)
from serving.errors import ModelError
from serving.model_files import MEGABYTES_PER_VCPU, best_model

ROOT = Path(__file__).resolve().parent.parent
MADE = ROOT / ".cache" / "benchmarks"  # the models of each kind, converted once
LARGE = (4000, 3000)  # pixels of a phone's 12-megapixel image
QUALITY = 90  # of its JPEG
BASES = "public.ecr.aws/lambda/python"
MODULES = {"tflite-runtime": "tflite_runtime", "ai-edge-litert": "ai_edge_litert"}
# Dynamic-range models of today's TensorFlow do not load in tflite-runtime.
KINDS = {
    "tflite-runtime": ("none", "float16", "int8"),
    "ai-edge-litert": ("none", "float16", "dynamic", "int8"),
    "openvino": ("none", "float16", "int8"),
}


@dataclass
class Candidate:
    """A handler and what was measured of it, in seconds and kilobytes."""

    how: str
    runtime: str
    kind: str
    threads: int
    model: Path
    cold: list[dict] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    peak: int = 0

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{'ours' if self.how == 'onnx' else self.how}, {self.runtime}"


class Process:
    """The running process of a candidate."""

    def __init__(self, candidate: Candidate, url: str):
        """Start it and note how long it took to answer `url` for the first time."""
        started = time.monotonic()
        memory = str(candidate.threads * MEGABYTES_PER_VCPU)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.handlers"),
                *(candidate.how, candidate.model, candidate.runtime),
            ],
            cwd=ROOT,
            env=os.environ
            | {"FETCH_ALLOW": "127.0.0.1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": memory},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.candidate = candidate
        parts = json.loads(self._ask(url))
        candidate.cold.append(parts | {"total": time.monotonic() - started})

    def _ask(self, line: str) -> str:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.kill()
            _, errors = self._process.communicate()
            reason = (errors.strip().splitlines() or ["nothing"])[-1]
            raise LoadError(
                f"Expected an answer of {self.candidate.name} with {self.candidate.model.name}. "
                f"Received: {reason}"
            )
        return answer

    def ask(self, what: str, url: str) -> None:
        """Note how long the answer to `url`, an image of the sort `what`, takes."""
        self.candidate.times.setdefault(what, []).append(float(self._ask(url)))

    def end(self) -> None:
        """End it, and note how much memory it had."""
        output, _ = self._process.communicate()
        self.candidate.peak = int(output.split()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says; return the exit code."""
    options = parse_arguments(arguments)
    try:
        checkpoint = options.checkpoint or best_model(ROOT / "models", ".h5")
        small, *_ = read_images(options.data).values()
        images = {"/small.jpg": small, "/large.jpg": enlarged(small)}
        models = {kind: made(checkpoint, kind, options.data) for kind in kinds(options.kinds)}
        candidates = list(choose(models, options.threads))
        with image_server(images, slow=0) as address:
            measure(candidates, address, options.rounds, options.starts)
        show_speeds(candidates)
        show_starts(candidates)
        if options.container_images:
            show_container_images(options.container_images, small, options.starts)
    except (LoadError, ModelError) as error:
        print(f"benchmarks.serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def kinds(chosen: Sequence[str]) -> list[str]:
    """Return `chosen` and float32, which the original has, in the order of the tables."""
    known = dict.fromkeys(kind for runtime in KINDS.values() for kind in runtime)
    return [kind for kind in known if kind == "none" or kind in chosen]


def enlarged(data: bytes) -> bytes:
    """Return the image in `data` as a phone's camera would give it: large, and a little noisy."""
    with Image.open(BytesIO(data)) as image:
        large = image.convert("RGB").resize(LARGE, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 3, (LARGE[1], LARGE[0], 3))
    pixels = (np.asarray(large) + noise).clip(0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def made(checkpoint: Path, kind: str, data: Path) -> Path:
    """Return the `.tflite` file of `checkpoint` of `kind`, converted if it is not there."""
    folder = MADE / kind
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / checkpoint.name
    path = copy.with_suffix(".tflite")
    if path.exists() and path.stat().st_mtime > checkpoint.stat().st_mtime:
        return path
    for source in (checkpoint, checkpoint.with_suffix(".split.json")):
        link = folder / source.name
        link.unlink(missing_ok=True)
        if source.exists():
            link.symlink_to(source.resolve())
    run_quietly(
        [
            *("convert_to_tflite.py", copy, "--quantize", kind, "--data", data.resolve()),
            *(("--runtime", "ai-edge-litert") if kind == "dynamic" else ()),
        ]
    )
    return path


def to_onnx(checkpoint: Path, path: Path) -> None:
    """Write `checkpoint` as ONNX to `path`, in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from training.backend import tf; "
        "from training.checkpoint import load_checkpoint; "
        "model, _ = load_checkpoint(Path(sys.argv[1])); "
        "model(tf.zeros((1, *model.input_shape[1:]))); "  # Keras exports only what was called
        "model.export(sys.argv[2], format='onnx', verbose=False)"
    )
    run_quietly(["-c", code, checkpoint, path])


def run_quietly(arguments: Sequence[object]) -> None:
    """Run Python with `arguments` in the project's folder.

    Raises:
        LoadError: it fails.
    """
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise LoadError(f"Expected {command[1]} to make a model. Received: {reason}")


def choose(models: dict[str, Path], threads: Sequence[int]) -> Iterator[Candidate]:
    """Yield what to measure with `models`: {kind: .tflite file}; the original comes first."""
    plain = models["none"]
    yield Candidate("original", "tflite-runtime", "none", 1, plain)
    for runtime, able in KINDS.items():
        if not find_spec(MODULES.get(runtime, runtime)):
            print(f"  {runtime} is not installed, and left out.", file=sys.stderr)
            continue
        for kind in able:
            for count in threads if kind in models else ():
                yield Candidate("ours", runtime, kind, count, models[kind])
    if find_spec("onnxruntime"):
        path = plain.with_suffix(".onnx")
        if not path.exists():
            to_onnx(plain.with_suffix(".h5"), path)
        for count in threads:
            yield Candidate("onnx", "ONNX Runtime", "none", count, path)


def measure(candidates: Sequence[Candidate], address: str, rounds: int, starts: int) -> None:
    """Start each of `candidates` `starts` times, then ask them `rounds` times for each image."""
    order = random.Random(0)  # noqa: S311
    running: list[Process] = []
    for start in range(starts):
        for candidate in order.sample(candidates, len(candidates)):
            process = Process(candidate, f"{address}/small.jpg")
            if start + 1 < starts:
                process.end()
            else:
                running.append(process)
    for _ in range(rounds):
        for what in ("small", "large"):
            for process in order.sample(running, len(running)):
                process.ask(what, f"{address}/{what}.jpg")
    for process in running:
        process.end()


def show_speeds(candidates: Sequence[Candidate]) -> None:
    """Print what an answer takes, as Markdown."""
    base = {what: np.median(times) for what, times in candidates[0].times.items()}
    rounds = len(candidates[0].times["small"])
    print(
        f"| handler, {rounds} requests each | model | threads | small p50, p99 ms | times as fast "
        "| 12 MP p50, p99 ms | times as fast | peak MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in candidates:
        cells = []
        for what, times in one.times.items():
            p50, p99 = np.percentile(times, [50, 99]) * 1000
            cells += [f"{p50:.0f}, {p99:.0f}", f"{base[what] * 1000 / p50:.1f}"]
        print(
            f"| {one.name} | {shown(one.kind)} | {one.threads} | {' | '.join(cells)} "
            f"| {one.peak / 1000:.0f} |"
        )


def show_starts(candidates: Sequence[Candidate]) -> None:
    """Print what the first answer of a new process takes, and of what it is made, as Markdown."""
    starts = len(candidates[0].cold)
    print(
        f"\n| cold start, median of {starts} | model | threads | to the first answer ms "
        "| imports | model | first answer |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in candidates:
        parts = ("total", "imports", "load", "first")
        cells = [f"{np.median([cold[part] for cold in one.cold]) * 1000:.0f}" for part in parts]
        print(f"| {one.name} | {shown(one.kind)} | {one.threads} | {' | '.join(cells)} |")


def show_container_images(container_images: Sequence[str], image: bytes, starts: int) -> None:
    """Print the size of each container image above its base, and how fast it starts."""
    print(f"\n| image | above its base MB | start to first answer ms, median of {starts} |")
    print("| --- | --- | --- |")
    event = {"image": base64.b64encode(image).decode()}
    for container_image in container_images:
        times = []
        for _ in range(starts):
            started = time.monotonic()
            with service(container_image, None) as (endpoint, _memory):
                check_scores(first_answer(endpoint, event), container_image)
                times.append(time.monotonic() - started)
        print(
            f"| {container_image} | {added(container_image) / 1e6:.0f} "
            f"| {np.median(times) * 1000:.0f} |"
        )


def first_answer(endpoint: str, event: dict) -> object:
    """Return the answer to `event` as soon as there is one at `endpoint`."""
    latest = time.monotonic() + 60
    while time.monotonic() < latest:
        try:
            return post(endpoint, event)
        except OSError:  # it does not listen yet
            time.sleep(0.01)
    raise LoadError(f"Expected an answer at {endpoint} within a minute. Received: none.")


def check_scores(answer: object, container_image: str) -> None:
    """Raise a LoadError if `answer` is no {label: score}."""
    if not is_scores(answer):
        raise LoadError(f"Expected scores of {container_image}. Received: {answer}")


def added(container_image: str) -> int:
    """Return the bytes that `container_image` adds to the base image that it is built on."""
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
    """Return the digests of the layers of `container_image`, and its size in bytes."""
    [facts] = json.loads(docker("image", "inspect", container_image))
    return facts["RootFS"]["Layers"], facts["Size"]


def shown(kind: str) -> str:
    """Return what a person calls a kind of model."""
    return "float32" if kind == "none" else kind


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    every = sorted({kind for runtime in KINDS.values() for kind in runtime})
    add("--data", type=Path, default=Path("flowers"), help="a small image, and int8's [flowers/]")
    add("--checkpoint", type=Path, help="a .h5 file [the best of models/]")
    add("--rounds", type=int, default=100, help="requests to each, of each size [%(default)s]")
    add("--starts", type=int, default=3, help="cold starts of each [%(default)s]")
    add("--threads", type=int, nargs="+", default=[1, 2], help="[1 2]")
    add("--kinds", nargs="+", choices=every, default=every, help=f"[{' '.join(every)}]")
    add(
        "--images",
        dest="container_images",
        nargs="+",
        default=[],
        help="Docker images to start as well [none]",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
