"""Train networks under one budget, on one split, and compare them.

    python -m experiments.compare                   # all of them, on flowers/
    python -m experiments.compare --networks baseline xception --epochs 5
    python -m experiments.compare --weights FILE    # Xception's, where Keras' cannot be reached

Every network sees each training image once an epoch. The epoch with the lowest validation loss is
kept, and its accuracy is that on the test images, which took part in nothing. Writes index.html,
its figures (*.png) and comparison.json into --out. A stopped run continues after its last finished
epoch, from rows.jsonl and each network's folder.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments import charts
from experiments.command import add_base_flags, load_data, make_parser, run
from experiments.networks import (
    NETWORKS,
    Network,
    build_base,
    build_head,
    build_small,
    cached_features,
)
from experiments.page import Section, write_page
from experiments.records import Records
from serving.errors import ModelError
from training.backend import keras
from training.batches import Batches, TrainingBatches, predict
from training.checkpoint import BestCheckpoint, load_checkpoint
from training.cli import at_least
from training.dataset.scan import Dataset
from training.dataset.split import Split
from training.evaluation.figures import read_history
from training.evaluation.metrics import wilson, with_interval
from training.export.tflite import make_tflite
from training.export.tflite_process import TFLiteProcess
from training.files import write_atomically
from training.fit import compile_model, fit_epochs, keep_epochs
from training.images import ImageSource, InMemoryImages, Source
from training.inference import compile_inference, dtype_policy
from training.markdown import markdown_table
from training.prefetch import progress
from training.recipes import ORIGINAL
from training.resume import TrainingState, restore_weights, trim_history
from training.streams import counted

EPOCHS = 20
SIZE = 96  # pixels, height and width, of the small networks: quick on two cores
MIN_INPUT_SIZE = 48  # of four convolutions with pooling
TIMED = 32  # images that a frozen base is timed on
ROUNDS, THREADS = 15, 1  # of inference; one thread is what Lambda has at 1,769 MB
STATE, UNNAMED_BEST, HISTORY = "resume.weights.h5", "picked.h5", "history.csv"
PAGE, ROWS, SUMMARY = "index.html", "rows.jsonl", "comparison.json"


@dataclass(frozen=True)
class Candidate:
    """A network to train.

    Attributes:
        trainable_part: the layers that are candidate.
        full_model: images to probabilities; shares its layers with `trainable_part`.
        source: inputs of `trainable_part` for training.
        val_source: its inputs for validation and test.
        base_seconds: what the frozen part takes for an image; 0 without one.
    """

    trainable_part: keras.Model
    full_model: keras.Model
    source: Source
    val_source: Source
    base_seconds: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    """Compare as the command line says and return the exit code."""
    return run(compare, "compare", parse_arguments(arguments), claim=True)


def compare(options: argparse.Namespace) -> None:
    """Train the networks that are missing, then report on all of them."""
    dataset, split = load_data(options)
    settings = {
        "epochs": options.epochs,
        "seed": options.seed,
        "size": options.size,
        "weights": options.weights,
        "images": split.fingerprint,
    }
    records = Records(options.out / ROWS, settings)
    chosen = [network for network in NETWORKS if network.name in options.networks]
    skipped = []
    for network in chosen:
        if any(row["name"] == network.name for row in records.rows):
            print(f"{network.name}: already trained.")
            continue
        print(f"{network.name}: {network.description}.", flush=True)
        try:
            row = train(network, dataset, split, settings, options)
        except ModelError as error:
            skipped.append(f"{network.name} was skipped. {error}")
            print(f"  {skipped[-1]}", flush=True)
            continue
        records.append(row)
        accuracy = with_interval(row["accuracy"], row["accuracy_interval"])
        print(f"  Kept epoch {row['epoch']}: test accuracy {accuracy}.", flush=True)
    names = [network.name for network in chosen]
    rows = [row for row in records.rows if row["name"] in names]
    if not rows:
        raise ModelError("Expected a network to compare. Received: none, for the reasons above.")
    report(sorted(rows, key=lambda row: names.index(row["name"])), skipped, settings, options)


# Training


def train(
    network: Network, dataset: Dataset, split: Split, settings: dict, options: argparse.Namespace
) -> dict:
    """Train and convert `network`; return its row.

    Raises:
        ModelError: there are no pretrained weights for it, or it learned nothing.
    """
    folder = options.out / network.name
    folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(options.seed)
    candidate = prepare(network, dataset, split, options)
    best = fit(network, candidate, split, settings, folder)
    if best.path is None:
        raise ModelError(f"Expected an epoch with a finite loss. Received: none of {network.name}.")
    model, metadata = load_checkpoint(best.path)
    test = Batches(candidate.val_source, split.test, ORIGINAL.batch_size)
    probabilities = predict(model, test)
    hits = int((probabilities.argmax(axis=1) == dataset.labels(split.test)).sum())
    candidate.trainable_part.set_weights(model.get_weights())
    tflite = make_tflite(candidate.full_model, dataset.class_names)
    write_atomically(folder / "model.tflite", lambda new: new.write_bytes(tflite))
    history = read_history(folder / HISTORY)
    return {
        "name": network.name,
        "description": network.description,
        "pixels": candidate.full_model.input_shape[1],
        "accuracy": hits / len(split.test),
        "accuracy_interval": wilson(hits, len(split.test)),
        "n": len(split.test),
        "val_accuracy": best.best[0],
        "val_loss": best.best[1],
        "epoch": metadata.epoch,
        "parameters": candidate.full_model.count_params(),
        "epoch_seconds": float(np.median(history["seconds"])),
        "base_seconds": candidate.base_seconds * len(split.train),
        "tflite_bytes": len(tflite),
    }


def prepare(
    network: Network, dataset: Dataset, split: Split, options: argparse.Namespace
) -> Candidate:
    """Return `network` with its inputs, images or cached features."""
    class_count, side = len(dataset.class_names), network.size or options.size
    size = (side, side)
    augmentation = ORIGINAL.augmentation if network.augmented else None
    if network.layers:
        model = build_small(network.layers, size, class_count)
        images = InMemoryImages(dataset, size, augmentation)
        return Candidate(model, model, images, images)
    frozen = build_base(network.application, size, options.weights)
    head = build_head(frozen.output_shape[1], ORIGINAL.head, class_count)
    full_model = keras.Model(frozen.input, head(frozen.output))
    images = ImageSource(dataset, size, augmentation)
    epochs = {"epochs": options.epochs, "steps_per_epoch": None, "batch_size": network.batch_size}
    views = replace(ORIGINAL, **epochs).shown_views(len(split.train))
    source, val_source = cached_features(images, frozen, split, options.cache, views)
    return Candidate(head, full_model, source, val_source, time_base(frozen, size))


def time_base(frozen: keras.Model, size: tuple[int, int]) -> float:
    """Return a frozen base's seconds for an image of a batch."""
    forward = compile_inference(frozen, dtype_policy(), TIMED)
    images = np.random.default_rng(0).uniform(-1, 1, (TIMED, *size, 3)).astype(np.float32)
    forward(images)
    started = time.perf_counter()
    forward(images)
    return (time.perf_counter() - started) / TIMED


def fit(
    network: Network, candidate: Candidate, split: Split, settings: dict, folder: Path
) -> BestCheckpoint:
    """Train `candidate` after its last finished epoch, and return its best checkpoint."""
    trainable_part, epochs = candidate.trainable_part, settings["epochs"]
    steps = max(1, len(split.train) // network.batch_size)
    training = TrainingBatches(
        candidate.source,
        split.train,
        network.batch_size,
        steps=steps,
        seed=settings["seed"],
        views=None if network.layers else ORIGINAL.views,
    )
    compile_model(trainable_part, network.learning_rate, network.momentum)
    state_file = folder / STATE
    state = TrainingState.load(state_file)
    names = candidate.source.dataset.class_names
    best = BestCheckpoint(folder, UNNAMED_BEST, lambda: trainable_part, names, split, "val_loss")
    first = state.epochs if state else 0
    if state:
        restore_weights(trainable_part, state_file)
        best.restore(state.best, state.checkpoint)
        print(f"  Continues after {counted(first, 'finished epoch')}.")
        trim_history(folder / HISTORY, first)
    with progress(epochs * steps * network.batch_size, f"  {network.name}") as bar:
        bar.update(first * steps * network.batch_size)
        fit_epochs(
            trainable_part,
            training,
            Batches(candidate.val_source, split.validation, ORIGINAL.batch_size),
            epochs=(first, epochs),
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda batch, logs: bar.update(network.batch_size),
                ),
                Seconds(),
                *keep_epochs(best, folder / HISTORY, state_file, settings, state),
            ],
        )
    return best


class Seconds(keras.callbacks.Callback):
    """Log the seconds of each epoch, validation included."""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the clock; Keras calls this."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Stop the clock; Keras calls this, and writes what `logs` then holds."""
        if logs is not None:
            logs["seconds"] = time.perf_counter() - self.started


def inference_seconds(sizes: dict[Path, int]) -> list[float]:
    """Return each .tflite file's median seconds for an image, on `THREADS` threads.

    `sizes` is {file: height and width of its input, in pixels}.

    Raises:
        ModelError: the runtime cannot load one of them.
    """
    seconds: list[list[float]] = [[] for _ in sizes]
    rng = np.random.default_rng(0)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(TFLiteProcess(path, threads=THREADS)) for path in sizes]
        for round_ in range(ROUNDS + 1):
            # By turns, so that other work on the machine slows all of them alike.
            for process, size, taken in zip(processes, sizes.values(), seconds, strict=True):
                process.predict(rng.uniform(-1, 1, (1, size, size, 3)).astype(np.float32))
                if round_:  # the first one warms up
                    taken.append(process.seconds)
    return [float(np.median(taken)) for taken in seconds]


# Report

HEAD_ROW = (
    "network",
    "test accuracy",
    "kept epoch",
    "parameters",
    "an epoch",
    "base, once",
    ".tflite",
    "inference",
)


def report(
    rows: list[dict], skipped: list[str], settings: dict, options: argparse.Namespace
) -> None:
    """Time the networks of `rows`; draw, write and print the results."""
    print("Time: inference, side by side.", flush=True)
    seconds = inference_seconds(
        {options.out / row["name"] / "model.tflite": row["pixels"] for row in rows}
    )
    rows = [row | {"inference_seconds": taken} for row, taken in zip(rows, seconds, strict=True)]
    summary = {"settings": settings, "networks": rows, "skipped": skipped}
    text = json.dumps(summary, indent=1)
    write_atomically(options.out / SUMMARY, lambda new: new.write_text(text + "\n"))
    curves, chart = options.out / "learning_curves.png", options.out / "accuracy_by_time.png"
    histories = {row["name"]: read_history(options.out / row["name"] / HISTORY) for row in rows}
    charts.save(charts.curves(histories, {row["name"]: row["epoch"] for row in rows}), curves)
    charts.save(charts.accuracy_by_time(rows), chart)
    best = max(rows, key=lambda row: row["accuracy"])
    verdict = (
        f"{best['name']} won: test accuracy "
        f"{with_interval(best['accuracy'], best['accuracy_interval'])}."
    )
    cells = [table_row(row) for row in rows]
    notes = [
        f"{counted(settings['epochs'], 'epoch')} of each training image once, one seed "
        f"({settings['seed']}). The epoch with the lowest validation loss was kept; accuracy is "
        f"on {counted(rows[0]['n'], 'test image')}. Wilson's 95 % intervals, in brackets, cover "
        "the choice of test images, not that of the seed.",
        "An epoch is the median, validation included. The features of a frozen base are computed "
        f"once, in up to {ORIGINAL.views} augmented views; for one view of all training images "
        f"that takes the time given. Inference: the median for one image, float32, {THREADS} "
        "thread.",
        *(
            f"{row['name']}: {row['description']}, {row['pixels']}×{row['pixels']} pixels."
            for row in rows
        ),
        *skipped,
    ]
    sections = [
        Section("Accuracy and cost", [verdict], head=HEAD_ROW, rows=cells, findings=notes),
        Section(
            "Accuracy by inference time",
            figures=[(chart, "accuracy by inference time")],
        ),
        Section("Learning curves", figures=[(curves, "learning curves of all networks")]),
    ]
    page = options.out / PAGE
    write_page(page, "Networks compared", f"On {options.data.resolve().name}.", sections)
    print(markdown_table(HEAD_ROW, cells))
    print(verdict)
    print(f"Wrote {page}.")


def table_row(row: dict) -> list[str]:
    """Return the cells of `HEAD_ROW` for a network's row."""
    return [
        row["name"],
        with_interval(row["accuracy"], row["accuracy_interval"]),
        str(row["epoch"]),
        f"{row['parameters'] / 1e6:.1f} M",
        f"{row['epoch_seconds']:.1f} s",
        f"{row['base_seconds']:.0f} s" if row["base_seconds"] else "",
        f"{row['tflite_bytes'] / 1e6:.1f} MB",
        f"{row['inference_seconds'] * 1000:.1f} ms",
    ]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "compare", EPOCHS)
    add_base_flags(parser)
    names = [network.name for network in NETWORKS]
    add = parser.add_argument
    add("--networks", nargs="+", choices=names, default=names, metavar="NAME", help="[all of them]")
    add(
        "--size",
        type=at_least(MIN_INPUT_SIZE),
        default=SIZE,
        help="pixels, of the small networks [%(default)s]",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
