"""Pictures to batches: augmented by ImageDataGenerator for training, as they are to validate."""

import threading
from pathlib import Path

import numpy as np

from serving.image import open_picture
from serving.preprocess import resize, scale
from training.backend import keras, tf
from training.dataset import Dataset

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator
# ImageDataGenerator draws from NumPy's global generator, which the loader's threads share.
_DRAWING = threading.Lock()


class PictureBatches(keras.utils.PyDataset):
    """Batches of pictures as the network wants them, and their classes, one-hot.

    A batch is (float32 (n, height, width, 3) from -1 to 1, float32 (n, classes)).
    """

    def __init__(
        self, dataset: Dataset, pictures: tuple[str, ...], size: tuple[int, int], batch_size: int
    ):
        """Serve `pictures` ("class/file") once, in order, the last batch being what is left."""
        super().__init__(workers=2, max_queue_size=8)
        self.size, self.batch_size = size, batch_size
        self.paths = [dataset.folder / picture for picture in pictures]
        self.targets = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.labels(pictures)]

    def __len__(self) -> int:
        return -(-len(self.paths) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = index * self.batch_size
        chosen = range(start, min(start + self.batch_size, len(self.paths)))
        return scale(np.stack([self._pixels(i) for i in chosen])), self.targets[chosen]

    def _pixels(self, index: int) -> np.ndarray:
        return read_pixels(self.paths[index], self.size)


class TrainingBatches(PictureBatches):
    """The same, shuffled and augmented without end; an epoch is `steps` batches of it.

    The n-th picture drawn is always the same and always augmented in the same way, whatever
    came before: an epoch can be repeated, and a run resumed, exactly.
    """

    def __init__(
        self,
        dataset: Dataset,
        pictures: tuple[str, ...],
        size: tuple[int, int],
        batch_size: int,
        *,
        steps: int,
        seed: int,
        augmentation: ImageDataGenerator,
    ):
        """Serve `pictures`, from the first epoch on; `begin_epoch` goes to another."""
        super().__init__(dataset, pictures, size, batch_size)
        self.steps, self.seed, self.augmentation = steps, seed, augmentation
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps

    def begin_epoch(self, epoch: int, logs: dict | None = None) -> None:
        """Serve the pictures of `epoch`, counted from 0; for a callback's `on_epoch_begin`.

        Keras' own `on_epoch_end` of data sets cannot count: it is also called once before
        training, after a look at the first batches.
        """
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = (self.epoch * self.steps + index) * self.batch_size
        drawn = range(start, start + self.batch_size)
        chosen = [self._chosen(position) for position in drawn]
        pixels = [self._augmented(self._pixels(i), n) for i, n in zip(chosen, drawn, strict=True)]
        return scale(np.stack(pixels)), self.targets[chosen]

    def _chosen(self, position: int) -> int:
        """Return the index of the picture that is drawn at `position` of the endless sequence."""
        round_, place = divmod(position, len(self.paths))
        return int(np.random.default_rng((self.seed, round_)).permutation(len(self.paths))[place])

    def _augmented(self, pixels: np.ndarray, position: int) -> np.ndarray:
        seed = np.random.SeedSequence((self.seed, position)).generate_state(1)[0]
        with _DRAWING:
            change = self.augmentation.get_random_transform(pixels.shape, seed=int(seed))
        return self.augmentation.apply_transform(pixels.astype(np.float32), change)


def read_pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the picture at `path` as serving reads it: uint8 (height, width, 3), 0 to 255."""
    return resize(open_picture(path), size)
