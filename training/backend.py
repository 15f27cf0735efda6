"""Keras and TensorFlow, without the screenful of notes that importing them prints.

`from training.backend import keras, tf` stands for importing the two.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stderr_held_back() -> Iterator[None]:
    """Hide what C++ writes to standard error, unless the block fails."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(shown, 2)
            hidden.seek(0)
            sys.stderr.write(hidden.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


# The notes that come after the import, such as the one on missing GPUs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with stderr_held_back():
    import tensorflow as tf

    import keras  # isort: skip  (TensorFlow is its backend)

    from absl import logging as absl_logging

# Keras calls .h5 a legacy format at every save; here it is the format asked for.
absl_logging.set_verbosity(absl_logging.ERROR)

__all__ = ["keras", "stderr_held_back", "tf"]
