"""How many images a second each way of training does, side by side, and when it gets there.

    python -m benchmarks.training --data flowers/                 # every path, on 128 images
    python -m benchmarks.training --data flowers/ --reach 0.88    # and the time to that accuracy

Prints Markdown tables. Each path is warmed up on a batch before, then timed on all images; the
paths take turns, and the best of the rounds counts, so that what else the machine does weighs on
all alike.
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

from serving.errors import ModelError
from train import FINE_TUNE, ORIGINAL
from training.backend import keras
from training.dataset.scan import Dataset, scan
from training.errors import DataError
from training.features import CachedFeatures
from training.images import ImageSource
from training.inference import best_engine, compile_inference, dtype_policy
from training.model import build_model, split_at_block, unfreeze, with_policy
from training.prefetch import WORKERS, prefetch
from training.pretrained import load_base_weights

ROOT = Path(__file__).resolve().parent.parent
SIZE = (ORIGINAL.input_size, ORIGINAL.input_size)
BATCH_SIZE = ORIGINAL.batch_size
CUT = FINE_TUNE.fine_tune_at
Job = Callable[[], None]


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says; return the exit code."""
    options = parse_arguments(arguments)
    try:
        dataset = scan(options.data)
        model = build_model(SIZE, ORIGINAL.head, len(dataset.class_names))
        load_base_weights(model, options.weights, ROOT / "models")
        with tempfile.TemporaryDirectory() as folder:
            paths = build_paths(dataset, model, options.images, Path(folder))
            show_speeds(measure(paths, options.rounds), options.images)
        if options.reach:
            show_times(options)
    except (DataError, ModelError) as error:
        print(f"benchmarks.training: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build_paths(
    dataset: Dataset, model: keras.Model, count: int, folder: Path
) -> dict[tuple[str, str], Job]:
    """Return {(what, how): a function that does it to `count` images}, all warmed up.

    The first way of each `what` is what its ratios are of.
    """
    images = ImageSource(dataset, SIZE, ORIGINAL.augmentation)
    step = max(1, len(dataset.images) // count)
    samples = [(i * step, 1) for i in range(count)]
    batches = [samples[i : i + BATCH_SIZE] for i in range(0, count, BATCH_SIZE)]
    targets = np.eye(len(dataset.class_names), dtype=np.float32)[
        dataset.labels(dataset.images[i] for i, _ in samples)
    ]
    fast = dtype_policy()

    def load(workers: int) -> Job:
        return lambda: all(True for _ in prefetch(batches, images.inputs, workers))

    def pass_through(network: Callable) -> Job:
        def run() -> None:
            for _, inputs in prefetch(batches, images.inputs):
                network(inputs)

        return run

    def learn(network: keras.Model, source: ImageSource | CachedFeatures) -> Job:
        def run() -> None:
            for number, (_, inputs) in enumerate(prefetch(batches, source.inputs)):
                rows = targets[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
                network.train_on_batch(inputs, rows)

        network.compile(keras.optimizers.SGD(1e-3, momentum=0.9), "categorical_crossentropy")
        return run

    def kept(frozen: keras.Model) -> CachedFeatures:
        activations = CachedFeatures(images, frozen, fast, folder)
        activations.compute(samples)
        return activations

    base, head = split_at_block(model, None)
    policies = dict.fromkeys(("float32", fast))
    paths = {("decode and augment", f"{n} threads"): load(n) for n in (1, WORKERS)}
    for engine in dict.fromkeys(("keras", best_engine())):
        for policy in policies:
            network = compile_inference(base, policy, BATCH_SIZE, engine)
            paths["frozen base, augmented view to activations", f"{engine}, {policy}"] = (
                pass_through(network)
            )
    plain = {p: with_policy(model, p) for p in policies}
    for policy, network in plain.items():
        paths["an epoch of the original's recipe", f"plain, {policy}"] = learn(network, images)
    paths["an epoch of the original's recipe", "from the cache"] = learn(head, kept(base))
    unfreeze(model, 1)
    for policy in policies:
        whole = with_policy(model, policy)
        paths["an epoch of fine-tuning", f"whole network, {policy}"] = learn(whole, images)
    unfreeze(model, CUT)
    lower, upper = split_at_block(model, CUT)
    how = f"from block {CUT} on, from the cache, {fast}"
    paths["an epoch of fine-tuning", how] = learn(with_policy(upper, fast), kept(lower))
    return paths


def measure(paths: dict[tuple[str, str], Job], rounds: int) -> dict[tuple[str, str], float]:
    """Return the seconds of each path: the best of `rounds`, after one that does not count."""
    seconds = dict.fromkeys(paths, float("inf"))
    for number in range(rounds + 1):
        for name, run in paths.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def show_speeds(seconds: dict[tuple[str, str], float], count: int) -> None:
    """Print a table: images a second of each path, and how many times its group's first."""
    print(f"\n| what, on {count} images | how | images a second | ratio |")
    print("| --- | --- | --- | --- |")
    first: dict[str, float] = {}
    for (what, how), taken in seconds.items():
        ratio = first.setdefault(what, taken) / taken
        print(f"| {what} | {how} | {count / taken:.1f} | {ratio:.1f} |")


def show_times(options: argparse.Namespace) -> None:
    """Run the default recipe, cold and warm, and print when it reached `options.reach`."""
    print(
        f"\n| python train.py | all of it | to validation accuracy {options.reach} | best epoch |"
    )
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold cache", "warm cache"):
            total, reached, best = run_recipe(options, Path(folder))
            when = "not reached" if reached is None else f"{reached:.0f} s"
            print(f"| {name} | {total:.0f} s | {when} | {best:.3f} |", flush=True)


def run_recipe(options: argparse.Namespace, folder: Path) -> tuple[float, float | None, float]:
    """Run train.py; return (seconds it took, seconds until `options.reach` or None, accuracy).

    The accuracy is that of the best epoch on the validation images.
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
        raise ModelError(f"Expected train.py to end well. Received: exit code {process.returncode}")
    return time.monotonic() - started, reached, best_accuracy(history)


def best_accuracy(history: Path) -> float:
    """Return the best validation accuracy that the CSV at `history` has so far, or 0."""
    if not history.exists():
        return 0.0
    with open(history, newline="") as file:
        return max((float(row["val_accuracy"] or 0) for row in csv.DictReader(file)), default=0.0)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options; what stands behind `--` goes to train.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("flowers"), help="[flowers/]")
    parser.add_argument("--weights", default="imagenet", help="as train.py takes it [imagenet]")
    parser.add_argument("--images", type=int, default=128, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=2, help="the best counts [%(default)s]")
    parser.add_argument("--reach", type=float, help="validation accuracy to time")
    parser.add_argument("flags", nargs="*", help="for train.py, behind --")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
