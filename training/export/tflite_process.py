"""Runs a .tflite file as the service does: in a process without TensorFlow.

After TensorFlow has been imported, tflite-runtime 2.14 loads no model any more
("vector::reserve"): both bring the same C++ symbols.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from serving.classifier import Classifier
from serving.details import Details
from serving.errors import ModelError
from serving.resources import thread_count
from serving.runtimes import Prediction

ROOT = Path(__file__).parents[2]


class Told(NamedTuple):
    """What a model tells of n images.

    Attributes:
        probabilities: of the classes, float32 (n, classes), 0 to 1.
        known: p-values, float (n,), or None if the model does not tell.
        maps: where it saw each image's best class, float32 (n, rows, columns), 0 to 1, or None.
    """

    probabilities: np.ndarray
    known: np.ndarray | None
    maps: np.ndarray | None


def tell(details: Details, predictions: Sequence[Prediction]) -> Told:
    """Return what a model with `details` tells of the images of `predictions`."""
    probabilities = np.stack([each.probabilities for each in predictions])
    activations = [each.activations for each in predictions if each.activations is not None]
    known = maps = None
    if activations and details.familiarity is not None:
        known = np.array([details.familiarity.known(each) for each in activations])
    if activations and details.head:
        best = zip(activations, probabilities.argmax(axis=1), strict=True)
        maps = np.stack([details.activation_map(each, int(index)) for each, index in best])
    return Told(probabilities, known, maps)


class TFLiteProcess:
    """A .tflite model in a process of its own; a context manager.

    Attributes:
        seconds: how long the last `predict` took in that process.
    """

    def __init__(self, model: Path, runtime: str | None = None, threads: int | None = None):
        """Start to load `model`, for `runtime` and `threads` [as the service chooses them]."""
        self.seconds = 0.0
        self._model = model
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", __name__, str(model.resolve()), str(theirs.fileno())]
        command += ["--runtime", runtime] if runtime else []
        command += ["--threads", str(threads or thread_count())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdout=self._errors,
                stderr=self._errors,
            )

    def __enter__(self) -> "TFLiteProcess":
        """Return this process; it is loading the model."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process, which happens once the connection is closed."""
        self._connection.close()
        self._process.wait()
        self._errors.close()

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (n, classes), 0 to 1; see `tell`."""
        return self.tell(inputs).probabilities

    def tell(self, inputs: np.ndarray) -> Told:
        """Return all that the model tells of images.

        `inputs` is float32 (n, height, width, 3), -1 to 1.

        Raises:
            ModelError: the runtime is not installed, cannot load the model, or crashed.
        """
        try:
            self._connection.send(inputs)
            told, self.seconds = self._connection.recv()
        except (EOFError, OSError):
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            sentence = last[0] if last else f"{self._model.name} ended the process of its runtime."
            raise ModelError(sentence) from None
        return Told(*told)


def tell_once(model: Path, inputs: np.ndarray, runtime: str | None) -> Told:
    """Return what `model` tells of `inputs`; see `TFLiteProcess.tell`."""
    with TFLiteProcess(model, runtime) as process:
        return process.tell(inputs)


def main() -> int:
    """Predict for the inputs that arrive until the connection closes; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("connection", type=int, help="descriptor of the pipe's end")
    parser.add_argument("--runtime")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    try:
        classifier = Classifier(options.model, options.threads, options.runtime)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    with Connection(options.connection) as connection:
        while True:
            try:
                inputs = connection.recv()
            except EOFError:
                return 0
            started = time.perf_counter()
            predictions = [classifier.predict(row[np.newaxis]) for row in inputs]
            seconds = time.perf_counter() - started
            # A tuple: this module has another name here than where it is read.
            connection.send((tuple(tell(classifier.details, predictions)), seconds))


if __name__ == "__main__":
    sys.exit(main())
