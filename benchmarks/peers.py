"""Compare the int8 model with what other quantizers and runtimes make of the same checkpoint.

    python -m benchmarks.peers                  # both tables; ten minutes
    python -m benchmarks.peers --rounds 0       # only how accurate each is
    python -m benchmarks.peers --images 0       # only how fast, on one thread

    python -m venv .cache/peers                 # two more quantizers
    .cache/peers/bin/pip install nncf openvino ai-edge-quantizer
    python -m benchmarks.peers --python .cache/peers/bin/python

Prints Markdown tables. How fast: each model runs in a process of its own on one thread; they take
turns, in a new order each round, so that other work on the machine slows all of them alike. "Times
as fast" is the median over the rounds of the first row's time divided by this row's. How accurate:
on the checkpoint's evaluated images, first by their labels with the images that its training
excluded, then without those of --audit; agreement is how often the first class is the
checkpoint's, and the calibration error is that of the audited images. Of float32 models only the
checkpoint itself is in that table; convert_to_tflite.py makes no other that differs from it.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import numpy as np

from benchmarks.load import LoadError
from benchmarks.peer_models import Peer, make_peers
from serving.errors import ModelError
from serving.model_files import best_model
from serving.preprocess import scale
from training.checkpoint import load_checkpoint, split_record
from training.cli import add_audit_flag, at_least, make_parser, run_command
from training.dataset.scan import Dataset
from training.dataset.split import Split, split_dataset
from training.evaluation.evaluate import scan_classes
from training.evaluation.metrics import audited, summarize
from training.export.compare import take_evenly
from training.images import read_pixels
from training.inference import compile_inference
from training.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = 16
TIMED_IMAGES = 8  # different ones


@dataclass
class Timing:
    """How long a peer takes.

    Attributes:
        first: seconds to load the model and run it once, of each start.
        seconds: of inference, of each round.
        peak: memory of its process in kilobytes.
    """

    first: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak: int = 0


class PeerProcess:
    """The running process of a peer; see benchmarks.peer_process."""

    def __init__(self, peer: Peer, inputs: Path, threads: int):
        """Start it and wait until its model is loaded; `inputs` is a .npy file."""
        self._peer = peer
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.peer_process"),
                *(peer.engine, str(peer.path.resolve()), str(threads), str(inputs)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stdin = cast(IO[str], self._process.stdin)
        self._stdout = cast(IO[str], self._process.stdout)
        self.load_seconds = float(self._read())

    def ask(self, row: int) -> dict:
        """Return what it answers about a row of its inputs."""
        try:
            self._stdin.write(f"{row}\n")
            self._stdin.flush()
        except BrokenPipeError:
            pass  # _read says why
        return json.loads(self._read())

    def _read(self) -> str:
        answer = self._stdout.readline()
        if not answer:
            _, errors = self._process.communicate()
            reason = (errors.strip().splitlines() or ["nothing"])[-1]
            raise LoadError(
                f"Expected {self._peer.engine} to run {self._peer.path.name}. Received: {reason}"
            )
        return answer

    def end(self) -> None:
        """End it."""
        self._process.communicate()


def main(arguments: list[str] | None = None) -> int:
    """Compare as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: benchmark(options), "benchmarks.peers")


def benchmark(options: argparse.Namespace) -> None:
    """Print how accurate and how fast each peer is.

    Raises:
        DataError: there are no images of the checkpoint's classes.
        LoadError: a model cannot be made or run.
        ModelError: there is no checkpoint with a record of its split.
    """
    checkpoint = options.checkpoint or best_model(ROOT / "models", ".h5")
    if not split_record(checkpoint).exists():
        raise ModelError(
            f"Expected {split_record(checkpoint).name} beside the checkpoint, which says what its "
            "training did not see. Received: no such file. Name another --checkpoint."
        )
    peers = make_peers(checkpoint, options.data, options.python)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npy")
        if options.images != 0:
            int8 = [peer for peer in peers if peer.is_int8]
            print_accuracy(int8, checkpoint, options, inputs)
        if options.rounds:
            model, metadata = load_checkpoint(checkpoint)
            dataset = scan_classes(options.data, metadata.class_names)
            images = take_evenly(dataset.images, TIMED_IMAGES)
            save_inputs(dataset, images, model.input_shape[1:3], inputs)
            timings = measure(peers, inputs, len(images), options)
            print_speed(peers, timings)


def print_accuracy(
    peers: Sequence[Peer], checkpoint: Path, options: argparse.Namespace, inputs: Path
) -> None:
    """Print a table of how accurate `peers` are; the images are written to `inputs`."""
    model, metadata = load_checkpoint(checkpoint)
    dataset = scan_classes(options.data, metadata.class_names, audit=options.audit)
    images = evaluated_images(Split.read(split_record(checkpoint)), dataset)
    images = take_evenly(images, len(images) if options.images is None else options.images)
    save_inputs(dataset, images, model.input_shape[1:3], inputs)
    infer = compile_inference(model, "float32", BATCH_SIZE)
    rows = np.load(inputs, mmap_mode="r")
    batches = [np.array(rows[i : i + BATCH_SIZE]) for i in range(0, len(rows), BATCH_SIZE)]
    expected = np.concatenate([infer(batch) for batch in batches])
    true_classes = dataset.labels(images)
    wrong = np.array([image in dataset.wrong_labels for image in images])
    head = ["model", "runtime", f"as labelled, n = {len(images)}"]
    head += [f"audited, n = {(~wrong).sum()}", "agreement", "calibration error", "MB"]
    table = [["the checkpoint", "", *accuracy_cells(expected, expected, true_classes, wrong)]]
    table[0].append(f"{checkpoint.stat().st_size / 1e6:.1f}")
    for peer in peers:
        received = predict(peer, inputs, len(images))
        cells = accuracy_cells(received, expected, true_classes, wrong)
        table.append([peer.name, peer.engine, *cells, f"{peer.size / 1e6:.1f}"])
        print(f"  {' | '.join(table[-1])}", file=sys.stderr, flush=True)
    print(markdown_table(head, table) + "\n")


def evaluated_images(split: Split, dataset: Dataset) -> list[str]:
    """Return the evaluated images of `split` that `dataset` has, sorted by class.

    Those that its training excluded are among them if they are recognizable: the same seed without
    exclusion puts the same images, and these, into the same set.
    """
    split = split.spelled_as(dataset.images)
    known = set(split.evaluated).intersection(dataset.images)
    whole = split_dataset(
        dataset,
        split.seed,
        validation_fraction=split.validation_fraction,
        test_fraction=split.test_fraction,
    )
    seen = {*split.train, *split.validation} - known
    found = set(whole.evaluated)
    return sorted(found if known <= found and not found & seen else known)


def save_inputs(dataset: Dataset, images: Sequence[str], size: tuple[int, int], path: Path) -> None:
    """Write the inputs of `images` to `path`, .npy: float32 (n, height, width, 3), -1 to 1."""
    shape = (len(images), *size, 3)
    inputs = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for row, image in enumerate(images):
        inputs[row] = scale(read_pixels(dataset.folder / image, size))
    inputs.flush()


def predict(peer: Peer, inputs: Path, count: int) -> np.ndarray:
    """Return the probabilities that `peer` gives, float32 (count, classes), on all cores."""
    process = PeerProcess(peer, inputs, len(os.sched_getaffinity(0)))
    found = [process.ask(row)["probabilities"] for row in range(count)]
    process.end()
    return np.array(found, np.float32)


def accuracy_cells(
    received: np.ndarray, expected: np.ndarray, true_classes: np.ndarray, wrong: np.ndarray
) -> list[str]:
    """Return the cells of a row of the table about accuracy.

    `received` and `expected` are probabilities of a peer and the checkpoint, (n, classes); `wrong`
    (n,) marks the images with wrong labels.
    """
    labelled, found = summarize(received, true_classes), audited(received, true_classes, wrong)
    agreement = (received.argmax(axis=1) == expected.argmax(axis=1)).mean()
    return [
        f"{labelled['accuracy']:.3f}",
        f"{found['accuracy']:.3f}" if found else "",
        f"{agreement:.3f}",
        f"{found['expected_calibration_error']:.3f}" if found else "",
    ]


def measure(
    peers: Sequence[Peer], inputs: Path, count: int, options: argparse.Namespace
) -> list[Timing]:
    """Return how long each of `peers` takes for the first `count` of `inputs`, by turns."""
    order = random.Random(0)  # noqa: S311
    timings = [Timing() for _ in peers]
    running: dict[int, PeerProcess] = {}
    for start in range(options.starts):
        for place in order.sample(range(len(peers)), len(peers)):
            process = PeerProcess(peers[place], inputs, 1)
            first = process.load_seconds + process.ask(0)["seconds"]
            timings[place].first.append(first)
            if start + 1 < options.starts:
                process.end()
            else:
                running[place] = process
    for turn in range(options.rounds):
        for place in order.sample(range(len(peers)), len(peers)):
            answer = running[place].ask(turn % count)
            timings[place].seconds.append(answer["seconds"])
            timings[place].peak = answer["peak"]
    for process in running.values():
        process.end()
    return timings


def print_speed(peers: Sequence[Peer], timings: Sequence[Timing]) -> None:
    """Print a table of how fast `peers` are."""
    rounds, base = len(timings[0].seconds), np.array(timings[0].seconds)
    head = ["model", "runtime", f"ms, median of {rounds}", "times as fast"]
    head += ["loading and first image, ms", "peak MB"]
    table = []
    for peer, timing in zip(peers, timings, strict=True):
        seconds = np.array(timing.seconds)
        table.append(
            [
                *(peer.name, peer.engine, f"{np.median(seconds) * 1000:.1f}"),
                f"{np.median(base / seconds):.2f}",
                *(f"{np.median(timing.first) * 1000:.0f}", f"{timing.peak / 1000:.0f}"),
            ]
        )
    print(markdown_table(head, table))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m benchmarks.peers")
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path("flowers"),
        help="the images that the checkpoint was trained and tested on [flowers/]",
    )
    add_audit_flag(parser)
    add("--checkpoint", type=Path, help="a .h5 file [the best of models/]")
    add("--images", type=at_least(0), help="to measure accuracy on; 0 leaves it out [all]")
    add("--rounds", type=at_least(0), default=60, help="of timing; 0 leaves it out [%(default)s]")
    add("--starts", type=at_least(1), default=3, help="of each model, timed [%(default)s]")
    add(
        "--python",
        type=Path,
        help="of an environment with nncf, openvino and ai-edge-quantizer, which add two models",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
