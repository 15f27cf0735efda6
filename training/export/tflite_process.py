"""Ask a .tflite file as the service does: in a process without TensorFlow.

Where TensorFlow is imported first, tflite-runtime 2.14 loads no model any more
("vector::reserve"): both bring the same C++ symbols.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from serving.classifier import Classifier
from serving.errors import ModelError
from serving.model_files import thread_count


@contextmanager
def served(model: Path, runtime: str | None) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Yield a function from inputs to the answers of `model` (.tflite), which is loaded once.

    Inputs are float32 (n, height, width, 3), -1 to 1, answers float32 (n, classes), 0 to 1;
    `runtime` as in `Classifier`.

    Raises:
        ModelError: the runtime is not installed, cannot load the model, or breaks down over it.
    """
    ours, theirs = Pipe()
    command = [sys.executable, "-m", __name__, str(model.resolve()), str(theirs.fileno())]
    command += ["--runtime", runtime] if runtime else []
    # `ours` is closed first: the process ends once there is nobody to ask it.
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            pass_fds=[theirs.fileno()],
            stdout=errors,
            stderr=errors,
        ),
        ours,
    ):
        theirs.close()

        def ask(inputs: np.ndarray) -> np.ndarray:
            try:
                ours.send(inputs)
                return ours.recv()
            except (EOFError, OSError):
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:]
                sentence = last[0] if last else f"{model.name} ended its runtime's process."
                raise ModelError(sentence) from None

        yield ask


def served_probabilities(model: Path, inputs: np.ndarray, runtime: str | None) -> np.ndarray:
    """Return the answers of `model` to `inputs`, once; see `served`."""
    with served(model, runtime) as ask:
        return ask(inputs)


def main() -> int:
    """Answer what comes, in the process of its own, until there is nobody to answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("connection", type=int, help="descriptor of the pipe's end")
    parser.add_argument("--runtime")
    options = parser.parse_args()
    try:
        classifier = Classifier(options.model, thread_count(), options.runtime)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    with Connection(options.connection) as connection:
        while True:
            try:
                inputs = connection.recv()
            except EOFError:
                return 0
            rows = [classifier.probabilities(row[np.newaxis]) for row in inputs]
            connection.send(np.stack(rows))


if __name__ == "__main__":
    sys.exit(main())
