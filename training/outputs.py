"""What a network returns beside scores: its last activations, and what is behind them."""

import numpy as np

from serving.details import Layer
from training.backend import keras


def find_pooling(model: keras.Model) -> keras.layers.Layer | None:
    """Return the global average pooling of `model`, if only dense layers are between it and scores.

    Otherwise, or if what it pools is the image itself, return None.
    """
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.Dropout)]
    while layers and isinstance(layers[-1], keras.layers.Dense):
        layers.pop()
    pooling = layers[-1] if layers else None
    if not isinstance(pooling, keras.layers.GlobalAveragePooling2D):
        return None
    return None if pooling.input is model.input else pooling


def with_activations(model: keras.Model) -> keras.Model:
    """Return `model` with two outputs, probabilities and the activations that it pools.

    That is `model` itself if it has no such pooling (`find_pooling`).
    """
    pooling = find_pooling(model)
    return model if pooling is None else keras.Model(model.input, [model.output, pooling.input])


def with_features(model: keras.Model) -> keras.Model:
    """Return `model` with its features behind the probabilities, in one output.

    It is float32 (n, classes + channels); the features are the pooled activations, of which there
    are none where `find_pooling` finds none.
    """
    pooling = find_pooling(model)
    if pooling is None:
        return model
    joined = keras.layers.Concatenate()([model.output, pooling.output])
    return keras.Model(model.input, joined)


def read_head(model: keras.Model) -> tuple[Layer, ...]:
    """Return the dense layers behind the pooling of `model`; none if it has no `find_pooling`."""
    pooling = find_pooling(model)
    if pooling is None:
        return ()
    layers = model.layers[model.layers.index(pooling) + 1 :]
    dense = [layer for layer in layers if isinstance(layer, keras.layers.Dense)]
    hidden = all(layer.activation is keras.activations.relu for layer in dense[:-1])
    if not hidden or not all(layer.use_bias for layer in dense):
        return ()
    weights = [[np.asarray(each, np.float32) for each in layer.get_weights()] for layer in dense]
    return tuple((kernel, bias) for kernel, bias in weights)
