"""Grad-CAM: where in an image the model sees a class.

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
    """Return whether `grad_cam` supports the Keras backend that is running."""
    return keras.backend.backend() in BACKENDS


def grad_cam(model: keras.Model, inputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how much each region speaks for a class: float32 (n, rows, columns), 0 to 1.

    `inputs` is float32 (n, height, width, 3), -1 to 1, and `classes` (n,), int, the class to
    explain in each. Rows and columns are those of the last convolution: 10×10 for Xception at
    299×299 pixels. The most important region of an image has the value 1; if no region speaks for
    the class, all are 0.

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
    """Return `model` up to the base's last activation, and the scores from there on."""
    dense = require_dense_softmax(model)
    names = [layer.name for layer in model.layers]
    # The `output` of the base belongs to its inner graph, the next layer's input to this one.
    seam = model.layers[names.index(BASE_LAYER) + 1].input
    extract = keras.Model(model.input, seam)
    to_dense = keras.Model(seam, dense.input)

    def score(features: object, classes: np.ndarray) -> object:
        """Return the sum of the logits of `classes`; images have separate gradients."""
        x = to_dense(features, training=False)
        # Logits, as in the paper: the gradient of a confident softmax nearly vanishes.
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
