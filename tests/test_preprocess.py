"""serving.preprocess: upright RGB to the network's input."""

import numpy as np
import pytest
from PIL import Image

from serving.preprocess import preprocess, resize, scale


def test_shape_and_type():
    inputs = preprocess(Image.new("RGB", (64, 32)), (299, 150))
    assert inputs.shape == (1, 299, 150, 3)
    assert inputs.dtype == np.float32


@pytest.mark.parametrize(("pixel", "expected"), [(0, -1.0), (255, 1.0), (127.5, 0.0)])
def test_scaling_is_xceptions(pixel, expected):
    assert scale(np.array([pixel]))[0] == np.float32(expected)


def test_scaling_leaves_its_argument_alone():
    pixels = np.full((2, 2), 255, np.float32)
    scale(pixels)
    assert (pixels == 255).all()


def test_scaling_is_that_of_keras_for_xception():
    from training.backend import keras

    pixels = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    expected = keras.applications.xception.preprocess_input(pixels.copy())
    assert np.array_equal(scale(pixels), expected)


def test_shrinking_is_antialiased():
    lines = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (100, 50))).convert("RGB")
    pixels = resize(lines, (10, 10))
    assert pixels.std() < 10  # without antialiasing it would be stripes or one plain colour
    assert 100 < pixels.mean() < 155
