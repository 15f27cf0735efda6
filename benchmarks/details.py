"""Measure what it costs that a model tells more than scores.

    python -m benchmarks.details models/x.tflite models/x.int8.tflite

Each file is compared with a copy that returns no activations and has no statistics. Times are
medians of milliseconds of CPU time on one thread, by turns, from an image's pixels to the answer:
of that copy; of the file; and of the file if details are asked for. "More" is the median of the
turns' differences. Loading is measured once.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np

from serving.answers import UNKNOWN_BELOW, describe, known, top_k
from serving.classifier import Classifier
from serving.runtimes import RUNTIMES
from training import cli
from training.markdown import markdown_row, markdown_table

HEAD = (
    *("model", "runtime", "without, ms", "with, ms", "more", "asked for, ms", "more"),
    *("to load, ms", "more", "file, bytes more", "answer, bytes more"),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return cli.run_command(lambda: measure(options), "benchmarks.details")


def measure(options: argparse.Namespace) -> None:
    """Print a table with a row for each file and runtime."""
    runtimes = [name for name, module in RUNTIMES.items() if find_spec(module.split(".")[0])]
    print(markdown_table(HEAD, ()), flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        # TensorFlow writes the copy: where it has been imported, tflite-runtime loads no model.
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        for path in options.models:
            copy = Path(folder) / path.name
            pool.submit(write_without_details, path, copy).result()
            for runtime in options.runtimes or runtimes:
                cells = compare(path, copy, runtime, options.rounds)
                print(markdown_row((path.name, runtime, *cells)), flush=True)


def write_without_details(path: Path, copy: Path) -> None:
    """Write the .tflite file at `path` to `copy`, with scores as its only output."""
    from serving.classifier import read_labels
    from serving.details import Details
    from training.export.metadata import add_metadata, flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(path.read_bytes())
    graph = model.subgraphs[0]
    graph.outputs = graph.outputs[:1]
    for signature in model.signatureDefs or ():
        signature.outputs = [
            each for each in signature.outputs if each.tensorIndex in graph.outputs
        ]
    model.metadata = []
    content = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    copy.write_bytes(add_metadata(content, read_labels(path), Details()))


def compare(path: Path, copy: Path, runtime: str, rounds: int) -> list[str]:
    """Return the cells of `HEAD` for the model at `path` and its `copy` without details."""
    loads, models = [], []
    for each in (copy, path):
        started = time.process_time()
        models.append(Classifier(each, 1, runtime))
        loads.append((time.process_time() - started) * 1000)
    inputs = np.random.default_rng(0).uniform(-1, 1, (1, *models[0].input_size, 3))
    inputs = inputs.astype(np.float32)
    calls = [lambda: scores(models[0], inputs), lambda: scores(models[1], inputs)]
    calls.append(lambda: details(models[1], inputs))
    without, plain, asked = take_turns(calls, rounds)
    # Of each turn, as other work on the machine changes from one to the next.
    pairs = ((without, plain), (plain, asked))
    more = [median(b - a for a, b in zip(*pair, strict=True)) for pair in pairs]
    sizes = [len(json.dumps(call())) for call in calls[1:]]
    times = [f"{median(without):.1f}", f"{median(plain):.1f}", f"{more[0]:+.2f}"]
    times += [f"{median(asked):.1f}", f"{more[1]:+.2f}"]
    grown = path.stat().st_size - copy.stat().st_size
    return [
        *times,
        f"{loads[1]:.0f}",
        f"{loads[1] - loads[0]:+.0f}",
        f"{grown:,}",
        f"{sizes[1] - sizes[0]:,}",
    ]


def scores(classifier: Classifier, inputs: np.ndarray) -> dict[str, float]:
    """Return the answer without details; its p-value goes into the service's log."""
    prediction = classifier.predict(inputs)
    known(classifier.details, prediction)
    return top_k(classifier.labels, prediction.probabilities, None)


def details(classifier: Classifier, inputs: np.ndarray) -> dict:
    """Return the answer with details."""
    prediction = classifier.predict(inputs)
    known(classifier.details, prediction)
    return describe(classifier.labels, classifier.details, prediction, UNKNOWN_BELOW)


def take_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return what each of `calls` took in each round, in milliseconds of CPU time."""
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for place in range(len(calls)):
            number = (place + turn) % len(calls)
            started = time.process_time()
            calls[number]()
            if turn:  # the first is to warm up
                taken[number].append((time.process_time() - started) * 1000)
    return taken


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.make_parser(__doc__, "python -m benchmarks.details")
    add = parser.add_argument
    add("models", type=Path, nargs="+", help=".tflite files that tell details")
    add("--rounds", type=cli.positive(int), default=100, help="of each [%(default)s]")
    add("--runtimes", nargs="+", choices=RUNTIMES, help="[those that are installed]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
