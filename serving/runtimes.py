"""The runtimes that run a .tflite file; whichever is installed serves."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from serving.errors import ModelError

# The package's name and the module that runs models, the preferred one first.
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
        outputs: how many scores it answers.
        run: from float32 inputs of that shape to a float32 array (outputs,).
    """

    input_shape: tuple[int, ...]
    outputs: int
    run: Callable[[np.ndarray], np.ndarray]


def find_runtime(runtime: str | None = None) -> tuple[str, ModuleType]:
    """Return (package name, module) of `runtime`, or of the first one installed.

    Raises:
        ModelError: it is not installed.
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
        # Or it computes in bfloat16 where the processor can, and answers differently there.
        "INFERENCE_PRECISION_HINT": "f32",
        # Or two services of one thread share the first core and leave the second idle.
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    try:
        model = core.read_model(path)
        _, *geometry = model.input().partial_shape
        model.reshape([1, *geometry])
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        # The lines before the last name its own source files.
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    outputs = compiled.output().shape[-1]
    return Network(tuple(compiled.input().shape), outputs, lambda inputs: compiled(inputs)[0][0])
