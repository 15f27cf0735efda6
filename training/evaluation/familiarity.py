"""Fits what a model tells beside scores: is an image familiar, and which classes may it be?

The statistics are those of `serving.details`: of training images the directions in which the
features of each class vary, of validation images how far they are from these, and how likely their
classes were.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from serving.answers import UNKNOWN_BELOW
from serving.details import Details, Familiarity

# Directions of a class. With 8 to 24, flowers are told from other things about as well (AUROC
# 0.996), and from what is wrongly labelled as one (0.85).
RANK = 16
# Means and directions of all classes: with 2,048 channels less than 1 MB.
MAX_VALUES = 244 * 2048
MIN_TRAINING = 8  # images; with fewer, the mean of a class says little
# The smallest p-value of n validation images is 1 / (n + 1).
MIN_VALIDATION = round(1 / UNKNOWN_BELOW)
# Of features of length 1, summed over all channels: less is rounding errors of equal features.
SAME = 1e-10
SMALLEST_VARIANCE = 1e-9  # of a direction, of features of length 1


class LabelledFeatures(NamedTuple):
    """The pooled features of images, float32 (n, channels), and their classes, int (n,)."""

    features: np.ndarray
    classes: np.ndarray


class SplitFeatures(NamedTuple):
    """The features of each set of a split; `evaluated` is `validation` if there is no test set."""

    train: LabelledFeatures
    validation: LabelledFeatures
    evaluated: LabelledFeatures


def fit(train: LabelledFeatures, validation: np.ndarray, rank: int = RANK) -> Familiarity | None:
    """Return the familiarity of the images `train`, compared by the features `validation` (n, ...).

    Return None if it cannot be told from them: they are fewer than `MIN_TRAINING`, all the same, or
    not numbers.
    """
    if not len(validation) or not np.isfinite(validation).all():
        return None
    fitted = _fit_directions(train, rank)
    return None if fitted is None else compare_with(fitted, validation)


def _fit_directions(train: LabelledFeatures, rank: int = RANK) -> Familiarity | None:
    """Return the familiarity of the images `train`, which compares images with none yet."""
    features = train.features
    if len(features) < MIN_TRAINING or not np.isfinite(features).all():
        return None
    unit, classes = _unit(features), np.unique(train.classes)
    if float(unit.var(axis=0).sum()) < SAME:
        return None
    channels = unit.shape[1]
    # Beside them, most directions are to remain, also of a small network.
    rank = min(rank, MAX_VALUES // channels // len(classes) - 1, channels // 4)
    means = np.stack([unit[train.classes == index].mean(axis=0) for index in classes])
    directions = np.zeros((len(classes), channels, max(rank, 1)), np.float16)
    for place, index in enumerate(classes):
        found = _principal(unit[train.classes == index] - means[place], rank)
        directions[place, :, : found.shape[1]] = found
    return Familiarity(
        means=means.astype(np.float32),
        # As they will be stored: distances are compared with those that the stored ones give.
        directions=directions.astype(np.float32),
        distances=np.zeros(1, np.float32),
    )


def compare_with(familiarity: Familiarity, validation: np.ndarray) -> Familiarity:
    """Return `familiarity` that compares images with those of the features `validation`."""
    return replace(familiarity, distances=np.sort(distances(familiarity, validation)))


def distances(familiarity: Familiarity, features: np.ndarray) -> np.ndarray:
    """Return how far images with `features` (n, channels) are, float32 (n,)."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # 0.1 ms an image; on busy cores 4 ms with two threads
        return np.array([familiarity.distance(row) for row in features], np.float32)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _principal(offsets: np.ndarray, rank: int) -> np.ndarray:
    """Return the directions in which `offsets` (n, channels) vary most: (channels, at most `rank`).

    A class of n images has n - 2 at most: the last ones would be those of single images.
    """
    from scipy.sparse.linalg import eigsh
    from threadpoolctl import threadpool_limits

    count, channels = offsets.shape
    rank = max(0, min(rank, count - 2))
    if not rank:
        return np.empty((channels, 0))
    with threadpool_limits(1):  # on busy cores, BLAS takes ten times as long with more threads
        if min(count, channels) <= 2 * rank:
            _, lengths, rows = np.linalg.svd(offsets, full_matrices=False)
            variances, directions = lengths[:rank] ** 2 / count, rows[:rank].T
        else:
            # A starting point of its own makes it the same each time.
            start = np.ones(channels, np.float32)
            variances, directions = eigsh(offsets.T @ offsets / count, rank, v0=start)
            variances, directions = variances[::-1], directions[:, ::-1]
    return directions[:, variances > SMALLEST_VARIANCE]


def fit_details(
    features: SplitFeatures, val_probabilities: np.ndarray, earlier: Familiarity | None = None
) -> Details:
    """Return what a model tells, by its features and its calibrated `val_probabilities`.

    `earlier` is the familiarity of the same network, for where there are no training images.
    """
    validation = features.validation
    familiarity = fit(features.train, validation.features)
    if familiarity is None and earlier is not None and np.isfinite(validation.features).all():
        familiarity = compare_with(earlier, validation.features)
    found = 1 - val_probabilities[np.arange(len(val_probabilities)), validation.classes]
    nonconformity = np.sort(found) if len(found) and np.isfinite(found).all() else None
    return Details(familiarity, nonconformity)


def transfer_details(train: LabelledFeatures, calibrated: Details) -> Details:
    """Return what a network tells that has learned all images but those of the test set.

    The statistics are of its features of `train`. What they are compared with is `calibrated`: the
    distances and probabilities of images that another network, or this one's report before, had
    not learned. Without features of training images, all of it is `calibrated`.
    """
    if not len(train.features) or calibrated.familiarity is None:
        return calibrated
    fitted = _fit_directions(train)
    if fitted is not None:
        fitted = replace(fitted, distances=calibrated.familiarity.distances)
    return replace(calibrated, familiarity=fitted)


def describe_shortage(details: Details, train: int) -> str | None:
    """Return what `details` cannot tell, fitted to `train` images, for a person; None if nothing.

    They may be too few, and so may be the validation images.
    """
    if details.familiarity is None:
        reason = f"{train} training images, of {MIN_TRAINING} or more"
        if train >= MIN_TRAINING:
            reason = "features of training images that are all the same or are no numbers"
        return f"The model will not say which images are unknown: it has {reason}."
    count = len(details.familiarity.distances)
    if count >= MIN_VALIDATION:
        return None
    smallest = 1 / (count + 1)
    return (
        f"The model calls no image unknown: {count} validation images give no p-value below "
        f"{smallest:.3f}, and UNKNOWN_BELOW is {UNKNOWN_BELOW}. Use {MIN_VALIDATION} or "
        f"more, or set UNKNOWN_BELOW above {smallest:.3f}."
    )
