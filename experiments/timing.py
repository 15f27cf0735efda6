"""How long .tflite files take for an image, side by side, in a process without TensorFlow.

Where TensorFlow is imported first, tflite-runtime 2.14 loads no model any more.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.classifier import Classifier
from serving.errors import ModelError

ROUNDS = 15
THREADS = 1  # what Lambda has at 1,769 MB


def inference_seconds(models: Sequence[Path]) -> list[float]:
    """Return the median seconds for an image of each of `models` (.tflite with labels inside).

    Raises:
        ModelError: the runtime cannot load one of them.
    """
    process = subprocess.run(
        [sys.executable, "-m", "experiments.timing", *(str(path.resolve()) for path in models)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise ModelError(process.stderr.strip().splitlines()[-1])
    return json.loads(process.stdout)


def main() -> int:
    """Print a JSON list of the seconds of each file that the command line names."""
    try:
        classifiers = [Classifier(path, THREADS) for path in sys.argv[1:]]
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    seconds: list[list[float]] = [[] for _ in classifiers]
    rng = np.random.default_rng(0)
    for round_ in range(ROUNDS + 1):
        # By turns, so that what else the machine does weighs on all alike.
        for classifier, taken in zip(classifiers, seconds, strict=True):
            image = rng.uniform(-1, 1, (1, *classifier.input_size, 3)).astype(np.float32)
            started = time.perf_counter()
            classifier.probabilities(image)
            if round_:  # the first one sets up
                taken.append(time.perf_counter() - started)
    print(json.dumps([float(np.median(taken)) for taken in seconds]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
