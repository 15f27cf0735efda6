"""Checkpoints: Keras' `.h5` files with their class names, accuracy and temperature inside.

The root attributes of the file hold what Keras does not store:
`class_names` (JSON list), `input_scaling` (keras-image-helper's name), `val_accuracy`, `epoch`,
`temperature`. The group `DETAILS` holds the statistics of `serving.details`. Plain Keras files of
Xception, which have none of it, are read with `ModelFacts`.
"""

import json
import math
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path

import h5py
import numpy as np

from serving.details import Details
from serving.errors import ModelError
from serving.model_files import describe_file
from serving.preprocess import INPUT_SCALING
from serving.runtimes import Prediction
from training.backend import keras
from training.dataset.split import Split
from training.files import require_disk_space, write_atomically
from training.model_facts import INPUT_SCALINGS, ModelFacts
from training.outputs import find_pooling, read_head, with_activations
from training.plain_keras import fold_input_scaling, is_keras_file, read_network

CHECKPOINT = "xception_fin_{epoch:02d}_{val_accuracy:.3f}.h5"
UNNAMED_BEST = "xception_fin.picked.h5"  # the best epoch, until its test accuracy is known
DETAILS = "details"  # group of the HDF5 file
VARIABLE_BYTES = 4  # of float32
HDF5_FACTOR, HDF5_BYTES = 1.1, 1e6  # a file is at most so much larger than its variables
EARLIER = "earlier"  # folder for checkpoints of a run that another one has replaced


@dataclass(frozen=True)
class Metadata:
    """What is stored in a checkpoint beside its weights.

    Attributes:
        class_names: in the order of the model's outputs.
        epoch: how many epochs it was trained, 0 if another program did.
        val_accuracy: accuracy on the validation images, 0 to 1, NaN if another program trained it.
        temperature: what the last layer's weights were divided by to calibrate the scores; 1
            before calibration.
        details: what tells more than scores; the network itself holds the head.
    """

    class_names: tuple[str, ...]
    epoch: int
    val_accuracy: float
    temperature: float = 1.0
    details: Details = field(default=Details(), compare=False)


def save_checkpoint(model: keras.Model, path: Path, metadata: Metadata) -> None:
    """Write `model` and `metadata` to `path` (.h5) atomically.

    Raises:
        OSError: it cannot be written, or the disk has no room for it.
    """

    def write(temporary: Path) -> None:
        model.save(temporary)
        with h5py.File(temporary, "a") as file:
            write_metadata(file, metadata)

    require_disk_space(path, file_size(model))
    write_atomically(path, write)


def file_size(model: keras.Model) -> float:
    """Return how many bytes a file of the variables of `model` and its optimizer takes at most."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else ())]
    size = VARIABLE_BYTES * sum(math.prod(variable.shape) for variable in variables)
    return HDF5_FACTOR * size + HDF5_BYTES


def write_metadata(file: h5py.File, metadata: Metadata) -> None:
    """Write `metadata` into an open checkpoint."""
    file.attrs["class_names"] = json.dumps(metadata.class_names)
    file.attrs["input_scaling"] = INPUT_SCALING
    file.attrs["epoch"] = metadata.epoch
    file.attrs["val_accuracy"] = metadata.val_accuracy
    file.attrs["temperature"] = metadata.temperature
    for name, values in metadata.details.to_arrays().items():
        packed = {"compression": "gzip", "shuffle": True} if np.ndim(values) else {}
        file.create_dataset(f"{DETAILS}/{name}", data=values, **packed)


def has_metadata(path: Path) -> bool:
    """Return whether `path` is a HDF5 file with the class names of `write_metadata` inside."""
    with suppress(OSError), h5py.File(path) as file:
        return "class_names" in file.attrs
    return False


def read_metadata(path: Path) -> Metadata:
    """Return what the checkpoint at `path` says of itself.

    Raises:
        ModelError: no such file, or no checkpoint of ours.
    """
    _require_file(path)
    try:
        with h5py.File(path) as file:
            attributes = dict(file.attrs)
            details = _read_details(path, file)
        metadata = Metadata(
            tuple(json.loads(attributes["class_names"])),
            int(attributes["epoch"]),
            float(attributes["val_accuracy"]),
            float(attributes.get("temperature", 1.0)),
            details,
        )
        scaling = attributes["input_scaling"]
    except OSError as error:
        if zipfile.is_zipfile(path):  # a .keras file, which is none of ours
            raise _without_metadata(path) from None
        raise ModelError(
            "Expected a checkpoint that train.py wrote. "
            f"Received: {path}, which is damaged ({str(error).splitlines()[0]}). Copy it again."
        ) from None
    except (KeyError, ValueError):
        raise _without_metadata(path) from None
    if scaling != INPUT_SCALING:
        raise ModelError(
            f"Expected a checkpoint trained on {INPUT_SCALING} scaling. "
            f"Received: {path} with {scaling}. Train it again with python train.py."
        )
    return metadata


def _without_metadata(path: Path) -> ModelError:
    return ModelError(
        "Expected a checkpoint that train.py wrote, with its class names inside. "
        f"Received: {path} without them. If another program made it, only "
        "convert_to_tflite.py, predict.py and train.py --weights can use it."
    )


def _read_details(path: Path, file: h5py.File) -> Details:
    """Return the details in the open checkpoint `file`; none if an earlier version wrote it."""
    if DETAILS not in file:
        return Details()
    try:
        return Details.from_arrays({name: item[()] for name, item in file[DETAILS].items()})
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError):
        raise _damaged_details(path) from None


def _damaged_details(path: Path) -> ModelError:
    return ModelError(
        f"Expected a checkpoint with complete statistics of its own inside ({DETAILS}). "
        f"Received: {path} with damaged ones. Copy it again."
    )


def _require_file(path: Path) -> None:
    """Raise `ModelError` unless `path` begins like a .h5 or .keras file."""
    if not path.exists():
        raise ModelError(
            f"Expected a checkpoint (.h5). Received: {path}, which does not exist. "
            "Run python train.py first, or name another."
        )
    if not is_keras_file(path):
        raise ModelError(
            "Expected a checkpoint that train.py wrote, or a plain Keras file. "
            f"Received: {path}, {describe_file(path)}"
        )


def load_checkpoint(path: Path, facts: ModelFacts | None = None) -> tuple[keras.Model, Metadata]:
    """Return the model in the checkpoint at `path`, not compiled, and what it says of itself.

    With `facts`, a plain Keras file of Xception is read as well. Its input scaling is folded into
    its weights, so that every model takes float32 (n, height, width, 3), -1 to 1.

    Raises:
        ModelError: no such file, no such network, or `facts` do not suit it.
    """
    _require_file(path)
    if facts and not has_metadata(path):
        return _load_plain(path, facts)
    metadata = read_metadata(path)
    if facts and (facts.class_names or facts.input_scaling not in {None, INPUT_SCALING}):
        raise ModelError(
            "Expected --classes and --input-scaling only for a checkpoint without metadata. "
            f"Received: {path}, which has the classes {', '.join(metadata.class_names)} inside. "
            "Leave both out."
        )
    try:
        model = keras.models.load_model(path, compile=False)
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ModelError(
            f"Expected a checkpoint that Keras {keras.__version__} can load. "
            f"Received: {path} ({reason}). Copy it again, or train anew with python train.py."
        ) from error
    pooling = find_pooling(model)
    channels = pooling.output.shape[-1] if pooling else None
    try:
        details = metadata.details.of_model(channels, len(metadata.class_names))
    except ValueError:
        raise _damaged_details(path) from None
    return model, replace(metadata, details=details)


def _load_plain(path: Path, facts: ModelFacts) -> tuple[keras.Model, Metadata]:
    network, names = read_network(path), facts.names()
    if len(names) != network.outputs:
        received = f"{len(names)}: {', '.join(names)}" if names else "none"
        raise ModelError(
            f"Expected {network.outputs} class names, one for each output of {path}, in its order. "
            f"Received: {received}. Give them with --classes A,B,…; Keras' generators sort them."
        )
    if facts.input_scaling is None:
        raise ModelError(
            f"Expected how {path} had its pixels scaled in training, which it does not say. "
            "Received: nothing. Add --input-scaling 1/255 for rescale=1/255, as the original "
            "trained, --input-scaling xception for Xception's preprocess_input, or none."
        )
    model = network.build()
    fold_input_scaling(model, *INPUT_SCALINGS[facts.input_scaling])
    return model, Metadata(names, epoch=0, val_accuracy=math.nan)


def split_record(checkpoint: Path) -> Path:
    """Return where the split is recorded that the `checkpoint` was trained on."""
    return checkpoint.with_suffix(".split.json")


def read_split(checkpoint: Path) -> Split:
    """Return the split that `checkpoint` was trained on.

    Raises:
        ModelError: there is no record of it.
    """
    record = split_record(checkpoint)
    if not record.exists():
        raise ModelError(
            f"Expected {record.name} beside the checkpoint. Received: no such file. "
            "Copy it there from the folder that it was trained in."
        )
    return Split.read(record)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove `checkpoint` and the record of its split."""
    checkpoint.unlink(missing_ok=True)
    split_record(checkpoint).unlink(missing_ok=True)


def set_aside(checkpoint: Path, name: str | None = None) -> None:
    """Move `checkpoint`, its split, report and .tflite files into `EARLIER` beside it.

    There it has the file name `name`, or its own, with a number if another one has that. A line
    says so if there is a report.
    """
    place, wanted = checkpoint.parent / EARLIER, Path(name or checkpoint.name).stem
    place.mkdir(exist_ok=True)
    numbered = (f"{wanted}_{number}" for number in count(2))
    stem = next(name for name in chain([wanted], numbered) if not _files_of(place, name))
    if checkpoint.with_suffix("").is_dir():
        kept = place / f"{stem}{checkpoint.suffix}"
        print(f"{checkpoint}, another model, moves with its report to {kept}.", flush=True)
    for path in _files_of(checkpoint.parent, checkpoint.stem):
        path.replace(place / f"{stem}{path.name.removeprefix(checkpoint.stem)}")


def _files_of(folder: Path, stem: str) -> list[Path]:
    """Return what is in `folder` of the checkpoint whose file name has the `stem`."""
    return [
        path for path in folder.iterdir() if path.name == stem or path.name.startswith(f"{stem}.")
    ]


class CheckpointClassifier:
    """A `.h5` or `.keras` checkpoint with the interface of `serving.classifier.Classifier`."""

    def __init__(self, path: Path, facts: ModelFacts | None = None):
        """Load `path`; raises `ModelError` as `load_checkpoint` does."""
        model, metadata = load_checkpoint(path, facts)
        self.labels = metadata.class_names
        self.input_size = model.input_shape[1:3]
        self.details = replace(metadata.details, head=read_head(model))
        self._model = with_activations(model)

    def predict(self, inputs: np.ndarray) -> Prediction:
        """Return what the model makes of one image, float32 (1, height, width, 3), -1 to 1."""
        outputs = keras.tree.flatten(self._model(inputs, training=False))
        return Prediction(*(keras.ops.convert_to_numpy(output)[0] for output in outputs))


class BestCheckpoint(keras.callbacks.Callback):
    """Save the model after each epoch that is better than all before on the validation images.

    Keras' `ModelCheckpoint` writes in place, where a kill leaves half a file, and stores no class
    names.

    Attributes:
        best: validation accuracy of the best so far, 0 to 1, and its loss.
        path: its checkpoint, None before the first.
    """

    def __init__(
        self,
        folder: Path,
        pattern: str,
        full_model: Callable[[], keras.Model],
        class_names: tuple[str, ...],
        split: Split,
        monitor: str | None = "val_accuracy",
    ):
        """Keep the best epoch in `folder`.

        `pattern` names its file and may have the fields `epoch` (from 1) and `val_accuracy`.
        `full_model` returns the model to keep, from images to probabilities. `monitor` is what to
        beat, "val_accuracy" or "val_loss"; where it is equal the other one decides. With None,
        which needs no validation images, the last epoch is the best.
        """
        super().__init__()
        self.folder, self.pattern, self.full_model = folder, pattern, full_model
        self.class_names, self.split = class_names, split
        self.monitor = monitor
        self.best, self.path = (0.0, math.inf), None

    def restore(self, best: tuple[float, float], checkpoint: str | None) -> None:
        """Continue with the `best` epoch of an earlier process and its `checkpoint` (file name)."""
        if checkpoint and (self.folder / checkpoint).exists():
            self.best, self.path = best, self.folder / checkpoint

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write a checkpoint, if this is the best epoch; Keras calls this."""
        accuracy, loss = math.nan, math.inf
        if self.monitor and logs:
            # Rounded: weighted means have errors in the last digits.
            accuracy = round(float(logs["val_accuracy"]), 6)
            loss = float(np.nan_to_num(logs["val_loss"], nan=math.inf))
            if self.path and self._rank(accuracy, loss) <= self._rank(*self.best):
                return
        path = self.folder / self.pattern.format(epoch=epoch + 1, val_accuracy=accuracy)
        if path.name != self.pattern and _is_of_another_run(path, accuracy):
            set_aside(path)
        metadata = Metadata(self.class_names, epoch + 1, accuracy)
        save_checkpoint(self.full_model(), path, metadata)
        write_atomically(split_record(path), self.split.write)
        self.best, self.path = (accuracy, loss), path

    def _rank(self, accuracy: float, loss: float) -> tuple[float, float]:
        return (accuracy, -loss) if self.monitor == "val_accuracy" else (-loss, accuracy)


def _is_of_another_run(path: Path, accuracy: float) -> bool:
    """Return whether there is a file `path` that no run with this `accuracy` has just written."""
    with suppress(ModelError):
        metadata = read_metadata(path)
        return metadata.val_accuracy != accuracy or metadata.temperature != 1
    return path.exists()
