"""The images of a data set as the network's inputs, as they are or augmented."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.image import open_image
from serving.preprocess import resize, scale
from training.backend import tf
from training.dataset.scan import Dataset

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator


# ImageDataGenerator draws from NumPy's global generator, which the loader's threads share.
_DRAWING = threading.Lock()


Sample = tuple[int, int]  # an image's index and its view


class Source(Protocol):
    """What gives the network's inputs.

    Attributes:
        dataset: whose images they are.
    """

    dataset: Dataset

    def inputs(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the inputs of `samples`, float (picks, ...)."""


class ImageSource:
    """The images of a data set as the whole network wants them.

    Attributes:
        dataset: its image number i is the one with index i.
        size: (height, width) in pixels.
        settings: of the augmentation, by the names that `ImageDataGenerator` gives them.
    """

    def __init__(self, dataset: Dataset, size: tuple[int, int], settings: dict | None = None):
        """Augment by `settings`; without any all views are equal."""
        self.dataset, self.size, self.settings = dataset, size, settings or {}
        self._augmentation = ImageDataGenerator(**self.settings)

    def inputs(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the inputs of `samples`, float32 (picks, height, width, 3), -1 to 1."""
        return scale(np.stack([self._pixels(index, view) for index, view in samples]))

    def _pixels(self, index: int, view: int) -> np.ndarray:
        name = self.dataset.images[index]
        pixels = self.read(index)
        if view == 0:
            return pixels
        # By content, so that an image's views are the same whatever else is in the folder.
        entropy = (int(self.dataset.digests[name][:16], 16), view)
        seed = np.random.SeedSequence(entropy).generate_state(1)[0]
        with _DRAWING:
            change = self._augmentation.get_random_transform(pixels.shape, seed=int(seed))
        return self._augmentation.apply_transform(pixels.astype(np.float32), change)

    def read(self, index: int) -> np.ndarray:
        """Return an image as it is, uint8 (height, width, 3), 0 to 255."""
        return read_pixels(self.dataset.folder / self.dataset.images[index], self.size)


class InMemoryImages(ImageSource):
    """The same, each decoded once and kept in memory: for networks that wait for their images."""

    def __init__(self, dataset: Dataset, size: tuple[int, int], settings: dict | None = None):
        """Augment by `settings`; without any all views are equal."""
        super().__init__(dataset, size, settings)
        self._read: dict[int, np.ndarray] = {}

    def read(self, index: int) -> np.ndarray:
        """Return an image as it is, uint8 (height, width, 3), 0 to 255."""
        if index not in self._read:
            self._read[index] = super().read(index)
        return self._read[index]


def read_pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the image at `path` as serving reads it: uint8 (height, width, 3), 0 to 255."""
    return resize(open_image(path, size), size)
