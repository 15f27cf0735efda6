"""Images, or the activations that stand for them, to batches.

`ImageSource` and `CachedFeatures` give the network's input of an image's view: view 0 is the image
as it is, every other one is augmented by `ImageDataGenerator`, always in the same way. `Batches`
and `TrainingBatches` say which images and views come when.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from training.backend import keras
from training.dataset.scan import Dataset
from training.images import Source
from training.prefetch import WORKERS

ALL_ROWS = slice(None)


class Batches(keras.utils.PyDataset):
    """Images once, in order, as they are, and their classes, one-hot.

    A batch is (float32 (n, ...), float32 (n, classes)); the last one is what is left.
    """

    def __init__(
        self, source: Source, names: Sequence[str], batch_size: int, rows: slice = ALL_ROWS
    ):
        """Serve what `source` gives of the images `names` ("class/file").

        Only `rows` of each batch are made.
        """
        super().__init__(workers=WORKERS, max_queue_size=2 * WORKERS + 2)
        self.source, self.batch_size, self.rows = source, batch_size, rows
        dataset = source.dataset
        self.image_indices = image_indices(dataset, names)
        self.targets = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.labels(names)]

    def __len__(self) -> int:
        return -(-len(self.image_indices) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = index * self.batch_size, (index + 1) * self.batch_size
        places = range(start, min(end, len(self.image_indices)))[self.rows]
        return self.source.inputs([(self.image_indices[p], 0) for p in places]), self.targets[
            places
        ]


class PaddedBatches(Batches):
    """The same in batches of one size, for devices to share: (inputs, targets, weights).

    What fills up the last batch weighs nothing. The others weigh so much that all rows weigh 1 on
    average, as Keras divides the sum of losses by the number of rows: loss and weighted metrics
    come out as without filling.
    """

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start, count = index * self.batch_size, len(self.image_indices)
        wanted = np.arange(start, start + self.batch_size)[self.rows]
        places = np.minimum(wanted, count - 1)
        weights = (wanted < count) * np.float32(len(self) * self.batch_size / count)
        inputs = self.source.inputs([(self.image_indices[place], 0) for place in places])
        return inputs, self.targets[places], weights


class TrainingBatches(Batches):
    """The same, shuffled and augmented without end; an epoch is `steps` batches of it.

    The n-th image drawn is always the same and always augmented in the same way, whatever
    came before: an epoch can be repeated, and a run resumed, exactly.
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        batch_size: int,
        *,
        steps: int,
        seed: int,
        views: int | None = None,
        mixup_alpha: float = 0.0,
        rows: slice = ALL_ROWS,
    ):
        """Serve `source`, from the first epoch on; `begin_epoch` goes to another.

        An image comes in its views 1 to `views` by turns; None gives it a new one each time.
        `mixup_alpha` is the parameter of the beta distribution that inputs and classes are mixed by
        (Zhang et al. 2018), 0 for none.
        """
        super().__init__(source, names, batch_size, rows)
        self.steps, self.seed, self.views, self.mixup_alpha = steps, seed, views, mixup_alpha
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps

    def begin_epoch(self, epoch: int, logs: dict | None = None) -> None:
        """Serve the images of `epoch`, counted from 0; for a callback's `on_epoch_begin`.

        Keras' own `on_epoch_end` of data sets cannot count: it is also called once before
        training, after a look at the first batches.
        """
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        batch = self.epoch * self.steps + index
        wanted = range(self.batch_size)
        # Mixing takes rows of the whole batch, whoever gets them.
        wanted = wanted if self.mixup_alpha else wanted[self.rows]
        drawn = [self._draw(batch * self.batch_size + row) for row in wanted]
        inputs = self.source.inputs([(self.image_indices[place], view) for place, view in drawn])
        targets = self.targets[[place for place, _ in drawn]]
        return self._mixed(inputs, targets, batch) if self.mixup_alpha else (inputs, targets)

    def _draw(self, position: int) -> tuple[int, int]:
        """Return which image, and which view of it, comes at `position` of the sequence."""
        round_, place = divmod(position, len(self.image_indices))
        view = round_ if self.views is None else round_ % self.views
        return int(_order(self.seed, round_, len(self.image_indices))[place]), view + 1

    def _mixed(
        self, inputs: np.ndarray, targets: np.ndarray, batch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each row mixed with another one of the batch."""
        rng = np.random.default_rng((self.seed, batch, 1))
        shares = rng.beta(self.mixup_alpha, self.mixup_alpha, len(inputs)).astype(np.float32)
        others = rng.permutation(len(inputs))

        def mix(rows: np.ndarray) -> np.ndarray:
            share = shares.reshape(-1, *[1] * (rows.ndim - 1))
            return share * rows + (1 - share) * rows[others]

        return mix(inputs)[self.rows], mix(targets)[self.rows]


@lru_cache(maxsize=4)
def _order(seed: int, round_: int, count: int) -> np.ndarray:
    """Return in which order `count` images come in a round."""
    return np.random.default_rng((seed, round_)).permutation(count)


def image_indices(dataset: Dataset, names: Sequence[str]) -> list[int]:
    """Return the places of `names` ("class/file") among the images of `dataset`."""
    places = {name: place for place, name in enumerate(dataset.images)}
    return [places[name] for name in names]
