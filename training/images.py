"""The images of a data set as the network's inputs, plain or augmented."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.errors import ServingError
from serving.image import open_image
from serving.preprocess import resize, scale
from training.backend import tf
from training.dataset.scan import Dataset

if tf:
    ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator  # ty: ignore[missing-union-attribute]
else:  # the same class, which Keras exports by way of TensorFlow only
    from keras.src.legacy.preprocessing.image import ImageDataGenerator
# ImageDataGenerator draws from NumPy's global generator, which the loader's threads share.
_DRAWING = threading.Lock()

# Zhong et al.'s: the least and the largest area of what is erased, as a share of the image, and its
# height by its width.
ERASED_AREA, ERASED_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)

Sample = tuple[int, int]  # index of an image, and which view of it: 0 is the plain image


class Source(Protocol):
    """Gives the inputs of a network, or of its upper part.

    Attributes:
        dataset: whose images they are.
    """

    dataset: Dataset

    def inputs(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the inputs of `samples`, float32 (samples, ...)."""


class ImageSource:
    """Reads, resizes and augments the images of a data set.

    View 0 of an image is the plain image. Every other view is augmented by Keras'
    `ImageDataGenerator`, and in a share of the views a rectangle is erased, by random numbers that
    depend on the image's content and the view only.

    Attributes:
        dataset: whose images they are; an index counts its `images`.
        size: (height, width) in pixels.
        settings: arguments of `ImageDataGenerator`, and `erasing`, the share of the views in which
            a rectangle is erased.
    """

    def __init__(self, dataset: Dataset, size: tuple[int, int], settings: dict | None = None):
        """Augment by `settings`; without them all views are equal."""
        self.dataset, self.size, self.settings = dataset, size, settings or {}
        self._erasing = self.settings.get("erasing", 0)
        arguments = {name: value for name, value in self.settings.items() if name != "erasing"}
        self._augmentation = ImageDataGenerator(**arguments)

    def inputs(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the inputs of `samples`, float32 (samples, height, width, 3), -1 to 1."""
        return scale(np.stack([self._pixels(index, view) for index, view in samples]))

    def _pixels(self, index: int, view: int) -> np.ndarray:
        name = self.dataset.images[index]
        pixels = self.read(index)
        if view == 0:
            return pixels
        # By content: other files in the folder must not change the views of this image.
        entropy = (int(self.dataset.digests[name][:16], 16), view)
        seed = np.random.SeedSequence(entropy).generate_state(1)[0]
        with _DRAWING:
            change = self._augmentation.get_random_transform(pixels.shape, seed=int(seed))
        pixels = self._augmentation.apply_transform(pixels.astype(np.float32), change)
        rng = np.random.default_rng((*entropy, 1))  # its own, beside ImageDataGenerator's
        return erase(pixels, rng) if rng.random() < self._erasing else pixels

    def read(self, index: int) -> np.ndarray:
        """Return the plain image, uint8 (height, width, 3), 0 to 255."""
        return read_pixels(self.dataset.folder / self.dataset.images[index], self.size)


def erase(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `pixels`, float32 (height, width, 3), with noise from 0 to 255 in a rectangle.

    Its size, shape and place are random, and it is inside the image (Zhong et al. 2020, "Random
    Erasing Data Augmentation").
    """
    height, width = pixels.shape[:2]
    while True:  # until one fits, which the larger ones seldom do
        area, aspect = rng.uniform(*ERASED_AREA) * height * width, rng.uniform(*ERASED_ASPECT)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        top, left = rng.integers(height), rng.integers(width)
        if top + rows <= height and left + columns <= width:
            break
    erased = pixels.copy()
    erased[top : top + rows, left : left + columns] = rng.uniform(0, 255, (rows, columns, 3))
    return erased


class InMemoryImages(ImageSource):
    """An `ImageSource` that decodes each image once and keeps it in memory."""

    def __init__(self, dataset: Dataset, size: tuple[int, int], settings: dict | None = None):
        """Augment by `settings`; without them all views are equal."""
        super().__init__(dataset, size, settings)
        self._read: dict[int, np.ndarray] = {}

    def read(self, index: int) -> np.ndarray:
        """Return the plain image, uint8 (height, width, 3), 0 to 255."""
        if index not in self._read:
            self._read[index] = super().read(index)
        return self._read[index]


def read_pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the image at `path` as the service does: uint8 (height, width, 3), 0 to 255.

    Raises:
        ServingError: it is no image, or one that the service refuses.
        OSError: it cannot be read.
    """
    try:
        return resize(open_image(path, size), size)
    except ServingError as error:
        raise type(error)(f"Cannot read {path}. {error}") from error
