"""Xception in JAX, for `experiments.device_runs`: blocks 1 to 4 frozen, the others learning.

It has Keras' weights and, in float32, its outputs and gradients. Batch normalization is frozen, so
each is a scale and a shift. Equal blocks are one loop, which is compiled once.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from training.backend import keras

EPSILON = 1e-3  # of Xception's batch normalization
FIRST_LEARNING, MIDDLE = 5, range(5, 13)  # blocks; those in the middle are equal
CHANNELS = 728  # of the inputs of `FIRST_LEARNING`

Tree = Any  # of arrays, as JAX has them


def read_weights(base_model: keras.Model) -> tuple[Tree, Tree, Tree]:
    """Return what Keras' Xception holds: (blocks 1 to 4, what learns, what is frozen beside it)."""
    found = {layer.name: layer.get_weights() for layer in base_model.layers}
    # Only the residual connections have names that Keras counts: blocks 2, 3, 4 and 13.
    others = [layer for layer in base_model.layers if not layer.name.startswith("block")]
    residual = [found[layer.name][0] for layer in others if "Conv2D" in type(layer).__name__]
    shortcuts = [found[layer.name] for layer in others if "BatchNorm" in type(layer).__name__]

    def separable(name: str) -> tuple[np.ndarray, np.ndarray]:
        depthwise, pointwise = found[name]
        return depthwise[..., 0], pointwise[0, 0]

    def scaling(name: str) -> tuple[np.ndarray, np.ndarray]:
        return _affine(*found[f"{name}_bn"])

    low = {f"conv{i}": found[f"block1_conv{i}"][0] for i in (1, 2)}
    low |= {f"conv{i}_bn": scaling(f"block1_conv{i}") for i in (1, 2)}
    for block in (2, 3, 4):
        low[f"residual{block}"] = residual[block - 2][0, 0]
        low[f"residual{block}_bn"] = _affine(*shortcuts[block - 2])
        for i in (1, 2):
            name = f"block{block}_sepconv{i}"
            low[f"{block}_{i}"], low[f"{block}_{i}_bn"] = separable(name), scaling(name)
    middle = [[f"block{block}_sepconv{i}" for i in (1, 2, 3)] for block in MIDDLE]
    ends = {f"{block}_{i}": f"block{block}_sepconv{i}" for block in (13, 14) for i in (1, 2)}
    learning = {"middle": _stack([[separable(name) for name in row] for row in middle])}
    learning |= {"residual": residual[3][0, 0]} | {n: separable(name) for n, name in ends.items()}
    frozen = {"middle": _stack([[scaling(name) for name in row] for row in middle])}
    frozen |= {"residual": _affine(*shortcuts[3])} | {n: scaling(nm) for n, nm in ends.items()}
    return low, learning, frozen


def _affine(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    scale = gamma / np.sqrt(variance + EPSILON)
    return scale, beta - mean * scale


def _stack(rows: list) -> Tree:
    """Stack pairs of arrays, one list of them a block."""
    return tuple(np.stack([np.stack([pair[k] for pair in row]) for row in rows]) for k in (0, 1))


def lower(low: Mapping[str, Tree], x: jax.Array) -> jax.Array:
    """Return the outputs of blocks 1 to 4, (n, height, width, 728), for images -1 to 1."""
    for i, stride in ((1, 2), (2, 1)):
        kernel = low[f"conv{i}"].astype(x.dtype)
        x = lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(_scale(x, low[f"conv{i}_bn"]))
    for block in (2, 3, 4):
        shortcut = _shortcut(x, low[f"residual{block}"], low[f"residual{block}_bn"])
        y = x if block == 2 else jax.nn.relu(x)
        y = _separable(y, low[f"{block}_1"], low[f"{block}_1_bn"])
        y = _separable(jax.nn.relu(y), low[f"{block}_2"], low[f"{block}_2_bn"])
        x = _pool(y) + shortcut
    return x


def upper(learning: Tree, frozen: Tree, x: jax.Array) -> jax.Array:
    """Return what Xception pools, float32 (n, 2048), from the outputs of `lower`."""

    def block(x: jax.Array, weights: Tree) -> tuple[jax.Array, None]:
        kernels, scales = weights
        y = x
        for i in range(3):
            y = _separable(jax.nn.relu(y), _at(kernels, i), _at(scales, i))
        return x + y, None

    x, _ = lax.scan(block, x, (learning["middle"], frozen["middle"]))
    shortcut = _shortcut(x, learning["residual"], frozen["residual"])
    for name in ("13_1", "13_2"):
        x = _separable(jax.nn.relu(x), learning[name], frozen[name])
    x = _pool(x) + shortcut
    for name in ("14_1", "14_2"):
        x = jax.nn.relu(_separable(x, learning[name], frozen[name]))
    return x.astype(jnp.float32).mean(axis=(1, 2))


def logits(learning: Tree, frozen: Tree, x: jax.Array) -> jax.Array:
    """Return the logits, float32 (n, classes); the softmax layer is `learning["head"]`."""
    kernel, bias = learning["head"]
    return upper(learning, frozen, x) @ kernel + bias


def _separable(x: jax.Array, kernels: Tree, scale: Tree) -> jax.Array:
    """Return a separable convolution of 3×3, scaled; the depthwise part as nine products."""
    depthwise, pointwise = (kernel.astype(x.dtype) for kernel in kernels)
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(
        padded[:, i : i + height, j : j + width] * depthwise[i, j]
        for i in range(3)
        for j in range(3)
    )
    return _scale(y @ pointwise, scale)


def _at(tree: Tree, index: int) -> Tree:
    return jax.tree.map(lambda each: each[index], tree)


def _shortcut(x: jax.Array, kernel: jax.Array, scale: Tree) -> jax.Array:
    return _scale(x[:, ::2, ::2] @ kernel.astype(x.dtype), scale)


def _scale(x: jax.Array, scale: Tree) -> jax.Array:
    return x * scale[0].astype(x.dtype) + scale[1].astype(x.dtype)


def _pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
