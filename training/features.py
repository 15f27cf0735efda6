"""Features: what a frozen network makes of images, computed once and kept on disk."""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from serving.preprocess import INPUT_SCALING
from training.backend import keras
from training.batches import image_indices
from training.feature_store import FeatureStore, require_room
from training.images import ImageSource, Sample
from training.inference import best_engine, compile_inference, dtype_policy
from training.model import weights_digest
from training.prefetch import WORKERS, prefetch, progress

BATCH_SIZE = 32  # of the frozen network
MANY = 2000  # images; to compute fewer takes a minute or two, and is not announced
READ_AT_ONCE = 1024  # rows

Job = tuple["CachedFeatures", Sequence[Sample]]  # features that will be needed, and of what


class CachedFeatures:
    """The outputs of a frozen network for images, computed once and kept on disk.

    Attributes:
        dataset: whose images they are.
        plain: where the features of plain images are.
        augmented: where those of augmented views are; another store for other settings, so that one
            that is no longer used can be removed.
        earlier: the one store of version 1.0, if it is there; it is read and not written.
    """

    def __init__(self, images: ImageSource, frozen: keras.Model, policy: str, folder: Path):
        """Cache the outputs of `frozen` for `images` in two `FeatureStore`s below `folder`.

        `policy` is the Keras dtype policy to compute in. Pooled features (n, channels) are kept in
        float32, the far larger feature maps (n, height, width, channels) in float16.
        """
        self.images, self.frozen, self.policy = images, frozen, policy
        self.dataset, self.folder = images.dataset, folder
        key = {
            "weights": weights_digest(frozen),
            "input_size": list(images.size),
            "preprocessing": f"{INPUT_SCALING}, pillow {version('pillow')}",
            "engine": f"{best_engine()} {policy}",
        }
        shape = frozen.output_shape[1:]
        dtype = "float16" if len(shape) > 1 else "float32"
        self.plain, self.augmented = (
            FeatureStore(folder, key | {"augmentation": settings}, shape, dtype)
            for settings in (None, images.settings)
        )
        self.earlier = FeatureStore.find(folder, key, shape, dtype)
        settings = json.dumps(images.settings, sort_keys=True)
        self._augmentation = hashlib.sha256(settings.encode()).hexdigest()[:8]

    def inputs(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the features of `samples`, float32 (samples, ...), which `compute` has made."""
        rows = np.empty((len(samples), *self.plain.shape), np.float32)
        for start in range(0, len(samples), READ_AT_ONCE):
            part = samples[start : start + READ_AT_ONCE]
            for store, places in self._by_store(part).items():
                names = [self._name(part[place]) for place in places]
                rows[start + np.array(places)] = store.read(names)
        return rows

    def missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return those of `samples` without features, copies once."""
        found = []
        for store, places in self._by_store(samples).items():
            named = {self._name(samples[place]): samples[place] for place in places}
            found += [named[name] for name in store.missing(list(named))]
        return found

    def compute(self, samples: Sequence[Sample], batch_size: int = BATCH_SIZE) -> int:
        """Compute the missing features of `samples`, and return how many were missing.

        Raises:
            CacheError: the disk has no room for them.
            OSError: an image cannot be read, or the store cannot be written.
        """
        missing = self.missing(samples)
        require_room(self.folder, self.size(missing))
        return sum(
            self._fill(store, [missing[place] for place in places], batch_size)
            for store, places in self._by_store(missing).items()
        )

    def size(self, samples: Collection[Sample]) -> int:
        """Return how many bytes the features of `samples` take on the disk."""
        return len(samples) * self.plain.row_bytes

    def seconds_per_image(self, samples: Sequence[Sample]) -> float:
        """Return how long an image takes: computes the first and the last batch of `samples`.

        The last one is timed.
        """
        infer, seconds = compile_inference(self.frozen, self.policy, BATCH_SIZE), 0.0
        for batch in (samples[:BATCH_SIZE], samples[-BATCH_SIZE:]):
            started = time.perf_counter()
            parts = [part for n in range(WORKERS) if (part := batch[n::WORKERS])]
            infer(np.concatenate([read for _, read in prefetch(parts, self.images.inputs)]))
            seconds = (time.perf_counter() - started) / len(batch)
        return seconds

    def _fill(self, store: FeatureStore, samples: Sequence[Sample], batch_size: int) -> int:
        """Compute the features of `samples` that `store` lacks, and return how many it lacked."""
        kind = "plain" if store is self.plain else "augmented"
        with store.writer() as writer:
            # Another process may have filled the store while this one waited.
            missing = self.missing(samples)
            infer = compile_inference(self.frozen, self.policy, batch_size)
            batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
            with progress(len(missing), f"  {kind} images' features") as bar:
                for batch, inputs in prefetch(batches, self.images.inputs):
                    writer.append([self._name(sample) for sample in batch], infer(inputs))
                    bar.update(len(batch))
        return len(missing)

    def _by_store(self, samples: Sequence[Sample]) -> dict[FeatureStore, list[int]]:
        """Return, for each store that some of `samples` belong to, their places among them."""
        places = defaultdict(list)
        for place, sample in enumerate(samples):
            is_earlier = self.earlier is not None and self._name(sample) in self.earlier
            own = self.augmented if sample[1] else self.plain
            places[self.earlier if is_earlier else own].append(place)
        return places

    def _name(self, sample: Sample) -> str:
        index, view = sample
        digest = self.dataset.digests[self.dataset.images[index]]
        return f"{digest}/{self._augmentation}/{view}" if view else digest


def announce(jobs: Sequence[Job]) -> None:
    """Print what computing the missing features of `jobs` will take, where they are many.

    The time is that of a short trial of each network that has a fair share of them.

    Raises:
        CacheError: the disk has no room for them all.
        OSError: an image cannot be read.
    """
    missing: dict[Path, tuple[CachedFeatures, dict[Sample, None]]] = {}  # of each network
    for features, samples in jobs:
        _, known = missing.setdefault(features.plain.folder, (features, {}))
        known.update(dict.fromkeys(features.missing(samples)))
    folder, size = jobs[0][0].folder, sum(each.size(found) for each, found in missing.values())
    free = require_room(folder, size)
    counts = [len(found) for _, found in missing.values()]
    if sum(counts) < MANY:
        return
    tried = [
        (each, list(found)) for each, found in missing.values() if len(found) > sum(counts) / 5
    ]
    seconds = sum(each.seconds_per_image(found) * len(found) for each, found in tried)
    seconds *= sum(counts) / sum(len(found) for _, found in tried)
    views = sum(view > 0 for _, found in missing.values() for _, view in found)
    print(
        f"Cache: {sum(counts) - views:,} plain images and {views:,} augmented views to compute, "
        f"{describe_time(seconds)} and {size / 1e9:.1f} GB in {folder} ({free / 1e9:.0f} GB free).",
        flush=True,
    )


def describe_time(seconds: float) -> str:
    """Return `seconds` for a person, roughly."""
    minutes = max(1, round(seconds / 60))
    if minutes < 90:
        return f"about {minutes} minute{'s' * (minutes > 1)}"
    return f"about {seconds / 3600:.1f} hours"


def infer_once(
    network: keras.Model, images: ImageSource, names: Sequence[str], kind: str = "training"
) -> np.ndarray:
    """Return the outputs of `network` for the plain images `names`, float32; nothing is kept.

    It computes in the fastest precision here. The progress bar says which `kind` of images it is.

    Raises:
        OSError: an image cannot be read.
    """
    infer = compile_inference(network, dtype_policy(), BATCH_SIZE)
    samples = [(index, 0) for index in image_indices(images.dataset, names)]
    batches = [samples[i : i + BATCH_SIZE] for i in range(0, len(samples), BATCH_SIZE)]
    rows = [np.empty((0, *network.output_shape[1:]), np.float32)]
    with progress(len(samples), f"  {kind} images' features") as bar:
        for batch, inputs in prefetch(batches, images.inputs):
            rows.append(infer(inputs))
            bar.update(len(batch))
    return np.concatenate(rows)
