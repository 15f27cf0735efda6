"""training.evaluation.metrics: every number, computed in another way."""

import numpy as np
import pytest

from training.evaluation.calibration import error_by_chance, expected_calibration_error
from training.evaluation.metrics import (
    METHODS,
    RESAMPLES,
    bootstrap_macro_f1,
    evaluate,
    f1_interval,
    percent,
    shown,
    table,
    wilson,
    with_interval,
)

NAMES = ("ash", "birch", "cedar")
COUNTS = np.array([[8, 2, 0], [1, 19, 0], [0, 0, 10]])


@pytest.fixture
def answers():
    """Probabilities and truth with the confusion matrix `COUNTS`, each answer 0.8 sure."""
    pairs = [pair for pair in np.ndindex(3, 3) for _ in range(COUNTS[pair])]
    truth, answered = np.transpose(pairs)
    probabilities = np.full((len(pairs), 3), 0.1, "float32")
    probabilities[np.arange(len(pairs)), answered] = 0.8
    return probabilities, truth


@pytest.fixture
def metrics(answers):
    return evaluate(*answers, NAMES)


def test_the_record_has_these_keys_and_no_others(metrics):
    assert set(metrics) == {
        "n",
        "accuracy",
        "accuracy_interval",
        "log_loss",
        "expected_calibration_error",
        "expected_calibration_error_by_chance",
        "macro_f1",
        "macro_f1_interval",
        "per_class",
        "confusion_matrix",
        "class_names",
        "methods",
    }
    assert metrics["class_names"] == list(NAMES)
    assert metrics["methods"] == METHODS


def test_each_class_has_its_own_numbers_and_intervals(metrics):
    for name, (hits, support, answered) in zip(
        NAMES, [(8, 10, 9), (19, 20, 21), (10, 10, 10)], strict=True
    ):
        assert metrics["per_class"][name] == {
            "precision": pytest.approx(hits / answered),
            "precision_interval": wilson(hits, answered),
            "recall": pytest.approx(hits / support),
            "recall_interval": wilson(hits, support),
            "f1": pytest.approx(2 * hits / (support + answered)),
            "f1_interval": f1_interval(hits, support + answered - hits),
            "support": support,
            "predicted": answered,
        }


def test_what_other_functions_compute_is_in_the_record(answers, metrics):
    probabilities, truth = answers
    assert metrics["expected_calibration_error"] == expected_calibration_error(probabilities, truth)
    assert metrics["expected_calibration_error_by_chance"] == error_by_chance(probabilities)
    assert metrics["macro_f1_interval"] == bootstrap_macro_f1(COUNTS)


def test_probabilities_that_do_not_quite_sum_to_one_count_by_their_shares(answers):
    probabilities, truth = answers
    scaled = evaluate(probabilities * np.float32(0.5), truth, NAMES)
    expected = -(37 * np.log(0.8) + 3 * np.log(0.1)) / 40
    assert scaled["log_loss"] == pytest.approx(expected, rel=1e-6)


def test_f1s_interval_is_wilsons_at_another_scale():
    # F1 = 2q / (1 + q); Wilson's interval of 15 of 148 is Newcombe's 0.0624 to 0.1605.
    assert f1_interval(15, 148) == pytest.approx([0.1248 / 1.0624, 0.3210 / 1.1605], abs=1e-4)


def test_the_bootstrap_gives_the_middle_95_percent_of_mean_f1_drawn_anew():
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.multinomial(40, COUNTS.ravel() / 40).reshape(3, 3)
        means.append(
            np.mean(
                [
                    2 * drawn[k, k] / sum_ if (sum_ := drawn[k].sum() + drawn[:, k].sum()) else 0.0
                    for k in range(3)
                ]
            )
        )
    means.sort()
    low, high = bootstrap_macro_f1(COUNTS)
    assert means[48] <= low <= means[51]  # 2.5 % of 2,000 are below
    assert means[-52] <= high <= means[-49]


def test_a_class_that_is_not_drawn_counts_as_zero():
    # Of one image of each of two classes, half of the draws have both and half have one twice.
    low, high = bootstrap_macro_f1(np.eye(2, dtype=int))
    assert (low, high) == (0.5, 1.0)


def test_the_table_reads_as_follows(metrics):
    assert table(metrics).splitlines() == [
        "  class  precision            recall               F1                   images",
        "  ash    0.889 (0.565–0.980)  0.800 (0.490–0.943)  0.842 (0.606–0.949)      10",
        "  birch  0.905 (0.711–0.973)  0.950 (0.764–0.991)  0.927 (0.800–0.976)      20",
        "  cedar  1.000 (0.722–1.000)  1.000 (0.722–1.000)  1.000 (0.839–1.000)      10",
        "  accuracy 0.925 (0.801–0.974) on 40 images, ECE 0.125; "
        "Wilson's 95 % intervals in brackets",
    ]


def test_the_table_is_as_wide_as_its_head_where_names_are_short(answers):
    lines = table(evaluate(*answers, ("a", "b", "c"))).splitlines()
    assert lines[0].startswith("  class  precision  ")
    assert lines[1].startswith("  a      0.889 (")


def test_long_names_are_cut_and_widen_the_table(answers):
    long = "a b\n" + "c" * 30
    lines = table(evaluate(*answers, (long, "birch", "cedar"))).splitlines()
    assert lines[0].startswith("  class                   precision  ")
    assert lines[1].startswith("  a b ccccccccccccccccc…  0.889 (")
    assert lines[2].startswith("  birch                   0.905 (")


def test_a_name_is_shown_whole_up_to_its_limit():
    assert shown("x" * 22) == "x" * 22
    assert shown("x" * 23) == "x" * 21 + "…"
    assert shown("abcd", limit=4) == "abcd"


def test_numbers_are_written_this_way():
    assert (percent(0.926), percent(0.926, 1)) == ("93 %", "92.6 %")
    assert with_interval(0.93, [0.9081, 0.9466]) == "0.930 (0.908–0.947)"


def test_no_images_are_refused_in_this_sentence():
    with pytest.raises(ValueError, match=r"^Expected images to evaluate\. Received: none\.$"):
        evaluate(np.zeros((0, 3)), np.zeros(0, dtype=int), NAMES)
