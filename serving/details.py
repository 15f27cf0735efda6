"""What a model tells beside scores: is the image familiar, which classes, and where it looked.

Its file holds the statistics for it (`DETAILS_FILE`), and it returns the activations of its last
convolution. `training.evaluation.familiarity` fits the statistics.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import ModelError

DETAILS_FILE = "details.npz"  # zip entry of the .tflite file
MAX_DETAILS_BYTES = 50_000_000  # of it, unpacked
COVERAGE = 0.95  # of prediction sets


@dataclass(frozen=True)
class Familiarity:
    """How far the images are from those that a model was trained on.

    Features are the activations of the last convolution, averaged over the image and scaled to
    length 1. Their distance is Mahalanobis' with a covariance of `directions` in which they vary,
    and one variance for all others (Tipping and Bishop 1999, "Probabilistic Principal Component
    Analysis"). It is compared with the distances of images that the model has not learned from.

    Attributes:
        mean: of the training images' features, float32 (channels,).
        directions: float32 (channels, rank), orthonormal.
        variances: along each direction, float32 (rank,).
        rest: the variance along any other direction.
        distances: of the validation images, float32 (n,), ascending.
    """

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    rest: float
    distances: np.ndarray

    def known(self, activations: np.ndarray) -> float:
        """Return the share of validation images that are at least as far, 0 to 1.

        `activations` is float32 (rows, columns, channels). The share is a conformal p-value: of
        images like those of training, at most 2 % have 0.02 or less.
        """
        return p_value(self.distance(activations.mean(axis=(0, 1))), self.distances)

    def distance(self, features: np.ndarray) -> float:
        """Return the squared distance of `features` (channels,), not yet of length 1."""
        offset = features / max(float(np.linalg.norm(features)), 1e-12) - self.mean
        along = offset @ self.directions
        across = max(float(offset @ offset - along @ along), 0.0)
        return float((along**2 / self.variances).sum()) + across / self.rest


def p_value(value: float, others: np.ndarray) -> float:
    """Return the conformal p-value of `value` among `others` (n,), ascending."""
    larger = len(others) - int(np.searchsorted(others, value))
    return (larger + 1) / (len(others) + 1)


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

    def prediction_set(self, probabilities: np.ndarray) -> np.ndarray | None:
        """Return which classes are in the split-conformal set at `COVERAGE`, bool (classes,).

        The set of 95 % of images like those of training holds their true class (Vovk et al. 2005;
        Sadinle et al. 2019, "Least Ambiguous Set-Valued Classifiers"). The likeliest class is
        always in it.
        """
        if self.nonconformity is None:
            return None
        values = np.array([p_value(1 - p, self.nonconformity) for p in probabilities])
        chosen = values > 1 - COVERAGE
        chosen[np.argmax(probabilities)] = True
        return chosen

    def activation_map(self, activations: np.ndarray, index: int) -> np.ndarray | None:
        """Return how much each region speaks for class `index`: float32 (rows, columns), 0 to 1.

        It is Grad-CAM (Selvaraju et al. 2017), whose gradients are known where dense layers follow
        a pooling. The most important region has 1; if none speaks for the class, all have 0.
        """
        if not self.head:
            return None
        x, active = activations.mean(axis=(0, 1)), []
        for kernel, bias in self.head[:-1]:
            x = np.maximum(x @ kernel + bias, 0)
            active.append(x > 0)
        weights = self.head[-1][0][:, index]
        for (kernel, _), mask in zip(self.head[-2::-1], active[::-1], strict=True):
            weights = kernel @ (weights * mask)
        found = np.maximum(activations @ weights, 0)
        peak = found.max()
        return found / peak if peak > 0 else found

    def to_bytes(self) -> bytes:
        """Return the content of `DETAILS_FILE`; kernels and directions lose half their bits."""
        arrays: dict[str, Any] = {}
        if self.familiarity is not None:
            arrays |= {name: np.float32(value) for name, value in vars(self.familiarity).items()}
            arrays["directions"] = np.float16(self.familiarity.directions)
        if self.nonconformity is not None:
            arrays["nonconformity"] = np.float32(self.nonconformity)
        for number, (kernel, bias) in enumerate(self.head):
            arrays |= {f"kernel_{number}": np.float16(kernel), f"bias_{number}": np.float32(bias)}
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Details":
        """Return what `to_bytes` wrote, from its arrays.

        Raises:
            KeyError, ValueError: they are not complete.
        """
        arrays = {name: np.asarray(values, np.float32) for name, values in arrays.items()}
        familiarity = None
        if "mean" in arrays:
            names = ("mean", "directions", "variances", "distances")
            vectors = {name: arrays[name] for name in names}
            familiarity = Familiarity(**vectors, rest=float(arrays["rest"]))
        layers = sum(name.startswith("kernel_") for name in arrays)
        head = tuple((arrays[f"kernel_{n}"], arrays[f"bias_{n}"]) for n in range(layers))
        return cls(familiarity, arrays.get("nonconformity"), head)


def read_details(path: Path) -> Details:
    """Return the details in the .tflite file at `path`; none if it has no `DETAILS_FILE`.

    Raises:
        ModelError: they are damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if DETAILS_FILE not in archive.namelist():
                return Details()
            if archive.getinfo(DETAILS_FILE).file_size > MAX_DETAILS_BYTES:
                raise ValueError("too large")
            content = archive.read(DETAILS_FILE)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return Details.from_arrays(arrays)
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, OSError, ValueError):
        raise ModelError(
            f"Expected a .tflite file with complete statistics inside ({DETAILS_FILE}). "
            f"Received: {path.name} with damaged ones. Convert it again with convert_to_tflite.py."
        ) from None
