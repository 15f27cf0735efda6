"""experiments.device_network: Keras' Xception, in outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import device_network
from training.backend import keras, tf
from training.model import BASE_LAYER, build_model, split_at_block, unfreeze

SIDE = 71


@pytest.fixture(scope="module")
def network():
    """Xception, untrained, with statistics of batch normalization that are not the first ones."""
    keras.utils.set_random_seed(0)
    model = build_model((SIDE, SIDE), (), 5)
    unfreeze(model, device_network.MIDDLE[0])
    rng = np.random.default_rng(0)
    for layer in model.get_layer(BASE_LAYER).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            beta, mean = (rng.normal(0, 0.1, each.shape) for each in (beta, mean))
            gamma, variance = (rng.uniform(0.8, 1.2, each.shape) for each in (gamma, variance))
            layer.set_weights([gamma, beta, mean, variance])
    return model


@pytest.fixture(scope="module")
def weights(network):
    low, learning, frozen = device_network.read_weights(network.get_layer(BASE_LAYER))
    head = tuple(network.layers[-1].get_weights())
    return low, {**learning, "head": head}, frozen


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (3, SIDE, SIDE, 3)).astype(np.float32)


def test_its_outputs_are_keras(network, weights, images):
    low, learning, frozen = weights
    features = jax.jit(device_network.lower)(low, images)
    expected = split_at_block(network, device_network.MIDDLE[0])[0](images)
    assert features.shape[-1] == device_network.CHANNELS
    assert np.allclose(features, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    scores = jax.nn.softmax(device_network.logits(learning, frozen, features))
    assert np.allclose(scores, network(images), atol=1e-5)


def test_its_gradients_are_keras(network, weights, images):
    _, learning, frozen = weights
    frozen_part, part = split_at_block(network, device_network.MIDDLE[0])
    features = frozen_part(images).numpy()
    targets = np.eye(5, dtype=np.float32)[[0, 3, 4]]
    with tf.GradientTape() as tape:
        loss = keras.losses.categorical_crossentropy(targets, part(features))
        loss = tf.reduce_mean(loss)
    names = [variable.path for variable in part.trainable_variables]
    found = tape.gradient(loss, [variable.value for variable in part.trainable_variables])
    expected = dict(zip(names, (each.numpy() for each in found), strict=True))

    @jax.jit
    @jax.grad
    def gradient(learning):
        log = jax.nn.log_softmax(device_network.logits(learning, frozen, jnp.asarray(features)))
        return -(targets * log).sum(axis=-1).mean()

    ours = gradient(learning)

    def check(values, *words):
        [name] = [each for each in names if all(word in each for word in words)]
        reference = expected.pop(name).reshape(values.shape)
        assert np.abs(reference).max() > 0, name
        assert np.allclose(values, reference, atol=2e-3 * np.abs(reference).max()), name

    kernels = ("depthwise", "pointwise")
    for row, block in enumerate(device_network.MIDDLE):
        for i in range(3):
            for values, kernel in zip(ours["middle"], kernels, strict=True):
                check(values[row, i], f"block{block}_sepconv{i + 1}/", kernel)
    for name in ("13_1", "13_2", "14_1", "14_2"):
        block, i = name.split("_")
        for values, kernel in zip(ours[name], kernels, strict=True):
            check(values, f"block{block}_sepconv{i}/", kernel)
    check(ours["residual"], "conv2d")
    check(ours["head"][0], "dense", "/kernel")
    check(ours["head"][1], "dense", "/bias")
    assert not expected


def test_the_gradients_of_all_blocks_are_keras(network, weights, images):
    low, learning, frozen = weights
    learning, frozen = device_network.whole(low, learning, frozen)
    base = network.get_layer(BASE_LAYER)
    base.trainable = True
    kernels = {}
    for layer in base.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            kernels |= {variable.path: variable.value for variable in layer.weights}
    targets = np.eye(5, dtype=np.float32)[[0, 3, 4]]
    with tf.GradientTape() as tape:
        tape.watch(list(kernels.values()))
        loss = keras.losses.categorical_crossentropy(targets, network(images, training=False))
        loss = tf.reduce_mean(loss)
    expected = dict(zip(kernels, tape.gradient(loss, list(kernels.values())), strict=True))

    @jax.jit
    @jax.grad
    def gradient(learning):
        log = jax.nn.log_softmax(device_network.logits(learning, frozen, jnp.asarray(images)))
        return -(targets * log).sum(axis=-1).mean()

    found = gradient(learning)["low"]
    assert len(found) == 11
    for block, i in ((2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2)):
        for values, kernel in zip(found[f"{block}_{i}"], ("depthwise", "pointwise"), strict=True):
            [name] = [n for n in expected if f"block{block}_sepconv{i}/" in n and kernel in n]
            check_alike(values, expected[name])
    for i in (1, 2):
        [name] = [n for n in expected if f"block1_conv{i}/" in n]
        check_alike(found[f"conv{i}"], expected[name])
    residual = [n for n in expected if "sepconv" not in n and "block1" not in n]
    for block, name in zip((2, 3, 4), residual, strict=False):
        check_alike(found[f"residual{block}"], expected[name])


def check_alike(values, reference):
    reference = reference.numpy().reshape(values.shape)
    assert np.abs(reference).max() > 0
    assert np.allclose(values, reference, atol=2e-3 * np.abs(reference).max())


def test_the_largest_of_three_by_three_is_keras():
    rng = np.random.default_rng(0)
    for height, width in ((7, 8), (1, 2), (10, 5)):
        x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
        expected = keras.ops.max_pool(x, (3, 3), strides=(2, 2), padding="same")
        assert np.array_equal(device_network._pool(jnp.asarray(x)), expected)
