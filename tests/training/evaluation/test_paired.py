"""training.evaluation.paired: McNemar's test and the interval of a paired difference."""

import json
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest

from training.evaluation.paired import compare_hits, mcnemar, tango_interval

Z_SQUARED = 1.959963984540054**2


@pytest.mark.parametrize("count", range(11))
def test_mcnemars_p_is_that_of_all_outcomes_counted_one_by_one(count):
    outcomes = [abs(2 * sum(coins) - count) for coins in product((0, 1), repeat=count)]
    for only_first in range(count + 1):
        observed = abs(2 * only_first - count)
        expected = np.mean([outcome >= observed for outcome in outcomes])
        assert mcnemar(only_first, count - only_first) == pytest.approx(expected)


def test_mcnemars_test_rejects_no_more_often_than_it_says():
    rng = np.random.default_rng(0)
    draws = rng.multinomial(300, (0.9, 0.04, 0.04, 0.02), 2000)
    rejected = np.mean([mcnemar(draw[1], draw[2]) <= 0.05 for draw in draws])
    assert 0.01 < rejected <= 0.05


def test_the_interval_is_the_published_one():
    # Airway hyper-responsiveness before and after a transplantation, 1, 1, 7 and 12 of 21, in
    # Fagerland, Lydersen and Laake 2014, "Recommended tests and confidence intervals for paired
    # binomial proportions".
    assert tango_interval(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_without_images_that_tell_them_apart_the_interval_has_a_width(count):
    bound = Z_SQUARED / (count + Z_SQUARED)
    assert tango_interval(0, 0, count) == pytest.approx((-bound, bound))


def test_the_interval_has_the_estimate_inside_and_turns_with_the_models():
    for count in (1, 6, 25):
        for first, second in product(range(count + 1), repeat=2):
            if first + second > count:
                continue
            low, high = tango_interval(first, second, count)
            assert -1 <= low <= (second - first) / count <= high <= 1
            assert low < high
            assert tango_interval(second, first, count) == pytest.approx((-high, -low))


def test_zero_is_outside_where_the_score_test_rejects():
    for first, second in product(range(30), repeat=2):
        low, high = tango_interval(first, second, 100)
        rejected = (first - second) ** 2 > Z_SQUARED * (first + second)
        assert (low > 0 or high < 0) == rejected


def test_the_interval_covers_the_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in rng.multinomial(200, (0.86, 0.03, 0.07, 0.04), 1000):
        low, high = tango_interval(draw[1], draw[2], 200)
        covered += low <= 0.04 <= high
    assert 930 < covered < 975


def test_hits_are_counted_by_kind():
    first = np.repeat([True, True, False, False], [40, 3, 8, 9])
    second = np.repeat([True, False, True, False], [40, 3, 8, 9])
    order = np.random.default_rng(0).permutation(60)
    found = compare_hits(first[order], second[order])
    assert (found.both, found.only_first, found.only_second, found.neither) == (40, 3, 8, 9)
    assert found.n == 60
    assert found.difference == pytest.approx(5 / 60)
    assert found.p_value == pytest.approx(mcnemar(3, 8))
    assert found.interval == tango_interval(3, 8, 60)
    assert json.loads(json.dumps(asdict(found)))["only_second"] == 8
    assert found.describe() == (
        f"+8.33 points ({100 * found.interval[0]:+.2f} to {100 * found.interval[1]:+.2f}) on 60 "
        "images: only the second is right on 8, only the first on 3; McNemar's p = 0.23"
    )


def test_hits_of_other_images_are_refused():
    with pytest.raises(ValueError, match="Received: 3 and 2"):
        compare_hits(np.ones(3, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match="Received: 0 and 0"):
        compare_hits(np.ones(0, bool), np.ones(0, bool))
