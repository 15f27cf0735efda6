"""Runs a .tflite model and returns a score for each class."""

import unicodedata
import zipfile
import zlib
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.details import read_details
from serving.errors import ModelError
from serving.model_files import describe_file, file_digest, is_tflite
from serving.runtimes import RUNTIMES, Prediction, find_runtime, load_network

if TYPE_CHECKING:
    from serving.card import Card

LABELS_FILE = "labels.txt"  # TFLite Metadata's zip entry for class names
MAX_LABELS_BYTES = 1_000_000  # thousands of class names, in any script
DECIMALS = 5
# Python unpacks others without a limit.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def named_scores(labels: tuple[str, ...], probabilities: np.ndarray) -> dict[str, float]:
    """Return {label: score} for `probabilities` (classes,), rounded to five decimals."""
    return {
        label: round(float(score), DECIMALS)
        for label, score in zip(labels, probabilities, strict=True)
    }


class Classifier:
    """A .tflite model and its class names.

    Attributes:
        labels: class names, in the order of the model's outputs.
        input_size: (height, width) in pixels.
        runtime: package that runs the model.
        details: what the model's file holds to tell more than scores.
    """

    def __init__(self, path: str | Path, threads: int = 1, runtime: str | None = None):
        """Load `path` into `runtime` (default: the first one installed), with `threads` threads.

        Raises:
            ModelError: the file is missing, has no class names, is damaged, or the runtime cannot
                load it.
        """
        self._path = path = Path(path)
        self.runtime, module = find_runtime(runtime)
        self.labels = read_labels(path)
        try:
            self._network = load_network(module, path, threads)
        except (RuntimeError, ValueError) as error:
            raise ModelError(self._cannot_load(path, error)) from error
        _, height, width, _ = self._network.input_shape
        self.input_size = (height, width)
        if self._network.outputs != len(self.labels):
            raise ModelError(
                f"Expected one class name for each of the {self._network.outputs} outputs of "
                f"{path.name}. Received: {len(self.labels)}. "
                "Convert it again with convert_to_tflite.py."
            )
        self.details = read_details(path, self._network.channels, len(self.labels))

    @cached_property
    def digest(self) -> str:
        """What `file_digest` returns of its file."""
        return file_digest(self._path)

    @cached_property
    def card(self) -> "Card | None":
        """What the model's file says of its accuracy; None if it does not."""
        from serving.card import read_card  # a cold start does without it

        return read_card(self._path)

    def _cannot_load(self, path: Path, error: Exception) -> str:
        from importlib.metadata import version  # a cold start does without it

        others = [name for name in RUNTIMES if name != self.runtime]
        reason = str(error).strip().splitlines()[0]
        return (
            f"Expected a model that {self.runtime} {version(self.runtime)} can load. "
            f"Received: {path.name} ({reason}). "
            f"Use another runtime, {' or '.join(others)} (predict.py --runtime, make build "
            "RUNTIME=), or convert it with another --quantize."
        )

    def predict(self, inputs: np.ndarray) -> Prediction:
        """Return what the model makes of one image.

        `inputs` is what `preprocess` returns: float32 (1, height, width, 3), -1 to 1.
        """
        return self._network.run(inputs)

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float32 (classes,), 0 to 1, as `predict`."""
        return self.predict(inputs).probabilities


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names stored in the .tflite file at `path`.

    Raises:
        ModelError: the file is missing, is something else, or has no usable class names.
    """
    if not path.exists():
        raise ModelError(
            f"Expected a .tflite file. Received: {path}, which does not exist. "
            "Run python convert_to_tflite.py first."
        )
    try:
        content = _read_labels_file(path)
    except RuntimeError:  # also NotImplementedError
        received = "a file that is encrypted, or compressed in an unusual way"
        raise _wrong_labels(path, received) from None
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, ValueError):
        without = f"{path.name} without them. Make it with python convert_to_tflite.py."
        received = without if is_tflite(path) else f"{path.name}, {describe_file(path)}"
        raise ModelError(
            f"Expected a .tflite file with its class names inside ({LABELS_FILE}). "
            f"Received: {received}"
        ) from None
    try:
        labels = tuple(content.decode("utf-8-sig").rstrip("\r\n").splitlines())
    except UnicodeDecodeError:
        raise _wrong_labels(path, "another encoding than UTF-8") from None
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if not all(label.strip() for label in labels or [""]):
        raise _wrong_labels(path, "a line without a name")
    if any(unicodedata.category(letter) == "Cc" for label in labels for letter in label):
        raise _wrong_labels(path, "control characters")
    if repeated:
        raise _wrong_labels(path, f"{repeated[0][:100]!r} more than once")
    return labels


def _read_labels_file(path: Path) -> bytes:
    """Return what is in the class names' file inside the .tflite file at `path`."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(LABELS_FILE)
        if entry.compress_type not in _COMPRESSIONS:
            raise NotImplementedError
        if entry.file_size > MAX_LABELS_BYTES:
            raise _wrong_labels(path, f"more than {MAX_LABELS_BYTES / 1e6:.0f} MB")
        with archive.open(entry) as file:
            return file.read(MAX_LABELS_BYTES)  # without it, all is unpacked: sizes may be lies


def _wrong_labels(path: Path, received: str) -> ModelError:
    return ModelError(
        f"Expected a different class name on each line of {LABELS_FILE} in {path.name}. "
        f"Received: {received}. Convert it again with convert_to_tflite.py."
    )
