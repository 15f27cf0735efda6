"""Ask a checkpoint about the images that it is reported on: calibrate it, write its report.

    python -m training.evaluation models/xception_fin_15_0.966.h5 again/ --exclude wrong_labels.txt

`train.py` ends with this. By itself it does so once more, without training: where labels turned
out to be wrong (--exclude), or for images of another size (--inference-size). The checkpoint,
its split and its report are written anew into the folder named second.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serving.errors import ModelError
from training.backend import keras
from training.batches import Batches
from training.checkpoint import (
    CHECKPOINT,
    Metadata,
    load_checkpoint,
    read_split,
    save_checkpoint,
    split_record,
)
from training.dataset.scan import Dataset, require, scan
from training.dataset.split import Split
from training.errors import DataError
from training.evaluation.calibration import apply_temperature, bake_temperature, fit_temperature
from training.evaluation.metrics import evaluate, table
from training.evaluation.report import CURVES, METRICS, write_report
from training.files import write_atomically
from training.images import ImageSource, Source
from training.model import split_at_block, with_input_size

BATCH_SIZE = 32
MIN_INPUT_SIZE = 71  # of Xception
LABEL_ISSUES = "probable_wrong_labels.txt"


@dataclass(frozen=True)
class CalibratedModel:
    """A checkpoint whose confidence is fitted, and its answers.

    Attributes:
        model: it, of the input size that it was asked at.
        metadata: what it says of itself, with its accuracy and its temperature.
        uncalibrated: its answers to the images that are reported on, before any temperature,
            float (n, classes), 0 to 1.
        probabilities: the same at its temperature.
        val_probabilities: its answers at its temperature to the images that picked the epoch, float
            (m, classes); m is 0 where those that are reported on did.
    """

    model: keras.Model
    metadata: Metadata
    uncalibrated: np.ndarray
    probabilities: np.ndarray
    val_probabilities: np.ndarray


def calibrate(
    model: keras.Model, metadata: Metadata, dataset: Dataset, split: Split, val_source: Source
) -> CalibratedModel:
    """Ask what `load_checkpoint` returned about `split` of `dataset` and fit its temperature.

    The temperature is fitted on what picked the epoch. `val_source` gives inputs of the whole
    network, of the size that it is to have, or of its head.
    """
    if isinstance(val_source, ImageSource):
        model = judged = with_input_size(model, val_source.size)
    else:
        judged = split_at_block(model, None)[1]

    def answers(names: Sequence[str]) -> np.ndarray:
        if not names:
            return np.empty((0, len(dataset.class_names)), np.float32)
        answered = judged.predict(Batches(val_source, names, BATCH_SIZE), verbose=0)
        # Without what an earlier report on this checkpoint has calibrated.
        return apply_temperature(answered, 1 / metadata.temperature)

    height, width = model.input_shape[1:3]
    print(f"Report: asking the best checkpoint, at {width}×{height} pixels.", flush=True)
    uncalibrated, val_probabilities = answers(split.evaluated), answers(split.validation)
    fitted_on = (
        (val_probabilities, split.validation) if split.test else (uncalibrated, split.evaluated)
    )
    temperature = fit_temperature(fitted_on[0], dataset.labels(fitted_on[1]))
    bake_temperature(model, temperature / metadata.temperature)
    probabilities = apply_temperature(uncalibrated, temperature)
    right = probabilities.argmax(axis=1) == dataset.labels(split.evaluated)
    return CalibratedModel(
        model,
        replace(metadata, val_accuracy=float(right.mean()), temperature=temperature),
        uncalibrated,
        probabilities,
        apply_temperature(val_probabilities, temperature),
    )


def save(result: CalibratedModel, models: Path, split: Split) -> Path:
    """Write the checkpoint, and its split beside it, into `models` and return its path."""
    path = models / CHECKPOINT.format(
        epoch=result.metadata.epoch, val_accuracy=result.metadata.val_accuracy
    )
    save_checkpoint(result.model, path, result.metadata)
    write_atomically(split_record(path), split.write)
    return path


def report(
    result: CalibratedModel,
    path: Path,
    dataset: Dataset,
    split: Split,
    run_info: dict,
    history: Path,
    curves: Path | None = None,
    features: np.ndarray | None = None,
) -> None:
    """Write the report on the checkpoint that `save` put at `path`, and print it.

    `run_info`, `history` and `curves` are `write_report`'s. `features`, float (images, d), are
    those of a network that has not learned from `dataset`; with them, probable wrong labels are
    looked for.
    """
    folder = path.with_suffix("")
    label_issues = []
    if features is not None:
        from training.evaluation.label_errors import list_label_issues, write_label_issues

        labels = dataset.labels(dataset.images)
        label_issues = list_label_issues(
            features, dataset.images, labels, dataset.class_names, split.seed
        )
    metrics = write_report(
        folder,
        checkpoint=path,
        model=result.model,
        dataset=dataset,
        images=split.evaluated,
        probabilities=result.probabilities,
        uncalibrated=result.uncalibrated,
        temperature=result.metadata.temperature,
        history=history,
        curves=curves,
        run_info={"picked_on": f"the best of its epochs on {picked_on(split)}"}
        | run_info
        | {"calibrated_on": f"temperature fitted on {picked_on(split)}"},
        label_issues=label_issues,
    )
    if label_issues:
        write_label_issues(folder / LABEL_ISSUES, label_issues)

    print(table(metrics))
    if split.test:
        there = evaluate(
            result.val_probabilities, dataset.labels(split.validation), dataset.class_names
        )
        print(
            f"  on the {there['n']} images that picked the epoch: "
            f"accuracy {there['accuracy']:.3f}, loss {there['log_loss']:.3f}"
        )
    accuracy = result.metadata.val_accuracy
    print(f"Best validation accuracy: {accuracy:.3f} on {len(split.evaluated)} images.")
    if label_issues:
        print(f"Probably wrong labels: {len(label_issues)}, in {folder / LABEL_ISSUES}.")
    print(f"Report: {folder / 'README.md'}")
    print(f"Use it: python convert_to_tflite.py {path}")


def picked_on(split: Split) -> str:
    """Return which images picked the epoch, for a person."""
    if split.test:
        return f"{len(split.validation)} images of their own, neither trained nor reported on"
    return f"the {len(split.evaluated)} validation images themselves, which flatters a little"


def earlier_card(checkpoint: Path) -> dict:
    """Return what the report beside `checkpoint` says of the run that made it; {} without one."""
    with suppress(OSError, ValueError, KeyError):
        return dict(json.loads((checkpoint.with_suffix("") / METRICS).read_text("utf-8"))["run"])
    return {}


def main(arguments: list[str] | None = None) -> int:
    """Evaluate as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    try:
        reevaluate(options)
    except (ModelError, DataError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"evaluate: Expected to read {options.data} and to write to {options.folder}. "
            f"Received: {error}. Correct the rights, or free space.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nevaluate: Stopped.", file=sys.stderr)
        return 130
    return 0


def reevaluate(options: argparse.Namespace) -> None:
    """Calibrate, save and report on a checkpoint once more.

    Raises:
        ModelError: it is no checkpoint, or has no split beside it.
        DataError: its classes or the images of its split are not there.
    """
    model, metadata = load_checkpoint(options.checkpoint)
    whole = read_split(options.checkpoint)
    size = (options.inference_size,) * 2 if options.inference_size else model.input_shape[1:3]
    dataset = scan(options.data, options.exclude)
    if dataset.class_names != metadata.class_names:
        raise DataError(
            f"Expected folders of the checkpoint's classes, {', '.join(metadata.class_names)}. "
            f"Received: {', '.join(dataset.class_names)}. Name the right folder with --data."
        )
    split = whole.without(dataset.excluded)
    require(dataset, (*split.validation, *split.test))
    if not split.evaluated:
        raise DataError(
            f"Expected images to report on. Received: all {len(whole.evaluated)} are excluded. "
            f"Take some out of {options.exclude}."
        )
    run_info = {"picked_on": f"the best of its epochs on {picked_on(whole)}"}
    run_info |= earlier_card(options.checkpoint)
    run_info |= {
        "split": split.sizes,
        "reported again by": shlex.join(["python", "-m", "training.evaluation", *sys.argv[1:]]),
    }
    learned = dataset.excluded.intersection(split.train)
    if learned:
        run_info["excluded"] = f"after training, in which {len(learned)} of them took part"
    options.folder.mkdir(parents=True, exist_ok=True)
    result = calibrate(model, metadata, dataset, split, ImageSource(dataset, size))
    curves = options.checkpoint.with_suffix("") / CURVES
    report(
        result,
        save(result, options.folder, split),
        dataset,
        split,
        run_info,
        history=options.folder / "no.csv",  # that of the last run may be another run's
        curves=curves if curves.exists() else None,
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a .h5 file of train.py")
    add("folder", type=Path, help="where to write it, calibrated, and its report")
    add("--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]")
    add("--exclude", type=Path, metavar="FILE", help="images to leave out, a class/file a line")
    add("--inference-size", type=pixels, metavar="PIXELS", help="[as it is]")
    return parser.parse_args(arguments)


def pixels(text: str) -> int:
    """Return `text` as a height and width of images."""
    value = int(text)
    if value < MIN_INPUT_SIZE:
        raise argparse.ArgumentTypeError(f"expected {MIN_INPUT_SIZE} or more. Received: {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
