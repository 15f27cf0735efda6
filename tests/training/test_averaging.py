"""training/averaging.py: the average of weights is validated and kept, the weights train on."""

from types import SimpleNamespace

import numpy as np
import pytest

from training.averaging import InsertAverages, RemoveAverages, swap_averages
from training.backend import keras
from training.dataset.split import Split
from training.distribute.workers import Workers
from training.fit import advise_recipe, compile_model, make_callbacks
from training.recipes import ORIGINAL, Recipe, RunOptions
from training.resume import STATE, restore_weights

MOMENTUM, STEPS, EPOCHS = 0.7, 3, 2
SPLIT = Split(1, ("a/1", "b/1"), ("a/2", "b/2"))


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    made = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(inputs))
    compile_model(made, 0.3, 0.5, ema_momentum=MOMENTUM)
    return made


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(STEPS * 8, 4)).astype("float32")
    return inputs, np.eye(2, dtype="float32")[(inputs[:, 0] > 0).astype(int)]


class Watch(keras.callbacks.Callback):
    """Notes the weights after each batch."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())


def averages_of(weights):
    """Return the moving average after each of `weights`, as its definition says."""
    averages = [weights[0]]
    for each in weights[1:]:
        averages.append(
            [MOMENTUM * a + (1 - MOMENTUM) * w for a, w in zip(averages[-1], each, strict=True)]
        )
    return averages


@pytest.mark.parametrize("validated", [True, False])
def test_the_average_is_validated_and_kept_and_the_weights_train_on(
    validated, model, data, tmp_path
):
    run = SimpleNamespace(
        recipe=Recipe(ema_momentum=MOMENTUM),
        options=RunOptions(models=tmp_path),
        workers=Workers(),
        replaced=(),
        settings={},
        state=None,
        seconds=lambda: 0.0,
    )
    seen = []
    best = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((model.get_weights(), logs))
    )
    best.path, best.best = None, (0.0, 1.0)
    callbacks, watch = make_callbacks(run, best), Watch()
    trained = []
    callbacks.append(
        keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: trained.append(model.get_weights()))
    )
    model.fit(
        *data,
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=data if validated else None,
        callbacks=[watch, *callbacks],
    )
    expected = averages_of(watch.weights)
    for epoch in range(EPOCHS):
        last = STEPS * (epoch + 1) - 1
        kept, logs = seen[epoch]
        for one, other in zip(kept, expected[last], strict=True):
            assert np.allclose(one, other, atol=1e-6)
        assert not np.allclose(kept[0], watch.weights[last][0], atol=1e-4), "they differ by then"
        for one, other in zip(trained[epoch], watch.weights[last], strict=True):
            assert np.array_equal(one, other), "to the bit"
        if validated:
            logits = data[0] @ kept[0] + kept[1]
            right = (logits * data[1]).sum(axis=1)
            loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - right)
            assert logs["val_loss"] == pytest.approx(loss, rel=1e-5)
    # What a resumed run goes on from: both, each in its place.
    resumed = keras.models.clone_model(model)
    compile_model(resumed, 0.3, 0.5, ema_momentum=MOMENTUM)
    restore_weights(resumed, tmp_path / STATE)
    for one, other in zip(resumed.get_weights(), watch.weights[-1], strict=True):
        assert np.array_equal(one, other)
    swap_averages(resumed)
    for one, other in zip(resumed.get_weights(), seen[-1][0], strict=True):
        assert np.array_equal(one, other)


def test_a_swap_and_back_rounds_nothing(model, data):
    model.train_on_batch(*data)
    rng = np.random.default_rng(1)
    wide = [np.float32(rng.normal(size=w.shape) * 1e6) for w in model.get_weights()]
    tiny = [np.float32(rng.normal(size=w.shape) * 1e-6) for w in model.get_weights()]
    model.set_weights(wide)
    for variable, values in zip(model.optimizer._model_variables_moving_average, tiny, strict=True):
        variable.assign(values)
    swap_averages(model)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), tiny, strict=True))
    swap_averages(model)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), wide, strict=True))


def test_without_a_momentum_nothing_is_averaged(tmp_path):
    run = SimpleNamespace(
        recipe=ORIGINAL,
        options=RunOptions(models=tmp_path),
        workers=Workers(),
        replaced=(),
        settings={},
        state=None,
        seconds=lambda: 0.0,
    )
    kinds = {type(each) for each in make_callbacks(run, keras.callbacks.Callback())}
    assert kinds.isdisjoint({InsertAverages, RemoveAverages})
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(inputs))
    compile_model(model, 0.3, 0.5)
    assert not model.optimizer.use_ema


@pytest.mark.parametrize(
    ("recipe", "advice"),
    [
        (Recipe(ema_momentum=0.99), None),  # 100 of 3,000 batches
        (Recipe(ema_momentum=0.99, epochs=3), "the last 100 batches or so, of 300 in all"),
        (Recipe(ema_momentum=0.9, epochs=3), None),
        (Recipe(epochs=3), None),
    ],
)
def test_an_average_over_most_of_a_run_is_advised_against(recipe, advice, capsys):
    split = Split(1, tuple(f"a/{n}" for n in range(600)), ("a/x",))
    advise_recipe(SimpleNamespace(recipe=recipe, split=split))
    said = capsys.readouterr().out
    assert ("Averaged weights" in said) == bool(advice)
    assert (advice or "") in said
    if advice:
        assert "Lower --ema-momentum to 0.967" in said  # 30 batches, a tenth
