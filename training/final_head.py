"""The head, trained again in the end on plain images of the finished network's size."""

from dataclasses import replace

import numpy as np

from serving.details import Details
from training.backend import keras
from training.batches import image_indices
from training.checkpoint import Metadata
from training.evaluation.calibration import bake_temperature
from training.features import infer_once
from training.fit import Run, fit_head
from training.images import ImageSource
from training.model import split_at_block, with_input_size
from training.streams import counted


def fit_final_head(
    run: Run, model: keras.Model, metadata: Metadata, features: np.ndarray | None
) -> tuple[keras.Model, Metadata, np.ndarray]:
    """Train the head of `model` again, on what the network pools of plain training images.

    Augmented views show objects larger than plain images do, and at another size the pooled
    activations are distributed otherwise, so the head that was trained on the former does not quite
    fit the latter (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").

    `features` are those that the finished network pools of all images, float (images, channels), or
    None if they are not known yet. Returns the network of the final size with its metadata, not
    calibrated, and the features; those of other than training images may be NaN.
    """
    recipe, dataset, train = run.recipe, run.images.dataset, run.split.train
    size = (recipe.final_size, recipe.final_size)
    model = with_input_size(model, size)
    print(
        f"Head: {counted(recipe.final_head_epochs, 'epoch')} on {len(train)} plain training images "
        f"of {size[1]}×{size[0]} pixels.",
        flush=True,
    )
    bake_temperature(model, 1 / metadata.temperature)  # as it was before an earlier report
    if features is None:
        frozen, _ = split_at_block(model, None)
        features = np.full((len(dataset.images), *frozen.output_shape[1:]), np.nan, np.float32)
        found = infer_once(frozen, ImageSource(dataset, size), train)
        features[image_indices(dataset, train)] = found
    keras.utils.set_random_seed(recipe.seed)  # also where the epochs before were of another process
    fit_head(run, model, features, recipe.final_head_epochs)
    return model, replace(metadata, temperature=1.0, details=Details()), features
