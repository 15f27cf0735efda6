"""The card of a .tflite file: the accuracy that the report beside its checkpoint found."""

import json
import math
from pathlib import Path

from serving.card import Card
from training.evaluation.metrics import percent
from training.evaluation.model_card import METRICS
from training.streams import counted

DECIMALS = 4
# What the images of the report's set are, by its name.
SETS = {
    "test": "Measured before conversion, on images that training did not use.",
    "validation": "Measured before conversion, on images that also picked the epoch, so new images "
    "may do slightly worse.",
}


def make_card(checkpoint: Path, accuracy: float) -> Card | None:
    """Return the card of `checkpoint`, which says of itself that it has this `accuracy`.

    Its report is in the folder of its name beside it. Returns None without one, or if that is about
    another model.
    """
    try:
        text = (checkpoint.with_suffix("") / METRICS).read_text(encoding="utf-8")
        return _read_report(json.loads(text), accuracy)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _read_report(metrics: dict, accuracy: float) -> Card | None:
    if not math.isclose(metrics["accuracy"], accuracy, abs_tol=1e-6):
        return None
    low, high = metrics["accuracy_interval"]
    return Card(
        round(metrics["accuracy"], DECIMALS),
        (round(low, DECIMALS), round(high, DECIMALS)),
        metrics["n"],
        metrics["set"],
        SETS[metrics["set"]] + _as_labelled(metrics["run"].get("as_labelled")),
    )


def _as_labelled(known: dict | None) -> str:
    """Return a sentence about images that were excluded from the report, "" if none was."""
    if not known:
        return ""
    accuracy = percent(known["accuracy"], 1)
    return f" With the {counted(known['excluded'], 'excluded image')}, it is {accuracy}."
