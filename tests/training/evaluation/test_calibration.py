"""training.evaluation.calibration: confidence that means what it says."""

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


def drawn_from(probabilities, seed=0):
    """Return a truth that `probabilities` are perfectly calibrated for."""
    thrown = np.random.default_rng(seed).random((len(probabilities), 1))
    return (thrown > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)


@pytest.fixture
def logits():
    return np.random.default_rng(1).normal(0, 2, (20_000, 5))


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    x = keras.layers.Dense(6, activation="relu")(inputs)
    softmax = keras.layers.Dense(
        4, activation="softmax", bias_initializer=keras.initializers.RandomNormal(0, 1, seed=0)
    )
    return keras.Model(inputs, softmax(x))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(logits, temperature):
    truth = drawn_from(softmax(logits))
    found = fit_temperature(softmax(logits * temperature).astype("float32"), truth)
    assert found == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_calibrates(logits):
    truth = drawn_from(softmax(logits))
    sure = softmax(logits * 3)
    assert expected_calibration_error(sure, truth) > 0.1
    calibrated = apply_temperature(sure, fit_temperature(sure, truth))
    assert expected_calibration_error(calibrated, truth) < 0.01


def test_an_answer_that_rounds_to_nothing_is_fitted_too():
    sure = np.array([[1, 0], [1, 0], [0, 1]], dtype="float32")
    low, high = TEMPERATURES
    assert low < fit_temperature(sure, np.array([0, 1, 1])) <= high


def test_an_answer_in_float64_counts_as_far_down_as_float32_reaches():
    sure = np.array([[1, 1e-20]] * 15 + [[1e-20, 1]])
    temperature = fit_temperature(sure, np.zeros(16, dtype=int))
    # 15 of 16 right: log odds of log(15), where the logits are -log(1e-20) apart.
    assert temperature == pytest.approx(20 * np.log(10) / np.log(15), rel=1e-3)


def test_with_a_mistake_confidence_becomes_the_share_that_is_right():
    probabilities = np.tile([[0.6, 0.4]], (3, 1))
    temperature = fit_temperature(probabilities, np.array([0, 0, 1]))
    assert apply_temperature(probabilities, temperature).max() == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("answer", [[0.6, 0.4], [0.6, 0.2, 0.2]])
def test_faultless_answers_are_not_made_certain(count, answer):
    half_sure = np.tile([answer], (count, 1))
    truth = np.zeros(count, dtype=int)
    temperature = fit_temperature(half_sure, truth)
    # Platt's one more image: (count + 1) of (count + 2) right.
    expected = (count + 1) / (count + 2)
    assert apply_temperature(half_sure, temperature).max() == pytest.approx(expected, abs=1e-3)


def test_without_images_nothing_changes():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1


def test_a_temperature_keeps_the_answers_and_the_sum():
    probabilities = softmax(np.random.default_rng(0).normal(0, 3, (50, 4))).astype("float32")
    for temperature in (0.3, 1, 4):
        applied = apply_temperature(probabilities, temperature)
        assert applied.dtype == np.float32
        assert np.array_equal(applied.argmax(axis=1), probabilities.argmax(axis=1))
        assert applied.sum(axis=1) == pytest.approx(1)
    assert apply_temperature(probabilities, 1) == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.9])
def test_a_baked_temperature_is_the_applied_one_also_once_saved(model, temperature, tmp_path):
    inputs = np.random.default_rng(0).normal(0, 3, (30, 8)).astype("float32")
    before = np.asarray(model(inputs))
    bake_temperature(model, temperature)
    expected = apply_temperature(before, temperature)
    assert np.abs(expected - before).max() > 0.01
    assert np.asarray(model(inputs)) == pytest.approx(expected, abs=1e-6)

    model.save(tmp_path / "model.h5")
    reloaded = keras.models.load_model(tmp_path / "model.h5", compile=False)
    assert len(reloaded.layers) == len(model.layers)
    assert np.asarray(reloaded(inputs)) == pytest.approx(expected, abs=1e-6)


def test_a_layer_without_bias_is_baked(model):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", use_bias=False)(inputs))
    kernel = model.layers[-1].get_weights()[0].copy()
    bake_temperature(model, 2)
    assert model.layers[-1].get_weights()[0] == pytest.approx(kernel / 2)


def test_a_model_without_a_softmax_at_its_end_is_refused():
    inputs = keras.Input((8,))
    dense = keras.Model(inputs, keras.layers.Dense(3, activation="sigmoid")(inputs))
    with pytest.raises(ModelError, match="Received: Dense with sigmoid"):
        bake_temperature(dense, 2)
    apart = keras.Model(inputs, keras.layers.Softmax()(keras.layers.Dense(3)(inputs)))
    with pytest.raises(ModelError, match="Received: Softmax with no activation"):
        bake_temperature(apart, 2)


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
def test_a_temperature_is_above_zero(model, temperature):
    with pytest.raises(ValueError, match="above 0"):
        bake_temperature(model, temperature)


def test_the_calibration_error_of_hand_made_answers():
    truth = np.array([0, 0, 0, 1])
    sure = np.array([[0.95, 0.05]] * 4)  # three of four right at 0.95
    assert expected_calibration_error(sure, truth) == pytest.approx(0.2)
    # Two bins: one of one right at 0.95, two of three right at 0.55.
    mixed = np.array([[0.95, 0.05], [0.55, 0.45], [0.55, 0.45], [0.55, 0.45]])
    expected = 1 / 4 * 0.05 + 3 / 4 * (2 / 3 - 0.55)
    assert expected_calibration_error(mixed, truth) == pytest.approx(expected)
    # In one bin the two errors, of opposite signs, partly cancel.
    assert expected_calibration_error(mixed, truth, bins=1) == pytest.approx(0.75 - 0.65)
    assert expected_calibration_error(np.zeros((0, 2)), np.zeros(0, dtype=int)) == 0


def test_a_bin_holds_its_upper_edge_and_certainty_is_in_the_last():
    binned = bin_predictions(np.array([[0.5, 0.5], [1, 0]]), np.array([0, 0]), bins=2)
    assert binned.count.tolist() == [1, 1]
    assert binned.confidence.tolist() == [0.5, 1]
    assert binned.accuracy.tolist() == [1, 1]
    assert len(bin_predictions(np.ones((1, 1)), np.zeros(1, dtype=int)).count) == 15  # Guo et al.'s


def test_chance_explains_the_error_of_a_calibrated_model_only(logits):
    probabilities = softmax(logits[:300])
    errors = [
        expected_calibration_error(probabilities, drawn_from(probabilities, seed))
        for seed in range(1000, 1500)
    ]
    # 19 times out of 20, known to about 0.015.
    bound = error_by_chance(probabilities, draws=500)
    assert 0.93 <= sum(error <= bound for error in errors) / 500 <= 0.97
    assert error_by_chance(probabilities) == pytest.approx(bound, rel=0.1)
    assert error_by_chance(softmax(logits[:5000])) < bound / 3
    truth = drawn_from(probabilities)
    assert expected_calibration_error(softmax(logits[:300] * 4), truth) > bound


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


def test_a_confidence_of_rounding_above_one_is_in_the_last_bin():
    binned = bin_predictions(np.array([[1.0000002, 0]], np.float32), np.array([0]), bins=3)
    assert binned.count.tolist() == [0, 0, 1]


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
