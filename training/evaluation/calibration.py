"""Make a model's confidence mean what it says: 0.9 should be right nine times out of ten.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") divides the
logits by one number T. It changes how sure the model is and never which class it answers.
"""

from dataclasses import dataclass

import numpy as np

from serving.errors import ModelError
from training.backend import keras

TEMPERATURES = (0.05, 20.0)  # beyond, answers are as good as certain or uniform
BINS = 15  # Guo et al.'s
TARGET = 0.03  # the expected calibration error that a model should not exceed


@dataclass(frozen=True)
class Bins:
    """Answers by their confidence, in bins of equal width from 0 to 1; all arrays (bins,).

    Attributes:
        count: answers in each bin.
        confidence: their mean confidence, NaN where there are none.
        accuracy: the share of them that is right, NaN where there are none.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature, within `TEMPERATURES`, that makes `truth` most likely.

    `probabilities` is (n, classes), 0 to 1, and `truth` int (n,). A model's probabilities do:
    their logarithms are its logits but for a constant of each image.

    Where every answer is right, more confidence is always more likely and T would run to its
    bound. Then the fit also counts one image more, spread evenly over the wrong classes of
    all of them; so does Platt (1999, "Probabilistic Outputs for Support Vector Machines").
    Without any image the temperature is 1.
    """
    from scipy.optimize import minimize_scalar

    count, classes = probabilities.shape
    if not count:
        return 1.0
    targets = np.eye(classes)[truth]
    if (probabilities.argmax(axis=1) == truth).all():
        doubt = 1 / (count + 2)
        targets = targets * (1 - doubt) + (1 - targets) * doubt / max(classes - 1, 1)
    logits = _logits(probabilities)

    def loss(log_temperature: float) -> float:
        return -(targets * _log_softmax(logits / np.exp(log_temperature))).sum() / count

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return `probabilities` (n, classes), 0 to 1, as they are at `temperature`."""
    return np.exp(_log_softmax(_logits(probabilities) / temperature)).astype(probabilities.dtype)


def bake_temperature(model: keras.Model, temperature: float) -> None:
    """Divide the logits of `model` by `temperature` (above 0), in place and without a new layer.

    A Dense layer's logits are linear in its kernel and bias, so dividing these does it, and
    whatever is exported from the model answers calibrated.

    Raises:
        ModelError: the model does not end in a Dense softmax layer.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"Expected a temperature above 0. Received: {temperature}")
    layer = require_dense_softmax(model)
    layer.set_weights([weights / temperature for weights in layer.get_weights()])


def require_dense_softmax(model: keras.Model) -> keras.layers.Dense:
    """Return the last layer of `model`; raise `ModelError` if it is not a Dense softmax."""
    layer = model.layers[-1]
    if isinstance(layer, keras.layers.Dense) and layer.activation.__name__ == "softmax":
        return layer
    activation = getattr(getattr(layer, "activation", None), "__name__", "no activation")
    raise ModelError(
        "Expected a model whose last layer is Dense with softmax. "
        f"Received: {type(layer).__name__} with {activation}. "
        "Build it with training.model.build_model."
    )


def bin_answers(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> Bins:
    """Return the answers of `probabilities` (n, classes) to `truth` (n,) by their confidence.

    A bin holds what is above its lower and at most its upper edge.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Bins(
            count,
            np.bincount(index, weights=confidence, minlength=bins) / count,
            np.bincount(index, weights=right, minlength=bins) / count,
        )


def expected_calibration_error(
    probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS
) -> float:
    """Return how far confidence is from accuracy, 0 to 1; 0 without images.

    The mean over all images of |accuracy - confidence| of their bin: Guo et al. 2017,
    equation 3. It is above 0 by chance alone, the more so the fewer the images.
    """
    binned = bin_answers(probabilities, truth, bins)
    gaps = np.nan_to_num(np.abs(binned.accuracy - binned.confidence))
    return float((binned.count * gaps).sum() / max(len(truth), 1))


def error_by_chance(probabilities: np.ndarray, draws: int = 200, seed: int = 0) -> float:
    """Return what the error of a perfectly calibrated model stays under, 19 times out of 20.

    Its classes are drawn from `probabilities` (n, classes) themselves. An
    `expected_calibration_error` below it does not tell the model from a calibrated one.
    """
    rng = np.random.default_rng(seed)
    edges = probabilities.cumsum(axis=1)[:, :-1]
    errors = [
        expected_calibration_error(probabilities, (rng.random((len(edges), 1)) > edges).sum(axis=1))
        for _ in range(draws)
    ]
    return float(np.percentile(errors, 95))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    # A softmax in float32 answers 0 where the truth is only too small for it.
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
