"""An upright RGB image to the network's input; training uses the same functions."""

import numpy as np
from keras_image_helper import create_preprocessor
from PIL import Image

INPUT_SCALING = "xception"  # keras-image-helper's name for pixel / 127.5 - 1
_SCALER = create_preprocessor(INPUT_SCALING, target_size=None)


def resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return `image` (RGB) as uint8 (height, width, 3), 0 to 255; `size` is (height, width).

    Bilinear with antialiasing; the aspect ratio is not kept, so nothing is cut off.
    """
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def scale(pixels: np.ndarray) -> np.ndarray:
    """Return `pixels` (any shape, 0 to 255) as float32 from -1 to 1, in a new array."""
    return _SCALER.preprocess(pixels.astype(np.float32))


def preprocess(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return `image` (RGB) as the network's input, float32 (1, height, width, 3), -1 to 1."""
    return scale(resize(image, size))[np.newaxis]
