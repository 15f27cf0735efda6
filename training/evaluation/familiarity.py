"""Fits what a model tells beside scores: is an image familiar, and which classes may it be?

The statistics are those of `serving.details`: of training images the covariance of the features,
of validation images how far they are from it, and how likely their classes were.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from serving.answers import UNKNOWN_BELOW
from serving.details import Details, Familiarity

# Directions of their own variance. Of 8 to 2,048, 128 tell flowers from photographs of other
# things as well as all do, in 0.5 MB.
RANK = 128
# With fewer, a covariance says little. Of flowers, 8 give an AUROC of 0.955 against photographs of
# other things, 20 give 0.980, and 2,422 give 0.997.
MIN_TRAINING = 8
# The smallest p-value of n validation images is 1 / (n + 1).
MIN_VALIDATION = round(1 / UNKNOWN_BELOW)
# Of features of length 1, summed over all channels: less is rounding errors of equal features.
SAME = 1e-10
SMALLEST_VARIANCE = 1e-6  # of a direction, over the mean of all


class LabelledFeatures(NamedTuple):
    """The pooled features of images, float32 (n, channels), and their classes, int (n,)."""

    features: np.ndarray
    classes: np.ndarray


class SplitFeatures(NamedTuple):
    """The features of each set of a split; `evaluated` is `validation` if there is no test set."""

    train: LabelledFeatures
    validation: LabelledFeatures
    evaluated: LabelledFeatures


def fit(train: np.ndarray, validation: np.ndarray, rank: int = RANK) -> Familiarity | None:
    """Return the familiarity of the features of `train` (n, channels), compared by `validation`.

    Return None if it cannot be told from them: they are fewer than `MIN_TRAINING`, all the same, or
    not numbers.
    """
    if len(train) < MIN_TRAINING or not len(validation):
        return None
    if not (np.isfinite(train).all() and np.isfinite(validation).all()):
        return None
    from sklearn.covariance import ledoit_wolf_shrinkage
    from threadpoolctl import threadpool_limits

    unit = _unit(train)
    mean = unit.mean(axis=0)
    offsets = unit - mean
    channels, total = len(mean), float((offsets**2).sum()) / len(unit)
    average = total / channels
    if total < SAME:
        return None
    # On busy cores, BLAS takes ten times as long with more than one thread.
    with threadpool_limits(1):
        share = ledoit_wolf_shrinkage(offsets, assume_centered=True)
        variances, directions = _principal(offsets, min(rank, len(train) - 1, channels))
    others = max(total - variances.sum(), 0) / max(channels - len(variances), 1)
    shrunk = (1 - share) * np.append(variances, others) + share * average
    shrunk = np.maximum(shrunk, SMALLEST_VARIANCE * average)
    fitted = Familiarity(
        mean=mean.astype(np.float32),
        # As they will be stored: distances are compared with those that the stored ones give.
        directions=directions.astype(np.float16, order="C").astype(np.float32),
        variances=shrunk[:-1].astype(np.float32),
        rest=float(shrunk[-1].astype(np.float32)),
        distances=np.zeros(1, np.float32),
    )
    return compare_with(fitted, validation)


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


def _principal(offsets: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `rank` largest variances of `offsets` (n, channels), and their directions.

    The largest is first; directions are (channels, rank).
    """
    from scipy.sparse.linalg import eigsh

    count, channels = offsets.shape
    if min(count, channels) <= 2 * rank:
        _, lengths, rows = np.linalg.svd(offsets, full_matrices=False)
        return lengths[:rank] ** 2 / count, rows[:rank].T
    covariance = offsets.T @ offsets / count
    # A starting point of its own makes it the same each time.
    values, vectors = eigsh(covariance, rank, v0=np.ones(channels, np.float32))
    return values[::-1], vectors[:, ::-1]


def fit_details(
    features: SplitFeatures, val_probabilities: np.ndarray, earlier: Familiarity | None = None
) -> Details:
    """Return what a model tells, by its features and its calibrated `val_probabilities`.

    `earlier` is the familiarity of the same network, for where there are no training images.
    """
    validation = features.validation
    familiarity = fit(features.train.features, validation.features)
    if familiarity is None and earlier is not None and np.isfinite(validation.features).all():
        familiarity = compare_with(earlier, validation.features)
    found = 1 - val_probabilities[np.arange(len(val_probabilities)), validation.classes]
    nonconformity = np.sort(found) if len(found) and np.isfinite(found).all() else None
    return Details(familiarity, nonconformity)


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
