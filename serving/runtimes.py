"""The packages that can run a .tflite file."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from serving.errors import ModelError

# {package: module that runs models}, in order of preference.
RUNTIMES = {
    "tflite-runtime": "tflite_runtime.interpreter",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "openvino": "openvino",
}


@dataclass(frozen=True)
class Network:
    """A loaded model.

    Attributes:
        input_shape: (1, height, width, 3).
        outputs: number of scores.
        run: from float32 inputs of `input_shape` to float32 (outputs,).
    """

    input_shape: tuple[int, ...]
    outputs: int
    run: Callable[[np.ndarray], np.ndarray]


def find_runtime(runtime: str | None = None) -> tuple[str, ModuleType]:
    """Return (package, module) of `runtime`, or of the first one installed.

    Raises:
        ModelError: none is installed.
    """
    for name in [runtime] if runtime else RUNTIMES:
        try:
            return name, import_module(RUNTIMES[name])
        except ModuleNotFoundError:
            continue
    raise ModelError(
        f"Expected {runtime or ' or '.join(RUNTIMES)} to be installed. "
        "Received: no such package. Run `make setup`, or use another runtime."
    )


def load_network(module: ModuleType, path: Path, threads: int) -> Network:
    """Load a model; RuntimeError or ValueError if the runtime cannot."""
    load = _load_openvino if module.__name__ == "openvino" else _load_tflite
    return load(module, path, threads)


def _load_tflite(interpreter_module: ModuleType, path: Path, threads: int) -> Network:
    interpreter = interpreter_module.Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    [input_details] = interpreter.get_input_details()
    [output_details] = interpreter.get_output_details()

    def run(inputs: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(input_details["index"], inputs)
        interpreter.invoke()
        return interpreter.get_tensor(output_details["index"])[0]

    return Network(tuple(map(int, input_details["shape"])), int(output_details["shape"][-1]), run)


def _load_openvino(openvino: ModuleType, path: Path, threads: int) -> Network:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one image
        # Otherwise it computes in bfloat16 on processors that can, with other scores.
        "INFERENCE_PRECISION_HINT": "f32",
        # Otherwise two services with one thread each share the first core; the second idles.
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    try:
        model = core.read_model(path)
        _, *geometry = model.input().partial_shape
        model.reshape([1, *geometry])
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        # All lines but the last name OpenVINO's source files.
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    outputs = compiled.output().shape[-1]
    return Network(tuple(compiled.input().shape), outputs, lambda inputs: compiled(inputs)[0][0])
