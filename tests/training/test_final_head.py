"""training/final_head.py: the head is trained again on plain images of the final size."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import build_tiny

from serving.details import Details
from training import final_head
from training.backend import keras
from training.checkpoint import Metadata
from training.dataset.scan import scan
from training.dataset.split import split_dataset
from training.evaluation.calibration import bake_temperature
from training.final_head import fit_final_head
from training.fit import HEAD_LEARNING_RATE
from training.images import ImageSource
from training.model import split_at_block
from training.recipes import ORIGINAL

SIDE = 48
RECIPE = replace(
    ORIGINAL,
    input_size=40,
    inference_size=SIDE,
    batch_size=8,
    label_smoothing=0.1,
    head=(),
    final_head_epochs=3,
)


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    monkeypatch.setattr("training.model.build_model", build_tiny)
    # In float32, so that what is expected can be computed.
    monkeypatch.setattr("training.features.dtype_policy", lambda: "float32")


@pytest.fixture(scope="module")
def run(drawn):
    dataset = scan(drawn)
    split = split_dataset(dataset, 1, validation_fraction=0.25, test_fraction=0.2)
    images = ImageSource(dataset, (40, 40), ORIGINAL.augmentation)
    return SimpleNamespace(recipe=RECIPE, images=images, split=split)


def network(head=()):
    keras.utils.set_random_seed(3)
    return build_tiny((40, 40), head, 5)


METADATA = Metadata(("daisy", "dandelion", "rose", "sunflower", "tulip"), 2, 0.5)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_head_learns_plain_training_images_of_the_final_size(run):
    model, metadata, features = fit_final_head(run, network(), METADATA, None)
    assert model.input_shape == (None, SIDE, SIDE, 3)
    assert metadata == METADATA
    # The same by hand, from images as they are.
    dataset, split = run.images.dataset, run.split
    places = [dataset.images.index(name) for name in split.train]
    inputs = ImageSource(dataset, (SIDE, SIDE)).inputs([(place, 0) for place in places])
    expected = build_tiny((SIDE, SIDE), (), 5)
    expected.set_weights(network().get_weights())
    frozen, head = split_at_block(expected, None)
    pooled = frozen.predict(inputs, verbose=0)
    assert np.allclose(features[places], pooled, atol=1e-4)
    others = [place for place in range(len(dataset.images)) if place not in places]
    assert np.isnan(features[others]).all()
    head.compile(
        keras.optimizers.Adam(HEAD_LEARNING_RATE),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
    )
    keras.utils.set_random_seed(RECIPE.seed)
    targets = keras.utils.to_categorical(dataset.labels(split.train), 5)
    head.fit(pooled, targets, batch_size=8, epochs=3, verbose=0)
    *base, kernel, bias = model.get_weights()
    *same, wanted, wanted_bias = expected.get_weights()
    assert equal(base, same), "nothing but the head learns"
    assert np.allclose(kernel, wanted, atol=1e-4)
    assert np.allclose(bias, wanted_bias, atol=1e-4)
    assert not np.allclose(kernel, network().get_weights()[-2], atol=1e-3)


def test_it_ends_the_same_wherever_it_starts_in_the_random_numbers(run):
    first, *_ = fit_final_head(run, network(), METADATA, None)
    model = network()
    keras.random.normal((100,))
    np.random.default_rng().random()
    keras.utils.set_random_seed(99)
    second, *_ = fit_final_head(run, model, METADATA, None)
    assert equal(first.get_weights(), second.get_weights())
    other = SimpleNamespace(**vars(run) | {"recipe": replace(RECIPE, seed=1)})
    third, *_ = fit_final_head(other, network(), METADATA, None)
    assert not equal(first.get_weights(), third.get_weights())


def test_a_temperature_of_an_earlier_report_is_undone_first(run):
    model = network()
    bake_temperature(model, 2.0)
    calibrated = replace(METADATA, temperature=2.0, details=Details(nonconformity=np.zeros(1)))
    one, metadata, _ = fit_final_head(run, model, calibrated, None)
    assert (metadata.temperature, metadata.details.nonconformity) == (1.0, None)
    other, *_ = fit_final_head(run, network(), METADATA, None)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        assert np.allclose(a, b, atol=1e-6)


def test_known_features_are_used_and_hidden_layers_learn_too(run, monkeypatch):
    monkeypatch.setattr(final_head, "infer_once", None)
    known = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    before = network((6,)).get_weights()
    model, _, features = fit_final_head(run, network((6,)), METADATA, known)
    assert features is known
    changed = [
        not np.array_equal(one, other)
        for one, other in zip(model.get_weights(), before, strict=True)
    ]
    assert changed == [False] * 28 + [True] * 4
