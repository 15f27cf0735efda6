"""A model in a process of its own, which benchmarks.peers asks.

    python -m benchmarks.peer_process ENGINE MODEL THREADS INPUTS    # row numbers on standard input

ENGINE is "onnxruntime" or a runtime of the service; INPUTS is a .npy file, float32 (n, height,
width, 3), -1 to 1. It prints the seconds that loading the model took, without imports. Then it
prints a JSON object for each row that it is asked about: `seconds` of inference, `peak`, its peak
memory so far in kilobytes, and `probabilities` of the classes.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from serving.runtimes import find_runtime, load_network

ONNX_RUNTIME = "onnxruntime"
Infer = Callable[[np.ndarray], np.ndarray]  # from inputs (1, height, width, 3) to (classes,)


def load(engine: str, model: Path, threads: int) -> tuple[Infer, float]:
    """Return how `engine` runs `model` on `threads`, and the seconds that loading took."""
    if engine == ONNX_RUNTIME:
        return _load_onnx(model, threads)
    _, module = find_runtime(engine)
    if engine != "openvino":
        return _load_tflite(module, model, threads)
    started = time.monotonic()
    network = load_network(module, model, threads)
    return lambda inputs: network.run(inputs).probabilities, time.monotonic() - started


def _load_tflite(module: ModuleType, model: Path, threads: int) -> tuple[Infer, float]:
    """Load a .tflite file; the service finds outputs by name, which quantizers change."""
    started = time.monotonic()
    interpreter = module.Interpreter(model_path=str(model), num_threads=threads)
    interpreter.allocate_tensors()
    [image] = interpreter.get_input_details()
    [scores] = [each for each in interpreter.get_output_details() if len(each["shape"]) == 2]
    seconds = time.monotonic() - started

    def infer(inputs: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image["index"], inputs)
        interpreter.invoke()
        return interpreter.get_tensor(scores["index"])[0]

    return infer, seconds


def _load_onnx(model: Path, threads: int) -> tuple[Infer, float]:
    onnxruntime = import_module(ONNX_RUNTIME)
    started = time.monotonic()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    [details] = session.get_inputs()
    seconds = time.monotonic() - started
    return lambda inputs: np.asarray(session.run(None, {details.name: inputs})[0])[0], seconds


def peak_memory() -> int:
    """Return the peak memory of this process in kilobytes."""
    # Not getrusage's: that includes the memory of the parent process.
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes)


def main() -> None:
    """Answer as the command line says until standard input ends."""
    engine, model, threads, inputs = sys.argv[1:]
    # What the engines print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    infer, seconds = load(engine, Path(model), int(threads))
    print(seconds, file=answers)
    for line in sys.stdin:
        row = int(line)
        # Opened anew each time: what stays open would count as memory.
        image = np.array(np.load(inputs, mmap_mode="r")[row : row + 1])
        started = time.perf_counter()
        probabilities = infer(image)
        seconds = time.perf_counter() - started
        found = {"seconds": seconds, "peak": peak_memory()}
        print(json.dumps(found | {"probabilities": probabilities.tolist()}), file=answers)


if __name__ == "__main__":
    main()
