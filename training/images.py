"""The images of a data set as the network's inputs, plain or augmented."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.image import open_image
from serving.preprocess import resize, scale
from training.backend import tf
from training.dataset.scan import Dataset

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator  # ty: ignore[missing-attribute]
# ImageDataGenerator draws from NumPy's global generator, which the loader's threads share.
_DRAWING = threading.Lock()

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
    `ImageDataGenerator`, by random numbers that depend on the image's content and the view only.

    Attributes:
        dataset: whose images they are; an index counts its `images`.
        size: (height, width) in pixels.
        settings: arguments of `ImageDataGenerator`.
    """

    def __init__(self, dataset: Dataset, size: tuple[int, int], settings: dict | None = None):
        """Augment by `settings`; without them all views are equal."""
        self.dataset, self.size, self.settings = dataset, size, settings or {}
        self._augmentation = ImageDataGenerator(**self.settings)

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
        return self._augmentation.apply_transform(pixels.astype(np.float32), change)

    def read(self, index: int) -> np.ndarray:
        """Return the plain image, uint8 (height, width, 3), 0 to 255."""
        return read_pixels(self.dataset.folder / self.dataset.images[index], self.size)


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
    """Read the image at `path` as the service does: uint8 (height, width, 3), 0 to 255."""
    return resize(open_image(path, size), size)
