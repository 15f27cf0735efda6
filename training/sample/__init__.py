"""A small data set of five drawn flowers, for where real images cannot be had."""

from pathlib import Path

import numpy as np

from training.files import fill_folder
from training.sample.flowers import LABELS, draw

__all__ = ["LABELS", "PER_CLASS", "SEED", "draw", "write_sample"]

PER_CLASS = 40
SEED = 0
SIZES = ((320, 240), (320, 213), (300, 240), (240, 320), (213, 320))  # (width, height), pixels
JPEG_QUALITY = 88


def write_sample(out: str | Path, per_class: int = PER_CLASS, seed: int = SEED) -> None:
    """Draw `per_class` JPEGs of each of `LABELS` into `out`/label/, all of them or none.

    An image depends on its label, its number and `seed` alone: the first ten of forty are the
    same as ten.

    Raises:
        DataError: `out` holds images already, or is no folder.
        OSError: `out` cannot be written.
    """
    with fill_folder(out) as folder:
        for index, label in enumerate(LABELS):
            print(f"Drawing {label} ({index + 1} of {len(LABELS)}) ...", flush=True)
            (folder / label).mkdir()
            for number in range(per_class):
                rng = np.random.default_rng([seed, index, number])
                image = draw(label, rng, SIZES[rng.integers(len(SIZES))])
                image.save(folder / label / f"{label}_{number:04d}.jpg", quality=JPEG_QUALITY)
