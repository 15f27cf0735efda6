"""Compare the speed of each runtime and model with the original handler's.

    python -m benchmarks.serving --data flowers/
    python -m benchmarks.serving --runtimes openvino --before ../earlier    # another checkout

Prints Markdown tables. Each handler runs in a process of its own and fetches from a server on this
machine. They take turns, in a new order each round, so that other work on the machine slows all of
them alike; ratios are to the original's medians. As in the container image, OpenVINO has its export
of the model.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image

from benchmarks.load import LoadError, image_server, read_images
from serving.exported import read_export
from serving.model_files import best_model, file_digest, tflite_path
from serving.resources import MEGABYTES_PER_VCPU
from training.cli import make_parser, run_command
from training.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
CONVERTED = ROOT / ".cache" / "benchmarks"  # the models of each kind, converted once
LARGE = (4000, 3000)  # width and height in pixels of a phone's 12-megapixel image
QUALITY = 90  # of its JPEG
MODULES = {"tflite-runtime": "tflite_runtime", "ai-edge-litert": "ai_edge_litert"}
# As in the container image: NumPy starts no threads, and byte code is kept.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
# Dynamic-range models of today's TensorFlow do not load in tflite-runtime.
KINDS = {
    "tflite-runtime": ("none", "float16", "int8"),
    "ai-edge-litert": ("none", "float16", "dynamic", "int8"),
    "openvino": ("none", "float16", "int8"),
}
ONNX = "onnxruntime"


@dataclass
class Candidate:
    """A handler of the checkout `code` with its measurements, in seconds and kilobytes."""

    how: str
    runtime: str
    kind: str
    threads: int
    model: Path
    cold: list[dict] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    peak: int = 0
    code: Path = ROOT

    @property
    def name(self) -> str:
        """Name of the handler in tables."""
        ours = "ours" if self.code == ROOT else "before"
        return f"{self.how if self.how == 'original' else ours}, {self.runtime}"

    @property
    def cells(self) -> tuple[object, ...]:
        """The first cells of its row in tables: name, model, threads."""
        return self.name, "float32" if self.kind == "none" else self.kind, self.threads


class Process:
    """The running process of a candidate."""

    def __init__(self, candidate: Candidate, url: str):
        """Start it and time its first prediction, for the image at `url`."""
        started = time.monotonic()
        memory = str(candidate.threads * MEGABYTES_PER_VCPU)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.handlers"),
                *(candidate.how, candidate.model, candidate.runtime),
            ],
            cwd=candidate.code,
            env=os.environ
            | ENVIRONMENT
            | {"FETCH_ALLOW": "127.0.0.1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": memory},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stdin = cast(IO[str], self._process.stdin)
        self._stdout = cast(IO[str], self._process.stdout)
        self.candidate = candidate
        parts = json.loads(self._send(url))
        candidate.cold.append(parts | {"total": time.monotonic() - started})

    def _send(self, line: str) -> str:
        try:
            self._stdin.write(line + "\n")
            self._stdin.flush()
            answer = self._stdout.readline()
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

    def predict(self, what: str, url: str) -> None:
        """Time the prediction for the image at `url`, of kind `what`."""
        self.candidate.times.setdefault(what, []).append(float(self._send(url)))

    def end(self) -> None:
        """End it and read its peak memory."""
        output, _ = self._process.communicate()
        self.candidate.peak = int(output.split()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: benchmark(options), "benchmarks.serving")


def benchmark(options: argparse.Namespace) -> None:
    """Print speeds and cold starts.

    Raises:
        LoadError: a handler does not work.
        ModelError: there is no checkpoint.
    """
    checkpoint = options.checkpoint or best_model(ROOT / "models", ".h5")
    small, *_ = read_images(options.data).values()
    images = {"/small.jpg": small, "/large.jpg": enlarge(small)}
    models = {kind: convert(checkpoint, kind, options.data) for kind in kinds(options.kinds)}
    if "openvino" in options.runtimes and find_spec("openvino"):
        for kind in models.keys() & KINDS["openvino"]:
            export(models[kind])
    candidates = list(choose(models, options.threads, options.runtimes))
    if options.before:
        candidates = [each for one in candidates for each in (*earlier(one, options.before), one)]
    with image_server(images, slow=0) as address:
        measure(candidates, address, options.rounds, options.starts)
    print_speeds(candidates)
    print_starts(candidates)


def kinds(chosen: Sequence[str]) -> list[str]:
    """Return `chosen` and float32, the original's, in the order of the tables."""
    known = dict.fromkeys(kind for runtime in KINDS.values() for kind in runtime)
    return [kind for kind in known if kind == "none" or kind in chosen]


def enlarge(data: bytes) -> bytes:
    """Return the image in `data` as large as a phone's, with noise."""
    with Image.open(BytesIO(data)) as image:
        large = image.convert("RGB").resize(LARGE, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 3, (LARGE[1], LARGE[0], 3))
    pixels = (np.asarray(large) + noise).clip(0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def convert(checkpoint: Path, kind: str, data: Path) -> Path:
    """Return the .tflite file of `kind` of `checkpoint`, converted if necessary."""
    folder = CONVERTED / kind
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / checkpoint.name
    path = tflite_path(copy, kind)
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
        raise LoadError(f"Expected {command[1]} to convert a model. Received: {reason}")


def export(model: Path) -> None:
    """Write OpenVINO's export of `model` beside it, if it is not there."""
    found = read_export(model)
    if found is None or found.model_digest != file_digest(model):
        code = (
            "import sys; from pathlib import Path; from serving.exported import write_export; "
            "from serving.runtimes import export_openvino, find_runtime; "
            "path = Path(sys.argv[1]); openvino = find_runtime('openvino')[1]; "
            "write_export(path, [export_openvino(openvino, path)])"
        )
        run_quietly(["-c", code, model])


def choose(
    models: dict[str, Path], threads: Sequence[int], runtimes: Sequence[str]
) -> Iterator[Candidate]:
    """Yield the candidates for `models`: {kind: .tflite file}, the original first."""
    plain = models["none"]
    yield Candidate("original", "tflite-runtime", "none", 1, plain)
    for runtime in (name for name in KINDS if name in runtimes):
        if not find_spec(MODULES.get(runtime, runtime)):
            print(f"  {runtime} is not installed and was skipped.", file=sys.stderr)
            continue
        for kind in (kind for kind in KINDS[runtime] if kind in models):
            for count in threads:
                yield Candidate("ours", runtime, kind, count, models[kind])
    if ONNX in runtimes and find_spec("onnxruntime"):
        path = plain.with_suffix(".onnx")
        if not path.exists():
            to_onnx(plain.with_suffix(".h5"), path)
        for count in threads:
            yield Candidate("onnx", "ONNX Runtime", "none", count, path)


def earlier(candidate: Candidate, code: Path) -> Iterator[Candidate]:
    """Yield `candidate` as the checkout `code` has it, if it is the project's handler."""
    if candidate.how == "ours":
        yield replace(candidate, code=code.resolve(), cold=[], times={})


def measure(candidates: Sequence[Candidate], address: str, rounds: int, starts: int) -> None:
    """Start each of `candidates` `starts` times, then time `rounds` predictions per image."""
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
                process.predict(what, f"{address}/{what}.jpg")
    for process in running:
        process.end()


def print_speeds(candidates: Sequence[Candidate]) -> None:
    """Print a table of the milliseconds that a prediction takes."""
    base = {what: np.median(times) for what, times in candidates[0].times.items()}
    rounds = len(candidates[0].times["small"])
    head = [f"handler, {rounds} requests each", "model", "threads", "small p50, p99 ms"]
    head += ["times as fast", "12 MP p50, p99 ms", "times as fast", "peak MB"]
    rows = []
    for candidate in candidates:
        cells = []
        for what, times in candidate.times.items():
            p50, p99 = np.percentile(times, [50, 99]) * 1000
            cells += [f"{p50:.0f}, {p99:.0f}", f"{base[what] * 1000 / p50:.1f}"]
        rows.append([*candidate.cells, *cells, f"{candidate.peak / 1000:.0f}"])
    print(markdown_table(head, rows))


def print_starts(candidates: Sequence[Candidate]) -> None:
    """Print a table of the milliseconds until a new process' first prediction."""
    starts = len(candidates[0].cold)
    head = [f"cold start, median of {starts}", "model", "threads", "to the first answer ms"]
    head += ["imports", "model", "first answer"]
    rows = []
    for candidate in candidates:
        parts = ("total", "imports", "load", "first")
        medians = [np.median([cold[part] for cold in candidate.cold]) for part in parts]
        rows.append([*candidate.cells, *(f"{seconds * 1000:.0f}" for seconds in medians)])
    print(f"\n{markdown_table(head, rows)}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m benchmarks.serving")
    add = parser.add_argument
    every = sorted({kind for runtime in KINDS.values() for kind in runtime})
    add(
        "--data",
        type=Path,
        default=Path("flowers"),
        help="a small image, and images to calibrate int8 [flowers/]",
    )
    add("--checkpoint", type=Path, help="a .h5 file [the best of models/]")
    add("--rounds", type=int, default=100, help="requests to each, of each size [%(default)s]")
    add("--starts", type=int, default=3, help="cold starts of each [%(default)s]")
    add("--threads", type=int, nargs="+", default=[1, 2], help="[1 2]")
    runtimes = (*KINDS, ONNX)
    add("--runtimes", nargs="+", choices=runtimes, default=runtimes, help="[all]")
    add("--before", type=Path, help="another checkout, whose handlers take turns with these")
    add("--kinds", nargs="+", choices=every, default=every, help=f"[{' '.join(every)}]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
