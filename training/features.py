"""Features: what a frozen network makes of images, computed once and kept on disk."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from serving.preprocess import INPUT_SCALING
from training.backend import keras
from training.batches import image_indices
from training.feature_store import FeatureStore
from training.images import ImageSource, Sample
from training.inference import best_engine, compile_inference, dtype_policy
from training.model import weights_digest
from training.prefetch import prefetch, progress

BATCH_SIZE = 32  # of the frozen network


class CachedFeatures:
    """The outputs of a frozen network for images, computed once and kept on disk.

    Attributes:
        dataset: whose images they are.
        store: where the features are.
    """

    def __init__(self, images: ImageSource, frozen: keras.Model, policy: str, folder: Path):
        """Cache the outputs of `frozen` for `images` in a `FeatureStore` below `folder`.

        `policy` is the Keras dtype policy to compute in. Pooled features (n, channels) are kept in
        float32, the far larger feature maps (n, height, width, channels) in float16.
        """
        self.images, self.frozen, self.policy = images, frozen, policy
        self.dataset = images.dataset
        key = {
            "weights": weights_digest(frozen),
            "input_size": list(images.size),
            "preprocessing": f"{INPUT_SCALING}, pillow {version('pillow')}",
            "engine": f"{best_engine()} {policy}",
        }
        shape = frozen.output_shape[1:]
        self.store = FeatureStore(folder, key, shape, "float16" if len(shape) > 1 else "float32")
        settings = json.dumps(images.settings, sort_keys=True)
        self._augmentation = hashlib.sha256(settings.encode()).hexdigest()[:8]

    def inputs(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the features of `samples`, float32 (samples, ...), which `compute` has made."""
        return self.store.read([self._name(sample) for sample in samples]).astype(np.float32)

    def compute(self, samples: Sequence[Sample], batch_size: int = BATCH_SIZE) -> int:
        """Compute the missing features of `samples`, and return how many were missing.

        Raises:
            CacheError: the disk has no room for them.
            OSError: an image cannot be read, or the store cannot be written.
        """
        self.store.check_room(len(self._missing(samples)))
        if not self._missing(samples):
            return 0
        with self.store.writer() as writer:
            # Again: another process may have filled the store while this one waited.
            missing = self._missing(samples)
            forward = compile_inference(self.frozen, self.policy, batch_size)
            batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
            kind = "augmented" if any(view for _, view in missing) else "plain"
            with progress(len(missing), f"  {kind} images' features") as bar:
                for batch, inputs in prefetch(batches, self.images.inputs):
                    writer.append([self._name(sample) for sample in batch], forward(inputs))
                    bar.update(len(batch))
        return len(missing)

    def _missing(self, samples: Sequence[Sample]) -> list[Sample]:
        named = {self._name(sample): sample for sample in samples}
        return [named[name] for name in self.store.missing(list(named))]

    def _name(self, sample: Sample) -> str:
        index, view = sample
        digest = self.dataset.digests[self.dataset.images[index]]
        return f"{digest}/{self._augmentation}/{view}" if view else digest


def infer_once(network: keras.Model, images: ImageSource, names: Sequence[str]) -> np.ndarray:
    """Return the outputs of `network` for the plain images `names`, float32; nothing is kept.

    It computes in the fastest precision here.

    Raises:
        OSError: an image cannot be read.
    """
    infer = compile_inference(network, dtype_policy(), BATCH_SIZE)
    samples = [(index, 0) for index in image_indices(images.dataset, names)]
    batches = [samples[i : i + BATCH_SIZE] for i in range(0, len(samples), BATCH_SIZE)]
    rows = [np.empty((0, *network.output_shape[1:]), np.float32)]
    with progress(len(samples), "  training images' features") as bar:
        for batch, inputs in prefetch(batches, images.inputs):
            rows.append(infer(inputs))
            bar.update(len(batch))
    return np.concatenate(rows)
