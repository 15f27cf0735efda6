"""Show where the time of `train.py --recipe fine-tune` goes.

    python -m benchmarks.fine_tuning --data flowers/

Prints three Markdown tables: the stages of a run, each timed on a few images; the operations of one
training step, by TensorFlow's profiler; and what a step costs if fewer blocks are trained or images
are smaller. The weights are random, which takes as long as others.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.training import BATCH_SIZE, Bench, Job, measure, print_speeds
from training.backend import tf
from training.cli import make_parser, run_command
from training.dataset.scan import Dataset, scan
from training.dataset.split import split_dataset
from training.fit import compile_model
from training.images import ImageSource
from training.inference import compile_inference, dtype_policy
from training.markdown import markdown_table
from training.model import build_model, split_at_block, unfreeze, with_policy
from training.recipes import FINE_TUNE

BLOCK = FINE_TUNE.fine_tune_at or 1
SETTINGS = ((299, BLOCK), (299, 7), (299, 9), (299, 11), (224, BLOCK), (192, BLOCK))
OPERATION = re.compile(r"([^:\s]+):(\w+)")  # an event of the profiler: path of the layer, operation
CLASSES = 5
KINDS = (  # (what it is, of paths, of operations), the first that fits
    ("optimizer", r"sgd", ""),
    ("depthwise 3×3 convolutions, forward", "", r"DepthwiseConv2dNative$"),
    ("depthwise 3×3 convolutions, gradient of inputs", "", r"Depthwise\w+BackpropInput$"),
    ("depthwise 3×3 convolutions, gradient of kernels", "", r"Depthwise\w+BackpropFilter$"),
    ("1×1 convolutions, forward", "", r"Conv2D$"),
    ("1×1 convolutions, gradient of inputs", "", r"Conv2DBackpropInput$"),
    ("1×1 convolutions, gradient of kernels", "", r"Conv2DBackpropFilter$"),
    ("batch normalization, with its casts", r"_bn|batch_norm", ""),
    ("ReLU", "", r"^Relu"),
    ("the rest: residual sums, pooling, head, other casts", "", ""),
)


class Stage(NamedTuple):
    """A part of a run.

    Attributes:
        name: what it is.
        images: how many go through it.
        job: does it to the benchmark's images.
    """

    name: str
    images: int
    job: Job


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: benchmark(options), "benchmarks.fine_tuning")


def benchmark(options: argparse.Namespace) -> None:
    """Print the three tables."""
    tf.get_logger().setLevel("ERROR")  # a note on each network that is trained
    dataset = scan(options.data)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(dataset, options.images, Path(folder))
        stages = list_stages(bench, dataset)
        seconds = measure({(stage.name, ""): stage.job for stage in stages}, options.rounds)
        print_stages(stages, list(seconds.values()), options.images)
        steps = {
            ("a training step", f"from block {block} on, {size}×{size} pixels"): train_step(
                size, block
            )
            for size, block in SETTINGS
        }
        seconds = measure(steps, options.rounds)
        print_operations(profile(next(iter(steps.values())), Path(folder, "profile")))
        print_speeds(seconds, BATCH_SIZE)


def list_stages(bench: Bench, dataset: Dataset) -> list[Stage]:
    """Return the stages that nearly all of the time of a run on `dataset` is spent in."""
    recipe, policy = FINE_TUNE, dtype_policy()
    split = split_dataset(
        dataset,
        recipe.split_seed,
        validation_fraction=recipe.validation_fraction,
        test_fraction=recipe.test_fraction,
    )
    train, validation, test = map(len, (split.train, split.validation, split.test))
    model = build_model(bench.images.size, recipe.head, len(dataset.class_names))
    unfreeze(model, BLOCK)
    base, _ = split_at_block(model, None)
    lower, upper = split_at_block(model, BLOCK)
    network, activations = with_policy(upper, policy), bench.cached(lower)
    plain = ImageSource(dataset, bench.images.size)
    infer_base = bench.infer(compile_inference(base, policy, BATCH_SIZE), plain)
    return [
        Stage("features of all plain images", len(dataset.images), infer_base),
        Stage(
            f"activations below block {BLOCK}, for the cache",
            recipe.shown_views(train) * train + validation,
            bench.infer(compile_inference(lower, policy, BATCH_SIZE)),
        ),
        Stage(
            f"training, {recipe.epochs} epochs",
            recipe.epochs * train,
            bench.train(network, activations),
        ),
        Stage(
            "validation after each epoch",
            recipe.epochs * validation,
            bench.infer(network.predict_on_batch, activations),
        ),
        Stage(
            "report: predictions in float32",
            validation + test,
            bench.infer(model.predict_on_batch, plain),
        ),
        Stage("report: features of the training images", train, infer_base),
    ]


def print_stages(stages: list[Stage], seconds: list[float], count: int) -> None:
    """Print how long each of `stages` takes; its job, on `count` images, took `seconds`."""
    minutes = [
        stage.images / count * taken / 60 for stage, taken in zip(stages, seconds, strict=True)
    ]
    rows = [
        (
            stage.name,
            f"{stage.images:,}",
            f"{count / taken:.1f}",
            f"{spent:.1f}",
            share(spent, minutes),
        )
        for stage, taken, spent in zip(stages, seconds, minutes, strict=True)
    ]
    rows.append(("together", "", "", f"{sum(minutes):.1f}", share(sum(minutes), minutes)))
    head = ("stage of a run", "images", "images per second", "minutes", "share")
    print(f"\n{markdown_table(head, rows)}")


def share(part: float, whole: list[float]) -> str:
    """Return `part` of the sum of `whole` in percent."""
    return f"{part / sum(whole):.1%}"


def train_step(size: int, block: int) -> Job:
    """Return a job that trains Xception from `block` on, on one batch of images of `size` pixels.

    The batch is of random activations.
    """
    model = build_model((size, size), FINE_TUNE.head, CLASSES)
    unfreeze(model, block)
    _, upper = split_at_block(model, block)
    network = with_policy(upper, dtype_policy())
    compile_model(network, FINE_TUNE.learning_rate, FINE_TUNE.momentum, FINE_TUNE.nesterov)
    rng = np.random.default_rng(0)
    inputs = rng.random((BATCH_SIZE, *network.input_shape[1:]), np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=BATCH_SIZE)]
    return lambda: network.train_on_batch(inputs, targets)


def profile(job: Job, folder: Path) -> dict[str, float]:
    """Return the milliseconds of each of `KINDS` in `job`, summed over all threads."""
    tf.profiler.experimental.start(str(folder))
    job()
    tf.profiler.experimental.stop()
    spent = dict.fromkeys((kind for kind, _, _ in KINDS), 0.0)
    for path, operation, milliseconds in read_profile(folder):
        spent[classify(path, operation)] += milliseconds
    return spent


def read_profile(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Yield (path of its layer, operation, milliseconds) of each operation on the CPU."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    for file in folder.rglob("*.xplane.pb"):
        space = xplane_pb2.XSpace()  # ty: ignore[missing-attribute]
        space.ParseFromString(file.read_bytes())
        for plane in space.planes:
            for event in (event for line in plane.lines for event in line.events):
                found = OPERATION.fullmatch(plane.event_metadata[event.metadata_id].name)
                if found:
                    yield found[1], found[2], event.duration_ps / 1e9


def classify(path: str, operation: str) -> str:
    """Return which of `KINDS` an `operation` of the layer at `path` is."""
    return next(
        kind
        for kind, paths, operations in KINDS
        if re.search(paths, path) and re.search(operations, operation)
    )


def print_operations(spent: dict[str, float]) -> None:
    """Print the milliseconds of each kind of operation, the most first."""
    total = list(spent.values())
    longest = sorted(spent.items(), key=lambda item: -item[1])
    rows = [(kind, f"{value:.0f}", share(value, total)) for kind, value in longest]
    head = (f"operations of a training step, batch of {BATCH_SIZE}", "ms of all threads", "share")
    print(f"\n{markdown_table(head, rows)}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m benchmarks.fine_tuning")
    add = parser.add_argument
    add("--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]")
    add("--images", type=int, default=64, help="to time each stage on [%(default)s]")
    add("--rounds", type=int, default=2, help="the best counts [%(default)s]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
