"""serving.answers: scores, and what a model tells beside them."""

import json

import numpy as np
import pytest

from serving.answers import (
    describe,
    is_unknown,
    known,
    read_unknown_below,
    require_finite,
    top_k,
)
from serving.details import Details, Familiarity
from serving.errors import InternalError, SettingError
from serving.runtimes import Prediction

LABELS = ("red", "green", "blue")
SCORES = np.float32([0.2, 0.5, 0.3])
ACTIVATIONS = np.float32([[[1, 0], [0, 1], [0, 3]]])
DETAILS = Details(
    Familiarity(
        means=np.float32([[0, 1]]),
        directions=np.zeros((1, 2, 1), np.float32),
        distances=np.arange(100, dtype=np.float32) / 100,
    ),
    nonconformity=np.float32([0.1] * 18 + [0.6, 0.6, 0.75, 0.75]),
    head=((np.float32([[1, 0, 0], [0, 1, 0]]), np.zeros(3, np.float32)),),
)
NOTHING = dict.fromkeys(("known", "unknown", "prediction_set", "heatmap"))


def test_all_scores_come_in_the_order_of_the_classes_and_the_best_by_score():
    assert list(top_k(LABELS, SCORES, None).items()) == [
        ("red", 0.2),
        ("green", 0.5),
        ("blue", 0.3),
    ]
    assert list(top_k(LABELS, SCORES, 2).items()) == [("green", 0.5), ("blue", 0.3)]
    assert list(top_k(LABELS, SCORES, 9)) == ["green", "blue", "red"]


def test_all_that_a_model_tells():
    told = describe(LABELS, DETAILS, Prediction(SCORES, ACTIVATIONS), 0.02)
    # The mean, (1, 4) / 3, is 0.0597 from (0, 1) once it has length 1.
    assert told == {
        "label": "green",
        "scores": {"red": 0.2, "green": 0.5, "blue": 0.3},
        "known": 0.9406,  # 95 of 101
        "unknown": False,
        "prediction_set": ["green", "blue"],
        "heatmap": {"rows": 1, "columns": 3, "values": [0.0, 0.333, 1.0]},
    }
    assert list(told) == ["label", "scores", *NOTHING]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_top_limits_the_scores_and_nothing_else():
    every = describe(LABELS, DETAILS, Prediction(SCORES, ACTIVATIONS), 0.02)
    one = describe(LABELS, DETAILS, Prediction(SCORES, ACTIVATIONS), 0.02, top=1)
    assert one == every | {"scores": {"green": 0.5}}


@pytest.mark.parametrize(
    ("details", "activations"),
    [(Details(), None), (Details(), ACTIVATIONS), (Details(DETAILS.familiarity), None)],
    ids=["nothing", "activations alone", "statistics alone"],
)
def test_what_a_model_does_not_tell_is_null(details, activations):
    told = describe(LABELS, details, Prediction(SCORES, activations), 0.02)
    assert told == {"label": "green", "scores": top_k(LABELS, SCORES, None)} | NOTHING
    assert known(details, Prediction(SCORES, activations)) is None


def test_an_image_is_unknown_if_too_few_are_as_strange():
    far = Prediction(SCORES, -ACTIVATIONS)
    assert known(DETAILS, far) == 0.0099  # 1 of 101
    assert describe(LABELS, DETAILS, far, 0.02)["unknown"] is True
    assert describe(LABELS, DETAILS, far, 0.0099)["unknown"] is False
    assert is_unknown(0.0, 0.0) is False
    assert is_unknown(None, 1.0) is None


def test_of_equal_scores_the_first_class_is_the_label():
    told = describe(LABELS, Details(), Prediction(np.float32([0.2, 0.4, 0.4])), 0.02)
    assert told["label"] == "green"


def test_the_label_is_the_best_score_also_where_rounding_makes_two_alike():
    close = np.float32([0.499998, 0.500002, 0])
    told = describe(LABELS, Details(), Prediction(close), 0.02, top=1)
    assert (told["label"], told["scores"]) == ("green", {"green": 0.5})
    assert list(top_k(LABELS, close, 10**30)) == ["green", "red", "blue"]
    assert list(top_k(LABELS, np.float32([0.2, 0.4, 0.4]), 2)) == ["green", "blue"]


def test_a_network_that_fails_tells_numbers_all_the_same():
    broken = Prediction(SCORES, ACTIVATIONS * np.nan)
    told = describe(LABELS, DETAILS, broken, 0.02)
    assert told["unknown"] is True
    assert told["heatmap"]["values"] == [0, 0, 0]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_probabilities_that_are_no_numbers_are_an_error(number):
    require_finite(Prediction(SCORES))
    with pytest.raises(InternalError, match="^The model's scores are no numbers"):
        require_finite(Prediction(np.float32([0.5, number, 0.5])))


@pytest.mark.parametrize(
    ("text", "value"),
    [(None, 0.02), ("", 0.02), (" 0.1 ", 0.1), ("0", 0), ("1", 1), ("5e-2", 0.05)],
)
def test_unknown_below_is_a_share(monkeypatch, text, value):
    monkeypatch.delenv("UNKNOWN_BELOW", raising=False)
    if text is not None:
        monkeypatch.setenv("UNKNOWN_BELOW", text)
    assert read_unknown_below() == value


@pytest.mark.parametrize("text", ["2 %", "-0.1", "1.1", "nan", "inf", "0,02"])
def test_another_unknown_below_is_refused(monkeypatch, text):
    monkeypatch.setenv("UNKNOWN_BELOW", text)
    with pytest.raises(SettingError) as caught:
        read_unknown_below()
    assert str(caught.value) == (
        "Expected UNKNOWN_BELOW to be a number from 0 to 1: the share of images like those of "
        f"training that may be called unknown. Received: {text!r}. Correct or unset it."
    )
