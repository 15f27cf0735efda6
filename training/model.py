"""Xception with a new head, and the parts of it that are frozen or learn."""

import hashlib

import numpy as np

from training.backend import keras

BASE_LAYER = "xception"


def build_model(
    input_size: tuple[int, int], head: tuple[int, ...], class_count: int
) -> keras.Model:
    """Return frozen Xception without its top, with a new head.

    The head is dense layers of `head` units (ReLU) and a softmax. Input: float32
    (n, height, width, 3), -1 to 1. Output: float32 (n, class_count), 0 to 1.
    """
    inputs = keras.Input((*input_size, 3))
    base_model = keras.applications.Xception(
        weights=None, include_top=False, input_shape=(*input_size, 3), name=BASE_LAYER
    )
    base_model.trainable = False
    # training=False keeps batch normalization in inference mode, also once layers are unfrozen.
    x = base_model(inputs, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, add_head(x, head, class_count))


def add_head(x, head: tuple[int, ...], class_count: int, dropout: float = 0.0):
    """Return a softmax (n, class_count) on dense layers (ReLU) on the tensor `x` (n, ...).

    `head` lists their units; `dropout`, 0 to 1, is the rate before the softmax.
    """
    for units in head:
        x = keras.layers.Dense(units, activation="relu")(x)
    if dropout:
        x = keras.layers.Dropout(dropout)(x)
    return keras.layers.Dense(class_count, activation="softmax")(x)


def unfreeze(model: keras.Model, fine_tune_at: int) -> None:
    """Unfreeze the base of `model` from block `fine_tune_at` (1 to 14) on.

    Batch normalization stays frozen: its statistics come from far more images.
    """
    base_model = model.get_layer(BASE_LAYER)
    base_model.trainable = True
    below = keras.Model(base_model.input, block_input(base_model, fine_tune_at)).layers
    for layer in base_model.layers:
        layer.trainable = layer not in below and not isinstance(
            layer, keras.layers.BatchNormalization
        )


def split_at_block(model: keras.Model, fine_tune_at: int | None) -> tuple[keras.Model, keras.Model]:
    """Return (frozen lower part, trainable upper part) of `model`.

    Both share the layers of `model`, and so their weights. The cut is before block `fine_tune_at`
    of the base or, for None, after the pooling that follows the base.
    """
    base_model = model.get_layer(BASE_LAYER)
    place = model.layers.index(base_model)
    pooling, *head = model.layers[place + 1 :]
    if fine_tune_at is None:
        frozen = keras.Model(model.input, pooling.output)
        inputs = x = keras.Input(pooling.output.shape[1:])
    else:
        cut = block_input(base_model, fine_tune_at)
        frozen = keras.Model(base_model.input, cut)
        inputs = keras.Input(cut.shape[1:])
        x = pooling(keras.Model(cut, base_model.output, name="upper")(inputs, training=False))
    for layer in head:
        x = layer(x)
    return frozen, keras.Model(inputs, x)


def block_input(base_model: keras.Model, block: int):
    """Return the input tensor of `block` (1 to 14) of Xception."""
    return next(
        layer.input for layer in base_model.layers if layer.name.startswith(f"block{block}_")
    )


def with_policy(model: keras.Model, policy: str) -> keras.Model:
    """Return a copy of `model` whose base computes in the Keras dtype policy `policy`.

    Weights, pooling, head and outputs stay float32.
    """

    def cast(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if not isinstance(layer, keras.layers.Dense | keras.layers.GlobalAveragePooling2D):
            config["dtype"] = policy
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=cast, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def with_input_size(model: keras.Model, size: tuple[int, int]) -> keras.Model:
    """Return `model` with the input `size` (height, width), in pixels, and the same weights.

    That is `model` itself where it has that size already, else a copy.
    """
    if model.input_shape[1:3] == tuple(size):
        return model
    base_model = model.get_layer(BASE_LAYER)
    head = model.layers[model.layers.index(base_model) + 2 :]
    copy = build_model(size, tuple(layer.units for layer in head[:-1]), head[-1].units)
    copy.set_weights(model.get_weights())
    return copy


def weights_digest(model: keras.Model) -> str:
    """Return the SHA-256 of all weights of `model`, hexadecimal."""
    digest = hashlib.sha256()
    for values in model.get_weights():
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
