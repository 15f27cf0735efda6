"""Soft labels: what networks make of augmented views of images, computed once and kept on disk."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from experiments.members import Member
from serving.preprocess import INPUT_SCALING
from training.batches import image_indices
from training.evaluation.calibration import bake_temperature
from training.feature_store import FeatureStore
from training.features import BATCH_SIZE
from training.images import ImageSource, Sample
from training.inference import best_engine, compile_inference, dtype_policy
from training.model import weights_digest, with_input_size
from training.prefetch import prefetch, progress


class SoftLabels:
    """The mean probabilities that several teachers give to views of images.

    Attributes:
        views: one source of the views for each size, of the same images and augmentation.
        store: where the labels are; another one for other teachers, sizes or views.
    """

    def __init__(
        self, teachers: Sequence[Member], views: Sequence[ImageSource], mirror: bool, folder: Path
    ):
        """Keep labels below `folder`; the temperature of each of the `teachers` is undone.

        They see each view at every size in `views` and, with `mirror`, mirrored as well.
        """
        self.views, self.mirror = views, mirror
        self._models = [teacher.model for teacher in teachers]
        for teacher in teachers:
            bake_temperature(teacher.model, 1 / teacher.metadata.temperature)
        key = {
            "teachers": [weights_digest(model) for model in self._models],
            "input_sizes": [list(source.size) for source in views],
            "mirror": mirror,
            "augmentation": views[0].settings,
            "preprocessing": f"{INPUT_SCALING}, pillow {version('pillow')}",
            "engine": f"{best_engine()} {dtype_policy()}",
        }
        class_count = len(teachers[0].metadata.class_names)
        self.store = FeatureStore(folder, key, (class_count,), "float32")

    @property
    def name(self) -> str:
        """The name of the store, which others do not have (hexadecimal)."""
        return self.store.folder.name

    def compute(self, images: Sequence[str], count: int) -> None:
        """Label the views 1 to `count` of `images` ("class/file"), where that is not done yet.

        Raises:
            CacheError: the disk has no room for them.
            OSError: an image cannot be read, or the store cannot be written.
        """
        named = {self._name(sample): sample for sample in self._samples(images, count)}
        missing = [named[name] for name in self.store.missing(list(named))]
        if not missing:
            return
        self.store.check_room(len(missing))
        infer = self._compile()
        with self.store.writer() as writer:
            batches = [missing[i : i + BATCH_SIZE] for i in range(0, len(missing), BATCH_SIZE)]
            with progress(len(missing), "  labels", "views") as bar:
                for batch, inputs in prefetch(batches, self._inputs):
                    writer.append([self._name(sample) for sample in batch], infer(inputs))
                    bar.update(len(batch))

    def read(self, images: Sequence[str], count: int) -> np.ndarray:
        """Return what `compute` has made of `images`, float32 (count, images, classes)."""
        names = [self._name(sample) for sample in self._samples(images, count)]
        return self.store.read(names).reshape(count, len(images), *self.store.shape)

    def _samples(self, images: Sequence[str], count: int) -> list[Sample]:
        places = image_indices(self.views[0].dataset, images)
        return [(place, view + 1) for view in range(count) for place in places]

    def _name(self, sample: Sample) -> str:
        index, view = sample
        dataset = self.views[0].dataset
        return f"{dataset.digests[dataset.images[index]]}/{view}"

    def _inputs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        return [source.inputs(samples) for source in self.views]

    def _compile(self) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
        """Return a function from the inputs of all sizes to mean probabilities, float32."""
        policy = dtype_policy()
        ensembles = [
            [
                compile_inference(with_input_size(model, source.size), policy, BATCH_SIZE)
                for model in self._models
            ]
            for source in self.views
        ]

        def infer(inputs: Sequence[np.ndarray]) -> np.ndarray:
            rows = []
            for networks, plain in zip(ensembles, inputs, strict=True):
                seen = [plain, plain[:, :, ::-1]] if self.mirror else [plain]
                rows += [network(each) for network in networks for each in seen]
            return np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)

        return infer
