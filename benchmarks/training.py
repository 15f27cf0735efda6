"""Compare the images a second that each way of training processes.

    python -m benchmarks.training --data flowers/                 # every way, on 128 images
    python -m benchmarks.training --data flowers/ --reach 0.88    # and the time to that accuracy

Prints Markdown tables. Each way is warmed up first; then they take turns, and the best of the
rounds counts, so that other work on the machine slows all of them alike.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving.errors import UserError
from training.backend import keras
from training.cli import make_parser, run_command
from training.dataset.scan import Dataset, scan
from training.features import CachedFeatures
from training.images import ImageSource, Source
from training.inference import Inference, best_engine, compile_inference, dtype_policy
from training.markdown import markdown_table
from training.model import build_model, split_at_block, unfreeze, with_policy
from training.prefetch import WORKERS, prefetch
from training.pretrained import load_pretrained
from training.recipes import FINE_TUNE, ORIGINAL

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = ORIGINAL.batch_size
CUT = FINE_TUNE.fine_tune_at or 1
Job = Callable[[], None]
Jobs = dict[tuple[str, str], Job]  # {(what, how): a function that does it to all images}


class BenchmarkError(UserError):
    """A command that is measured failed."""


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: benchmark(options), "benchmarks.training")


def benchmark(options: argparse.Namespace) -> None:
    """Print all speeds and, with --reach, the time to an accuracy."""
    dataset = scan(options.data)
    model = build_model(ORIGINAL.image_size, ORIGINAL.head, len(dataset.class_names))
    load_pretrained(model, options.weights, ROOT / "models")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(dataset, options.images, Path(folder))
        jobs = bench.reading() | bench.inference(model) | bench.head(model)
        jobs |= bench.fine_tuning(model)
        print_speeds(measure(jobs, options.rounds), options.images)
    if options.reach:
        print_times(options)


class Bench:
    """The images to process, and the jobs that do it.

    The first job of each kind is what the ratios of the others refer to.
    """

    def __init__(self, dataset: Dataset, count: int, folder: Path):
        """Use `count` images of `dataset`, and keep features in `folder`."""
        self.images = ImageSource(dataset, ORIGINAL.image_size, ORIGINAL.augmentation)
        step = max(1, len(dataset.images) // count)
        self.samples = [(i * step, 1) for i in range(count)]
        self.batches = [self.samples[i : i + BATCH_SIZE] for i in range(0, count, BATCH_SIZE)]
        labels = dataset.labels(dataset.images[i] for i, _ in self.samples)
        self.targets = np.eye(len(dataset.class_names), dtype=np.float32)[labels]
        self.folder = folder
        self.policies = tuple(dict.fromkeys(("float32", dtype_policy())))

    def reading(self) -> Jobs:
        """Return jobs that decode and augment, on one thread and on all."""

        def read(workers: int) -> Job:
            def run() -> None:
                for _ in prefetch(self.batches, self.images.inputs, workers):
                    pass

            return run

        return {("decode and augment", f"threads: {n}"): read(n) for n in (1, WORKERS)}

    def inference(self, model: keras.Model) -> Jobs:
        """Return jobs that run the frozen base on each engine and policy."""
        base, _ = split_at_block(model, None)
        return {
            ("frozen base, augmented view to features", f"{engine}, {policy}"): self.infer(
                compile_inference(base, policy, BATCH_SIZE, engine)
            )
            for engine in dict.fromkeys(("keras", best_engine()))
            for policy in self.policies
        }

    def head(self, model: keras.Model) -> Jobs:
        """Return jobs that train an epoch, without and with the cache."""
        what = "an epoch of the original's recipe"
        jobs = {
            (what, f"plain, {policy}"): self.train(with_policy(model, policy), self.images)
            for policy in self.policies
        }
        base, head = split_at_block(model, None)
        return jobs | {(what, "from the cache"): self.train(head, self.cached(base))}

    def fine_tuning(self, model: keras.Model) -> Jobs:
        """Return jobs that fine-tune `model`, and only its upper blocks."""
        what = "an epoch of fine-tuning"
        unfreeze(model, 1)
        jobs = {
            (what, f"whole network, {policy}"): self.train(with_policy(model, policy), self.images)
            for policy in self.policies
        }
        unfreeze(model, CUT)
        lower, upper = split_at_block(model, CUT)
        policy = dtype_policy()
        how = f"from block {CUT} on, from the cache, {policy}"
        return jobs | {(what, how): self.train(with_policy(upper, policy), self.cached(lower))}

    def infer(self, network: Inference, source: Source | None = None) -> Job:
        """Return a job that runs `network` on all images, or on what `source` makes of them."""
        read = (source or self.images).inputs

        def run() -> None:
            for _, inputs in prefetch(self.batches, read):
                network(inputs)

        return run

    def train(self, network: keras.Model, source: Source) -> Job:
        """Return a job that trains `network` on all images of `source` once."""

        def run() -> None:
            for number, (_, inputs) in enumerate(prefetch(self.batches, source.inputs)):
                rows = self.targets[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
                network.train_on_batch(inputs, rows)

        network.compile(keras.optimizers.SGD(1e-3, momentum=0.9), "categorical_crossentropy")
        return run

    def cached(self, frozen: keras.Model) -> CachedFeatures:
        """Return the outputs of `frozen` for all images, computed already."""
        features = CachedFeatures(self.images, frozen, dtype_policy(), self.folder)
        features.compute(self.samples)
        return features


def measure(jobs: Jobs, rounds: int) -> dict[tuple[str, str], float]:
    """Return each job's seconds, the best of `rounds` after a warm-up."""
    seconds = dict.fromkeys(jobs, float("inf"))
    for number in range(rounds + 1):
        for name, run in jobs.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def print_speeds(seconds: dict[tuple[str, str], float], count: int) -> None:
    """Print each job's images a second, and ratio to the first job."""
    first: dict[str, float] = {}
    rows = [
        (what, how, f"{count / taken:.1f}", f"{first.setdefault(what, taken) / taken:.1f}")
        for (what, how), taken in seconds.items()
    ]
    head = (f"what, on {count} images", "how", "images per second", "ratio")
    print(f"\n{markdown_table(head, rows)}")


def print_times(options: argparse.Namespace) -> None:
    """Run train.py, cold and warm, and time it to `options.reach`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold cache", "warm cache"):
            total, reached, best = run_recipe(options, Path(folder))
            when = "not reached" if reached is None else f"{reached:.0f} s"
            rows.append((name, f"{total:.0f} s", when, f"{best:.3f}"))
    reach = f"to validation accuracy {options.reach}"
    head = ("python train.py", "whole run", reach, "accuracy of the best epoch")
    print(f"\n{markdown_table(head, rows)}")


def run_recipe(options: argparse.Namespace, folder: Path) -> tuple[float, float | None, float]:
    """Run train.py; return (seconds in all, seconds until `options.reach` or None, accuracy).

    The accuracy is the best epoch's on the validation images.
    """
    models = folder / "models"
    history = models / "xception_fin.history.csv"
    history.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "train.py", "--data", options.data, "--models", models]
    command += ["--cache", folder / "cache", "--weights", options.weights]
    started = time.monotonic()
    reached = None
    with subprocess.Popen([*command, *options.flags], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.2)
            if reached is None and best_accuracy(history) >= options.reach:
                reached = time.monotonic() - started
    if process.returncode:
        raise BenchmarkError(
            f"Expected train.py to succeed. Received: exit code {process.returncode}."
        )
    return time.monotonic() - started, reached, best_accuracy(history)


def best_accuracy(history: Path) -> float:
    """Return the best validation accuracy in the CSV at `history`, or 0."""
    if not history.exists():
        return 0.0
    with open(history, newline="") as file:
        return max((float(row["val_accuracy"] or 0) for row in csv.DictReader(file)), default=0.0)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options; arguments after `--` are for train.py."""
    parser = make_parser(__doc__, "python -m benchmarks.training")
    add = parser.add_argument
    add("--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]")
    add("--weights", default="imagenet", help="as for train.py [imagenet]")
    add("--images", type=int, default=128, help="how many to process [%(default)s]")
    add("--pictures", dest="images", type=int, help=argparse.SUPPRESS)  # its name in version 1.0
    add("--rounds", type=int, default=2, help="the best counts [%(default)s]")
    add("--reach", type=float, help="validation accuracy to time")
    add("flags", nargs="*", help="for train.py, after --")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
