"""Two models compared on the same images: McNemar's test, and how far their accuracies differ.

Only images that one model classifies correctly and the other does not tell them apart. That is far
more sensitive than two intervals side by side, which count how hard the images are twice.
"""

from dataclasses import dataclass

import numpy as np

from training.evaluation.metrics import CONFIDENCE

BESIDE = 1e-9  # of an estimate: nothing, next to an interval


@dataclass(frozen=True)
class PairedComparison:
    """Two models' hits on the same images; `dataclasses.asdict` makes it JSON.

    Attributes:
        both: number of images that both classify correctly.
        only_first: of those that only the first does.
        only_second: of those that only the second does.
        neither: of those that neither does.
        difference: accuracy of the second less that of the first, -1 to 1.
        interval: of the difference, by `tango_interval`.
        p_value: by `mcnemar`.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p_value: float

    @property
    def n(self) -> int:
        """Number of images."""
        return self.both + self.only_first + self.only_second + self.neither

    def describe(self) -> str:
        """Return the difference in points, its interval and p, for a person."""
        low, high = (100 * bound for bound in self.interval)
        return (
            f"{100 * self.difference:+.2f} points ({low:+.2f} to {high:+.2f}) on {self.n} images: "
            f"only the second is right on {self.only_second}, only the first on "
            f"{self.only_first}; McNemar's p = {self.p_value:.2g}"
        )


def compare_hits(first: np.ndarray, second: np.ndarray) -> PairedComparison:
    """Compare the hits of two models on the same images, each bool (n,), in the same order.

    Raises:
        ValueError: they have different lengths, or there are no images.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or not first.size:
        raise ValueError(
            "Expected hits of two models on the same images. "
            f"Received: {first.size} and {second.size}."
        )
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    return PairedComparison(
        both=int((first & second).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~first & ~second).sum()),
        difference=(only_second - only_first) / first.size,
        interval=tango_interval(only_first, only_second, first.size),
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of McNemar's exact test, 0 to 1.

    If neither model is better, each image that tells them apart speaks for either with probability
    1/2. p is the probability of counts at least as uneven as these.
    """
    from scipy.stats import binom

    count = only_first + only_second
    return float(min(1.0, 2 * binom.cdf(min(only_first, only_second), count, 0.5)))


def tango_interval(only_first: int, only_second: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of the second model's accuracy less the first's.

    It is the score interval of Tango (1998, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design"): the differences that a score test
    does not reject. At 0 that is McNemar's test without continuity correction. Unlike Wald's
    interval it has a width where no image tells the models apart. `count` is that of all images.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    estimate = (only_second - only_first) / count

    def excess(difference: float) -> float:
        """Return by how much the squared score exceeds its bound; without the division."""
        gap = only_second - only_first - count * difference
        return gap**2 - z**2 * _score_variance(only_first, only_second, count, difference)

    # Beside the estimate, as gap and variance may both be 0 right at it.
    low = -1.0 if excess(-1) <= 0 else float(brentq(excess, -1, estimate - BESIDE))
    high = 1.0 if excess(1) <= 0 else float(brentq(excess, estimate + BESIDE, 1))
    return low, high


def _score_variance(only_first: int, only_second: int, count: int, difference: float) -> float:
    """Return the variance of `only_second - only_first` if the accuracies differ by `difference`.

    The share that only the first model classifies correctly is then at its likeliest (Tango 1998).
    """
    linear = (2 * count - only_second + only_first) * difference - only_first - only_second
    constant = -only_first * difference * (1 - difference)
    root = np.sqrt(max(0.0, linear**2 - 8 * count * constant))  # rounding may leave less than 0
    share = (root - linear) / (4 * count)
    return count * (2 * share + difference * (1 - difference))
