"""Ask a .tflite file as the service does: in a process without TensorFlow.

Where TensorFlow is imported first, tflite-runtime 2.14 loads no model any more
("vector::reserve"): both bring the same C++ symbols.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from serving.classifier import Classifier
from serving.models import ModelError, thread_count


def served_probabilities(model: Path, inputs: np.ndarray, runtime: str | None) -> np.ndarray:
    """Return the answers of `model` (.tflite) to `inputs`, float32 (n, classes), 0 to 1.

    `inputs` is float32 (n, height, width, 3), -1 to 1; `runtime` as in `Classifier`.

    Raises:
        ModelError: the runtime is not installed, or cannot load the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "inputs.npy"), Path(folder, "probabilities.npy")
        np.save(asked, inputs)
        command = [sys.executable, "-m", __name__, str(model.resolve()), asked, answered]
        command += ["--runtime", runtime] if runtime else []
        process = subprocess.run(
            command, cwd=Path(__file__).parent.parent, capture_output=True, text=True
        )
        if process.returncode:
            last = process.stderr.strip().splitlines()[-1:]
            raise ModelError(last[0] if last else f"{model.name} ended its runtime's process.")
        return np.load(answered)


def main() -> int:
    """Do it, in the process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path, help=".npy to read")
    parser.add_argument("probabilities", type=Path, help=".npy to write")
    parser.add_argument("--runtime")
    options = parser.parse_args()
    try:
        classifier = Classifier(options.model, thread_count(), options.runtime)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    inputs = np.load(options.inputs)
    np.save(
        options.probabilities,
        np.stack([classifier.probabilities(row[np.newaxis]) for row in inputs]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
