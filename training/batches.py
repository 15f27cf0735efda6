"""Pictures, or the activations that stand for them, to batches.

`Pictures` and `Activations` give the network's input of a picture's view: view 0 is the picture
as it is, every other one is augmented by `ImageDataGenerator`, always in the same way. `Batches`
and `TrainingBatches` say which pictures and views come when.
"""

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from serving.image import open_picture
from serving.preprocess import INPUT_SCALING, resize, scale
from training.backend import keras, tf
from training.dataset.scan import Dataset
from training.feature_store import Table
from training.inference import best_engine, compile_forward
from training.model import weights_digest

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator
# ImageDataGenerator draws from NumPy's global generator, which the loader's threads share.
_DRAWING = threading.Lock()
ALL_ROWS = slice(None)
WORKERS = os.cpu_count() or 1  # decoding and augmenting leave Python, so threads go side by side
PROGRESS_SECONDS = 30  # between two lines of progress where they are not on a terminal

BATCH_SIZE = 32  # of the frozen network
Pick = tuple[int, int]  # a picture's index and its view


class Source(Protocol):
    """What gives the network's inputs.

    Attributes:
        dataset: whose pictures they are.
    """

    dataset: Dataset

    def inputs(self, picks: Sequence[Pick]) -> np.ndarray:
        """Return the inputs of `picks`, float (picks, ...)."""


class Pictures:
    """The pictures of a data set as the whole network wants them.

    Attributes:
        dataset: its picture number i is the one with index i.
        size: (height, width) in pixels.
        settings: of the augmentation, by the names that `ImageDataGenerator` gives them.
    """

    def __init__(self, dataset: Dataset, size: tuple[int, int], settings: dict | None = None):
        """Augment by `settings`; without any all views are equal."""
        self.dataset, self.size, self.settings = dataset, size, settings or {}
        self._augmentation = ImageDataGenerator(**self.settings)

    def inputs(self, picks: Sequence[Pick]) -> np.ndarray:
        """Return the inputs of `picks`, float32 (picks, height, width, 3), -1 to 1."""
        return scale(np.stack([self._pixels(index, view) for index, view in picks]))

    def _pixels(self, index: int, view: int) -> np.ndarray:
        name = self.dataset.pictures[index]
        pixels = self.read(index)
        if view == 0:
            return pixels
        # By content, so that a picture's views are the same whatever else is in the folder.
        entropy = (int(self.dataset.digests[name][:16], 16), view)
        seed = np.random.SeedSequence(entropy).generate_state(1)[0]
        with _DRAWING:
            change = self._augmentation.get_random_transform(pixels.shape, seed=int(seed))
        return self._augmentation.apply_transform(pixels.astype(np.float32), change)

    def read(self, index: int) -> np.ndarray:
        """Return a picture as it is, uint8 (height, width, 3), 0 to 255."""
        return read_pixels(self.dataset.folder / self.dataset.pictures[index], self.size)


class RememberedPictures(Pictures):
    """The same, each decoded once and kept in memory: for networks that wait for their pictures."""

    def __init__(self, dataset: Dataset, size: tuple[int, int], settings: dict | None = None):
        """Augment by `settings`; without any all views are equal."""
        super().__init__(dataset, size, settings)
        self._read: dict[int, np.ndarray] = {}

    def read(self, index: int) -> np.ndarray:
        """Return a picture as it is, uint8 (height, width, 3), 0 to 255."""
        if index not in self._read:
            self._read[index] = super().read(index)
        return self._read[index]


class Activations:
    """What a frozen network makes of `Pictures`: computed once, kept on disk."""

    def __init__(self, pictures: Pictures, frozen: keras.Model, policy: str, folder: Path):
        """Keep what `frozen` makes of `pictures`, computed in the dtype policy `policy`, in a
        table of `folder`.

        Pooled activations are kept in float32, the far larger ones with a place in float16.
        """
        self.pictures, self.frozen, self.policy = pictures, frozen, policy
        self.dataset = pictures.dataset
        key = {
            "weights": weights_digest(frozen),
            "input_size": list(pictures.size),
            "preprocessing": f"{INPUT_SCALING}, pillow {version('pillow')}",
            "engine": f"{best_engine()} {policy}",
        }
        shape = frozen.output_shape[1:]
        self.table = Table(folder, key, shape, "float16" if len(shape) > 1 else "float32")
        settings = json.dumps(pictures.settings, sort_keys=True)
        self._augmentation = hashlib.sha256(settings.encode()).hexdigest()[:8]

    def inputs(self, picks: Sequence[Pick]) -> np.ndarray:
        """Return the activations of `picks`, float32 (picks, ...); `compute` made them."""
        return self.table.take([self._name(pick) for pick in picks]).astype(np.float32)

    def compute(self, picks: Sequence[Pick], batch_size: int = BATCH_SIZE) -> int:
        """Put what is missing of `picks` into the table, and return how many that were.

        Raises:
            CacheError: the disk has no room for them.
            OSError: a picture cannot be read, or the table not written.
        """
        self.table.check_room(len(self._missing(picks)))
        if not self._missing(picks):
            return 0
        with self.table.filling() as filling:
            # Asked again: another process may have filled it while this one waited.
            missing = self._missing(picks)
            forward = compile_forward(self.frozen, self.policy, batch_size)
            batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
            with progress(len(missing), "  activations") as bar:
                for batch, inputs in ahead(batches, self.pictures.inputs):
                    filling.append([self._name(pick) for pick in batch], forward(inputs))
                    bar.update(len(batch))
        return len(missing)

    def _missing(self, picks: Sequence[Pick]) -> list[Pick]:
        named = {self._name(pick): pick for pick in picks}
        return [named[name] for name in self.table.missing(list(named))]

    def _name(self, pick: Pick) -> str:
        index, view = pick
        digest = self.dataset.digests[self.dataset.pictures[index]]
        return f"{digest}/{self._augmentation}/{view}" if view else digest


class Batches(keras.utils.PyDataset):
    """Pictures once, in order, as they are, and their classes, one-hot.

    A batch is (float32 (n, ...), float32 (n, classes)); the last one is what is left.
    """

    def __init__(
        self, source: Source, names: Sequence[str], batch_size: int, rows: slice = ALL_ROWS
    ):
        """Serve what `source` gives of the pictures `names` ("class/file").

        Only `rows` of each batch are made.
        """
        super().__init__(workers=WORKERS, max_queue_size=2 * WORKERS + 2)
        self.source, self.batch_size, self.rows = source, batch_size, rows
        dataset = source.dataset
        self.indices = indices(dataset, names)
        self.targets = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.labels(names)]

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = index * self.batch_size, (index + 1) * self.batch_size
        places = range(start, min(end, len(self.indices)))[self.rows]
        return self.source.inputs([(self.indices[p], 0) for p in places]), self.targets[places]


class EvenBatches(Batches):
    """The same in batches of one size, for devices to share: (inputs, targets, weights).

    What fills up the last batch weighs nothing. The others weigh so much that all rows weigh 1 on
    average, as Keras divides the sum of losses by the number of rows: loss and weighted metrics
    come out as without filling.
    """

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start, count = index * self.batch_size, len(self.indices)
        wanted = np.arange(start, start + self.batch_size)[self.rows]
        places = np.minimum(wanted, count - 1)
        weights = (wanted < count) * np.float32(len(self) * self.batch_size / count)
        inputs = self.source.inputs([(self.indices[place], 0) for place in places])
        return inputs, self.targets[places], weights


class TrainingBatches(Batches):
    """The same, shuffled and augmented without end; an epoch is `steps` batches of it.

    The n-th picture drawn is always the same and always augmented in the same way, whatever
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
        mixup: float = 0.0,
        rows: slice = ALL_ROWS,
    ):
        """Serve `source`, from the first epoch on; `begin_epoch` goes to another.

        A picture comes in its views 1 to `views` by turns; None gives it a new one each time.
        `mixup` is the parameter of the beta distribution that inputs and classes are mixed by
        (Zhang et al. 2018), 0 for none.
        """
        super().__init__(source, names, batch_size, rows)
        self.steps, self.seed, self.views, self.mixup = steps, seed, views, mixup
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
        batch = self.epoch * self.steps + index
        wanted = range(self.batch_size)
        # Mixing takes rows of the whole batch, whoever gets them.
        wanted = wanted if self.mixup else wanted[self.rows]
        drawn = [self._draw(batch * self.batch_size + row) for row in wanted]
        inputs = self.source.inputs([(self.indices[place], view) for place, view in drawn])
        targets = self.targets[[place for place, _ in drawn]]
        return self._mixed(inputs, targets, batch) if self.mixup else (inputs, targets)

    def _draw(self, position: int) -> tuple[int, int]:
        """Return which picture, and which view of it, comes at `position` of the sequence."""
        round_, place = divmod(position, len(self.indices))
        view = round_ if self.views is None else round_ % self.views
        return int(_order(self.seed, round_, len(self.indices))[place]), view + 1

    def _mixed(
        self, inputs: np.ndarray, targets: np.ndarray, batch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each row mixed with another one of the batch."""
        rng = np.random.default_rng((self.seed, batch, 1))
        shares = rng.beta(self.mixup, self.mixup, len(inputs)).astype(np.float32)
        others = rng.permutation(len(inputs))

        def mix(rows: np.ndarray) -> np.ndarray:
            share = shares.reshape(-1, *[1] * (rows.ndim - 1))
            return share * rows + (1 - share) * rows[others]

        return mix(inputs)[self.rows], mix(targets)[self.rows]


@lru_cache(maxsize=4)
def _order(seed: int, round_: int, count: int) -> np.ndarray:
    """Return in which order `count` pictures come in a round."""
    return np.random.default_rng((seed, round_)).permutation(count)


def indices(dataset: Dataset, names: Sequence[str]) -> list[int]:
    """Return the places of `names` ("class/file") among the pictures of `dataset`."""
    places = {name: place for place, name in enumerate(dataset.pictures)}
    return [places[name] for name in names]


def ahead(
    batches: Sequence[Sequence[Pick]],
    read: Callable[[Sequence[Pick]], np.ndarray],
    workers: int = WORKERS,
) -> Iterator[tuple[Sequence[Pick], np.ndarray]]:
    """Yield (batch, read(batch)) of each of `batches`, read ahead on `workers` threads."""
    with ThreadPoolExecutor(workers) as pool:
        reading: deque = deque()
        try:
            for batch in batches:
                reading.append((batch, pool.submit(read, batch)))
                if len(reading) > 2 * workers:
                    batch, inputs = reading.popleft()
                    yield batch, inputs.result()
            while reading:
                batch, inputs = reading.popleft()
                yield batch, inputs.result()
        finally:
            for _, inputs in reading:
                inputs.cancel()


def progress(total: int, what: str, unit: str = "pictures") -> tqdm:
    """Return a progress bar over `total` of `unit`; nothing where there is nothing to do."""
    on_terminal = os.isatty(2)
    return tqdm(
        total=total,
        desc=what,
        unit=f" {unit}",
        disable=total == 0,
        mininterval=0.1 if on_terminal else PROGRESS_SECONDS,
        ncols=None if on_terminal else 80,
    )


def read_pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the picture at `path` as serving reads it: uint8 (height, width, 3), 0 to 255."""
    return resize(open_picture(path, size), size)
