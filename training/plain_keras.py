"""Reads Xception classifiers as Keras 2 and Keras 3 save them, in .h5 and .keras files.

Keras 3 does not load Keras 2's `SeparableConv2D`. So the network is built anew, and the weights are
copied layer by layer. The base may be nested or flattened, and its layers frozen or not.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from serving.errors import ModelError
from serving.model_files import HDF5, ZIP, describe_file
from training.backend import keras
from training.model import BASE_LAYER, build_model
from training.streams import counted

DEFAULT_SIZE = 299  # pixels; Xception's own
FLEXIBLE_MINIMUM = 71  # pixels; the smallest that Xception takes
# {kind of layer: its variables, in the order of `get_weights`}
VARIABLES = {
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Conv2D": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
}
NETWORKS = ("Functional", "Model", "Sequential")
SOFTMAX, LINEAR = "softmax", "linear"
ONLY_IN_TRAINING = ("InputLayer", "Dropout", "SpatialDropout2D", "GaussianNoise", "Random")
FIRST, LAST = "block1_conv1", "block14_sepconv2_act"  # of the base


@dataclass
class SavedLayer:
    """A layer of a saved network.

    Attributes:
        kind: Keras' class name.
        name: within its network.
        config: what Keras writes about it.
        weights: its variables, in the order of `VARIABLES`.
    """

    kind: str
    name: str
    config: dict
    weights: list[np.ndarray] = field(default_factory=list)


class UnfitError(ModelError):
    """A file of Keras does not hold what is looked for."""

    def __init__(self, path: Path, received: str, advice: str = ""):
        """Take what `path` holds, and what to do about it."""
        super().__init__(
            "Expected Xception with a global average, dense layers and a softmax, saved by Keras "
            f"as one .h5 or .keras file. Received: {path}, {received}. "
            + (advice or "Name another file.")
        )


def is_keras_file(path: Path) -> bool:
    """Return whether `path` begins like a .h5 or .keras file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8).startswith((HDF5, ZIP))


@dataclass(frozen=True)
class SavedNetwork:
    """A classifier as it was found in a file.

    Attributes:
        path: the file.
        input_size: (height, width) in pixels.
        base: the layers of Xception.
        dense: the dense layers behind it.
    """

    path: Path
    input_size: tuple[int, int]
    base: Sequence[SavedLayer]
    dense: Sequence[SavedLayer]

    @property
    def outputs(self) -> int:
        """How many scores it returns."""
        return self.dense[-1].config["units"]

    def build(self) -> keras.Model:
        """Return the network as `build_model` makes it, from its own inputs.

        A last layer without activation, which was trained on logits, gets a softmax.

        Raises:
            ModelError: the weights do not fit.
        """
        head = tuple(layer.config["units"] for layer in self.dense[:-1])
        try:
            model = build_model(self.input_size, head, self.outputs)
            _copy_base(self.base, model.get_layer(BASE_LAYER))
            for source, target in zip(self.dense, model.layers[-len(self.dense) :], strict=True):
                target.set_weights(source.weights)
        except (KeyError, ValueError, TypeError) as error:
            raise _misfit(self.path, error) from error
        return model


def read_network(path: Path) -> SavedNetwork:
    """Return the classifier in `path`.

    Raises:
        ModelError: the file is damaged, or holds something else.
    """
    layers = _read_layers(path)
    base, head = _split(path, layers)
    return SavedNetwork(path, _input_size(path, layers), base, _dense_layers(path, head))


def load_base(path: Path, base_model: keras.Model) -> None:
    """Copy the weights of the Xception in `path` into `base_model`.

    Raises:
        ModelError: the file is damaged, or holds no Xception.
    """
    base, _ = _split(path, _read_layers(path))
    try:
        _copy_base(base, base_model)
    except (KeyError, ValueError, TypeError) as error:
        raise _misfit(path, error) from error


def _misfit(path: Path, error: Exception) -> UnfitError:
    return UnfitError(path, f"whose weights do not fit ({_first_line(error)})")


def fold_input_scaling(model: keras.Model, factor: float, offset: float) -> None:
    """Change `model` to take x, -1 to 1, where it took `factor` * x + `offset`.

    The first convolution takes the factor. The offset adds the same to all its outputs, since it
    pads nothing, and the batch normalization behind it subtracts that.
    """
    base_model = model.get_layer(BASE_LAYER)
    [kernel] = base_model.get_layer(FIRST).get_weights()
    gamma, beta, mean, variance = base_model.get_layer(f"{FIRST}_bn").get_weights()
    shift = offset * kernel.sum(axis=(0, 1, 2), dtype=np.float64)
    base_model.get_layer(FIRST).set_weights([kernel * np.float32(factor)])
    base_model.get_layer(f"{FIRST}_bn").set_weights([gamma, beta, mean - shift, variance])


# The file


def _read_layers(path: Path) -> list[SavedLayer]:
    """Return all layers with their weights, those of nested networks in their network's place."""
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                return _read_h5(path, file)
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            content = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(content) as file:
            return list(_keras_layers(config, file))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        if is_keras_file(path):
            what = f"which is damaged or no file of Keras ({_first_line(error)})"
            raise UnfitError(path, what, "Copy or download it again.") from error
        what, advice = describe_file(path).split(". ", 1)
        raise UnfitError(path, what, advice) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


def _read_h5(path: Path, file: h5py.File) -> list[SavedLayer]:
    text = file.attrs.get("model_config")
    if text is None or "model_weights" not in file:
        raise UnfitError(
            path,
            "which holds weights only, without the network",
            "Save both where it was made: model.save('model.h5').",
        )
    return list(_h5_layers(json.loads(text), file["model_weights"]))


def _h5_layers(config: dict, weights: h5py.Group) -> Iterator[SavedLayer]:
    """Yield the layers of a .h5 file, whose names are in the names of their variables."""
    for each in _configs(config):
        name = _name(each)
        nested = each["class_name"] in NETWORKS
        variables: dict[str, dict[str, np.ndarray]] = {}
        for variable, values in _h5_variables(weights.get(name)):
            *owners, last = variable.split("/")
            owner = owners[-1] if nested and owners else name
            variables.setdefault(owner, {})[last.split(":")[0]] = values
        for layer in _flatten(each):
            known = variables.get(layer.name, {})
            order = VARIABLES.get(layer.kind, ())
            layer.weights = [known[variable] for variable in order if variable in known]
            yield layer


def _h5_variables(group: h5py.Group | None) -> list[tuple[str, np.ndarray]]:
    if group is None:  # a layer without weights
        return []
    names = [_text(name) for name in group.attrs.get("weight_names", ())]
    return [(name, group[name][()]) for name in names]


def _keras_layers(config: dict, weights: h5py.Group) -> Iterator[SavedLayer]:
    """Yield the layers of a .keras file, whose groups are numbered within each kind."""
    counts: dict[str, int] = {}
    for each in _configs(config):
        kind = _snake_case(each["class_name"])
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        group = weights.get(f"layers/{kind}_{number}" if number else f"layers/{kind}", {})
        if each["class_name"] in NETWORKS:
            yield from _keras_layers(each, group)
            continue
        [layer] = _flatten(each)
        variables = group.get("vars", {})
        layer.weights = [variables[str(i)][()] for i in range(len(variables))]
        yield layer


def _snake_case(kind: str) -> str:
    """Return `kind` as Keras writes it in names: SeparableConv2D is separable_conv2d."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def _configs(config: dict) -> list[dict]:
    inner = config["config"]
    return inner if isinstance(inner, list) else inner["layers"]  # a list: Keras before 2.3


def _flatten(config: dict) -> Iterator[SavedLayer]:
    if config["class_name"] in NETWORKS:
        for each in _configs(config):
            yield from _flatten(each)
    else:
        yield SavedLayer(config["class_name"], _name(config), config["config"])


def _name(config: dict) -> str:
    return config.get("name") or config["config"]["name"]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


# The network


def _split(
    path: Path, layers: Sequence[SavedLayer]
) -> tuple[Sequence[SavedLayer], Sequence[SavedLayer]]:
    """Return the layers of the base, and those behind it."""
    names = [layer.name for layer in layers]
    if FIRST not in names or LAST not in names:
        own = [each for each in layers if each.kind in VARIABLES]
        first = f", the first one {own[0].name} ({own[0].kind})" if own else ""
        raise UnfitError(
            path, f"another network of {counted(len(own), 'layer')} with weights{first}"
        )
    first, last = names.index(FIRST), names.index(LAST)
    _refuse_others(path, layers[:first])
    return layers[first : last + 1], layers[last + 1 :]


def _refuse_others(path: Path, layers: Sequence[SavedLayer]) -> None:
    for layer in layers:
        if not layer.kind.startswith(ONLY_IN_TRAINING):
            raise UnfitError(path, f"with a layer of another kind, {layer.kind} ({layer.name})")


def _dense_layers(path: Path, head: Sequence[SavedLayer]) -> list[SavedLayer]:
    """Return the dense layers of `head`, whose activations are those of `build_model`."""
    pooling = [layer for layer in head if layer.kind == "GlobalAveragePooling2D"]
    dense = [layer for layer in head if layer.kind == "Dense"]
    _refuse_others(path, [layer for layer in head if layer not in (*pooling, *dense)])
    if len(pooling) != 1 or not dense:
        raise UnfitError(path, "Xception without a classifier behind it")
    for layer in dense:
        allowed = (SOFTMAX, LINEAR) if layer is dense[-1] else ("relu",)
        activation = layer.config.get("activation")
        if activation not in allowed:
            raise UnfitError(
                path, f"whose layer {layer.name} has the activation {activation or LINEAR}"
            )
    if dense[-1].config["units"] < 2:
        raise UnfitError(path, "whose last layer has one output")
    return dense


def _input_size(path: Path, layers: Sequence[SavedLayer]) -> tuple[int, int]:
    config = layers[0].config
    shape = config.get("batch_shape") or config.get("batch_input_shape") or (None,) * 4
    height, width = (size or DEFAULT_SIZE for size in shape[1:3])
    if min(height, width) < FLEXIBLE_MINIMUM or shape[3] not in (None, 3):
        raise UnfitError(path, f"for inputs of the shape {tuple(shape)}")
    return height, width


def _copy_base(layers: Sequence[SavedLayer], base_model: keras.Model) -> None:
    """Copy weights by the layers' names, and those of the unnamed short cuts by their shapes.

    Raises:
        KeyError: a layer is missing.
        ValueError: its weights have another shape.
    """
    named = {layer.name: layer.weights for layer in layers}
    shapes = {_shapes(layer.weights): layer.weights for layer in layers if not _is_named(layer)}
    for target in base_model.layers:
        if target.weights:
            own = _shapes(target.get_weights())
            target.set_weights(named[target.name] if _is_named(target) else shapes[own])


def _is_named(layer: SavedLayer | keras.layers.Layer) -> bool:
    return layer.name.startswith("block")


def _shapes(weights: Sequence[np.ndarray]) -> tuple:
    return tuple(values.shape for values in weights)
