"""The answer for one image: its scores, and if asked for, what the model tells beside them."""

import os

import numpy as np

from serving.classifier import named_scores
from serving.details import Details
from serving.errors import InternalError, SettingError
from serving.runtimes import Prediction

UNKNOWN_BELOW = 0.02  # p-value; the environment variable of this name sets another
P_DECIMALS = 4  # of a p-value: as fine as 10,000 validation images make it
HEAT_DECIMALS = 3  # of a heat map's values


def read_unknown_below() -> float:
    """Return the p-value below which an image is unknown, 0 to 1, from `UNKNOWN_BELOW`.

    Raises:
        SettingError: it is not a number from 0 to 1.
    """
    text = os.environ.get("UNKNOWN_BELOW", "").strip()
    try:
        value = float(text or UNKNOWN_BELOW)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise SettingError(
            "Expected UNKNOWN_BELOW to be a number from 0 to 1: the share of images like those "
            f"of training that may be called unknown. Received: {text!r}. Correct or unset it."
        )
    return value


def require_finite(prediction: Prediction) -> None:
    """Raise InternalError if a probability is NaN or infinite: JSON has no such numbers."""
    if not np.isfinite(prediction.probabilities).all():
        raise InternalError("The model's scores are no numbers (NaN). Train it again.")


def top_k(labels: tuple[str, ...], probabilities: np.ndarray, top: int | None) -> dict[str, float]:
    """Return {label: score}, all in order or the `top` best first."""
    scores = named_scores(labels, probabilities)
    if top is None:
        return scores
    return {labels[i]: scores[labels[i]] for i in _best_first(probabilities)[:top]}


def _best_first(probabilities: np.ndarray) -> list[int]:
    """Return the indices of the classes, best first: rounded scores may be equal."""
    return np.argsort(-probabilities, kind="stable").tolist()


def known(details: Details, prediction: Prediction) -> float | None:
    """Return the p-value of an image, 0 to 1; None if its model does not tell."""
    if details.familiarity is None or prediction.activations is None:
        return None
    return round(details.familiarity.known(prediction.activations), P_DECIMALS)


def is_unknown(p: float | None, unknown_below: float) -> bool | None:
    """Return whether the p-value `p` is below `unknown_below`; None if there is none."""
    return None if p is None else p < unknown_below


def describe(
    labels: tuple[str, ...],
    details: Details,
    prediction: Prediction,
    unknown_below: float,
    top: int | None = None,
) -> dict:
    """Return all that a model tells of an image, ready for JSON; null is what it does not tell.

    Keys: `label`, the best one; `scores`, as `top_k`; `known`, the conformal p-value; `unknown`,
    whether that is below `unknown_below`; `prediction_set`, labels, best first; and `heatmap`,
    `rows`, `columns` and their `values` row by row, 0 to 1, for `label`.
    """
    order = _best_first(prediction.probabilities)
    p = known(details, prediction)
    chosen = details.prediction_set(prediction.probabilities)
    return {
        "label": labels[order[0]],
        "scores": top_k(labels, prediction.probabilities, top),
        "known": p,
        "unknown": is_unknown(p, unknown_below),
        "prediction_set": None if chosen is None else [labels[i] for i in order if chosen[i]],
        "heatmap": _heatmap(details, prediction, order[0]),
    }


def _heatmap(details: Details, prediction: Prediction, index: int) -> dict | None:
    if prediction.activations is None or not details.head:
        return None
    heat = details.activation_map(prediction.activations, index)
    rows, columns = heat.shape
    values = [round(float(value), HEAT_DECIMALS) for value in heat.flat]
    return {"rows": rows, "columns": columns, "values": values}
