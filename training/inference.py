"""The forward pass of a frozen network on the fastest engine: OpenVINO on CPUs, else Keras."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from serving.runtimes import openvino_core
from training.backend import accelerator, keras
from training.model import with_policy

Inference = Callable[[np.ndarray], np.ndarray]

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of processors that compute in bfloat16


def dtype_policy() -> str:
    """Return the Keras dtype policy that trains fastest here: mixed precision, or "float32"."""
    device = accelerator()
    if device:
        return "mixed_float16" if device.compute_capability < 8 else "mixed_bfloat16"
    flags = CPU_INFO.read_text().split() if CPU_INFO.exists() else ()
    return "mixed_bfloat16" if BFLOAT16_FLAGS & set(flags) else "float32"


def best_engine() -> str:
    """Return the engine that is fastest here for a frozen network: "openvino" or "keras"."""
    if accelerator() or keras.backend.backend() != "tensorflow":
        return "keras"
    return "openvino" if find_spec("openvino") else "keras"


def compile_inference(
    model: keras.Model, policy: str, batch_size: int, engine: str | None = None
) -> Inference:
    """Return a function from inputs to outputs of `model`, float32 arrays (n, ...).

    `policy` is the Keras dtype policy to compute in; n is at most `batch_size`; `engine` is
    "openvino" or "keras" [`best_engine`].
    """
    compiled = ENGINES[engine or best_engine()](model, policy, batch_size)

    def infer(inputs: np.ndarray) -> np.ndarray:
        # Padded to one shape: another one would be compiled anew.
        rows = len(inputs)
        filler = np.zeros((batch_size - rows, *inputs.shape[1:]), inputs.dtype)
        return compiled(np.concatenate([inputs, filler]) if len(filler) else inputs)[:rows]

    return infer


def _compile_openvino(model: keras.Model, policy: str, batch_size: int) -> Inference:
    import openvino

    from training.backend import tf

    signature = tf.TensorSpec((batch_size, *model.input_shape[1:]), tf.float32)
    function = tf.function(lambda x: model(x, training=False), input_signature=[signature])
    network = openvino.convert_model(function.get_concrete_function())
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if policy == "mixed_bfloat16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one batch: batches come one by one
    }
    compiled = openvino_core(openvino).compile_model(network, "CPU", settings)
    return lambda inputs: compiled(inputs)[0]


def _compile_keras(model: keras.Model, policy: str, batch_size: int) -> Inference:
    network = model if policy == "float32" else with_policy(model, policy)
    return lambda inputs: keras.ops.convert_to_numpy(network(inputs, training=False))


ENGINES = {"openvino": _compile_openvino, "keras": _compile_keras}
