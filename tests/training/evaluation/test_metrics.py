"""training.evaluation.metrics: numbers with their intervals."""

import json

import numpy as np
import pytest

from training.evaluation.calibration import error_by_chance
from training.evaluation.metrics import (
    bootstrap_macro_f1,
    evaluate,
    f1_interval,
    percent,
    shown,
    table,
    wilson,
)

NAMES = ("ash", "birch", "cedar")


def answers_of(counts, confidence=0.8):
    """Return probabilities and truth with the confusion matrix `counts`."""
    pairs = [pair for pair in np.ndindex(*counts.shape) for _ in range(counts[pair])]
    truth, answers = np.transpose(pairs)
    rest = (1 - confidence) / (len(counts) - 1)
    probabilities = np.full((len(truth), len(counts)), rest, dtype="float32")
    probabilities[np.arange(len(truth)), answers] = confidence
    return probabilities, truth


@pytest.fixture
def metrics():
    counts = np.array([[8, 2, 0], [1, 19, 0], [0, 0, 10]])
    return evaluate(*answers_of(counts), NAMES)


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_published_one(hits, count, low, high):
    assert wilson(hits, count) == pytest.approx([low, high], abs=5e-5)
    assert wilson(count - hits, count) == pytest.approx([1 - high, 1 - low], abs=5e-5)


def test_nothing_counted_is_nothing_known():
    assert wilson(0, 0) == [0, 1]
    assert f1_interval(0, 0) == [0, 1]


def test_f1_without_mistakes_has_an_interval_all_the_same():
    low, high = f1_interval(10, 10)
    assert high == pytest.approx(1)
    assert 0.8 < low < 0.9


def test_the_interval_of_f1_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    share = np.array([[0.3, 0.05], [0.1, 0.55]])
    true_f1 = 2 * 0.3 / (2 * 0.3 + 0.15)
    covered = 0
    for draw in rng.multinomial(80, share.ravel(), 1000).reshape(-1, 2, 2):
        low, high = f1_interval(draw[0, 0], draw[0].sum() + draw[1, 0])
        covered += low <= true_f1 <= high
    assert 930 <= covered <= 975


def test_what_is_counted_by_hand(metrics):
    assert metrics["n"] == 40
    assert metrics["accuracy"] == pytest.approx(37 / 40)
    assert metrics["accuracy_interval"] == pytest.approx(wilson(37, 40))
    assert metrics["confusion_matrix"] == [[8, 2, 0], [1, 19, 0], [0, 0, 10]]
    ash = metrics["per_class"]["ash"]
    assert ash["precision"] == pytest.approx(8 / 9)
    assert ash["precision_interval"] == pytest.approx(wilson(8, 9))
    assert ash["recall"] == pytest.approx(8 / 10)
    assert ash["recall_interval"] == pytest.approx(wilson(8, 10))
    assert ash["f1"] == pytest.approx(16 / 19)
    assert ash["f1_interval"] == pytest.approx(f1_interval(8, 8 + 2 + 1))
    assert (ash["support"], ash["predicted"]) == (10, 9)
    assert metrics["macro_f1"] == pytest.approx((16 / 19 + 38 / 41 + 1) / 3)
    assert metrics["macro_f1_interval"] == bootstrap_macro_f1(np.array(metrics["confusion_matrix"]))
    expected = -(37 * np.log(0.8) + 3 * np.log(0.1)) / 40
    assert metrics["log_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["expected_calibration_error"] == pytest.approx(37 / 40 - 0.8, abs=1e-6)


def test_the_error_by_chance_is_that_of_these_answers():
    probabilities, truth = answers_of(np.array([[8, 2], [3, 7]]))
    metrics = evaluate(probabilities, truth, ("a", "b"))
    assert metrics["expected_calibration_error_by_chance"] == error_by_chance(probabilities)


def test_the_interval_of_macro_f1_is_the_one_of_images_drawn_anew():
    counts = np.array([[40, 9, 3], [5, 60, 10], [2, 1, 20]])
    pairs = np.repeat(np.arange(9), counts.ravel())
    drawn = np.random.default_rng(1).choice(pairs, (20_000, len(pairs)))
    cells = (drawn[..., np.newaxis] == np.arange(9)).sum(axis=1).reshape(-1, 3, 3)
    hits = np.diagonal(cells, axis1=1, axis2=2)
    f1 = (2 * hits / (cells.sum(axis=1) + cells.sum(axis=2))).mean(axis=1)
    expected = np.quantile(f1, [0.025, 0.975])
    # 2,000 resamples know their bounds to about a twentieth of the width; 90 % are a sixth off.
    low, high = bootstrap_macro_f1(counts)
    assert low == pytest.approx(expected[0], abs=0.004)
    assert high == pytest.approx(expected[1], abs=0.004)
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.06)


def test_every_number_lies_in_its_interval(metrics):
    for row in (metrics, *metrics["per_class"].values()):
        for key in [key for key in row if f"{key}_interval" in row]:
            low, high = row[f"{key}_interval"]
            assert 0 <= low <= row[key] <= high <= 1


def test_it_goes_into_json_and_comes_out_the_same(metrics):
    assert json.loads(json.dumps(metrics)) == metrics


def test_it_is_the_same_every_time():
    answers = answers_of(np.array([[8, 2], [3, 7]]))
    assert evaluate(*answers, ("a", "b")) == evaluate(*answers, ("a", "b"))


def test_more_images_make_narrower_intervals():
    counts = np.array([[8, 2], [3, 7]])
    few, many = (bootstrap_macro_f1(counts * times) for times in (1, 25))
    assert few[0] < many[0] < 0.75 < many[1] < few[1]
    assert many[1] - many[0] == pytest.approx((few[1] - few[0]) / 5, rel=0.25)


def test_a_class_without_images_and_one_never_answered():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    metrics = evaluate(probabilities, np.array([0, 1]), NAMES)
    assert metrics["per_class"]["birch"]["precision"] == 0
    assert metrics["per_class"]["birch"]["precision_interval"] == [0, 1]
    cedar = metrics["per_class"]["cedar"]
    assert (cedar["support"], cedar["recall"], cedar["recall_interval"]) == (0, 0, [0, 1])


def test_a_model_that_is_never_right_is_told():
    probabilities, truth = answers_of(np.array([[0, 2], [3, 0]]))
    metrics = evaluate(probabilities, truth, ("a", "b"))
    assert metrics["accuracy"] == metrics["macro_f1"] == 0
    assert metrics["per_class"]["b"]["recall_interval"] == wilson(0, 3)
    assert table(metrics).splitlines()[2].endswith("  3")


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="Received: none"):
        evaluate(np.zeros((0, 3)), np.zeros(0, dtype=int), NAMES)


def test_the_table_is_aligned_and_says_what_its_brackets_are(metrics):
    head, *rows, last = table(metrics).splitlines()
    assert [row.split()[0] for row in rows] == list(NAMES)
    assert {len(row) for row in rows} == {len(head)}
    assert "0.800 (0.490–0.943)" in rows[0]
    assert rows[0].index("0.800") == head.index("recall")
    assert "accuracy 0.925 (" in last
    assert "on 40 images, ECE 0.125" in last
    assert "Wilson's 95 %" in last


def test_a_long_name_of_two_lines_is_shown_short_in_one():
    assert shown("a\nb") == "a b"
    assert shown("x" * 30, limit=5) == "xxxx…"


def test_a_share_is_shown_as_a_percentage():
    assert percent(0.934) == "93 %"
    assert percent(0.9345, 1) == "93.5 %"
