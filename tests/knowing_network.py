"""A tiny network that knows a little of a data set, without training."""

from conftest import build_tiny
from sklearn.linear_model import LogisticRegression

from training import model
from training.backend import keras
from training.batches import Batches
from training.dataset.scan import Dataset
from training.images import ImageSource


def build_knowing(dataset: Dataset, side: int) -> keras.Model:
    """Return a network for images of `side` pixels, its last layer fitted to all of `dataset`."""
    keras.utils.set_random_seed(1)
    network = build_tiny((side, side), (), len(dataset.class_names))
    frozen, _ = model.split_at_block(network, None)
    inputs = Batches(ImageSource(dataset, (side, side)), dataset.images, 8)
    features = frozen.predict(inputs, verbose=0)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    fitted = LogisticRegression(max_iter=1000)
    fitted.fit((features - mean) / deviation, dataset.labels(dataset.images))
    kernel = fitted.coef_ / deviation
    network.layers[-1].set_weights([kernel.T, fitted.intercept_ - kernel @ mean])
    return network
