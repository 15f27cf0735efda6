"""Picks the model file to use and the number of threads."""

import os
import re
from pathlib import Path

from serving.errors import ModelError

# The end of the names that train.py gives: epoch and validation accuracy.
_ACCURACY = re.compile(r"_\d+_([01]\.\d{3})$")
MEGABYTES_PER_VCPU = 1769  # AWS Lambda allocates one vCPU for this much memory


def best_model(folder: str | Path, *suffixes: str) -> Path:
    """Return the model file whose name has the highest validation accuracy.

    Considers the files in `folder` with one of `suffixes` (".tflite", ".h5"). Among equal
    accuracies, an earlier suffix wins, then a newer file.

    Raises:
        ModelError: there is none.
    """
    folder = Path(folder)
    found = [path for suffix in suffixes for path in sorted(folder.glob(f"[!.]*{suffix}"))]
    ranked = [
        (float(match[1]), -suffixes.index(path.suffix), path.stat().st_mtime, path)
        for path in found
        if (match := _ACCURACY.search(path.stem))
    ]
    if not ranked:
        raise ModelError(
            f"Expected a model such as xception_fin_01_0.900{suffixes[0]} in {folder}. "
            f"Received: {', '.join(path.name for path in found) or 'none'}. "
            f"Run {_maker(suffixes)} first, or name a model."
        )
    return max(ranked)[-1]


def _maker(suffixes: tuple[str, ...]) -> str:
    return "python train.py" if ".h5" in suffixes else "python convert_to_tflite.py"


def thread_count() -> int:
    """Return the threads to use: the usable processors, or by memory on Lambda.

    Lambda shows at least two processors at any memory size, but allocates CPU time by memory.
    """
    memory = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
    if memory:
        return max(1, round(int(memory) / MEGABYTES_PER_VCPU))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
