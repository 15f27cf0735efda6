"""training.evaluation.grad_cam: where a model looks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from serving.errors import ModelError
from training.backend import keras
from training.distribute.launcher import WORKER
from training.evaluation.grad_cam import grad_cam, is_possible
from training.model import BASE_LAYER


def colour_model(hidden=0):
    """A network that tells red from green: by the mean, over its regions, of either's excess."""
    inside = keras.Input((32, 32, 3))
    convolution = keras.layers.Conv2D(2, 4, strides=4, activation="relu")
    base = keras.Model(inside, convolution(inside), name=BASE_LAYER)
    kernel = np.zeros((4, 4, 3, 2), dtype="float32")
    kernel[..., 0, 0] = kernel[..., 1, 1] = 1 / 16
    kernel[..., 1, 0] = kernel[..., 0, 1] = -1 / 16
    convolution.set_weights([kernel, np.zeros(2)])
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(base(inputs))
    if hidden:
        x = keras.layers.Dense(hidden, activation="relu", kernel_initializer="identity")(x)
        x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    # What speaks for the one speaks against the other.
    model.layers[-1].set_weights([np.array([[1, -1], [-1, 1]]), np.zeros(2)])
    return model


@pytest.fixture
def images():
    """Grey with a red square at the top left and a green one at the bottom right."""
    pixels = np.zeros((2, 32, 32, 3), dtype="float32")
    pixels[:, 4:12, 4:12, 0] = 1
    pixels[:, 20:28, 20:28, 1] = 1
    return pixels


@pytest.mark.parametrize("hidden", [0, 2])
def test_it_shows_what_speaks_for_the_class_and_nothing_else(images, hidden):
    red, green = grad_cam(colour_model(hidden), images, np.array([0, 1]))
    top_left, bottom_right = np.zeros((8, 8)), np.zeros((8, 8))
    top_left[1:3, 1:3] = bottom_right[5:7, 5:7] = 1
    assert red == pytest.approx(top_left, abs=1e-6)
    assert green == pytest.approx(bottom_right, abs=1e-6)


def test_it_is_0_to_1_and_float32(images):
    noise = np.random.default_rng(0).uniform(-1, 1, images.shape).astype("float32")
    heat = grad_cam(colour_model(), noise, np.array([0, 1]))
    assert heat.dtype == np.float32
    assert heat.min() == 0
    assert heat.max(axis=(1, 2)) == pytest.approx([1, 1])


def test_a_certain_answer_is_explained_too(images):
    model = colour_model()
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * 1e4, bias])  # softmax says 1 and has no gradient
    images[:, 20:28] = 0
    assert grad_cam(model, images, np.array([0, 0])).max() == pytest.approx(1)


def test_where_nothing_speaks_for_the_class_nothing_is_shown(images):
    assert not grad_cam(colour_model(), np.zeros_like(images), np.array([0, 1])).any()


def test_one_answer_does_not_depend_on_its_neighbours(images):
    model = colour_model()
    both = grad_cam(model, images, np.array([0, 1]))
    alone = grad_cam(model, images[1:], np.array([1]))
    assert both[1:] == pytest.approx(alone)


def test_a_reloaded_model_is_explained_and_left_as_it_is(images, tmp_path):
    model = colour_model(2)
    model.save(tmp_path / "model.h5")
    reloaded = keras.models.load_model(tmp_path / "model.h5", compile=False)
    expected = grad_cam(model, images, np.array([0, 1]))
    before = np.asarray(reloaded(images))
    assert grad_cam(reloaded, images, np.array([0, 1])) == pytest.approx(expected)
    assert np.array_equal(np.asarray(reloaded(images)), before)


def test_a_model_without_a_softmax_is_refused(images):
    model = colour_model()
    model = keras.Model(model.input, model.layers[-2].output)
    with pytest.raises(ModelError, match="last layer is Dense with softmax"):
        grad_cam(model, images, np.array([0, 1]))


def test_jax_shows_the_same(images, tmp_path):
    pytest.importorskip("jax")
    assert is_possible()
    np.save(tmp_path / "images.npy", images)
    script = (
        "import numpy as np; from test_grad_cam import colour_model, grad_cam, is_possible, keras;"
        "assert keras.backend.backend() == 'jax' and is_possible();"
        f"heat = grad_cam(colour_model(2), np.load(r'{tmp_path / 'images.npy'}'), "
        "np.array([0, 1]));"
        f"np.save(r'{tmp_path / 'heat.npy'}', heat)"
    )
    path = os.pathsep.join(map(str, [ROOT, ROOT / "tests", Path(__file__).parent]))
    subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ
        | {"KERAS_BACKEND": "jax", WORKER: "1", "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    expected = grad_cam(colour_model(2), images, np.array([0, 1]))
    assert np.load(tmp_path / "heat.npy") == pytest.approx(expected, abs=1e-5)
