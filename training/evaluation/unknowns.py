"""Measures what a model tells beside scores: does it know images of its classes from others?

The other images are drawn (`training.sample.others`), or of a class that is left out. All is
compared on images that neither trained the model nor calibrated what it tells.
"""

import warnings

import numpy as np

from serving.answers import UNKNOWN_BELOW
from serving.details import COVERAGE, Details, Familiarity, p_value
from serving.preprocess import preprocess
from training.backend import keras
from training.evaluation.familiarity import (
    MIN_VALIDATION,
    LabelledFeatures,
    SplitFeatures,
    distances,
    fit,
)
from training.evaluation.metrics import percent, wilson
from training.outputs import with_features
from training.sample.others import draw_others

LEVELS = (0.05, UNKNOWN_BELOW)  # p-values below which an image is called unknown
LEFT_OUT = 5  # classes, at most: each takes a fit of its own
BATCH_SIZE = 12


def measure(
    model: keras.Model,
    details: Details,
    features: SplitFeatures,
    probabilities: np.ndarray,
    class_names: tuple[str, ...],
    has_test: bool,
) -> dict:
    """Return how well `model` knows other images from those of its classes; fits JSON.

    `probabilities` are the calibrated ones of the evaluated images, float (n, classes). Unless it
    `has_test`, the validation images are also those evaluated: then each half of them is compared
    with the other.

    Keys: `validation_images`, `training_images`; `false_alarms`, a list of `promised` share of
    images that are called unknown, share `found`, its `interval` and `n`, without a level that
    the images compared with cannot reach; `far` {kind of drawn images: row} and `left_out`
    {class: row}, see `tell_apart`; `prediction_sets`, `promised` and `found` share of sets with
    the true class, its `interval`, `n` and their `mean_size`. Without enough images it is empty.
    """
    familiarity, nonconformity = details.familiarity, details.nonconformity
    if familiarity is None or nonconformity is None or len(nonconformity) < MIN_VALIDATION:
        return {}
    print("  Comparing with drawn images of other things.", flush=True)
    known = distances(familiarity, features.evaluated.features)
    confidence = probabilities.max(axis=1)
    far = {}
    for kind, (strange, strange_confidence) in _run_drawn(model, familiarity).items():
        far[kind] = tell_apart(familiarity, (known, strange), (confidence, strange_confidence))
    compared = len(familiarity.distances) if has_test else len(known) // 2
    alarms = false_alarms(_held_out(known, familiarity.distances, None if has_test else known))
    return {
        "training_images": len(features.train.classes),
        "validation_images": len(familiarity.distances),
        "false_alarms": [row for row in alarms if is_reachable(row["promised"], compared)],
        "far": far,
        "left_out": _leave_classes_out(features, class_names),
        "prediction_sets": _prediction_sets(
            nonconformity, features.evaluated.classes, probabilities, has_test
        ),
    }


def _run_drawn(
    model: keras.Model, familiarity: Familiarity
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {kind of drawn images: (distances, largest probabilities)}, and "all" of them."""
    network, size, classes = with_features(model), model.input_shape[1:3], model.output_shape[1]
    found = {}
    for kind, images in draw_others().items():
        inputs = np.concatenate([preprocess(image, size) for image in images])
        outputs = network.predict(inputs, batch_size=BATCH_SIZE, verbose=0)
        confidence = outputs[:, :classes].max(axis=1)
        found[kind] = (distances(familiarity, outputs[:, classes:]), confidence)
    every = zip(*found.values(), strict=True)
    return found | {"all": tuple(np.concatenate(each) for each in every)}


def tell_apart(
    familiarity: Familiarity,
    measured: tuple[np.ndarray, np.ndarray],
    confidence: tuple[np.ndarray, np.ndarray] | None,
) -> dict:
    """Return how well distances tell images apart.

    `measured` are distances of known and of strange images, `confidence` their largest
    probabilities. Keys: `n` strange images, `auroc`, `auroc_of_confidence` (None without it) and
    `called_unknown`, {level: share, or None if `familiarity` calls no image unknown there}.
    """
    known, strange = measured
    p = p_value(strange, familiarity.distances)
    return {
        "n": len(strange),
        "auroc": _auroc(known, strange),
        "auroc_of_confidence": None if confidence is None else 1 - _auroc(*confidence),
        "called_unknown": {
            str(level): float((p < level).mean())
            if is_reachable(level, len(familiarity.distances))
            else None
            for level in LEVELS
        },
    }


def is_reachable(level: float, compared: int) -> bool:
    """Return whether an image compared with `compared` others can have a p-value below `level`."""
    return 1 / (compared + 1) < level


def describe_unmeasured(level: float, validation_images: int) -> str:
    """Return why false alarms at `level` are not measured on so few validation images."""
    return (
        f"How many of the {validation_images} validation images are called unknown at "
        f"{percent(level)} is not measured: each half of them is compared with the other half, and "
        f"that takes {2 * int(1 / level)} or more."
    )


def _auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """Return how often a strange image has a larger value than a known one, 0 to 1."""
    from sklearn.metrics import roc_auc_score

    truth = np.append(np.zeros(len(known)), np.ones(len(strange)))
    return float(roc_auc_score(truth, np.append(known, strange)))


def _held_out(values: np.ndarray, calibration: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Return the p-values of `values` (n, ...) by other images.

    These are those of `calibration`, ascending. If the n images themselves calibrated, `own` are
    their values for it, (n,), and each half of them is compared with the other half.
    """
    if own is None:
        return p_value(values, calibration)
    p = np.empty(values.shape)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    for half, other in ((even, odd), (odd, even)):
        p[half] = p_value(values[half], np.sort(own[other]))
    return p


def false_alarms(p: np.ndarray) -> list[dict]:
    """Return, for each of `LEVELS`, how many images of p-values `p` (n,) are called unknown.

    They are images of the model's classes. Keys as in `measure`.
    """
    rows = []
    for level in LEVELS:
        count = int((p < level).sum())
        shares = {"found": count / len(p), "interval": wilson(count, len(p))}
        rows.append({"promised": level, **shares, "n": len(p)})
    return rows


def _prediction_sets(
    nonconformity: np.ndarray, true_classes: np.ndarray, probabilities: np.ndarray, has_test: bool
) -> dict:
    """Return how often prediction sets hold the true class, and how large they are."""
    rows = np.arange(len(probabilities))
    own = None if has_test else 1 - probabilities[rows, true_classes]
    sets = _held_out(1 - probabilities, nonconformity, own) > 1 - COVERAGE
    sets[rows, probabilities.argmax(axis=1)] = True
    hits = int(sets[rows, true_classes].sum())
    return {
        "promised": COVERAGE,
        "found": hits / len(sets),
        "interval": wilson(hits, len(sets)),
        "n": len(sets),
        "mean_size": float(sets.sum(axis=1).mean()),
    }


def _leave_classes_out(features: SplitFeatures, class_names: tuple[str, ...]) -> dict[str, dict]:
    """Return {class: row}: how strange a class is to statistics of the other classes alone.

    The network itself has learned from the images of that class. What is fitted without them is
    the familiarity, and a logistic regression for the probabilities.
    """
    from threadpoolctl import threadpool_limits

    step = max(1, len(class_names) // LEFT_OUT)
    rows = {}
    for index in range(0, len(class_names), step)[:LEFT_OUT]:
        others = [_without(each, index) for each in features]
        strange = features.evaluated.features[features.evaluated.classes == index]
        familiarity = fit(others[0], others[1].features)
        if familiarity is None or not len(strange) or not len(others[2].features):
            continue
        known = others[2].features
        with threadpool_limits(1):  # on busy cores, BLAS takes longer with more threads
            confidence = _confidence(others[0], known, strange)
        measured = distances(familiarity, known), distances(familiarity, strange)
        rows[class_names[index]] = tell_apart(familiarity, measured, confidence)
    return rows


def _without(labelled: LabelledFeatures, index: int) -> LabelledFeatures:
    kept = labelled.classes != index
    return LabelledFeatures(labelled.features[kept], labelled.classes[kept])


def _confidence(
    train: LabelledFeatures, known: np.ndarray, strange: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the largest probabilities that a head on `train` gives; None for a single class."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train.classes)) < 2:
        return None
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(train.features, train.classes)
    known_confidence, strange_confidence = (
        head.predict_proba(features).max(axis=1) for features in (known, strange)
    )
    return known_confidence, strange_confidence
