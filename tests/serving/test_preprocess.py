"""serving.preprocess: upright RGB to the network's input."""

import numpy as np
import pytest
from PIL import Image

from serving.preprocess import preprocess, resize, scale

# What `pattern()` becomes, as the shipped models were trained on it.
SHRUNK = [
    [[106, 34, 133], [129, 91, 104], [114, 106, 140]],
    [[121, 87, 107], [114, 147, 144], [127, 145, 130]],
]
ENLARGED = [
    [[0, 0, 0], [15, 0, 12], [37, 0, 31], [59, 0, 50], [74, 0, 62]],
    [[46, 0, 106], [61, 4, 118], [83, 9, 137], [105, 14, 79], [120, 17, 40]],
    [[91, 0, 211], [106, 7, 223], [128, 17, 242], [150, 27, 107], [165, 34, 17]],
]
INPUTS = [
    [
        [-0.16862744, -0.73333335, 0.043137312],
        [0.011764765, -0.2862745, -0.18431371],
        [-0.10588235, -0.16862744, 0.09803927],
    ],
    [
        [-0.05098039, -0.31764704, -0.1607843],
        [-0.10588235, 0.15294123, 0.12941182],
        [-0.0039215684, 0.13725495, 0.019607902],
    ],
]


def pattern() -> Image.Image:
    """Nine columns and seven rows without any regularity that resampling could hide in."""
    y, x = np.mgrid[:7, :9]
    return Image.fromarray(
        np.stack([x * 37 + y * 91, x * y * 17, x * 31 - y * 45], -1).astype("u1")
    )


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


def test_resizing_and_scaling_give_the_very_numbers_that_models_were_trained_on():
    """Training uses the same functions, so that both could shift together and nothing else show."""
    assert resize(pattern(), (2, 3)).tolist() == SHRUNK
    assert resize(pattern().crop((0, 0, 3, 2)), (3, 5)).tolist() == ENLARGED
    assert np.array_equal(scale(np.uint8(SHRUNK)), np.float32(INPUTS))
    assert np.array_equal(preprocess(pattern(), (2, 3)), np.float32([INPUTS]))


def test_shrinking_is_antialiased():
    lines = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (100, 50))).convert("RGB")
    pixels = resize(lines, (10, 10))
    assert pixels.std() < 10  # without antialiasing it would be stripes or one plain colour
    assert 100 < pixels.mean() < 155
