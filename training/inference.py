"""The forward pass of a frozen network, as fast as the machine does it.

OpenVINO does it on processors, where it is installed; Keras does elsewhere.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from training.backend import accelerator, keras
from training.model import with_policy

Forward = Callable[[np.ndarray], np.ndarray]

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
    """Return what computes a frozen network fastest here: "openvino", or "keras"."""
    if accelerator() or keras.backend.backend() != "tensorflow":
        return "keras"
    return "openvino" if find_spec("openvino") else "keras"


def compile_inference(
    model: keras.Model, policy: str, batch_size: int, engine: str | None = None
) -> Forward:
    """Return a function from inputs to `model`'s outputs, both float arrays (n, ...).

    `policy` is the Keras dtype policy to compute in, and n at most `batch_size`; `engine` as
    `best_engine` gives it, by default that.
    """
    compiled = ENGINES[engine or best_engine()](model, policy, batch_size)

    def forward(inputs: np.ndarray) -> np.ndarray:
        # One shape, so that nothing is compiled twice.
        rows = len(inputs)
        filler = np.zeros((batch_size - rows, *inputs.shape[1:]), inputs.dtype)
        return compiled(np.concatenate([inputs, filler]) if len(filler) else inputs)[:rows]

    return forward


def _compile_openvino(model: keras.Model, policy: str, batch_size: int) -> Forward:
    import openvino

    from training.backend import tf

    signature = tf.TensorSpec((batch_size, *model.input_shape[1:]), tf.float32)
    function = tf.function(lambda x: model(x, training=False), input_signature=[signature])
    network = openvino.convert_model(function.get_concrete_function())
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if policy == "mixed_bfloat16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one batch: batches come one by one
    }
    compiled = openvino.Core().compile_model(network, "CPU", settings)
    return lambda inputs: compiled(inputs)[0]


def _compile_keras(model: keras.Model, policy: str, batch_size: int) -> Forward:
    network = model if policy == "float32" else with_policy(model, policy)
    return lambda inputs: keras.ops.convert_to_numpy(network(inputs, training=False))


ENGINES = {"openvino": _compile_openvino, "keras": _compile_keras}
