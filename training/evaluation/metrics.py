"""Metrics of a classifier's predictions, each with its interval.

The intervals are 95 % intervals and cover the choice of images only: not another seed, and not
images of another kind.
"""

from collections.abc import Sequence

import numpy as np

from training.evaluation.calibration import error_by_chance, expected_calibration_error
from training.streams import counted, printable

CONFIDENCE = 0.95
RESAMPLES = 2000
RESAMPLED_CELLS = 4_000_000  # of confusion matrices that are in memory at a time
SEED = 0
MAX_NAME = 22  # characters of a class name that are shown where room is short
METHODS = {
    "accuracy, precision, recall": "Wilson 95 %",
    "f1": "Wilson 95 % of tp / (tp + fp + fn), of which F1 is a function",
    "macro_f1": f"bootstrap 95 %, percentiles of {RESAMPLES} resamples, seed {SEED}",
    "expected_calibration_error": "15 bins of equal width (Guo et al. 2017)",
    "expected_calibration_error_by_chance": "a calibrated model stays under it 19 times of 20",
}


def evaluate(
    probabilities: np.ndarray, true_classes: np.ndarray, class_names: Sequence[str]
) -> dict:
    """Evaluate `probabilities` (n, classes), 0 to 1, against `true_classes` (n,), int.

    Returns a dictionary that fits JSON. Keys: `n`, `accuracy`, `accuracy_interval` [low, high],
    `log_loss` (nats), `expected_calibration_error`, `expected_calibration_error_by_chance`,
    `macro_f1`, `macro_f1_interval`, `per_class` ({name: `precision`, `recall`, `f1`, each with its
    `_interval`, `support`, `predicted`}), `confusion_matrix` (rows: true class, columns: predicted
    class), `class_names` and `methods`. A number that is not defined, such as the recall of a
    class without images, is 0 with the interval [0, 1].

    Raises:
        ValueError: there are no images.
    """
    if not len(true_classes):
        raise ValueError("Expected images to evaluate. Received: none.")
    from sklearn.metrics import confusion_matrix

    labels = np.arange(len(class_names))
    predicted_classes = probabilities.argmax(axis=1)
    counts = confusion_matrix(true_classes, predicted_classes, labels=labels)
    per_class = _per_class(counts, true_classes, predicted_classes, class_names)
    return {
        **summarize(probabilities, true_classes),
        "expected_calibration_error_by_chance": error_by_chance(probabilities),
        "macro_f1": float(np.mean([row["f1"] for row in per_class.values()])),
        "macro_f1_interval": bootstrap_macro_f1(counts),
        "per_class": per_class,
        "confusion_matrix": counts.tolist(),
        "class_names": list(class_names),
        "methods": METHODS,
    }


def summarize(probabilities: np.ndarray, true_classes: np.ndarray) -> dict:
    """Return the numbers of `evaluate` that are about all classes together, but macro F1.

    That is `n`, `accuracy`, `accuracy_interval`, `log_loss` and `expected_calibration_error`.
    """
    from sklearn.metrics import log_loss

    hits = probabilities.argmax(axis=1) == true_classes
    # In float64 and summing to 1, as scikit-learn wants it.
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    labels = np.arange(probabilities.shape[1])
    return {
        "n": len(true_classes),
        "accuracy": float(hits.mean()),
        "accuracy_interval": wilson(int(hits.sum()), len(hits)),
        "log_loss": float(log_loss(true_classes, exact, labels=labels)),
        "expected_calibration_error": expected_calibration_error(probabilities, true_classes),
    }


def audited(probabilities: np.ndarray, true_classes: np.ndarray, wrong: np.ndarray) -> dict:
    """Return `summarize` of the images whose labels are not known to be wrong.

    `wrong`, bool (n,), marks those that are; `wrong_labels` in the result is their number. Return
    {} if all are.
    """
    if wrong.all():
        return {}
    count = {"wrong_labels": int(wrong.sum())}
    return count | summarize(probabilities[~wrong], true_classes[~wrong])


def describe_audited(found: dict) -> str:
    """Return what `audited` found, for a person."""
    accuracy = with_interval(found["accuracy"], found["accuracy_interval"])
    return (
        f"{accuracy} on {counted(found['n'], 'image')}, without {found['wrong_labels']} whose "
        f"labels are wrong; loss {found['log_loss']:.3f}, "
        f"ECE {found['expected_calibration_error']:.3f}"
    )


def _per_class(
    counts: np.ndarray,
    true_classes: np.ndarray,
    predicted_classes: np.ndarray,
    class_names: Sequence[str],
) -> dict[str, dict]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        true_classes, predicted_classes, labels=np.arange(len(class_names)), zero_division=0
    )
    rows = {}
    for index, name in enumerate(class_names):
        precision, recall, f1, _ = (float(column[index]) for column in columns)
        support = int(counts[index].sum())  # scikit-learn's is a float if no prediction is correct
        hits, predicted = int(counts[index, index]), int(counts[:, index].sum())
        rows[name] = {
            "precision": precision,
            "precision_interval": wilson(hits, predicted),
            "recall": recall,
            "recall_interval": wilson(hits, support),
            "f1": f1,
            "f1_interval": f1_interval(hits, support + predicted - hits),
            "support": support,
            "predicted": predicted,
        }
    return rows


def wilson(hits: int, count: int) -> list[float]:
    """Return Wilson's 95 % interval [low, high] for `hits` of `count`.

    Unlike the normal approximation it stays within 0 to 1 and has a width when all or none are
    hits. It is [0, 1] when `count` is 0.
    """
    from scipy.stats import binomtest

    if not count:
        return [0.0, 1.0]
    low, high = binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return [float(low), float(high)]


def f1_interval(hits: int, union: int) -> list[float]:
    """Return the 95 % interval [low, high] of F1.

    `union` counts the images that belong to the class or were predicted as it. F1 is
    2q / (1 + q) for the share q of `hits` among them, a binomial proportion, so Wilson's interval
    of q carries over. A bootstrap would give a class without mistakes an interval without width.
    """
    return [2 * share / (1 + share) for share in wilson(hits, union)]


def bootstrap_macro_f1(counts: np.ndarray) -> list[float]:
    """Return the bootstrap 95 % interval [low, high] of the mean F1 of the classes.

    `counts` is the confusion matrix, int (classes, classes): resampling images resamples its
    cells. Without mistakes the interval has no width.
    """
    total, rng = counts.sum(), np.random.default_rng(SEED)
    step = max(1, RESAMPLED_CELLS // counts.size)
    means = []
    for start in range(0, RESAMPLES, step):
        draws = rng.multinomial(total, counts.ravel() / total, min(step, RESAMPLES - start))
        draws = draws.reshape(-1, *counts.shape)
        hits = np.diagonal(draws, axis1=1, axis2=2)
        sizes = draws.sum(axis=1) + draws.sum(axis=2)
        f1 = np.divide(2 * hits, sizes, out=np.zeros(hits.shape), where=sizes > 0)
        means.append(f1.mean(axis=1))
    tail = 100 * (1 - CONFIDENCE) / 2
    return [float(bound) for bound in np.percentile(np.concatenate(means), [tail, 100 - tail])]


def risk_coverage(confidence: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (coverage, risk), each float (n,), 0 to 1, of answering the surest images only.

    Risk is the share of mistakes among the share `coverage` of images of the highest `confidence`
    (n,); `hits` (n,), bool, says which are right.
    """
    order = np.argsort(-confidence, kind="stable")
    counts = np.arange(1, len(order) + 1)
    return counts / len(order), np.cumsum(~hits[order]) / counts


def table(metrics: dict) -> str:
    """Return the `metrics` of `evaluate` as aligned text: one class a line, then the total."""
    width = max(len("class"), *(len(shown(name)) for name in metrics["class_names"]))
    head = "".join(f"  {title:<19}" for title in ("precision", "recall", "F1"))
    lines = [f"  {'class':<{width}}{head}  images"]
    for name, row in metrics["per_class"].items():
        cells = "".join(
            f"  {with_interval(row[key], row[key + '_interval']):<19}"
            for key in ("precision", "recall", "f1")
        )
        lines.append(f"  {shown(name):<{width}}{cells}  {row['support']:>6}")
    accuracy = with_interval(metrics["accuracy"], metrics["accuracy_interval"])
    lines.append(
        f"  accuracy {accuracy} on {counted(metrics['n'], 'image')}, "
        f"ECE {metrics['expected_calibration_error']:.3f} (by chance up to "
        f"{metrics['expected_calibration_error_by_chance']:.3f}); Wilson's 95 % intervals in "
        "brackets"
    )
    return "\n".join(lines)


def shown(name: str, limit: int = MAX_NAME) -> str:
    """Return `name` on one line of at most `limit` characters."""
    name = printable(" ".join(name.split()))
    return name if len(name) <= limit else name[: limit - 1] + "…"


def percent(share: float, digits: int = 0) -> str:
    """Return a `share`, 0 to 1, as "93 %"."""
    return f"{100 * share:.{digits}f} %"


def with_interval(value: float, interval: Sequence[float]) -> str:
    """Return "0.930 (0.908–0.947)"."""
    return f"{value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"
