"""Convert a checkpoint to TFLite, and see that both say the same.

    python convert_to_tflite.py                                   # the best of models/
    python convert_to_tflite.py models/xception_fin_05_0.893.h5 --quantize float16
    python convert_to_tflite.py --quantize int8 --data flowers/   # calibrated on images
    python convert_to_tflite.py --evaluate --data flowers/        # what was made, on all of them

Writes models/<stem>.tflite beside the checkpoint, with the class names inside. Where the serving
runtime and Keras differ by more than the kind's tolerance, nothing is written.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from serving.classifier import read_labels
from serving.errors import ModelError
from serving.model_files import best_model
from serving.preprocess import resize, scale
from serving.runtimes import RUNTIMES, find_runtime
from training.backend import keras, tf
from training.checkpoint import load_checkpoint, split_record
from training.dataset.scan import Dataset, class_of, scan
from training.dataset.split import Split
from training.errors import DataError
from training.evaluation.metrics import percent, wilson, with_interval
from training.export.tflite import convert_quietly, labels_archive
from training.export.tflite_process import served, served_probabilities
from training.features import BATCH_SIZE
from training.files import write_atomically
from training.images import ImageSource, read_pixels
from training.inference import compile_inference
from training.prefetch import prefetch, progress
from training.sample import LABELS, draw

ImageLoader = Callable[[], np.ndarray]  # reads an image: uint8 (height, width, 3)

COMPARISON_IMAGES = 50  # images
# Images that int8 takes the range of every activation from: the calmer half of these.
CALIBRATION_IMAGES = 100
# What a file may be worse by on all images, whatever its kind.
MAX_ACCURACY_DROP = 0.005  # accuracy, 0 to 1
MIN_AGREEMENT = 0.98  # share of images with the checkpoint's first answer, 0 to 1


@dataclass(frozen=True)
class Tolerance:
    """How far a kind may be from Keras.

    Attributes:
        difference: largest difference of any score, 0 to 1.
        agreement: smallest share of images with the same first answer, 0 to 1.
    """

    difference: float
    agreement: float


# For defects, so with room for chance among `COMPARISON_IMAGES` images; --evaluate measures.
TOLERANCES = {
    "none": Tolerance(0.001, 1.0),
    "float16": Tolerance(0.02, 0.98),
    "dynamic": Tolerance(0.25, 0.96),
    "int8": Tolerance(0.3, 0.96),
}


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    try:
        checkpoint = options.checkpoint or best_model(options.models, ".h5")
        if options.evaluate:
            evaluate(checkpoint, options.data, options.runtime)
        else:
            convert(checkpoint, options.quantize, options.data, options.runtime)
    except (ModelError, DataError) as error:
        print(f"convert_to_tflite.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"convert_to_tflite.py: Expected to write beside the checkpoint. Received: {error}. "
            "Free space or rights, and run it again.",
            file=sys.stderr,
        )
        return 1
    return 0


def convert(checkpoint: Path, quantize: str, data: Path, runtime: str | None) -> None:
    """Write the .tflite file of `checkpoint`, if it says what Keras says.

    Raises:
        ModelError: the checkpoint cannot be read, the runtime cannot load what was made, or
            it differs from Keras by more than `TOLERANCES` allows.
        DataError: int8, and there are no images to calibrate on.
    """
    print(f"Read: {checkpoint}", flush=True)
    model, metadata = load_checkpoint(checkpoint)
    size = model.input_shape[1:3]
    calibrating, compared = choose_images(checkpoint, data, size)
    if quantize == "int8" and not calibrating:
        raise DataError(
            f"Expected training images in {data} to calibrate int8 on. Received: none. "
            "Run `make data`, or name a folder with --data."
        )

    print(f"Convert: --quantize {quantize}; this takes a minute.", flush=True)
    content = to_tflite(model, quantize, calibrating) + labels_archive(metadata.class_names)

    path = checkpoint.with_suffix(".tflite")

    def write_checked(temporary: Path) -> None:
        temporary.write_bytes(content)
        compare(model, temporary, compared, quantize, runtime)

    write_atomically(path, write_checked)
    print(f"Wrote: {path}, {path.stat().st_size / 1e6:.1f} MB.")
    print("Use it: python predict.py IMAGE, or build the image: make build")


def choose_images(
    checkpoint: Path, data: Path, size: tuple[int, int]
) -> tuple[list[ImageLoader], list[ImageLoader]]:
    """Return (images to calibrate on, images to compare on).

    Those the network trained on calibrate, those it validated on are compared; without `data`
    none calibrate and drawn ones are compared.
    """
    try:
        images = scan(data).images
    except DataError:
        print(f"  {data} has no images of a data set: comparing on drawn ones.", flush=True)
        return [], drawn_images(size)
    train = validation = images
    if split_record(checkpoint).exists():
        split = Split.read(split_record(checkpoint))
        present = set(images)
        train = [p for p in split.train if p in present] or images
        validation = [p for p in split.evaluated if p in present] or images

    def readers(chosen: Sequence[str]) -> list[ImageLoader]:
        return [lambda path=data / image: read_pixels(path, size) for image in chosen]

    return readers(spread(train, CALIBRATION_IMAGES)), readers(
        spread(validation, COMPARISON_IMAGES)
    )


def spread(images: Sequence[str], count: int) -> list[str]:
    """Return up to `count` of `images`, which are sorted by class, evenly over the classes."""
    step = max(len(images) / count, 1)
    return [images[int(i * step)] for i in range(min(count, len(images)))]


def drawn_images(size: tuple[int, int]) -> list[ImageLoader]:
    """Return readers of ten drawn images a flower, the same ones every time."""
    rng = np.random.default_rng(0)
    drawn = [draw(label, rng) for label in LABELS for _ in range(COMPARISON_IMAGES // len(LABELS))]
    return [lambda image=image: resize(image, size) for image in drawn]


def to_tflite(model: keras.Model, quantize: str, calibrating: list[ImageLoader]) -> bytes:
    """Return `model` as a TFLite flatbuffer of the kind `quantize`; inputs and outputs float32."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        inputs = drop_outliers(model, np.stack([scale(read()) for read in calibrating]))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([row[np.newaxis]] for row in inputs)
    return convert_quietly(converter)


def drop_outliers(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Return the half of `inputs` that stays nearest to what they commonly excite in `model`.

    `inputs` is float32 (n, height, width, 3), -1 to 1. TFLite stretches each activation's 256
    steps over the extremes of all images, and a few excite a layer of Xception 19 times as much
    as the others do: with 200 images as they come, int8 agreed with Keras on 58 % of 50.
    """
    base_model = next((layer for layer in model.layers if isinstance(layer, keras.Model)), model)
    outputs = [layer.output for layer in base_model.layers[1:]]
    peaks = [keras.ops.max(keras.ops.abs(x), axis=range(1, x.ndim)) for x in outputs]
    peaks_model = keras.Model(base_model.inputs, keras.ops.stack(peaks, axis=1))
    peaks = peaks_model.predict(inputs, batch_size=16, verbose=0)
    common = np.maximum(np.median(peaks, axis=0), np.finfo(np.float32).tiny)
    order = np.argsort((peaks / common).max(axis=1))
    return inputs[order[: -(-len(inputs) // 2)]]


def compare(
    model: keras.Model, path: Path, images: list[ImageLoader], quantize: str, runtime: str | None
) -> None:
    """Print how far the model at `path` (.tflite) is from `model` on `images`.

    Raises:
        ModelError: further than `TOLERANCES` allows, or the runtime cannot load it.
    """
    print(f"Compare: with Keras, on {len(images)} images.", flush=True)
    inputs = np.stack([scale(read()) for read in images])
    received = ask(path, inputs, quantize, runtime)
    expected = model.predict(inputs, batch_size=16, verbose=0)
    difference = float(np.abs(expected - received).max())
    agreeing = float((expected.argmax(axis=1) == received.argmax(axis=1)).mean())
    allowed = TOLERANCES[quantize]
    print(
        f"  largest difference of a score: {difference:.6f} (allowed: {allowed.difference})\n"
        f"  same first answer: {agreeing:.0%} (expected: {allowed.agreement:.0%} or more)"
    )
    if not difference <= allowed.difference or agreeing < allowed.agreement:
        raise ModelError(
            f"Expected scores within {allowed.difference} of Keras' and the same first answer on "
            f"{allowed.agreement:.0%} of the images. Received: {difference:.6f} and "
            f"{agreeing:.0%}. Nothing was written; try another --quantize."
        )


def ask(path: Path, inputs: np.ndarray, quantize: str, runtime: str | None) -> np.ndarray:
    """Return what the serving runtime answers, float32 (n, classes).

    Raises:
        ModelError: it cannot load this kind; the sentence says which runtime can.
    """
    try:
        return served_probabilities(path, inputs, runtime)
    except ModelError as error:
        tried = runtime or find_runtime()[0]
        able = [name for name in RUNTIMES if name != tried and can_load(path, inputs, name)]
        if not able:
            raise
        raise ModelError(
            f"Expected a kind that {tried} {version(tried)} can load. Received: --quantize "
            f"{quantize}, which needs {' or '.join(able)}: add --runtime {able[0]}, "
            f"and build the image with --build-arg RUNTIME={able[0]}."
        ) from error


def can_load(path: Path, inputs: np.ndarray, runtime: str) -> bool:
    """Return whether `runtime` is installed and runs the model at `path`."""
    try:
        served_probabilities(path, inputs[:1], runtime)
    except ModelError:
        return False
    return True


def evaluate(checkpoint: Path, data: Path, runtime: str | None) -> None:
    """Print how the `.tflite` file of `checkpoint` answers all images of `data`, beside it.

    Raises:
        ModelError: one of the two cannot be read, or the file is worse than
            `MAX_ACCURACY_DROP` and `MIN_AGREEMENT` allow.
        DataError: `data` has no images of the model's classes.
    """
    path, runtime = checkpoint.with_suffix(".tflite"), find_runtime(runtime)[0]
    labels = read_labels(path)
    model, _ = load_checkpoint(checkpoint)
    dataset = scan(data)
    if not set(dataset.class_names) <= set(labels):
        raise DataError(
            f"Expected images of {', '.join(labels)}. Received: {', '.join(dataset.class_names)} "
            f"in {data}. Name the folder that the model was trained on with --data."
        )
    print(f"Evaluate: {path} on {runtime} {version(runtime)}, and its checkpoint in float32.")
    expected, received = top1_predictions(model, path, dataset, runtime)
    truth = np.array([labels.index(class_of(image)) for image in dataset.images])
    chosen = {"all": np.ones(len(truth), bool)}
    if split_record(checkpoint).exists():
        validation = set(Split.read(split_record(checkpoint)).evaluated)
        chosen["validation"] = np.array([p in validation for p in dataset.images])
    print("  images            checkpoint           .tflite              same first answer")
    for name, rows in chosen.items():
        right = (expected == truth)[rows], (received == truth)[rows], (expected == received)[rows]
        cells = [with_interval(hits.mean(), wilson(hits.sum(), len(hits))) for hits in right]
        print(f"  {name:<12}{rows.sum():>6}  {'  '.join(cells)}")
    lost = (expected == truth).mean() - (received == truth).mean()
    agreeing = (expected == received).mean()
    if lost > MAX_ACCURACY_DROP or agreeing < MIN_AGREEMENT:
        raise ModelError(
            f"Expected at most {percent(MAX_ACCURACY_DROP, 1)} of accuracy lost, and the same "
            f"first answer on {percent(MIN_AGREEMENT)} of the images. Received: {percent(lost, 1)} and "
            f"{percent(agreeing, 1)}. Convert it again with another --quantize."
        )


def top1_predictions(
    model: keras.Model, path: Path, dataset: Dataset, runtime: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes that `model` and its .tflite file give all images, each int (n,)."""
    forward = compile_inference(model, "float32", BATCH_SIZE)
    samples = [(index, 0) for index in range(len(dataset.images))]
    batches = [samples[i : i + BATCH_SIZE] for i in range(0, len(samples), BATCH_SIZE)]
    images = ImageSource(dataset, model.input_shape[1:3])
    expected, received = [], []
    with served(path, runtime) as ask, progress(len(samples), "  images") as bar:
        for batch, inputs in prefetch(batches, images.inputs):
            expected.append(forward(inputs).argmax(axis=1))
            received.append(ask(inputs).argmax(axis=1))
            bar.update(len(batch))
    return np.concatenate(expected), np.concatenate(received)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, help="a .h5 file [the best in --models]")
    add("--quantize", choices=TOLERANCES, default="none", help="kind of weights [none: float32]")
    add("--data", type=Path, default=Path("flowers"), help="images to compare on [flowers/]")
    add("--models", type=Path, default=Path("models"), help="where checkpoints are [models/]")
    add("--runtime", choices=RUNTIMES, help="that will serve it [the first one installed]")
    add(
        "--evaluate",
        action="store_true",
        help="convert nothing; ask the .tflite file beside the checkpoint, and the checkpoint, on "
        "all images of --data: accuracy and agreement. Exit code 1 if the file loses more than "
        "half a point or agrees on less than 98 %%. Takes minutes",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
