"""The packages that can run a .tflite file."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from serving.errors import ModelError
from serving.exported import read_export
from serving.model_files import file_digest

# {package: module that runs models}, in order of preference.
RUNTIMES = {
    "tflite-runtime": "tflite_runtime.interpreter",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "openvino": "openvino",
}

PROBABILITIES, ACTIVATIONS = "probabilities", "activations"  # names of outputs


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        dtype: such as "float32".
        shape: one number a dimension, -1 where it varies.
        name: in the model file.
    """

    dtype: str
    shape: tuple[int, ...]
    name: str = ""

    def __str__(self) -> str:
        shape = ", ".join("?" if size < 0 else str(size) for size in self.shape)
        return f"{self.dtype} ({shape})"


class Prediction(NamedTuple):
    """What a model makes of an image.

    Attributes:
        probabilities: of the classes, float32 (classes,), 0 to 1.
        activations: of the last convolution, float32 (rows, columns, channels); None if the model
            does not return them.
    """

    probabilities: np.ndarray
    activations: np.ndarray | None = None


@dataclass(frozen=True)
class Network:
    """A loaded model.

    Attributes:
        input_shape: (1, height, width, 3).
        outputs: number of scores.
        channels: of its activations, None if it does not return them.
        run: from float32 inputs of `input_shape` to what it predicts.
    """

    input_shape: tuple[int, ...]
    outputs: int
    channels: int | None
    run: Callable[[np.ndarray], Prediction]


def find_outputs(path: Path, inputs: list[Tensor], outputs: list[Tensor]) -> list[int]:
    """Return which of `outputs` are the scores and, if there are any, the activations.

    Raises:
        ModelError: the model does not take one image, float32 (1, height, width, 3), and return one
            row of scores, float32 (1, classes), and nothing else but an output named `ACTIVATIONS`,
            float32 (1, rows, columns, channels). The 1 may vary.
    """
    found = [
        place
        for place, tensor in enumerate(outputs)
        if tensor.name == ACTIVATIONS and tensor.dtype == "float32" and len(tensor.shape) == 4
    ]
    found = found if len(found) == 1 else []
    others = [place for place in range(len(outputs)) if place not in found]
    require_image_classifier(path, inputs, [outputs[place] for place in others])
    return others + found


def require_image_classifier(path: Path, inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Raise `ModelError` unless a model takes one image and returns one row of scores.

    Input: float32 (1, height, width, 3). Output: float32 (1, classes). The 1 may vary.
    """
    image, scores = len(inputs) == 1 and inputs[0], len(outputs) == 1 and outputs[0]
    if (
        not (image and scores)
        or {image.dtype, scores.dtype} != {"float32"}
        or (len(image.shape), len(scores.shape)) != (4, 2)
        or image.shape[3] != 3
        or min(*image.shape[1:3], scores.shape[1]) < 1
        or max(image.shape[0], scores.shape[0]) > 1
    ):
        raise ModelError(
            "Expected a model from one image, float32 (1, height, width, 3), to one row of "
            f"scores, float32 (1, classes). Received: {path.name}, from "
            f"{' and '.join(map(str, inputs))} to {' and '.join(map(str, outputs))}. "
            "Convert its checkpoint with python convert_to_tflite.py."
        )


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
    """Load a model; RuntimeError or ValueError if the runtime cannot.

    Raises:
        ModelError: the model is no image classifier.
    """
    load = _load_openvino if module.__name__ == "openvino" else _load_tflite
    return load(module, path, threads)


def _load_tflite(interpreter_module: ModuleType, path: Path, threads: int) -> Network:
    interpreter = interpreter_module.Interpreter(model_path=str(path), num_threads=threads)
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    tensors = (list(map(_tflite_tensor, each)) for each in (inputs, outputs))
    outputs = [outputs[place] for place in find_outputs(path, *tensors)]
    interpreter.allocate_tensors()
    [image] = inputs

    def run(inputs: np.ndarray) -> Prediction:
        interpreter.set_tensor(image["index"], inputs)
        interpreter.invoke()
        return Prediction(*(interpreter.get_tensor(output["index"])[0] for output in outputs))

    shapes = [output["shape"] for output in outputs]
    return _network(image["shape"], shapes, run)


def _network(
    image: Sequence[int], outputs: list[Sequence[int]], run: Callable[[np.ndarray], Prediction]
) -> Network:
    """Return the network that `run` runs; shapes of `outputs` are as `find_outputs` sorts them."""
    scores, *activations = (int(shape[-1]) for shape in outputs)
    return Network(tuple(map(int, image)), scores, activations[0] if activations else None, run)


def _tflite_tensor(details: dict) -> Tensor:
    signature = details["shape_signature"]  # empty where no dimension varies
    shape = signature if len(signature) else details["shape"]
    return Tensor(np.dtype(details["dtype"]).name, tuple(map(int, shape)), details["name"])


class _Compiled(NamedTuple):
    """A model as OpenVINO runs it.

    Attributes:
        model: openvino.CompiledModel.
        memory: from which it reads as long as it runs; None for its own.
    """

    model: Any
    memory: np.ndarray | None = None


@cache
def openvino_core(openvino: ModuleType) -> Any:
    """Return the openvino.Core of this process, which is never freed.

    The first model that a Core compiles may give its thread a stack for signals; on processors with
    AMX it does. OpenVINO frees this stack with the Core, even while the thread still uses it, and
    the next signal that Python handles, such as Ctrl-C, would end the process with SIGSEGV.
    """
    return openvino.Core()


def _load_openvino(openvino: ModuleType, path: Path, threads: int) -> Network:
    core, settings = openvino_core(openvino), _openvino_settings(threads)
    compiled = _import_openvino(openvino, core, path, settings)
    compiled = compiled or _Compiled(_compile_openvino(core, path, settings))
    places = _openvino_outputs(path, compiled.model)

    def run(inputs: np.ndarray) -> Prediction:
        results = compiled.model(inputs)
        return Prediction(*(results[place][0] for place in places))

    shapes = [compiled.model.output(place).shape for place in places]
    return _network(compiled.model.input().shape, shapes, run)


def _openvino_settings(threads: int) -> dict[str, object]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one image
        # Otherwise it computes in bfloat16 on processors that can, with other scores.
        "INFERENCE_PRECISION_HINT": "f32",
        # Otherwise two services with one thread each share the first core; the second idles.
        "ENABLE_CPU_PINNING": False,
    }


def _import_openvino(
    openvino: ModuleType, core: Any, path: Path, settings: dict[str, object]
) -> _Compiled | None:
    """Return the model at `path` from its export.

    Returns None if there is none of this very file, or OpenVINO cannot use it here.
    """
    export = read_export(path)
    if export is None:
        return None
    # Beside the import, on another core if there is one.
    with ThreadPoolExecutor(1) as thread:
        digest = thread.submit(file_digest, path)
        for blob in export.blobs():
            try:
                model = core.import_model(
                    openvino.Tensor(blob, shared_memory=True), "CPU", settings
                )
            except RuntimeError:  # for another version or kind of processor
                continue
            return _Compiled(model, blob) if export.model_digest == digest.result() else None
    return None


def _compile_openvino(core: Any, path: Path, settings: dict[str, object]) -> Any:
    try:
        model = core.read_model(path)
        _openvino_outputs(path, model)
        _, *geometry = model.input().partial_shape
        model.reshape([1, *geometry])
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        # All lines but the last name OpenVINO's source files.
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error


def _openvino_outputs(path: Path, model: Any) -> list[int]:
    """Return what `find_outputs` returns of a model, compiled or not."""
    return find_outputs(
        path, *(list(map(_openvino_tensor, each)) for each in (model.inputs, model.outputs))
    )


def export_openvino(openvino: ModuleType, path: Path) -> bytes:
    """Return the model at `path` as OpenVINO compiles it for this processor.

    Raises:
        RuntimeError: OpenVINO cannot load it.
        ModelError: it is no image classifier, or the export does not compute the same.
    """
    core, settings = openvino_core(openvino), _openvino_settings(1)
    compiled = _compile_openvino(core, path, settings)
    exported = compiled.export_model().getvalue()
    shape = compiled.input().shape
    inputs = np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
    imported = core.import_model(exported, "CPU", settings)
    results = (network(inputs).to_tuple() for network in (compiled, imported))
    if not all(map(np.array_equal, *results)):
        raise ModelError(
            f"Expected the export of {path.name} to compute what the model does. Received: other "
            "numbers. Use another version of OpenVINO."
        )
    return exported


def _openvino_tensor(port: Any) -> Tensor:
    dtype, shape, names = port.element_type.to_dtype().name, port.partial_shape, port.get_names()
    name = ACTIVATIONS if ACTIVATIONS in names else next(iter(names), "")
    if shape.rank.is_dynamic:
        return Tensor(dtype, (), name)
    return Tensor(dtype, tuple(-1 if n.is_dynamic else n.get_length() for n in shape), name)
