"""What a model tells beside scores: is the image familiar, which classes, and where it looked.

Its file holds the statistics for it (`DETAILS_FILE`), and it returns the activations of its last
convolution. `training.evaluation.familiarity` fits the statistics.

Products are those of `einsum`. A matrix product of NumPy's starts threads: on busy cores, an answer
waited 18 ms for them instead of 0.1.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import ModelError

DETAILS_FILE = "details.npz"  # zip entry of the .tflite file
COVERAGE = 0.95  # of prediction sets
MAX_HALF = 65504.0  # the largest float16


@dataclass(frozen=True)
class Familiarity:
    """How far the images are from those that a model was trained on.

    Features are the activations of the last convolution, averaged over the image and scaled to
    length 1. Those of a class vary in a few directions around their mean; the distance is what
    remains of an image's features beside them, for the class where that is least (Oja 1983,
    "Subspace Methods of Pattern Recognition"). It is compared with the distances of images that the
    model has not learned from.

    Attributes:
        means: of each class's training images, float32 (classes, channels).
        directions: in which they vary most, orthonormal, float32 (classes, channels, rank); zeros
            fill up what a class has fewer.
        distances: of the validation images, float32 (n,), ascending.
    """

    means: np.ndarray
    directions: np.ndarray
    distances: np.ndarray

    def __post_init__(self) -> None:
        """Raise ValueError unless the statistics fit each other."""
        classes, channels, _ = self.directions.shape
        if not classes or self.means.shape != (classes, channels):
            raise ValueError("statistics of different shapes")
        _require_ascending(self.distances)

    def known(self, activations: np.ndarray) -> float:
        """Return the share of validation images that are at least as far, 0 to 1.

        `activations` is float32 (rows, columns, channels). The share is a conformal p-value: of
        images like those of training, at most 2 % have 0.02 or less.
        """
        return float(p_value(self.distance(activations.mean(axis=(0, 1))), self.distances))

    def distance(self, features: np.ndarray) -> float:
        """Return the squared distance of `features` (channels,), not yet of length 1: 0 to 4."""
        offsets = features / max(float(np.linalg.norm(features)), 1e-12) - self.means
        along = np.einsum("kc,kcr->kr", offsets, self.directions)
        beside = (offsets**2).sum(axis=1) - (along**2).sum(axis=1)
        return max(float(beside.min()), 0.0)


def p_value(values: float | np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the conformal p-value of each of `values` among `others` (n,), ascending."""
    larger = len(others) - np.searchsorted(others, values)
    return (larger + 1) / (len(others) + 1)


def _require_ascending(values: np.ndarray) -> None:
    """Raise ValueError unless `values` are (n,), at least one, and ascending."""
    if values.ndim != 1 or not len(values) or (np.diff(values) < 0).any():
        raise ValueError("no ascending list")


Layer = tuple[np.ndarray, np.ndarray]  # kernel (inputs, units) and bias (units,), float32


@dataclass(frozen=True)
class Details:
    """What a model's file holds to tell more than scores; each may be missing.

    Attributes:
        familiarity: of images, or None.
        nonconformity: 1 less the probability of the true class of each validation image, float32
            (n,), ascending; or None.
        head: the dense layers behind the pooling: ReLU, and at last a softmax; empty if there are
            others.
    """

    familiarity: Familiarity | None = None
    nonconformity: np.ndarray | None = None
    head: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError unless each layer fits the one before."""
        if self.nonconformity is not None:
            _require_ascending(self.nonconformity)
        inputs = [kernel.shape[0] for kernel, _ in self.head[1:]]
        outputs = [bias.shape[0] for _, bias in self.head]
        if inputs != outputs[:-1] or any(k.shape[1:] != b.shape for k, b in self.head):
            raise ValueError("layers of different shapes")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell beside scores."""
        return self.familiarity is None and self.nonconformity is None and not self.head

    def of_model(self, channels: int | None, classes: int) -> "Details":
        """Return what a model can tell that returns activations of `channels`, None for none.

        Raises:
            ValueError: the statistics are of another model.
        """
        if channels is None:
            return Details(nonconformity=self.nonconformity)
        if self.familiarity is not None and self.familiarity.means.shape[1] != channels:
            raise ValueError("familiarity of other activations")
        if self.head and (len(self.head[0][0]), len(self.head[-1][1])) != (channels, classes):
            raise ValueError("layers of another model")
        return self

    def prediction_set(self, probabilities: np.ndarray) -> np.ndarray | None:
        """Return which classes are in the split-conformal set at `COVERAGE`, bool (classes,).

        The set of 95 % of images like those of training holds their true class (Vovk et al. 2005;
        Sadinle et al. 2019, "Least Ambiguous Set-Valued Classifiers"). The likeliest class is
        always in it.
        """
        if self.nonconformity is None:
            return None
        chosen = p_value(1 - probabilities, self.nonconformity) > 1 - COVERAGE
        chosen[np.argmax(probabilities)] = True
        return chosen

    def activation_map(self, activations: np.ndarray, index: int) -> np.ndarray:
        """Return how much each region speaks for class `index`: float32 (rows, columns), 0 to 1.

        `activations` is float32 (rows, columns, channels), and there has to be a `head`.
        It is Grad-CAM (Selvaraju et al. 2017), whose gradients are known where dense layers follow
        a pooling. The most important region has 1; if none speaks for the class, all have 0.
        """
        x, active = activations.mean(axis=(0, 1)), []
        for kernel, bias in self.head[:-1]:
            x = np.maximum(np.einsum("i,io->o", x, kernel) + bias, 0)
            active.append(x > 0)
        weights = self.head[-1][0][:, index]
        for (kernel, _), mask in zip(self.head[-2::-1], active[::-1], strict=True):
            weights = np.einsum("io,o->i", kernel, weights * mask)
        found = np.maximum(np.einsum("rci,i->rc", activations, weights), 0)
        peak = found.max()
        return found / peak if 0 < peak < np.inf else np.zeros_like(found)

    def to_arrays(self) -> dict[str, Any]:
        """Return all of it as {name: array}; kernels and directions lose half their bits."""
        arrays: dict[str, Any] = {}
        if self.familiarity is not None:
            arrays |= {name: np.float32(value) for name, value in vars(self.familiarity).items()}
            arrays["directions"] = np.float16(self.familiarity.directions)
        if self.nonconformity is not None:
            arrays["nonconformity"] = np.float32(self.nonconformity)
        for number, (kernel, bias) in enumerate(self.head):
            half = np.float16(np.clip(kernel, -MAX_HALF, MAX_HALF))
            arrays |= {f"kernel_{number}": half, f"bias_{number}": np.float32(bias)}
        return arrays

    def to_bytes(self) -> bytes:
        """Return the content of `DETAILS_FILE`, empty if there are no details."""
        arrays = self.to_arrays()
        if not arrays:
            return b""
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Details":
        """Return what `to_arrays` returned.

        Raises:
            KeyError, ValueError: they are incomplete, do not fit each other or are no numbers.
        """
        arrays = {name: np.asarray(values, np.float32) for name, values in arrays.items()}
        if not all(np.isfinite(values).all() for values in arrays.values()):
            raise ValueError("not a number")
        familiarity = None
        if arrays.keys() & {"means", "directions"}:
            names = ("means", "directions", "distances")
            familiarity = Familiarity(**{name: arrays[name] for name in names})
        layers = sum(name.startswith("kernel_") for name in arrays)
        head = tuple((arrays[f"kernel_{n}"], arrays[f"bias_{n}"]) for n in range(layers))
        return cls(familiarity, arrays.get("nonconformity"), head)


def read_details(path: Path, channels: int | None, classes: int) -> Details:
    """Return the details in the .tflite file at `path`; none if it has no `DETAILS_FILE`.

    The model returns activations of `channels`, None for none, and scores of `classes`.

    Raises:
        ModelError: they are damaged, or of another model.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if DETAILS_FILE not in archive.namelist():
                return Details()
            content = _read_entry(archive, DETAILS_FILE, path.stat().st_size)
        return Details.from_arrays(_unpack(content)).of_model(channels, classes)
    except Exception as error:  # zipfile and NumPy raise nearly anything on a damaged file
        raise ModelError(
            f"Expected a .tflite file with complete statistics of its own inside ({DETAILS_FILE}). "
            f"Received: {path.name} with damaged ones. Convert it again with convert_to_tflite.py."
        ) from error


def _read_entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return an entry of `archive`; ValueError if it is larger than `most` bytes, as bombs are."""
    if archive.getinfo(name).file_size > most:
        raise ValueError("packed")
    return archive.read(name)


def _unpack(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file; unlike `np.load`, trust no size in their headers."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            data = _read_entry(archive, name, len(content))
            file = io.BytesIO(data)
            np.lib.format.read_magic(file)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            values = np.frombuffer(data, dtype, offset=file.tell())
            order = "F" if is_fortran else "C"
            arrays[name.removesuffix(".npy")] = values.reshape(shape, order=order)
    return arrays
