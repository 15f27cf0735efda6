"""Keras and TensorFlow without their log output: `from training.backend import keras, tf`."""

import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from training.distribute.launcher import is_worker


@contextmanager
def stderr_held_back() -> Generator[None]:
    """Hide the standard error stream, C++ included, unless the block fails."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(shown, 2)
            hidden.seek(0)
            sys.stderr.write(hidden.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


# The notes that come after the import, such as the one on missing GPUs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Settings that other projects need, in the environment or in Keras' own file, would change what is
# trained here. Only the processes of train.py --distribute compute on another backend.
if not is_worker():
    os.environ["KERAS_BACKEND"] = "tensorflow"
for name in ("TF_USE_LEGACY_KERAS", "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
    os.environ.pop(name, None)

with stderr_held_back():
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        # experiments.device_runs does without it, on machines that have only Keras and JAX.
        if error.name != "tensorflow":
            raise
        tf = cast("Any", None)
        os.environ["KERAS_BACKEND"] = "jax"

    import keras  # isort: skip  (TensorFlow is its backend)

    from absl import logging as absl_logging

keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)

if tf and keras.backend.backend() == "jax":
    # TensorFlow only lends its ImageDataGenerator then, and would take the GPUs' memory.
    tf.config.set_visible_devices([], "GPU")

# Keras calls .h5 a legacy format at every save; here it is the format asked for.
absl_logging.set_verbosity(absl_logging.ERROR)

__all__ = ["accelerator", "keras", "stderr_held_back", "tf"]


@dataclass(frozen=True)
class Accelerator:
    """A GPU.

    Attributes:
        compute_capability: NVIDIA's number of its generation; 8.0 and above do bfloat16.
    """

    compute_capability: float


@cache
def accelerator() -> Accelerator | None:
    """Return the first GPU that Keras' backend computes on, or None."""
    if keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() != "gpu":
            return None
        return Accelerator(float(getattr(jax.devices()[0], "compute_capability", 8.0)))
    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return None
    major, minor = tf.config.experimental.get_device_details(devices[0]).get(
        "compute_capability", (8, 0)
    )
    return Accelerator(major + minor / 10)
