"""Predictions of images in a file, so that networks trained in different places can be compared.

A file is an `.npz` archive of NumPy with

- `names`: "class/file" of each image, text (n,);
- `probabilities`: float (n, classes), 0 to 1, a column for each class, in the order of
  `class_names`;
- `class_names`, text (classes,), which may be left out: then the order is that of the sorted names
  of all classes;
- `labels`, int (n,), which may be left out: the index of the class of each name, for a check.
"""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.dataset.names import composed
from training.dataset.scan import class_of
from training.errors import DataError
from training.files import write_atomically
from training.streams import printable

SUM_TOLERANCE = 0.01  # of the probabilities of an image, which float16 rounds


@dataclass(frozen=True)
class Predictions:
    """What a network that has not learned from them makes of images.

    Attributes:
        names: "class/file" of each image.
        probabilities: float64 (n, classes), 0 to 1, each row of sum 1.
        class_names: of the columns.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    class_names: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """Class index of each image by its folder, int (n,)."""
        return _labels(self.names, self.class_names)

    @property
    def predicted_classes(self) -> np.ndarray:
        """Predicted class index of each image, int (n,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def hits(self) -> np.ndarray:
        """Whether the predicted class of each image is its label's, bool (n,)."""
        return self.predicted_classes == self.labels

    def write(self, path: Path) -> None:
        """Write these predictions to `path` (.npz) atomically."""
        write_atomically(
            path,
            lambda new: np.savez_compressed(
                new,
                names=np.array(self.names),
                labels=self.labels,
                probabilities=self.probabilities.astype(np.float32),
                class_names=np.array(self.class_names),
            ),
        )


def read_predictions(paths: Sequence[Path]) -> list[Predictions]:
    """Return the predictions in the files `paths`, all of the same classes.

    Raises:
        DataError: a file holds something else, or other classes than the first.
    """
    arrays = {path: _read_arrays(path) for path in paths}
    every = sorted({class_of(name) for found in arrays.values() for name in found["names"]})
    first = None
    predictions = []
    for path, found in arrays.items():
        class_names = tuple(map(str, found.get("class_names", every)))
        _check(path, found, class_names)
        if class_names != (first := first or class_names):
            raise DataError(
                f"Expected predictions of the classes {', '.join(first)}. Received: {path} of "
                f"{', '.join(class_names)}. Leave one of them out."
            )
        exact = found["probabilities"].astype(np.float64)
        exact /= exact.sum(axis=1, keepdims=True)
        predictions.append(Predictions(tuple(map(str, found["names"])), exact, class_names))
    return predictions


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        names, probabilities = found["names"], found["probabilities"]
    except (ValueError, KeyError, AttributeError, TypeError, EOFError, zipfile.BadZipFile):
        raise _no_predictions(path, "something else") from None
    if names.dtype.kind != "U" or names.ndim != 1 or probabilities.dtype.kind != "f":
        raise _no_predictions(path, f"names of type {names.dtype} and {probabilities.dtype}")
    return found


def _check(path: Path, found: dict[str, np.ndarray], class_names: tuple[str, ...]) -> None:
    """Raise `DataError` where the arrays `found` in `path` do not belong together."""
    names, probabilities = found["names"], found["probabilities"].astype(np.float64)
    expected = (len(names), len(class_names))
    if probabilities.shape != expected or not len(names):
        raise _no_predictions(path, f"probabilities {probabilities.shape} for {expected}")
    if not (np.abs(probabilities.sum(axis=1) - 1) < SUM_TOLERANCE).all() or probabilities.min() < 0:
        raise _no_predictions(path, "scores that are no probabilities, as their sum is not 1")
    if len(set(names.tolist())) < len(names):
        raise _no_predictions(path, "an image twice")
    foreign = {composed(class_of(name)) for name in names} - set(map(composed, class_names))
    if foreign:
        raise _no_predictions(path, f"images of {printable(', '.join(sorted(foreign)))}")
    labels = found.get("labels")
    if labels is not None and not np.array_equal(labels, _labels(names, class_names)):
        raise _no_predictions(path, "labels that are not the places of its names' classes")


def _labels(names: Iterable[str], class_names: Sequence[str]) -> np.ndarray:
    places = {composed(name): place for place, name in enumerate(class_names)}
    return np.array([places[composed(class_of(name))] for name in names], int)


def _no_predictions(path: Path, received: str) -> DataError:
    return DataError(
        "Expected predictions: an .npz file with names (class/file) and probabilities (images, "
        f"classes), and class_names unless these are sorted. Received: {received} in {path}."
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of all `parts`, which are of different images.

    Raises:
        DataError: an image is in two of them.
    """
    names = tuple(name for part in parts for name in part.names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"Expected each image to be tested in one fold. Received: {printable(twice)} in two. "
            "Remove the files of other folds."
        )
    return Predictions(
        names, np.concatenate([part.probabilities for part in parts]), parts[0].class_names
    )


def averaged(parts: Sequence[Predictions]) -> Predictions:
    """Return the mean of the predictions of each image in `parts`, sorted by name."""
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for part in parts:
        for name, probabilities in zip(part.names, part.probabilities, strict=True):
            sums[name] = sums.get(name, 0) + probabilities
            counts[name] = counts.get(name, 0) + 1
    names = tuple(sorted(sums))
    means = np.array([sums[name] / counts[name] for name in names])
    return Predictions(names, means, parts[0].class_names)
