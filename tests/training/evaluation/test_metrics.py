"""training.evaluation.metrics: numbers with their intervals."""

import json

import numpy as np
import pytest

from training.evaluation import metrics as metrics_module
from training.evaluation.calibration import error_by_chance, expected_calibration_error
from training.evaluation.metrics import (
    METHODS,
    RESAMPLES,
    audited,
    bootstrap_macro_f1,
    describe_audited,
    evaluate,
    f1_interval,
    percent,
    shown,
    summarize,
    table,
    wilson,
    with_interval,
)

NAMES = ("ash", "birch", "cedar")
COUNTS = np.array([[8, 2, 0], [1, 19, 0], [0, 0, 10]])


def answers_of(counts, confidence=0.8):
    """Return probabilities and truth with the confusion matrix `counts`."""
    pairs = [pair for pair in np.ndindex(*counts.shape) for _ in range(counts[pair])]
    truth, answers = np.transpose(pairs)
    rest = (1 - confidence) / (len(counts) - 1)
    probabilities = np.full((len(truth), len(counts)), rest, dtype="float32")
    probabilities[np.arange(len(truth)), answers] = confidence
    return probabilities, truth


@pytest.fixture
def answers():
    return answers_of(COUNTS)


@pytest.fixture
def metrics(answers):
    return evaluate(*answers, NAMES)


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
        "  accuracy 0.925 (0.801–0.974) on 40 images, ECE 0.125 (by chance up to 0.125); "
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


def test_the_interval_of_many_classes_is_computed_in_pieces(monkeypatch):
    counts = np.random.default_rng(1).integers(0, 9, (7, 7))
    whole = metrics_module.bootstrap_macro_f1(counts)
    monkeypatch.setattr(metrics_module, "RESAMPLED_CELLS", 7 * 7 * 300 + 1)
    assert metrics_module.bootstrap_macro_f1(counts) == whole


def test_the_audited_numbers_are_those_of_the_other_images(answers):
    probabilities, truth = answers
    wrong = np.zeros(40, bool)
    wrong[[0, 9]] = True  # a hit and a mistake
    found = audited(probabilities, truth, wrong)
    assert found == {"wrong_labels": 2} | summarize(probabilities[~wrong], truth[~wrong])
    assert (found["n"], found["accuracy"]) == (38, pytest.approx(36 / 38))
    whole = summarize(probabilities, truth)
    assert whole.items() <= evaluate(probabilities, truth, NAMES).items()
    assert audited(probabilities, truth, np.zeros(40, bool)) == {"wrong_labels": 0} | whole
    assert audited(probabilities, truth, np.ones(40, bool)) == {}
    assert describe_audited(found) == (
        f"{with_interval(36 / 38, wilson(36, 38))} on 38 images, without 2 whose labels are wrong; "
        f"loss {found['log_loss']:.3f}, ECE {found['expected_calibration_error']:.3f}"
    )
