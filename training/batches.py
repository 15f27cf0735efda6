"""Batches of images, or of their cached features, for Keras: which image and view comes when."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from training.backend import keras
from training.dataset.scan import Dataset
from training.images import Sample, Source
from training.prefetch import WORKERS

ALL_ROWS = slice(None)


class Batches(keras.utils.PyDataset):
    """Plain images, each once and in order, with their classes one-hot.

    A batch is (float32 (n, ...), float32 (n, classes)); the last one may be smaller.

    Attributes:
        error: what kept a batch from being read, for `errors_as_raised`; None at first.
    """

    error: Exception | None = None

    def __init__(
        self, source: Source, names: Sequence[str], batch_size: int, rows: slice = ALL_ROWS
    ):
        """Serve the images `names` ("class/file") of `source`, of each batch only `rows`."""
        super().__init__(workers=WORKERS, max_queue_size=2 * WORKERS + 2)
        self.source, self.batch_size, self.rows = source, batch_size, rows
        dataset = source.dataset
        self.image_indices = image_indices(dataset, names)
        self.targets = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.labels(names)]

    def __len__(self) -> int:
        return -(-len(self.image_indices) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        start, end = index * self.batch_size, (index + 1) * self.batch_size
        places = range(start, min(end, len(self.image_indices)))[self.rows]
        inputs = self._read([(self.image_indices[place], 0) for place in places])
        return inputs, self.targets[places]

    def _read(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the source's inputs of `samples`, and keep the error of one that is not read."""
        try:
            return self.source.inputs(samples)
        except Exception as error:
            self.error = error
            raise


class PaddedBatches(Batches):
    """`Batches` of equal size, for devices to share: (inputs, targets, weights).

    The rows that pad the last batch have weight 0. The others weigh so much that the mean over all
    rows is 1, as Keras divides the sum of losses by the number of rows: loss and weighted metrics
    are those without padding.
    """

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        start, count = index * self.batch_size, len(self.image_indices)
        wanted = np.arange(start, start + self.batch_size)[self.rows]
        places = np.minimum(wanted, count - 1)
        weights = (wanted < count) * np.float32(len(self) * self.batch_size / count)
        inputs = self._read([(self.image_indices[place], 0) for place in places])
        return inputs, self.targets[places], weights


class TrainingBatches(Batches):
    """An endless shuffled and augmented sequence of images; an epoch is `steps` batches of it.

    The n-th image of the sequence and its view depend on the seed and on n only: an epoch can be
    repeated, and a run resumed, exactly.
    """

    def __init__(  # noqa: PLR0913 - the settings of a recipe, by keyword
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
        soft_labels: np.ndarray | None = None,
    ):
        """Serve `source` from the first epoch on; `begin_epoch` goes to another.

        Each image comes in its views 1 to `views` in turn, for None in a new view each time.
        Inputs and classes are mixed by shares from a beta distribution with the parameter
        `mixup_alpha` (Zhang et al. 2018, "mixup"); 0 mixes nothing. `soft_labels`, float32 (views,
        names, classes), are the targets of each view in place of the classes.
        """
        super().__init__(source, names, batch_size, rows)
        self.soft_labels = soft_labels
        self.steps, self.seed, self.views, self.mixup_alpha = steps, seed, views, mixup_alpha
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps

    def begin_epoch(self, epoch: int, logs: dict | None = None) -> None:
        """Serve the images of `epoch`, counted from 0; for a callback's `on_epoch_begin`.

        The data set's own `on_epoch_end` cannot count epochs: Keras calls it once more, before
        training, after reading the first batches.
        """
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        drawn = self.drawn(index)
        if not self.mixup_alpha:  # else any row of the batch may be mixed with any other
            drawn = drawn[self.rows]
        inputs = self._read([(self.image_indices[place], view) for place, view in drawn])
        targets = self._targets_of(drawn)
        return self._mixed(inputs, targets, index) if self.mixup_alpha else (inputs, targets)

    def drawn(self, index: int) -> list[tuple[int, int]]:
        """Return (place among the images, view) of each row of batch `index` of this epoch."""
        first = (self.epoch * self.steps + index) * self.batch_size
        return [self._draw(first + row) for row in range(self.batch_size)]

    def mixing(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each row's own share in the mixture, float32, and the row it is mixed with."""
        rng = np.random.default_rng((self.seed, self.epoch * self.steps + index, 1))
        shares = rng.beta(self.mixup_alpha, self.mixup_alpha, self.batch_size).astype(np.float32)
        return shares, rng.permutation(self.batch_size)

    def _targets_of(self, drawn: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the targets of (place among the images, view) each, float32 (drawn, classes)."""
        places, views = ([row[part] for row in drawn] for part in (0, 1))
        if self.soft_labels is None:
            return self.targets[places]
        return self.soft_labels[[view - 1 for view in views], places]

    def _draw(self, position: int) -> tuple[int, int]:
        """Return (place among the images, view) at `position` of the sequence."""
        round_, place = divmod(position, len(self.image_indices))
        view = round_ if self.views is None else round_ % self.views
        return int(_order(self.seed, round_, len(self.image_indices))[place]), view + 1

    def _mixed(
        self, inputs: np.ndarray, targets: np.ndarray, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows, each mixed with another row of the batch."""
        shares, others = self.mixing(index)

        def mix(rows: np.ndarray) -> np.ndarray:
            share = shares.reshape(-1, *[1] * (rows.ndim - 1))
            return share * rows + (1 - share) * rows[others]

        return mix(inputs)[self.rows], mix(targets)[self.rows]


@contextmanager
def errors_as_raised(*batches: Batches | None) -> Generator[None]:
    """Raise what kept one of `batches` from being read, for a block in which Keras reads them.

    Of all but the first ones TensorFlow raises an UnknownError of its own in its place.
    """
    try:
        yield
    except Exception as error:
        for each in batches:
            first = getattr(each, "error", None)  # data sets other than `Batches` keep none
            if first is not None and first is not error:
                raise first from error
        raise


def predict(model: keras.Model, batches: Batches) -> np.ndarray:
    """Return what `model` makes of all `batches`; raises what kept one from being read."""
    with errors_as_raised(batches):
        return model.predict(batches, verbose=0)


def shown_samples(images: Sequence[int], views: int, count: int, seed: int) -> list[Sample]:
    """Return what the first `count` of a sequence of `TrainingBatches` show, each sample once.

    `images` are the indices of its images, which come in `views` views.
    """
    rounds, rest = divmod(count, len(images))
    samples = [(index, view + 1) for view in range(min(rounds, views)) for index in images]
    if rounds < views:
        places = _order(seed, rounds, len(images))[:rest]
        samples += [(images[place], rounds + 1) for place in sorted(places)]
    return samples


@lru_cache(maxsize=4)
def _order(seed: int, round_: int, count: int) -> np.ndarray:
    """Return the order of `count` images in a round, int (count,)."""
    return np.random.default_rng((seed, round_)).permutation(count)


def image_indices(dataset: Dataset, names: Sequence[str]) -> list[int]:
    """Return the index in `dataset.images` of each of `names` ("class/file")."""
    places = {name: place for place, name in enumerate(dataset.images)}
    return [places[name] for name in names]
