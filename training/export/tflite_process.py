"""Runs a .tflite file as the service does: in a process without TensorFlow.

After TensorFlow has been imported, tflite-runtime 2.14 loads no model any more
("vector::reserve"): both bring the same C++ symbols.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import numpy as np

from serving.classifier import Classifier
from serving.errors import ModelError
from serving.resources import thread_count

ROOT = Path(__file__).parents[2]


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
        """Return probabilities, float32 (n, classes), 0 to 1.

        `inputs` is float32 (n, height, width, 3), -1 to 1.

        Raises:
            ModelError: the runtime is not installed, cannot load the model, or crashed.
        """
        try:
            self._connection.send(inputs)
            probabilities, self.seconds = self._connection.recv()
        except (EOFError, OSError):
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            sentence = last[0] if last else f"{self._model.name} ended the process of its runtime."
            raise ModelError(sentence) from None
        return probabilities


def predict_once(model: Path, inputs: np.ndarray, runtime: str | None) -> np.ndarray:
    """Return the predictions of `model` for `inputs`; see `TFLiteProcess.predict`."""
    with TFLiteProcess(model, runtime) as process:
        return process.predict(inputs)


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
            rows = [classifier.probabilities(row[np.newaxis]) for row in inputs]
            connection.send((np.stack(rows), time.perf_counter() - started))


if __name__ == "__main__":
    sys.exit(main())
