"""Temperature scaling: after it, predictions of confidence 0.9 are right nine times out of ten.

The logits are divided by one number T (Guo et al. 2017, "On Calibration of Modern Neural
Networks"), which changes the confidence of a prediction but never its class.
"""

from dataclasses import dataclass

import numpy as np

from serving.errors import ModelError
from training.backend import keras

TEMPERATURES = (0.05, 20.0)  # beyond these, predictions are practically certain or uniform
BINS = 15  # Guo et al.'s


@dataclass(frozen=True)
class Bins:
    """Predictions by confidence, in bins of equal width from 0 to 1; all arrays are (bins,).

    Attributes:
        count: number of predictions.
        confidence: their mean confidence; NaN in empty bins.
        accuracy: the share of correct ones; NaN in empty bins.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def fit_temperature(probabilities: np.ndarray, true_classes: np.ndarray) -> float:
    """Return the temperature, within `TEMPERATURES`, that makes `true_classes` most likely.

    `probabilities` is (n, classes), 0 to 1, and `true_classes` (n,), int. Logits are not needed:
    the logarithms of probabilities are the logits up to a constant for each image.

    If every prediction is correct, more confidence is always more likely, and T would run to its
    bound. In this case one more image is counted, spread evenly over the wrong classes of all
    images, as by Platt (1999, "Probabilistic Outputs for Support Vector Machines"). Without images
    the temperature is 1.
    """
    from scipy.optimize import minimize_scalar

    count, classes = probabilities.shape
    if not count:
        return 1.0
    targets = np.eye(classes)[true_classes]
    if (probabilities.argmax(axis=1) == true_classes).all():
        doubt = 1 / (count + 2)
        targets = targets * (1 - doubt) + (1 - targets) * doubt / max(classes - 1, 1)
    logits = _logits(probabilities)

    def loss(log_temperature: float) -> float:
        return -(targets * _log_softmax(logits / np.exp(log_temperature))).sum() / count

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return `probabilities` (n, classes), 0 to 1, with their logits divided by `temperature`."""
    return np.exp(_log_softmax(_logits(probabilities) / temperature)).astype(probabilities.dtype)


def bake_temperature(model: keras.Model, temperature: float) -> None:
    """Divide the logits of `model` by `temperature` (above 0), in place.

    Logits are linear in kernel and bias of the last layer, so these are divided: whatever is
    exported from the model is calibrated, too.

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


def bin_predictions(probabilities: np.ndarray, true_classes: np.ndarray, bins: int = BINS) -> Bins:
    """Bin the predictions `probabilities` (n, classes) for `true_classes` (n,) by confidence.

    A bin excludes its lower edge and includes its upper one.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == true_classes
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Bins(
            count,
            np.bincount(index, weights=confidence, minlength=bins) / count,
            np.bincount(index, weights=right, minlength=bins) / count,
        )


def expected_calibration_error(
    probabilities: np.ndarray, true_classes: np.ndarray, bins: int = BINS
) -> float:
    """Return the expected calibration error, 0 to 1; 0 without images.

    It is the mean over all images of |accuracy - confidence| of their bin (Guo et al. 2017,
    equation 3). It is above 0 by chance alone, the more so the fewer the images.
    """
    binned = bin_predictions(probabilities, true_classes, bins)
    gaps = np.nan_to_num(np.abs(binned.accuracy - binned.confidence))
    return float((binned.count * gaps).sum() / max(len(true_classes), 1))


def error_by_chance(probabilities: np.ndarray, draws: int = 200, seed: int = 0) -> float:
    """Return the calibration error that a perfectly calibrated model exceeds once in 20 times.

    The true classes are drawn from `probabilities` (n, classes) themselves. A model with a lower
    `expected_calibration_error` cannot be told from a calibrated one.
    """
    rng = np.random.default_rng(seed)
    edges = probabilities.cumsum(axis=1)[:, :-1]
    errors = [
        expected_calibration_error(probabilities, (rng.random((len(edges), 1)) > edges).sum(axis=1))
        for _ in range(draws)
    ]
    return float(np.percentile(errors, 95))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    # A float32 softmax gives 0 for probabilities that are too small for it.
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
