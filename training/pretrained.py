"""Pretrained weights of the base: Keras' download, a file, or the shipped checkpoint."""

from collections.abc import Callable
from pathlib import Path

import h5py

from serving.errors import ModelError
from serving.model_files import best_model
from training.backend import keras
from training.model import BASE_LAYER


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
    best checkpoint in the folder `shipped`), "none" (left as initialized), or a path: Keras'
    own weights file of Xception without its top, or a checkpoint of ours.

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
        try:
            checkpoint = best_model(shipped, ".h5")
        except ModelError:
            raise ModelError(
                "Expected Keras' ImageNet weights, or a checkpoint in "
                f"{shipped} to take them from. Received: neither (the download: {error.reason}). "
                "Give a weights file with --weights PATH, or train from nothing with "
                "--weights none."
            ) from error
        print(f"  Keras' download cannot be reached ({error.reason}).", flush=True)
        return _load_file(base_model, checkpoint)
    return "ImageNet weights"


def _load_file(base_model: keras.Model, path: Path) -> str:
    try:
        with h5py.File(path) as file:
            is_checkpoint = "model_config" in file.attrs
        if is_checkpoint:
            source = keras.models.load_model(path, compile=False).get_layer(BASE_LAYER)
            base_model.set_weights(source.get_weights())
        else:
            base_model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        received = f"{path}, which does not exist" if not path.exists() else f"{path} ({error})"
        raise ModelError(
            "Expected a weights file of Xception without its top, or a checkpoint of train.py. "
            f"Received: {received}. Give another with --weights, or use --weights imagenet."
        ) from error
    return f"the base of {path}" if is_checkpoint else f"the weights of {path}"
