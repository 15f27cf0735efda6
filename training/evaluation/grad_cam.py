"""Where in an image a model looks: Grad-CAM.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization".
"""

from collections.abc import Callable

import numpy as np

from training.backend import keras
from training.evaluation.calibration import require_dense_softmax
from training.model import BASE_LAYER

BACKENDS = ("tensorflow", "jax")


def is_possible() -> bool:
    """Return whether Keras runs on a backend that `grad_cam` has gradients from."""
    return keras.backend.backend() in BACKENDS


def grad_cam(model: keras.Model, inputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how much each region speaks for a class: float32 (n, rows, columns), 0 to 1.

    `inputs` are float32 (n, height, width, 3), -1 to 1, and `classes` (n,) int says for each
    which class is asked about. Rows and columns are the last convolution's, 10×10 of Xception's
    299×299 pixels. 1 is each image's most telling region; all is 0 where none speaks for the
    class.

    Raises:
        ModelError: the model does not end in a Dense softmax layer.
        ValueError: `model` has no layer named `BASE_LAYER`.
    """
    extract, score = _halves(model)
    features = extract(inputs, training=False)
    gradients = _gradients(lambda x: score(x, classes), features)
    features = keras.ops.convert_to_numpy(features).astype(np.float32)
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((features * weights).sum(axis=-1), 0)
    peaks = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, peaks, out=np.zeros_like(maps), where=peaks > 0)


def _halves(model: keras.Model) -> tuple[keras.Model, Callable]:
    """Return `model` up to its base's last activation, and the classes' scores from there."""
    dense = require_dense_softmax(model)
    names = [layer.name for layer in model.layers]
    # The base's own `output` belongs to its inner graph; the next layer's input to this one.
    seam = model.layers[names.index(BASE_LAYER) + 1].input
    extract = keras.Model(model.input, seam)
    to_dense = keras.Model(seam, dense.input)

    def score(features: object, classes: np.ndarray) -> object:
        """The sum of the asked-about logits; images do not touch each other's gradients."""
        x = to_dense(features, training=False)
        # Logits, as in the paper: where softmax is sure of a class its gradient is all but gone.
        logits = keras.ops.matmul(x, dense.kernel)
        if dense.use_bias:
            logits = logits + dense.bias
        return keras.ops.sum(logits * keras.ops.one_hot(classes, dense.units))

    return extract, score


def _gradients(function: Callable, features: object) -> np.ndarray:
    """Return the gradient of the scalar `function` at `features`, float32 of their shape."""
    if keras.backend.backend() == "jax":
        import jax

        gradients = jax.grad(function)(features)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(features)
            value = function(features)
        gradients = tape.gradient(value, features)
    return keras.ops.convert_to_numpy(gradients).astype(np.float32)
