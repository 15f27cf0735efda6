"""The tables of `experiments.unknown`."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import betabinom

from serving.answers import UNKNOWN_BELOW
from serving.details import Familiarity, p_value
from training.evaluation.metrics import percent
from training.evaluation.unknowns import LEVELS, false_alarms, tell_apart
from training.markdown import markdown_table


def print_others(familiarity: Familiarity, test: np.ndarray, others: dict[str, np.ndarray]) -> None:
    """Print how well each set of `others` {name: images} is told from the images `test`.

    Of images, it takes distances and largest probabilities, float (n, 2).
    """
    (known, confidence), rows = test.T, []
    for name, values in others.items():
        row = tell_apart(familiarity, (known, values[:, 0]), (confidence, values[:, 1]))
        aurocs = (f"{row[key]:.3f}" for key in ("auroc", "auroc_of_confidence"))
        shares = (
            "" if share is None else percent(share) for share in row["called_unknown"].values()
        )
        rows.append((name, row["n"], *aurocs, *shares))
    levels = (f"called unknown at {percent(level)}" for level in LEVELS)
    print(markdown_table(("images", "n", "AUROC", "of the largest score", *levels), rows))


def print_false_alarms(familiarity: Familiarity, known: np.ndarray) -> None:
    """Print which share of the test images, whose distances are `known` (n,), is called unknown."""
    calibrating, rows = len(familiarity.distances), []
    for row in false_alarms(p_value(known, familiarity.distances)):
        expected = by_chance(row["promised"], calibrating, row["n"])
        ranges = (" to ".join(percent(e, 1) for e in each) for each in (row["interval"], expected))
        rows.append((percent(row["promised"]), percent(row["found"], 1), *ranges, row["n"]))
    head = ("false alarms promised", "found", "Wilson's interval", "expected by chance", "n")
    print(f"\n{markdown_table(head, rows)}")


def by_chance(level: float, calibrating: int, count: int) -> tuple[float, float]:
    """Return what share of `count` images is called unknown in 95 of 100 cases.

    `calibrating` images that are no different decide what is strange. They are drawn at random,
    too, so that the share is beta-binomial.
    """
    # p-values are k / (calibrating + 1), and k are those of images beyond the k-th strangest.
    rank = int(np.ceil(level * (calibrating + 1))) - 1
    if not rank:
        return 0.0, 0.0
    low, high = betabinom(count, rank, calibrating + 1 - rank).ppf((0.025, 0.975)) / count
    return float(low), float(high)


def print_differences(familiarities: Sequence[Familiarity], arrays: dict[str, np.ndarray]) -> None:
    """Print how far the p-values of two files are from each other, on each set (n, 2, 2)."""
    rows = []
    for name, values in arrays.items():
        p = [p_value(values[:, i, 0], each.distances) for i, each in enumerate(familiarities)]
        difference = np.abs(p[0] - p[1])
        flips = int(((p[0] < UNKNOWN_BELOW) != (p[1] < UNKNOWN_BELOW)).sum())
        shown = (np.median(difference), np.percentile(difference, 95), difference.max())
        rows.append((name, len(values), *(f"{value:.3f}" for value in shown), flips))
    head = ("difference of p-values", "n", "median", "95th percentile", "largest")
    print(markdown_table((*head, f"unknown to one only at {UNKNOWN_BELOW}"), rows))
