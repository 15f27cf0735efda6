"""What a report is about: the predictions of a calibrated checkpoint, and how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from serving.details import Details
from training.backend import keras
from training.dataset.scan import Dataset
from training.evaluation.label_errors import LabelIssue
from training.evaluation.metrics import risk_coverage

# What version 1.0 called the fields of `RunInfo`, and the sets of its split.
OLD_FIELDS = {"reported again by": "reevaluated_by"}
OLD_SETS = {"train": "train", "selection": "validation", "validation": "test"}
OLD_SETTINGS = {
    "validation_fraction": "test_fraction",
    "selection_fraction": "validation_fraction",
    "mixup": "mixup_alpha",
    "first_block": "fine_tune_at",
}


@dataclass(frozen=True)
class RunInfo:
    """How a checkpoint was made, for metrics.json and the model card; all of it fits JSON.

    Attributes:
        command: the command line that trained it.
        recipe: {setting: value}.
        seed: of new weights, order and mixup; the recipe has that of the split.
        weights: where the pretrained weights came from.
        labels: what labelled the training images, where it is not their folders.
        split: {set: number of images}.
        seconds: how long it took.
        picked_on: which images picked the best epoch.
        calibrated_on: which images the temperature was fitted on.
        reevaluated_by: the command line that wrote the report again, without training.
        excluded: what is to be known about excluded images.
        as_labelled: the accuracy with the excluded images, by their labels: `accuracy`, `interval`,
            `n`, `excluded`, their number, and `images`, their names.
    """

    command: str | None = None
    recipe: dict = field(default_factory=dict)
    seed: int | None = None
    weights: str | None = None
    labels: str | None = None
    split: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    picked_on: str | None = None
    calibrated_on: str | None = None
    reevaluated_by: str | None = None
    excluded: str | None = None
    as_labelled: dict = field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping) -> "RunInfo":
        """Return what `to_record` made, or what version 1.0 wrote into metrics.json."""
        known = {OLD_FIELDS.get(name, name): value for name, value in record.items()}
        split = known.get("split") or {}
        if "selection" in split:
            known["split"] = {OLD_SETS[name]: count for name, count in split.items()}
        recipe = known.get("recipe") or {}
        if "selection_fraction" in recipe:
            known["recipe"] = {OLD_SETTINGS.get(n, n): value for n, value in recipe.items()}
        names = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in known.items() if name in names})

    def to_record(self) -> dict:
        """Return the known fields as a dictionary."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}


@dataclass(frozen=True)
class EvaluationRun:
    """The predictions that a report is about.

    Attributes:
        checkpoint: the `.h5` file; only its name is used.
        model: in float32; input (n, height, width, 3), -1 to 1; a layer
            `training.model.BASE_LAYER`, pooling, dense layers, softmax.
        dataset: where the images are, and the class names.
        images: "class/file" of the evaluated images.
        probabilities: calibrated predictions for them, float (n, classes), 0 to 1.
        uncalibrated: predictions before calibration, of the same shape.
        temperature: what the logits were divided by.
        history: CSV, one row an epoch: accuracy, loss, val_accuracy, val_loss; may be missing.
        kept_epoch: the epoch of `history` that was kept, from 1; None for that of the checkpoint.
        info: how the checkpoint was made.
        label_issues: labels that are probably wrong.
        curves: learning curves of an earlier report, to be used in place of `history`.
        set_name: "test" or "validation".
        details: what the model tells beside scores.
        unknowns: how well it tells unknown images, from `training.evaluation.unknowns.measure`.
    """

    checkpoint: Path
    model: keras.Model
    dataset: Dataset
    images: tuple[str, ...]
    probabilities: np.ndarray
    uncalibrated: np.ndarray
    temperature: float
    history: Path | None = None
    kept_epoch: int | None = None
    info: RunInfo = field(default_factory=RunInfo)
    label_issues: Sequence[LabelIssue] = ()
    curves: Path | None = None
    set_name: str = "validation"
    details: Details = Details()  # noqa: RUF009 - it cannot be changed
    unknowns: dict = field(default_factory=dict)

    @cached_property
    def true_classes(self) -> np.ndarray:
        """Class index of each image, int (n,)."""
        return self.dataset.labels(self.images)

    @cached_property
    def wrong_labels(self) -> np.ndarray:
        """Which images have a label that an audit found wrong, bool (n,)."""
        return np.array([image in self.dataset.wrong_labels for image in self.images])

    @cached_property
    def predicted_classes(self) -> np.ndarray:
        """Predicted class index of each image, int (n,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of each predicted class, float (n,), 0 to 1."""
        return self.probabilities.max(axis=1)

    @cached_property
    def risk_coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Coverage and risk of answering the surest images only, each float (n,)."""
        return risk_coverage(self.confidence, self.predicted_classes == self.true_classes)

    @cached_property
    def mistakes(self) -> list[int]:
        """Positions of the misclassified images, the most confident first."""
        order = np.argsort(-self.confidence, kind="stable")
        return [int(i) for i in order if self.predicted_classes[i] != self.true_classes[i]]
