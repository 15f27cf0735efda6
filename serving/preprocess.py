"""Converts an image to the network's input, for training and serving alike."""

import numpy as np
from keras_image_helper import create_preprocessor
from PIL import Image

INPUT_SCALING = "xception"  # keras-image-helper's name for pixel / 127.5 - 1
_SCALER = create_preprocessor(INPUT_SCALING, target_size=None)


def resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return `image` (RGB) resized to `size` (height, width), as uint8.

    The array is (height, width, 3), 0 to 255. The filter is bilinear with antialiasing. The aspect
    ratio changes, so nothing is cut off.
    """
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def scale(pixels: np.ndarray) -> np.ndarray:
    """Return `pixels` (0 to 255) as new float32, -1 to 1."""
    return _SCALER.preprocess(pixels.astype(np.float32))


def preprocess(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return `image` (RGB) as float32 (1, height, width, 3), -1 to 1."""
    return scale(resize(image, size))[np.newaxis]
