"""Xception in JAX, for `experiments.device_runs`: `lower`, blocks 1 to 4, and `upper`, the others.

It has Keras' weights and, in float32, its outputs and gradients. Batch normalization is frozen, so
each is a scale and a shift. Equal blocks are one loop, which is compiled once.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from training.backend import keras

EPSILON = 1e-3  # of Xception's batch normalization
MIDDLE = range(5, 13)  # blocks that are equal
CHANNELS = 728  # of the inputs of `upper`
TAPS = [(i, j) for i in range(3) for j in range(3)]  # rows and columns of a kernel

Tree = Any  # of arrays, as JAX has them


def read_weights(base_model: keras.Model) -> tuple[Tree, Tree, Tree]:
    """Return what Keras' Xception holds: (blocks 1 to 4, kernels of the others, their scales)."""
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
    kernels = {"middle": _stack([[separable(name) for name in row] for row in middle])}
    kernels |= {"residual": residual[3][0, 0]} | {n: separable(name) for n, name in ends.items()}
    scales = {"middle": _stack([[scaling(name) for name in row] for row in middle])}
    scales |= {"residual": _affine(*shortcuts[3])} | {n: scaling(nm) for n, nm in ends.items()}
    return low, kernels, scales


def whole(low: Tree, kernels: Tree, scales: Tree) -> tuple[Tree, Tree]:
    """Return (kernels, scales) with those of `low`, for an `upper` that takes images."""
    is_scale = {name: name.endswith("_bn") for name in low}
    parts = [{n: low[n] for n in low if is_scale[n] == wanted} for wanted in (False, True)]
    return {**kernels, "low": parts[0]}, {**scales, "low": parts[1]}


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
    """Return what Xception pools, float32 (n, 2048), from the outputs of `lower`.

    Where `learning` has kernels for it, `lower` is a part of this, and `x` are its inputs.
    """
    if "low" in learning:
        x = lower({**learning["low"], **frozen["low"]}, x)

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
    """Return a separable convolution of 3×3, scaled."""
    depthwise, pointwise = (kernel.astype(x.dtype) for kernel in kernels)
    return _scale(_depthwise(x, depthwise) @ pointwise, scale)


@jax.custom_vjp
def _depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return a depthwise convolution of `x` by `kernel`, (3, 3, channels), as nine products."""
    products = [tap * kernel[i, j] for tap, (i, j) in zip(_taps(x), TAPS, strict=True)]
    return functools.reduce(jnp.add, products)


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple:
    return _depthwise(x, kernel), (x, kernel)


def _depthwise_backward(inputs: tuple, change: jax.Array) -> tuple:
    """Return the gradients; XLA sums those of the kernel faster in two steps than in one."""
    x, kernel = inputs
    sums = [(tap * change).astype(jnp.float32).sum((1, 2)).sum(0) for tap in _taps(x)]
    change_of_kernel = jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)
    return _depthwise(change, kernel[::-1, ::-1]), change_of_kernel


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _taps(x: jax.Array) -> list[jax.Array]:
    """Return what each tap of a kernel of three by three sees of `x`, padded by zeros."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i, j in TAPS]


def _at(tree: Tree, index: int) -> Tree:
    return jax.tree.map(lambda each: each[index], tree)


def _shortcut(x: jax.Array, kernel: jax.Array, scale: Tree) -> jax.Array:
    return _scale(x[:, ::2, ::2] @ kernel.astype(x.dtype), scale)


def _scale(x: jax.Array, scale: Tree) -> jax.Array:
    return x * scale[0].astype(x.dtype) + scale[1].astype(x.dtype)


def _pool(x: jax.Array) -> jax.Array:
    """Return the largest of 3×3 at every second place; XLA's own gradient of it is slow."""
    sides = [(side + 1) // 2 for side in x.shape[1:3]]
    padding = [2 * (out - 1) + 3 - side for out, side in zip(sides, x.shape[1:3], strict=True)]
    pads = [(each // 2, each - each // 2) for each in padding]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    height, width = (2 * out - 1 for out in sides)
    taps = [padded[:, i : i + height : 2, j : j + width : 2] for i, j in TAPS]
    return functools.reduce(jnp.maximum, taps)
