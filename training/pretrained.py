"""Pretrained weights of the base: Keras' download, a file, or the shipped checkpoint."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py

from serving.errors import ModelError
from serving.model_files import describe_file
from training.backend import keras
from training.checkpoint import has_metadata, load_checkpoint
from training.model import BASE_LAYER
from training.plain_keras import is_keras_file, load_base

EXPECTED = "Expected a weights file of Xception without its top, or a checkpoint"
MISSING = "which does not exist. Give another with --weights, or use --weights imagenet."


class WeightsDownloadError(ModelError):
    """Keras cannot download pretrained weights.

    Attributes:
        reason: what Keras says about it.
    """

    def __init__(self, application: str, reason: str):
        """Take the name of the `application`, such as "Xception"."""
        super().__init__(
            f"Expected Keras' ImageNet weights of {application}. Received: none ({reason}). "
            "Run it where Keras can download them"
            + (", or give a file with --weights." if application == "Xception" else ".")
        )
        self.reason = reason


def load_pretrained(model: keras.Model, weights: str, shipped: Path) -> str:
    """Load pretrained weights into the base of `model`; return where they came from.

    `weights` is "imagenet" (Keras' download or, where that cannot be reached, the base of the
    checkpoint `shipped`), "none" (left as initialized), or a path: Keras'
    own weights file of Xception without its top, or a checkpoint: ours, or a plain Keras file of
    Xception.

    Raises:
        ModelError: the weights cannot be had, or do not fit.
    """
    base_model = model.get_layer(BASE_LAYER)
    if weights == "none":
        return "random weights"
    if weights == "imagenet":
        return _load_imagenet(base_model, shipped)
    return _load_file(base_model, Path(weights))


def download_imagenet(base_model: keras.Model, application: Callable) -> None:
    """Load Keras' own ImageNet weights of an `application` into `base_model`.

    `application` is a function of `keras.applications`, such as `Xception`.

    Raises:
        WeightsDownloadError: they cannot be downloaded.
    """
    try:
        source = application(weights="imagenet", include_top=False)
    except Exception as error:  # Keras raises a bare Exception when its download fails
        reason = str(error).rsplit(" -- ", 1)[-1]  # the front names the file
        name = getattr(application, "__name__", "the base")
        raise WeightsDownloadError(name, reason) from error
    base_model.set_weights(source.get_weights())


def _load_imagenet(base_model: keras.Model, shipped: Path) -> str:
    try:
        download_imagenet(base_model, keras.applications.Xception)
    except WeightsDownloadError as error:
        if not shipped.is_file():
            raise ModelError(
                f"Expected Keras' ImageNet weights, or {shipped} to take them from. "
                f"Received: neither (the download: {error.reason}). "
                "Give a weights file with --weights PATH, or train from nothing with "
                "--weights none."
            ) from error
        print(f"  Keras' download cannot be reached ({error.reason}).", flush=True)
        return _load_file(base_model, shipped)
    return "ImageNet weights"


def _load_file(base_model: keras.Model, path: Path) -> str:
    if not path.is_file():
        received = f"{path}, {describe_file(path)}" if path.exists() else f"{path}, {MISSING}"
        raise ModelError(f"{EXPECTED}. Received: {received}")
    if not is_keras_file(path):
        raise ModelError(f"{EXPECTED}. Received: {path}, {describe_file(path)}")
    if has_metadata(path):
        model, _ = load_checkpoint(path)
        _copy_weights(base_model, model, path)
    elif _holds_network(path):
        load_base(path, base_model)
    else:
        _load_weights(base_model, path)
        return f"the weights of {path}"
    return f"the base of {path}"


def _holds_network(path: Path) -> bool:
    """Return whether `path` has a network beside its weights."""
    with suppress(OSError), h5py.File(path) as file:
        return "model_config" in file.attrs
    return True  # a .keras file, or a damaged one


def _copy_weights(base_model: keras.Model, model: keras.Model, path: Path) -> None:
    try:
        base_model.set_weights(model.get_layer(BASE_LAYER).get_weights())
    except ValueError as error:
        raise _misfit(path, error) from error


def _load_weights(base_model: keras.Model, path: Path) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # one for each layer that does not fit
            base_model.load_weights(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise _misfit(path, error) from error


def _misfit(path: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:200]
    return ModelError(
        f"{EXPECTED}. Received: {path} ({reason}). "
        "Give another with --weights, or use --weights imagenet."
    )
