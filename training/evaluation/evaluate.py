"""Evaluates a checkpoint on the images of its split: calibration, checkpoint, report.

`train.py` ends with it; `python -m training.evaluation` does it again, without training.
"""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.details import Details, Familiarity
from serving.errors import ModelError, ServingError
from serving.model_files import best_model
from training.backend import keras
from training.batches import Batches, image_indices, predict
from training.checkpoint import (
    CHECKPOINT,
    Metadata,
    load_checkpoint,
    read_split,
    save_checkpoint,
    set_aside,
    split_record,
)
from training.dataset.names import composed
from training.dataset.scan import Dataset, require, scan
from training.dataset.split import Split
from training.errors import DataError
from training.evaluation.calibration import apply_temperature, bake_temperature, fit_temperature
from training.evaluation.familiarity import (
    LabelledFeatures,
    SplitFeatures,
    describe_shortage,
    fit_details,
    transfer_details,
)
from training.evaluation.label_errors import (
    LabelIssue,
    list_label_issues,
    write_label_issues,
)
from training.evaluation.metrics import (
    describe_audited,
    evaluate,
    percent,
    shown,
    table,
    wilson,
    with_interval,
)
from training.evaluation.model_card import CURVES, METRICS
from training.evaluation.report import write_report
from training.evaluation.run import EvaluationRun, RunInfo
from training.evaluation.unknowns import LEVELS, describe_unmeasured, measure
from training.features import infer_once
from training.files import claim_folder, require_outside, write_atomically
from training.images import ImageSource, Source
from training.model import split_at_block, weights_digest, with_input_size
from training.outputs import find_pooling, with_features
from training.streams import counted

BATCH_SIZE = 32
LABEL_ISSUES = "probable_wrong_labels.txt"
# Of the suggested class: less is no more likely than all other classes together.
MIN_LABEL_CONFIDENCE = 0.5
POOR_ACCURACY = 0.8  # below it, the summary says what to try
POOR_RESULT = "docs/training.md#few-images-or-a-poor-result"
FLOWERS = Path("flowers")  # where convert_to_tflite.py looks without --data


@dataclass(frozen=True)
class CalibratedModel:
    """A calibrated checkpoint and its predictions.

    Attributes:
        model: of the input size that it was evaluated at.
        metadata: with its accuracy, its temperature and its details.
        uncalibrated: predictions for the evaluated images before calibration, float
            (n, classes), 0 to 1.
        probabilities: calibrated predictions for the same images.
        val_probabilities: calibrated predictions for the validation images, float (m, classes).
        features: of the images of all sets, or None if the model does not pool activations.
    """

    model: keras.Model
    metadata: Metadata
    uncalibrated: np.ndarray
    probabilities: np.ndarray
    val_probabilities: np.ndarray
    features: SplitFeatures | None = None


def calibrate(
    model: keras.Model,
    metadata: Metadata,
    dataset: Dataset,
    split: Split,
    source: Source,
    features: np.ndarray | None = None,
) -> CalibratedModel:
    """Fit temperature and details of a checkpoint, and predict.

    `model` and `metadata` are what `load_checkpoint` returned. `source` gives inputs of the whole
    network, of the size that it is to have, or of its head. `features` are what the network pools
    of all images, float (images, channels); None if that is not known yet. Where the split has no
    validation images, as the network has learned them, it stays calibrated as `metadata` says.
    """
    same_size = not isinstance(source, ImageSource) or model.input_shape[1:3] == source.size
    earlier = metadata.details.familiarity if same_size else None
    result, found = calibrate_scores(model, metadata, dataset, split, source)
    return _with_details(result, dataset, split, found, features, earlier)


def at_size(
    model: keras.Model, metadata: Metadata, size: tuple[int, int]
) -> tuple[keras.Model, Metadata]:
    """Return `model` with inputs of (height, width) `size`, and its metadata.

    If it had others, the details are left out, which belong to these.
    """
    if model.input_shape[1:3] == size:
        return model, metadata
    return with_input_size(model, size), replace(metadata, details=Details())


def calibrate_scores(
    model: keras.Model, metadata: Metadata, dataset: Dataset, split: Split, source: Source
) -> tuple[CalibratedModel, tuple[np.ndarray, np.ndarray]]:
    """Fit the temperature of a checkpoint, and predict; its details stay as they are.

    Takes what `calibrate` does. Also returns the features of the validation images and of the
    evaluated ones, each float (images, channels).
    """
    if isinstance(source, ImageSource):
        model = with_input_size(model, source.size)
    height, width = model.input_shape[1:3]
    print(f"Report: evaluating the best checkpoint at {width}×{height} pixels.", flush=True)
    validation = predict_images(model, metadata.temperature, source, split.validation)
    evaluated = validation
    if split.test:
        evaluated = predict_images(model, metadata.temperature, source, split.test)
    temperature = metadata.temperature
    if split.validation:
        temperature = fit_temperature(validation.probabilities, dataset.labels(split.validation))
        bake_temperature(model, temperature / metadata.temperature)
    probabilities = apply_temperature(evaluated.probabilities, temperature)
    hits = probabilities.argmax(axis=1) == dataset.labels(split.evaluated)
    result = CalibratedModel(
        model,
        replace(metadata, val_accuracy=float(hits.mean()), temperature=temperature),
        evaluated.probabilities,
        probabilities,
        apply_temperature(validation.probabilities, temperature),
    )
    return result, (validation.features, evaluated.features)


def adopt_calibration(
    model: keras.Model, metadata: Metadata, calibrated: CalibratedModel
) -> Metadata:
    """Calibrate `model` as the network `calibrated` is, in place; return its metadata.

    For a network that has learned the images that the other one was calibrated on.
    """
    known = calibrated.metadata
    bake_temperature(model, known.temperature / metadata.temperature)
    return replace(metadata, temperature=known.temperature, details=known.details)


class Outputs(NamedTuple):
    """What a network makes of n images: probabilities (n, classes), features (n, channels)."""

    probabilities: np.ndarray
    features: np.ndarray


def predict_images(
    model: keras.Model, temperature: float, source: Source, names: Sequence[str]
) -> Outputs:
    """Return what `model`, or its head, makes of the images `names` of `source`.

    The probabilities are those before the `temperature` of an earlier report.
    """
    if not names:
        return Outputs(np.empty((0, model.output_shape[1])), np.empty((0, 0)))
    batches = Batches(source, names, BATCH_SIZE)
    if isinstance(source, ImageSource):
        classes = model.output_shape[1]
        found = predict(with_features(model), batches)
        probabilities, features = found[:, :classes], found[:, classes:]
    else:
        probabilities = predict(split_at_block(model, None)[1], batches)
        features = source.inputs([(index, 0) for index in batches.image_indices])
    return Outputs(apply_temperature(probabilities, 1 / temperature), features)


def _with_details(
    result: CalibratedModel,
    dataset: Dataset,
    split: Split,
    found: tuple[np.ndarray, np.ndarray],
    features: np.ndarray | None,
    earlier: Familiarity | None,
) -> CalibratedModel:
    """Return `result` with its features and details.

    `found` are the features of the validation and of the evaluated images; `features` and `earlier`
    are those of `calibrate`.
    """
    pooling, present = find_pooling(result.model), set(dataset.images)
    train = [name for name in split.train if name in present]
    if pooling is None:
        learned = np.empty((0, 0), np.float32)
    elif features is not None:
        learned = features[image_indices(dataset, train)]
    else:
        print(
            f"Features: running the network once on {counted(len(train), 'training image')}.",
            flush=True,
        )
        network = keras.Model(result.model.input, pooling.output)
        learned = infer_once(network, ImageSource(dataset, network.input_shape[1:3]), train)
    sets = zip((train, split.validation, split.evaluated), (learned, *found), strict=True)
    labelled = SplitFeatures(
        *(LabelledFeatures(values, dataset.labels(names)) for names, values in sets)
    )
    if split.validation:
        details = fit_details(labelled, result.val_probabilities, earlier)
    else:
        details = transfer_details(labelled.train, result.metadata.details)
    if pooling is not None and (shortage := describe_shortage(details, len(train))):
        print(f"  {shortage}", flush=True)
    metadata = replace(result.metadata, details=details)
    return replace(result, metadata=metadata, features=None if pooling is None else labelled)


def save(result: CalibratedModel, models: Path, split: Split, evaluated: Path | None) -> Path:
    """Write the checkpoint, named by its accuracy, and its split into `models`; return its path.

    Another model of that name moves aside, unless it is `evaluated`, the checkpoint that this one
    replaces; None for a network that was not in a file.
    """
    path = models / CHECKPOINT.format(
        epoch=result.metadata.epoch, val_accuracy=result.metadata.val_accuracy
    )
    replaced = evaluated is not None and path.exists() and path.samefile(evaluated)
    if path.exists() and not replaced and not _holds(path, result.model):
        set_aside(path)
    save_checkpoint(result.model, path, result.metadata)
    write_atomically(split_record(path), split.write)
    return path


def _holds(path: Path, model: keras.Model) -> bool:
    """Return whether the checkpoint at `path` has the weights of `model`."""
    with suppress(ModelError):
        return weights_digest(load_checkpoint(path)[0]) == weights_digest(model)
    return False


@dataclass(frozen=True)
class ReportSources:
    """What a report shows beside predictions.

    Attributes:
        info: how the checkpoint was made.
        history: CSV of its epochs, or None.
        curves: learning curves of an earlier report, or None.
        features: of all images, float (images, d), by a network that has not learned from them;
            with them, labels that are probably wrong are searched. Or None.
        kept_epoch: the best one in `history`, from 1, where the checkpoint is of another network.
    """

    info: RunInfo
    history: Path | None = None
    curves: Path | None = None
    features: np.ndarray | None = None
    kept_epoch: int | None = None


def report(
    result: CalibratedModel, path: Path, dataset: Dataset, split: Split, sources: ReportSources
) -> None:
    """Write the report on the checkpoint that `save` wrote to `path`, and print a summary."""
    folder = path.with_suffix("")
    issues = _probable_label_issues(sources.features, dataset, split.seed)
    info = sources.info
    if split.validation:
        info = replace(
            info,
            picked_on=info.picked_on or _describe_picking(split),
            calibrated_on=f"The temperature was fitted on {describe_validation(split)}",
        )
    run = EvaluationRun(
        checkpoint=path,
        model=result.model,
        dataset=dataset,
        images=split.evaluated,
        probabilities=result.probabilities,
        uncalibrated=result.uncalibrated,
        temperature=result.metadata.temperature,
        history=sources.history,
        kept_epoch=sources.kept_epoch,
        info=info,
        label_issues=issues,
        curves=sources.curves,
        set_name=split.evaluated_name,
        details=result.metadata.details,
        unknowns=_measure_unknowns(result, dataset, split),
    )
    metrics = write_report(folder, run)
    if issues:
        write_label_issues(folder / LABEL_ISSUES, issues)
    print_summary(result, metrics, dataset, split)
    if issues:
        print(f"Probably wrong labels: {len(issues)}, in {folder / LABEL_ISSUES}.")
    with suppress(ModelError):
        best = best_model(path.parent, ".h5")
        if best != path:
            print(
                f"{best}, of another run, has a higher accuracy in its name: programs that take "
                "the best of the folder take that one, so name this one to them."
            )
    print(f"Report: {folder / 'README.md'}")
    print(f"Use it: {convert_command(path, dataset.folder)}")


def _describe_picking(split: Split) -> str:
    return f"The best epoch was picked on {describe_validation(split)}"


def describe_refit(first: CalibratedModel, second: CalibratedModel, split: Split) -> dict[str, str]:
    """Return `picked_on` and `calibrated_on` of `RunInfo` for a network that was trained anew.

    `first` was trained on the `split`, and `second` on its validation images as well.
    """
    count, epochs = len(split.validation), second.metadata.epoch
    chosen = f"its best epoch on them was number {first.metadata.epoch}"
    return {
        "picked_on": f"A first network was trained without the {count} validation images; {chosen}"
        f". This one was then trained from the start on training and validation images together, "
        f"for {counted(epochs, 'epoch')}",
        "calibrated_on": "The temperature, the prediction sets and the distances that make an "
        f"image unknown were fitted to what the first network made of the {count} validation "
        "images, which it had not learned. For this network, which has learned more, they are "
        "approximate",
    }


def _measure_unknowns(result: CalibratedModel, dataset: Dataset, split: Split) -> dict:
    if result.features is None:
        return {}
    return measure(
        result.model,
        result.metadata.details,
        result.features,
        result.probabilities,
        dataset.class_names,
        has_test=bool(split.test),
    )


def _probable_label_issues(
    features: np.ndarray | None, dataset: Dataset, seed: int
) -> list[LabelIssue]:
    """Return the labels that are more probably wrong than right, by `features` of all images."""
    if features is None:
        return []
    labels = dataset.labels(dataset.images)
    issues = list_label_issues(features, dataset.images, labels, dataset.class_names, seed)
    return [issue for issue in issues if issue.confidence > MIN_LABEL_CONFIDENCE]


def convert_command(checkpoint: Path, data: Path) -> str:
    """Return the command line that converts `checkpoint`, trained on `data`, for a shell."""
    words = ["python", "convert_to_tflite.py", str(checkpoint)]
    return shlex.join(words + (["--data", str(data)] if data != FLOWERS else []))


def print_summary(result: CalibratedModel, metrics: dict, dataset: Dataset, split: Split) -> None:
    """Print the metrics of each class and the accuracy on each set."""
    print(table(metrics))
    if split.test and split.validation:
        print(f"Validation accuracy: {describe_accuracy(result, dataset, split)}.")
    if unknowns := metrics.get("unknowns"):
        print(_describe_unknowns(unknowns, split.evaluated_name))
    accuracy = result.metadata.val_accuracy
    name = split.evaluated_name.capitalize()
    print(f"{name} accuracy: {accuracy:.3f} on {counted(len(split.evaluated), 'image')}.")
    if found := metrics.get("audited"):
        print(f"Audited {split.evaluated_name} accuracy: {describe_audited(found)}.")
    if known := metrics.get("run", {}).get("as_labelled"):
        excluded = counted(known["excluded"], "excluded one")
        print(
            f"As labelled: {with_interval(known['accuracy'], known['interval'])} on "
            f"{counted(known['n'], 'image')}, with the {excluded}."
        )
    if accuracy < POOR_ACCURACY:
        print(f"{_worst_mistake(metrics)} What to try: {POOR_RESULT}.")


def describe_accuracy(result: CalibratedModel, dataset: Dataset, split: Split) -> str:
    """Return accuracy and loss on the validation images, for a person."""
    labels = dataset.labels(split.validation)
    validation = evaluate(result.val_probabilities, labels, dataset.class_names)
    return (
        f"{validation['accuracy']:.3f} on {counted(validation['n'], 'image')}, "
        f"loss {validation['log_loss']:.3f}"
    )


def _describe_unknowns(unknowns: dict, set_name: str) -> str:
    drawn, level = unknowns["far"]["all"], LEVELS[-1]
    found = (
        f"Called unknown: {percent(drawn['called_unknown'][str(level)])} of {drawn['n']} drawn "
        "images of other things"
    )
    for row in unknowns["false_alarms"]:
        if row["promised"] == level:
            return (
                f"{found}, {percent(row['found'], 1)} of {counted(row['n'], f'{set_name} image')} "
                f"(promised: at most {percent(level)})."
            )
    return f"{found}. {describe_unmeasured(level, unknowns['validation_images'])}"


def _worst_mistake(metrics: dict) -> str:
    counts = np.array(metrics["confusion_matrix"])
    names = [shown(name) for name in metrics["class_names"]]
    true, predicted = divmod(int((counts - np.diag(np.diag(counts))).argmax()), len(names))
    count = counts[true, predicted]
    return f"Most frequent mistake: {names[true]} predicted as {names[predicted]} ({count})."


def describe_validation(split: Split) -> str:
    """Return which images validated, for a person."""
    count = len(split.validation)
    if not count:
        return "validation images that trained this network later"
    if split.test:
        return f"{count} validation images, which are in neither the training nor the test set"
    return f"the {count} validation images that this report is about"


@dataclass(frozen=True)
class Reevaluation:
    """What a checkpoint is evaluated on again.

    Attributes:
        data: folder of images, one sub-folder a class.
        exclude: file that lists images to leave out, or None.
        audit: file that lists images whose labels are wrong, or None.
        input_size: in pixels; None for that of the checkpoint.
        command: the command line, to be recorded.
    """

    data: Path
    exclude: Path | None = None
    audit: Path | None = None
    input_size: int | None = None
    command: str = ""


def reevaluate(checkpoint: Path, folder: Path, options: Reevaluation) -> None:
    """Calibrate, save and report on `checkpoint` again, into `folder`.

    Raises:
        ModelError: it is not a checkpoint, or has no split beside it.
        DataError: the classes, or images of the split, are missing in the data, or `folder` is
            among them.
    """
    require_outside(folder, options.data)
    model, metadata = load_checkpoint(checkpoint)
    whole_split = read_split(checkpoint)
    input_size = options.input_size
    size = (input_size, input_size) if input_size else model.input_shape[1:3]
    dataset = scan_classes(options.data, metadata.class_names, options.exclude, options.audit)
    whole_split = whole_split.spelled_as([*dataset.images, *dataset.excluded])
    split = remaining(whole_split, dataset, options.exclude)
    _require_calibrated_size(model, whole_split, size)
    info = earlier_info(checkpoint)
    excluded = _excluded_evaluated(whole_split, dataset, info)
    info = replace(
        info,
        picked_on=info.picked_on or _describe_picking(whole_split),
        split=split.sizes,
        reevaluated_by=options.command,
        excluded=_describe_excluded(dataset, split),
    )
    with claim_folder(folder):
        result = calibrate(model, metadata, dataset, split, ImageSource(dataset, size))
        info = replace(info, as_labelled=accuracy_as_labelled(result, dataset, split, excluded))
        curves = checkpoint.with_suffix("") / CURVES
        sources = ReportSources(info, curves=curves if curves.exists() else None)
        report(result, save(result, folder, split, checkpoint), dataset, split, sources)


def remaining(whole_split: Split, dataset: Dataset, exclude: Path | None) -> Split:
    """Return `whole_split` without the images that the list `exclude` leaves out of `dataset`.

    Raises:
        DataError: none is left of a set, or `dataset` lacks an image that is.
    """
    split = whole_split.without(dataset.excluded)
    require(dataset, (*split.validation, *split.test))
    for name, count in whole_split.sizes.items():
        if count and not getattr(split, name):
            raise DataError(
                f"Expected {name} images. Received: all {count} are excluded. "
                f"Remove some from {exclude}."
            )
    return split


def _require_calibrated_size(model: keras.Model, split: Split, size: tuple[int, int]) -> None:
    """Raise `ModelError` where `model` has learned the images to calibrate it on at this `size`."""
    height, width = model.input_shape[1:3]
    if split.validation or size == (height, width):
        return
    raise ModelError(
        f"Expected the input size that it was calibrated at, {width}×{height}, since the network "
        f"has learned its validation images (--refit). Received: {size[1]}×{size[0]}. Give the "
        "run another one: python train.py --refit --resume --inference-size ..."
    )


def _excluded_evaluated(whole_split: Split, dataset: Dataset, earlier: RunInfo) -> list[str]:
    """Return the evaluated images that are excluded, now or by the `earlier` report."""
    before = tuple(earlier.as_labelled.get("images", ()))
    known = [*dataset.images, *dataset.excluded]
    before = replace(whole_split, test=before).spelled_as(known).test
    now = [image for image in whole_split.evaluated if image in dataset.excluded]
    return [*dict.fromkeys((*now, *before))]


def scan_classes(
    data: Path,
    class_names: tuple[str, ...],
    exclude: Path | None = None,
    audit: Path | None = None,
) -> Dataset:
    """Return the images of `data`, whose classes have to be `class_names`, in that order.

    `exclude` and `audit` are those of `scan`.

    Raises:
        DataError: it has other classes, or as `scan`.
    """
    dataset = scan(data, exclude, audit)
    if set(map(composed, dataset.class_names)) != set(map(composed, class_names)):
        raise DataError(
            f"Expected folders of the checkpoint's classes, {', '.join(class_names)}. "
            f"Received: {', '.join(dataset.class_names)}. Name the right folder with --data."
        )
    return replace(dataset, class_names=class_names)


def accuracy_as_labelled(
    result: CalibratedModel, dataset: Dataset, split: Split, excluded: Sequence[str]
) -> dict:
    """Return the accuracy on the evaluated images and the `excluded` ones by their labels.

    Keys: `accuracy`, `interval`, `n`, `excluded`, their number, and `images`, their names; {} where
    none is excluded, or one cannot be read.
    """
    if not excluded:
        return {}
    others = replace(dataset, images=tuple(excluded))
    source = ImageSource(others, result.model.input_shape[1:3])
    try:
        predicted = predict(result.model, Batches(source, excluded, BATCH_SIZE))
    except (ServingError, OSError):
        return {}
    hits = (predicted.argmax(axis=1) == others.labels(excluded)).sum()
    hits += (result.probabilities.argmax(axis=1) == dataset.labels(split.evaluated)).sum()
    count = len(excluded) + len(split.evaluated)
    return {
        "accuracy": float(hits / count),
        "interval": wilson(int(hits), count),
        "n": count,
        "excluded": len(excluded),
        "images": list(excluded),
    }


def _describe_excluded(dataset: Dataset, split: Split) -> str | None:
    trained = dataset.excluded.intersection(split.train)
    return f"after training, which {len(trained)} of them took part in" if trained else None


def earlier_info(checkpoint: Path) -> RunInfo:
    """Return how `checkpoint` was made, from the report beside it; empty without a report."""
    with suppress(OSError, ValueError, KeyError):
        text = (checkpoint.with_suffix("") / METRICS).read_text("utf-8")
        return RunInfo.read(json.loads(text)["run"])
    return RunInfo()
