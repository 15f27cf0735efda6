"""Labels that are probably wrong: those that a cross-validated model contradicts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDS = 5
# Enough for Xception's 2,048 features of five flowers: the log loss of the cross-validated model
# is 0.31, as it is with 512.
COMPONENTS = 256
# Inverse strength of the L2 penalty. Of 0.1, 0.3, 1 and 3, the best calibrated, and so the one
# whose sureness can be trusted.
INVERSE_PENALTY = 0.3


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label is probably wrong.

    Attributes:
        image: "class/file".
        label: its class.
        suggested: the class that a model takes it for that has not seen it.
        confidence: probability that this model gives to `suggested`, 0 to 1.
    """

    image: str
    label: str
    suggested: str
    confidence: float


def list_label_issues(
    features: np.ndarray,
    images: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    seed: int,
) -> list[LabelIssue]:
    """Return the images whose label is probably wrong, the most sure first.

    Each image is judged by a logistic regression that was fitted without it (`FOLDS`-fold
    cross-validation); which of its contradictions count is decided by confident learning
    (Northcutt et al. 2021, cleanlab): it estimates how many labels are wrong, and those with the
    least probable labels are taken. Of 100 labels of the flowers flipped on purpose, 78 to 84 were
    among the 114 to 124 suspects, about 40 of which are suspected without any flip. Of these, a
    third are wrong beyond doubt, by `experiments/wrong_labels.txt`, which has 91: not
    found is above all what looks like its label, rudbeckia among sunflowers.

    Args:
        features: what a network says of each image before its last layers, float (n, d).
        images: "class/file" of each, n.
        labels: index into `class_names` of each, int (n,).
        class_names: of all classes; those without images do not count.
        seed: of the folds; the same gives the same suspects.

    Raises:
        ValueError: the three are of different lengths, or a class has a single image.
    """
    # Slow to import, and only needed after training.
    from cleanlab.filter import find_label_issues
    from threadpoolctl import threadpool_limits

    labels = np.asarray(labels)
    if not len(features) == len(images) == len(labels):
        raise ValueError(
            "Expected as many features as images and labels. "
            f"Received: {len(features)}, {len(images)}, {len(labels)}."
        )
    present, compact = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return []
    # On more than one thread, BLAS takes ten times as long where the cores are busy.
    with threadpool_limits(1):
        probabilities = _cross_validated(np.asarray(features, np.float32), compact, seed)
    suspected = find_label_issues(compact, probabilities, filter_by="low_self_confidence", n_jobs=1)
    best = probabilities.argmax(axis=1)
    label_issues = [
        LabelIssue(
            images[i],
            class_names[labels[i]],
            class_names[present[best[i]]],
            float(probabilities[i, best[i]]),
        )
        for i in np.flatnonzero(suspected & (best != compact))
    ]
    return sorted(
        label_issues, key=lambda label_issue: (-label_issue.confidence, label_issue.image)
    )


def _cross_validated(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Return each image's probabilities by a model fitted without it, (n, classes)."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.preprocessing import StandardScaler

    folds = min(FOLDS, np.bincount(labels).min())
    if folds < 2:
        raise ValueError("Expected at least two images of each class. Received: one.")
    components = min(COMPONENTS, *features.shape)
    standard = StandardScaler().fit_transform(features)
    # Neither step sees labels, so that both may see all images, once instead of once a fold.
    reduced = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(standard)
    reduced /= max(reduced[:, 0].std(), 1e-9)  # so that the penalty means the same for all features
    return cross_val_predict(
        LogisticRegression(C=INVERSE_PENALTY, max_iter=1000),
        reduced,
        labels,
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="predict_proba",
    )


def write_label_issues(path: Path, label_issues: Iterable[LabelIssue]) -> None:
    """Write `label_issues` to `path` as a list for a person to go through and for `--exclude`."""
    lines = [
        "# Probable wrong labels, the most sure first. Look at them, take out the lines of those",
        "# that are right, then train without the rest: --exclude with this file.",
        *(f"{s.image}  # looks like {s.suggested}, {s.confidence:.2f} sure" for s in label_issues),
    ]
    # Names of old archives may hold bytes that are no text; --exclude reads them the same way.
    text = "\n".join(lines) + "\n"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
