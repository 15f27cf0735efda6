"""Train networks under one budget, on one split, and compare them.

    python -m experiments.compare                   # all of them, on flowers/
    python -m experiments.compare --networks baseline xception --epochs 5
    python -m experiments.compare --weights FILE    # Xception's, where Keras' cannot be reached

Every network sees each training image once an epoch. The epoch that is kept is the one with the
least loss on images set apart for that; the accuracy that is told is on others, which took part
in nothing. Writes index.html, its figures (*.png) and comparison.json into --out, where
rows.jsonl and each network's folder let a stopped run go on after its last finished epoch.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments import charts
from experiments.command import parser, run
from experiments.networks import (
    AUGMENTATION,
    BATCH_SIZE,
    HEAD,
    NETWORKS,
    Network,
    build_base,
    build_head,
    build_small,
    cached_features,
)
from experiments.page import Section, write_page
from experiments.records import Records
from experiments.timing import THREADS, inference_seconds
from serving.errors import ModelError
from training.backend import keras, tf
from training.batches import Batches, TrainingBatches
from training.checkpoint import BestCheckpoint, load_checkpoint
from training.dataset.scan import Dataset, scan
from training.dataset.split import Split, split_dataset
from training.evaluation.figures import read_history
from training.evaluation.metrics import wilson, with_interval
from training.export.tflite import convert_quietly, labels_archive
from training.files import write_atomically
from training.images import ImageSource, InMemoryImages, Source
from training.inference import compile_inference, dtype_policy
from training.markdown import markdown_table
from training.prefetch import progress
from training.resume import RunState, read_run, restore_run, trim_history

EPOCHS = 20
TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.125  # of each class; of what is then left
SIZE = 96  # pixels, height and width, of the small networks: what two cores can afford
MIN_INPUT_SIZE = 48  # that four convolutions leave something of
VIEWS = 4  # augmented views of each image, for a frozen base; others get new ones each epoch
CACHE = Path(".cache", "activations")  # train.py's, which computes the same
TIMED = 32  # images that a frozen base is timed on
STATE, UNNAMED_BEST, HISTORY = "resume.weights.h5", "picked.h5", "history.csv"
PAGE, ROWS, SUMMARY = "index.html", "rows.jsonl", "comparison.json"


@dataclass(frozen=True)
class Candidate:
    """A network, ready to learn or having learned.

    Attributes:
        trainable_part: the part that learns.
        whole: images to probabilities; shares the learner's weights.
        source: what the learner learns from.
        val_source: what it is judged on.
        base_seconds: how long the frozen part takes for an image; 0 where there is none.
    """

    trainable_part: keras.Model
    whole: keras.Model
    source: Source
    val_source: Source
    base_seconds: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    """Compare as the command line says and return the exit code."""
    return run(compare, parse_arguments(arguments))


def compare(options: argparse.Namespace) -> None:
    """Train what is missing, then time, draw, write and print what there is."""
    print(f"Data: checking the images of {options.data} ...", flush=True)
    dataset = scan(options.data, options.exclude)
    split = split_dataset(
        dataset, options.seed, validation_fraction=VALIDATION_FRACTION, test_fraction=TEST_FRACTION
    )
    print(
        f"  {len(split.train)} to train, {len(split.validation)} to pick the epoch, "
        f"{len(split.evaluated)} to report on."
    )
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
            print(f"{network.name}: done before.")
            continue
        print(f"{network.name}: {network.what}.", flush=True)
        try:
            row = train(network, dataset, split, settings, options)
        except ModelError as error:
            skipped.append(f"{network.name} was skipped. {error}")
            print(f"  {skipped[-1]}", flush=True)
            continue
        records.append(row)
        accuracy = with_interval(row["accuracy"], row["accuracy_interval"])
        print(f"  Epoch {row['epoch']} was kept; validation accuracy {accuracy}.", flush=True)
    names = [network.name for network in chosen]
    rows = [row for row in records.rows if row["name"] in names]
    if not rows:
        raise ModelError("Expected a network to compare. Received: none; the lines above say why.")
    show(sorted(rows, key=lambda row: names.index(row["name"])), skipped, settings, options)


# Training


def train(
    network: Network, dataset: Dataset, split: Split, settings: dict, options: argparse.Namespace
) -> dict:
    """Train `network`, or go on with it, convert it, and return its row.

    Raises:
        ModelError: its weights cannot be had.
    """
    folder = options.out / network.name
    folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(options.seed)
    prepare = prepare_frozen if network.application else prepare_small
    trained = prepare(network, dataset, split, options)
    best = fit(network, trained, split, settings, folder)
    model, metadata = load_checkpoint(best.path)
    probabilities = model.predict(
        Batches(trained.val_source, split.evaluated, BATCH_SIZE), verbose=0
    )
    hits = int((probabilities.argmax(axis=1) == dataset.labels(split.evaluated)).sum())
    trained.trainable_part.set_weights(model.get_weights())
    size = write_tflite(trained.whole, folder / "model.tflite", dataset.class_names)
    history = read_history(folder / HISTORY)
    return {
        "name": network.name,
        "what": network.what,
        "pixels": trained.whole.input_shape[1],
        "accuracy": hits / len(split.evaluated),
        "accuracy_interval": wilson(hits, len(split.evaluated)),
        "n": len(split.evaluated),
        "selection_accuracy": best.best[0],
        "selection_loss": best.best[1],
        "epoch": metadata.epoch,
        "parameters": trained.whole.count_params(),
        "epoch_seconds": float(np.median(history["seconds"])),
        "base_seconds": trained.base_seconds * len(split.train),
        "tflite_bytes": size,
    }


def prepare_small(
    network: Network, dataset: Dataset, split: Split, options: argparse.Namespace
) -> Candidate:
    """Return a network that learns as a whole, from images."""
    size = (options.size, options.size)
    model = build_small(network, size, len(dataset.class_names))
    images = InMemoryImages(dataset, size, AUGMENTATION if network.augmented else None)
    return Candidate(model, model, images, images)


def prepare_frozen(
    network: Network, dataset: Dataset, split: Split, options: argparse.Namespace
) -> Candidate:
    """Return a head that learns on a frozen base, from cached features."""
    size = (network.size, network.size)
    frozen = build_base(network.application, size, options.weights)
    head = build_head(frozen.output_shape[1], HEAD, len(dataset.class_names))
    whole = keras.Model(frozen.input, head(frozen.output))
    images = ImageSource(dataset, size, AUGMENTATION)
    source, val_source = cached_features(images, frozen, split, VIEWS, options.cache)
    return Candidate(head, whole, source, val_source, time_base(frozen, size))


def time_base(frozen: keras.Model, size: tuple[int, int]) -> float:
    """Return the seconds that a frozen base takes for an image of a batch."""
    forward = compile_inference(frozen, dtype_policy(), TIMED)
    images = np.random.default_rng(0).uniform(-1, 1, (TIMED, *size, 3)).astype(np.float32)
    forward(images)
    started = time.perf_counter()
    forward(images)
    return (time.perf_counter() - started) / TIMED


def fit(
    network: Network, trained: Candidate, split: Split, settings: dict, folder: Path
) -> BestCheckpoint:
    """Let the learner of `trained` learn, from the last finished epoch on; return its best one."""
    trainable_part, epochs = trained.trainable_part, settings["epochs"]
    steps = max(1, len(split.train) // network.batch_size)
    training = TrainingBatches(
        trained.source,
        split.train,
        network.batch_size,
        steps=steps,
        seed=settings["seed"],
        views=VIEWS if network.application else None,
    )
    trainable_part.compile(
        keras.optimizers.SGD(network.learning_rate, momentum=network.momentum),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    state = folder / STATE
    done = read_run(state)
    if done:
        restore_run(trainable_part, state)
        print(f"  Goes on after {done['epochs']} finished epochs.")
    first = done["epochs"] if done else 0
    names = trained.source.dataset.class_names
    best = BestCheckpoint(
        folder, UNNAMED_BEST, lambda: trainable_part, names, split, "val_loss", done
    )
    trim_history(folder / HISTORY, first)
    with progress(epochs * steps * network.batch_size, f"  {network.name}") as bar:
        bar.update(first * steps * network.batch_size)
        trainable_part.fit(
            training,
            validation_data=Batches(trained.val_source, split.validation, BATCH_SIZE),
            epochs=epochs,
            initial_epoch=first,
            shuffle=False,  # the batches are shuffled already
            verbose=0,
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=training.begin_epoch,
                    on_train_batch_end=lambda batch, logs: bar.update(network.batch_size),
                ),
                Seconds(),
                best,
                keras.callbacks.CSVLogger(folder / HISTORY, append=bool(done)),
                RunState(state, settings, best),
            ],
        )
    return best


class Seconds(keras.callbacks.Callback):
    """Add to what is logged how long an epoch took, with the images that pick."""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the clock; Keras calls this."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Read it; Keras calls this."""
        logs["seconds"] = time.perf_counter() - self.started


def write_tflite(model: keras.Model, path: Path, class_names: tuple[str, ...]) -> int:
    """Write `model` to `path` as float32 with its labels inside; return the model's bytes."""
    content = convert_quietly(tf.lite.TFLiteConverter.from_keras_model(model))
    whole = content + labels_archive(class_names)
    write_atomically(path, lambda new: new.write_bytes(whole))
    return len(content)


# What is shown

HEAD_ROW = (
    "network",
    "validation accuracy",
    "kept epoch",
    "parameters",
    "an epoch",
    "base, once",
    ".tflite",
    "inference",
)


def show(rows: list[dict], skipped: list[str], settings: dict, options: argparse.Namespace) -> None:
    """Time the networks of `rows` side by side, then draw, write and print all of it."""
    print("Time: inference, side by side.", flush=True)
    seconds = inference_seconds([options.out / row["name"] / "model.tflite" for row in rows])
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
        f"{best['name']} won: validation accuracy "
        f"{with_interval(best['accuracy'], best['accuracy_interval'])}."
    )
    cells = [table_row(row) for row in rows]
    notes = [
        f"{settings['epochs']} epochs of each training image once, one seed "
        f"({settings['seed']}); the epoch of least loss on images set apart was kept, and the "
        f"accuracy is of {rows[0]['n']} others. In brackets Wilson's 95 % intervals: what other "
        "images would have changed, not another seed.",
        "An epoch is the median, with the images that pick. What a frozen base makes of the "
        f"images is computed before, in {VIEWS} augmented views; once for all images takes "
        f"the time beside it. Inference: one image, float32, {THREADS} thread, the median.",
        *(f"{row['name']}: {row['what']}, {row['pixels']}×{row['pixels']} pixels." for row in rows),
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
    print(f"Look at it: {page}")


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


def small_size(text: str) -> int:
    """Return `text` as an input size of the small networks."""
    value = int(text)
    if value < MIN_INPUT_SIZE:
        raise argparse.ArgumentTypeError(f"expected {MIN_INPUT_SIZE} or more. Received: {text}")
    return value


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    made = parser(__doc__, "compare", EPOCHS)
    names = [network.name for network in NETWORKS]
    add = made.add_argument
    add("--networks", nargs="+", choices=names, default=names, metavar="NAME", help="[all of them]")
    add("--size", type=small_size, default=SIZE, help="pixels, of the small networks [%(default)s]")
    add("--weights", default="imagenet", help="imagenet, none, or a file of Xception's [imagenet]")
    add("--cache", type=Path, default=CACHE, help="where features are kept [%(default)s/]")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
