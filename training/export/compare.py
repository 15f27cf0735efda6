"""Compares a .tflite file with its checkpoint, on the runtime that will serve it."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.answers import UNKNOWN_BELOW
from serving.classifier import read_labels
from serving.details import Details, p_value
from serving.errors import ModelError
from serving.preprocess import resize, scale
from serving.runtimes import RUNTIMES, Prediction, find_runtime
from training.backend import keras
from training.checkpoint import load_checkpoint, split_record
from training.dataset.names import composed
from training.dataset.scan import Dataset, scan
from training.dataset.split import Split
from training.errors import DataError
from training.evaluation.familiarity import distances
from training.evaluation.metrics import percent, wilson, with_interval
from training.export.tflite import ImageLoader
from training.export.tflite_process import TFLiteProcess, Told, tell, tell_once
from training.images import ImageSource, read_pixels
from training.inference import compile_inference
from training.model_facts import ModelFacts
from training.outputs import read_head, with_activations, with_features
from training.prefetch import prefetch, progress
from training.sample import LABELS, draw
from training.streams import counted

FLOWERS = Path("flowers")
COMPARISON_IMAGES = 50
# int8 takes the range of every activation from half of these; see `drop_outliers`.
CALIBRATION_IMAGES = 100
# Largest difference of any score from Keras', 0 to 1, by the kind of weights. It detects defects
# on `COMPARISON_IMAGES`; `evaluate` measures accuracy.
TOLERANCES = {"none": 0.001, "float16": 0.02, "dynamic": 0.25, "int8": 0.3}
# Smallest top-1 agreement with Keras, 0 to 1, when a file is made and when it is evaluated.
MIN_AGREEMENT = 0.96
# Largest mean difference from Keras' of what a person sees of the details, 0 to 1. A p-value is the
# rank of a distance, which takes a step where two distances change places. It detects defects:
# activations of another layer, or scaled otherwise, make all p-values alike. The shipped
# checkpoint's are 0.0000 in float32, and 0.016 (p-values) and 0.015 (cells) in int8.
DETAIL_TOLERANCES = {"none": 0.01, "float16": 0.02, "dynamic": 0.15, "int8": 0.15}
MAX_ACCURACY_DROP = 0.005  # 0 to 1, on all images
BATCH_SIZE = 32


def choose_images(
    checkpoint: Path, data: Path | None, size: tuple[int, int]
) -> tuple[list[ImageLoader], list[ImageLoader]]:
    """Return (images to calibrate on, images to compare on), evenly over the classes.

    Training images calibrate, evaluated images are compared. They are those in `data`; for None in
    `FLOWERS` or, where that is empty, drawn ones to compare on and none to calibrate on. Of a
    checkpoint with a split, other images take the place of those that are not in the folder, but
    for None none calibrate.

    Raises:
        DataError: the folder holds no data set.
    """
    if data is None and not _holds_folders(FLOWERS):
        print(f"  No --data, and no images in {FLOWERS}: comparing on drawn images.", flush=True)
        return [], drawn_images(size)
    folder = data or FLOWERS
    images = scan(folder).images
    train = evaluated = images
    if split_record(checkpoint).exists():
        split = Split.read(split_record(checkpoint)).spelled_as(images)
        present = set(images)
        train = [image for image in split.train if image in present]
        evaluated = [image for image in split.evaluated if image in present]
        sets = {"training": train, split.evaluated_name: evaluated}
        if missing := [name for name, found in sets.items() if not found]:
            use = "comparing" if data is None else "calibrating and comparing"
            print(
                f"  None of this run's {' and '.join(missing)} images are in {folder}: {use} on "
                "others. Name the folder that it was trained on with --data.",
                flush=True,
            )
        train = train or ([] if data is None else images)
        evaluated = evaluated or images

    def loaders(chosen: Sequence[str], count: int) -> list[ImageLoader]:
        chosen = take_evenly(chosen, count)
        return [lambda path=folder / image: read_pixels(path, size) for image in chosen]

    return loaders(train, CALIBRATION_IMAGES), loaders(evaluated, COMPARISON_IMAGES)


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()
    )


def take_evenly(images: Sequence[str], count: int) -> list[str]:
    """Return up to `count` of `images`, which are sorted by class, evenly over the classes."""
    step = max(len(images) / count, 1)
    return [images[int(i * step)] for i in range(min(count, len(images)))]


def drawn_images(size: tuple[int, int]) -> list[ImageLoader]:
    """Return loaders of ten drawn images a class, the same ones every time."""
    rng = np.random.default_rng(0)
    drawn = [draw(label, rng) for label in LABELS for _ in range(COMPARISON_IMAGES // len(LABELS))]
    return [lambda image=image: resize(image, size) for image in drawn]


def compare(
    model: keras.Model,
    path: Path,
    images: Sequence[ImageLoader],
    quantize: str,
    runtime: str | None,
    details: Details | None = None,
) -> None:
    """Print how far the .tflite file at `path` is from `model` with `details` on `images`.

    Raises:
        ModelError: further than `TOLERANCES`, `MIN_AGREEMENT` and `DETAIL_TOLERANCES` allow, or the
            runtime cannot load it.
    """
    print(f"Compare: with Keras, on {counted(len(images), 'image')}.", flush=True)
    inputs = np.stack([scale(load()) for load in images])
    received = tell_of(path, inputs, quantize, runtime)
    expected = _tell_keras(model, inputs, details or Details())
    difference = float(np.abs(expected.probabilities - received.probabilities).max())
    agreeing = expected.probabilities.argmax(axis=1) == received.probabilities.argmax(axis=1)
    agreement = float(agreeing.mean())
    allowed = TOLERANCES[quantize]
    print(
        f"  largest difference of a score: {difference:.6f} (allowed: {allowed})\n"
        f"  top-1 agreement: {agreement:.0%} (expected: {MIN_AGREEMENT:.0%} or more)"
    )
    if not difference <= allowed or agreement < MIN_AGREEMENT:
        raise ModelError(
            f"Expected scores within {allowed} of Keras' and a top-1 agreement of "
            f"{MIN_AGREEMENT:.0%}. Received: {difference:.6f} and {agreement:.0%}. "
            "Nothing was written; try another --quantize."
        )
    allowed = DETAIL_TOLERANCES[quantize]
    # Of few validation images, p-values have steps, and an image may be just at one.
    familiarity = details.familiarity if details else None
    step = 1 / (len(familiarity.distances) + 1) if familiarity else 0.0
    known = expected.known, received.known
    _compare_detail("p-values of familiarity", *known, round(allowed + step, 3))
    maps = (None if told.maps is None else told.maps[agreeing] for told in (expected, received))
    _compare_detail("cells of heat maps", *maps, allowed)  # others are of another class


def _tell_keras(model: keras.Model, inputs: np.ndarray, details: Details) -> Told:
    """Return what `model` with `details` tells of `inputs`, float32 (n, height, width, 3)."""
    outputs = with_activations(model).predict(inputs, batch_size=16, verbose=0)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    predictions = [Prediction(*rows) for rows in zip(*outputs, strict=True)]
    return tell(replace(details, head=read_head(model)), predictions)


def _compare_detail(
    name: str, expected: np.ndarray | None, received: np.ndarray | None, allowed: float
) -> None:
    """Print how far a detail is from Keras'; raise `ModelError` where the file is broken."""
    if expected is None:
        return
    differences = np.abs(expected - received) if received is not None else np.array([np.nan])
    mean = float(differences.mean())
    print(
        f"  {name}: mean difference {mean:.4f} (allowed: {allowed}), largest "
        f"{differences.max():.4f}"
    )
    if not mean <= allowed:
        raise ModelError(
            f"Expected {name} within {allowed} of Keras' on average. Received: {mean:.4f}. "
            "Nothing was written; try another --quantize."
        )


def tell_of(path: Path, inputs: np.ndarray, quantize: str, runtime: str | None) -> Told:
    """Return what the file at `path` tells of `inputs` on the serving runtime.

    Raises:
        ModelError: it cannot load this kind; the sentence says which runtime can.
    """
    try:
        return tell_once(path, inputs, runtime)
    except ModelError as error:
        tried = runtime or find_runtime()[0]
        able = [name for name in RUNTIMES if name != tried and can_load(path, inputs, name)]
        if not able:
            raise
        raise ModelError(
            f"Expected a kind that {tried} {version(tried)} can load. Received: --quantize "
            f"{quantize}, which needs {' or '.join(able)}: add --runtime {able[0]}, "
            f"and build the container image with --build-arg RUNTIME={able[0]}."
        ) from error


def can_load(path: Path, inputs: np.ndarray, runtime: str) -> bool:
    """Return whether `runtime` is installed and runs the model at `path`."""
    try:
        tell_once(path, inputs[:1], runtime)
    except ModelError:
        return False
    return True


def evaluate(
    checkpoint: Path, path: Path, data: Path, runtime: str | None, facts: ModelFacts | None = None
) -> None:
    """Print the accuracy of the .tflite file `path` on `data`, beside its checkpoint's.

    `facts` are what is known of a checkpoint without metadata.

    Raises:
        ModelError: one of the two cannot be read, or the file is worse than
            `MAX_ACCURACY_DROP` and `MIN_AGREEMENT` allow.
        DataError: `data` has no images of the model's classes.
    """
    runtime = find_runtime(runtime)[0]
    labels = read_labels(path)
    model, metadata = load_checkpoint(checkpoint, facts)
    dataset = scan(data)
    if not set(map(composed, dataset.class_names)) <= set(map(composed, labels)):
        raise DataError(
            f"Expected images of {', '.join(labels)}. Received: {', '.join(dataset.class_names)} "
            f"in {data}. Name the folder that the model was trained on with --data."
        )
    print(f"Evaluate: {path} on {runtime} {version(runtime)}, and its checkpoint in float32.")
    found = predict_all(model, metadata.details, path, dataset, runtime)
    expected, received = found
    true_classes = replace(dataset, class_names=labels).labels(dataset.images)
    correct, correct_tflite = expected.classes == true_classes, received.classes == true_classes
    agreeing = expected.classes == received.classes
    print("  images            checkpoint           .tflite              top-1 agreement")
    sets = _sets(checkpoint, dataset)
    for name, rows in sets.items():
        hits = (correct[rows], correct_tflite[rows], agreeing[rows])
        cells = [with_interval(h.mean(), wilson(int(h.sum()), len(h))) for h in hits]
        print(f"  {name:<12}{rows.sum():>6}  {'  '.join(cells)}")
    _print_unknown(*found, sets)
    _require_close(correct.mean() - correct_tflite.mean(), agreeing.mean())


def _sets(checkpoint: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Return which images belong to each set that is reported, bool (images,); none is empty."""
    sets = {"all": np.ones(len(dataset.images), bool)}
    if split_record(checkpoint).exists():
        split = Split.read(split_record(checkpoint)).spelled_as(dataset.images)
        evaluated = set(split.evaluated)
        rows = np.array([image in evaluated for image in dataset.images])
        if rows.any():
            sets[split.evaluated_name] = rows
    return sets


def _require_close(drop: float, agreement: float) -> None:
    if drop > MAX_ACCURACY_DROP or agreement < MIN_AGREEMENT:
        raise ModelError(
            f"Expected an accuracy drop of at most {percent(MAX_ACCURACY_DROP, 1)}, and a top-1 "
            f"agreement of {percent(MIN_AGREEMENT)} or more. Received: {percent(drop, 1)} "
            f"and {percent(agreement, 1)}. Convert it again with another --quantize."
        )


class Answers(NamedTuple):
    """The predicted class of each image, int (n,), and its p-value, float (n,), or None."""

    classes: np.ndarray
    known: np.ndarray | None


def _print_unknown(expected: Answers, received: Answers, sets: dict[str, np.ndarray]) -> None:
    """Print how many images each calls unknown, and on how many they agree, if both tell."""
    if expected.known is None or received.known is None:
        return
    below = expected.known < UNKNOWN_BELOW, received.known < UNKNOWN_BELOW
    print(f"  called unknown (p < {UNKNOWN_BELOW}): checkpoint, .tflite, where they agree")
    for name, rows in sets.items():
        hits = (below[0][rows], below[1][rows], (below[0] == below[1])[rows])
        cells = [with_interval(h.mean(), wilson(int(h.sum()), len(h))) for h in hits]
        print(f"  {name:<12}{rows.sum():>6}  {'  '.join(cells)}")


def predict_all(
    model: keras.Model, details: Details, path: Path, dataset: Dataset, runtime: str
) -> tuple[Answers, Answers]:
    """Return what `model` with `details`, and its .tflite file, answer to all images."""
    infer = compile_inference(with_features(model), "float32", BATCH_SIZE)
    samples = [(index, 0) for index in range(len(dataset.images))]
    batches = [samples[i : i + BATCH_SIZE] for i in range(0, len(samples), BATCH_SIZE)]
    images = ImageSource(dataset, model.input_shape[1:3])
    expected, received = [], []
    with TFLiteProcess(path, runtime) as process, progress(len(samples), "  images") as bar:
        for batch, inputs in prefetch(batches, images.inputs):
            expected.append(infer(inputs))
            told = process.tell(inputs)
            received.append(Answers(told.probabilities.argmax(axis=1), told.known))
            bar.update(len(batch))
    classes, known = zip(*received, strict=True)
    together = Answers(np.concatenate(classes), None if known[0] is None else np.concatenate(known))
    return _answers(model, details, np.concatenate(expected)), together


def _answers(model: keras.Model, details: Details, outputs: np.ndarray) -> Answers:
    """Return the answers in `outputs` of `with_features`, float32 (n, classes + channels)."""
    count, familiarity = model.output_shape[1], details.familiarity
    known = None
    if familiarity is not None:
        known = p_value(distances(familiarity, outputs[:, count:]), familiarity.distances)
    return Answers(outputs[:, :count].argmax(axis=1), known)
