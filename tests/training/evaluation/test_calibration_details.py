"""training.evaluation.calibration: the numbers worked out another way, and the sentences, whole."""

import numpy as np
import pytest

from serving.errors import ModelError
from training.backend import keras
from training.evaluation.calibration import (
    TEMPERATURES,
    apply_temperature,
    bake_temperature,
    bin_predictions,
    error_by_chance,
    expected_calibration_error,
    fit_temperature,
    require_dense_softmax,
)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture
def probabilities():
    return softmax(np.random.default_rng(1).normal(0, 2, (300, 5)))


def test_the_fit_makes_the_truth_most_likely(probabilities):
    truth = np.random.default_rng(2).integers(0, 5, 300)
    truth[:200] = probabilities[:200].argmax(axis=1)
    found = fit_temperature(probabilities, truth)

    def likelihood(temperature):
        applied = apply_temperature(probabilities, temperature)
        return np.log(applied[np.arange(300), truth]).sum()

    low, high = TEMPERATURES
    grid = np.geomspace(low, high, 400)
    assert low < found < high
    assert likelihood(found) >= max(map(likelihood, grid)) - 1e-6


def test_answers_at_random_are_spread_as_far_as_the_bound(probabilities):
    # Every truth is the least likely class: the flatter, the likelier.
    found = fit_temperature(probabilities, probabilities.argmin(axis=1))
    assert found == pytest.approx(TEMPERATURES[1], rel=1e-3)


def test_one_class_alone_has_nothing_to_doubt():
    low, high = TEMPERATURES
    assert low <= fit_temperature(np.ones((4, 1)), np.zeros(4, int)) <= high


def test_doubt_is_shared_by_all_wrong_classes():
    # Four of four right, so a fifth and sixth image count: 5/6 for the right class.
    sure = np.tile([[0.4, 0.2, 0.2, 0.2]], (4, 1))
    applied = apply_temperature(sure, fit_temperature(sure, np.zeros(4, int)))
    assert applied[0] == pytest.approx([5 / 6, *[1 / 18] * 3], abs=1e-4)


def test_right_answers_of_any_class_are_doubted():
    half_sure = np.array([[0.6, 0.4], [0.4, 0.6]])
    applied = apply_temperature(half_sure, fit_temperature(half_sure, np.array([0, 1])))
    assert applied.max(axis=1) == pytest.approx([3 / 4] * 2, abs=1e-3)


def test_what_a_softmax_rounded_to_nothing_counts_as_float32s_smallest():
    applied = apply_temperature(np.array([[1.0, 0.0]], "float32"), 20.0)
    share = np.exp(np.log(np.finfo(np.float32).tiny) / 20)
    assert applied.dtype == np.float32
    assert applied[0] == pytest.approx([1 / (1 + share), share / (1 + share)], rel=1e-5)


def test_a_temperature_keeps_the_type_and_divides_the_logits(probabilities):
    applied = apply_temperature(probabilities, 2.5)
    assert applied.dtype == np.float64
    assert applied == pytest.approx(softmax(np.log(probabilities) / 2.5))


# Bins.


def test_there_are_fifteen_bins_and_empty_ones_know_nothing():
    answers = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    binned = bin_predictions(answers, np.array([0, 0, 0]))
    assert binned.count.shape == binned.confidence.shape == binned.accuracy.shape == (15,)
    assert binned.count[13] == 2
    assert binned.confidence[13] == pytest.approx(0.9)
    assert binned.accuracy[13] == 0.5
    assert (binned.count[7], binned.accuracy[7]) == (1, 1)
    assert np.isnan(np.delete(binned.confidence, [7, 13])).all()
    assert np.isnan(np.delete(binned.accuracy, [7, 13])).all()


def test_a_confidence_of_nothing_is_in_the_first_bin():
    binned = bin_predictions(np.zeros((1, 2)), np.array([0]), bins=3)
    assert binned.count.tolist() == [1, 0, 0]
    assert binned.confidence[0] == 0


def test_fifteen_bins_are_the_default(probabilities):
    truth = np.random.default_rng(3).integers(0, 5, 300)
    error = expected_calibration_error(probabilities, truth)
    assert error == expected_calibration_error(probabilities, truth, 15)
    assert error != expected_calibration_error(probabilities, truth, 16)


# Chance.


def test_chance_is_the_95th_percentile_of_200_draws(probabilities):
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        thrown = rng.random((300, 1))
        drawn = (thrown > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
        errors.append(expected_calibration_error(probabilities, drawn))
    assert error_by_chance(probabilities) == np.percentile(errors, 95)
    assert error_by_chance(probabilities, 200, 1) != np.percentile(errors, 95)
    assert isinstance(error_by_chance(probabilities, 3), float)


# Sentences.


@pytest.mark.parametrize("temperature", [0, float("inf")])
def test_a_temperature_that_is_none_is_told(temperature):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(inputs))
    with pytest.raises(ValueError, match="temperature") as caught:
        bake_temperature(model, temperature)
    assert str(caught.value) == f"Expected a temperature above 0. Received: {temperature}"


def test_a_model_with_another_end_is_told():
    inputs = keras.Input((8,))
    ends = {
        "Dense with relu": keras.layers.Dense(3, activation="relu"),
        "Softmax with no activation": keras.layers.Softmax(),
        "Activation with softmax": keras.layers.Activation("softmax"),
    }
    for received, end in ends.items():
        with pytest.raises(ModelError) as caught:
            require_dense_softmax(keras.Model(inputs, end(inputs)))
        assert str(caught.value) == (
            "Expected a model whose last layer is Dense with softmax. "
            f"Received: {received}. Build it with training.model.build_model."
        )
    dense = keras.layers.Dense(3, activation="softmax")
    assert require_dense_softmax(keras.Model(inputs, dense(inputs))) is dense
