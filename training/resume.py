"""The state of a training run: written after each epoch, read by --resume."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py

from serving.errors import ModelError
from training.backend import keras
from training.checkpoint import BestCheckpoint
from training.errors import DataError
from training.files import write_atomically

ATTRIBUTE = "run"  # of the HDF5 file


@dataclass(frozen=True)
class TrainingState:
    """What a stopped run needs to continue, beside its weights and its optimizer's variables.

    All of it is in one `.weights.h5` file, so that its parts never disagree.

    Attributes:
        settings: what the continued run must have in common with it (JSON).
        epochs: number of finished epochs.
        best: validation accuracy, 0 to 1, and validation loss of the best epoch.
        checkpoint: file name of the best epoch's checkpoint, or None.
        reported: input size in pixels that its report is about; False without a report.
    """

    settings: dict
    epochs: int
    best: tuple[float, float]
    checkpoint: str | None
    reported: int | bool = False

    @classmethod
    def load(cls, path: Path) -> "TrainingState | None":
        """Return the state in the file `path`, or None where there is no file.

        Raises:
            ModelError: the file is something else.
        """
        if not path.exists():
            return None
        try:
            with h5py.File(path) as file:
                record = json.loads(file.attrs[ATTRIBUTE])
            return cls(**record | {"best": tuple(record["best"])})
        except (OSError, KeyError, ValueError, TypeError):
            raise ModelError(
                f"Expected the state of a training run. Received: {path}, which is something else. "
                "Delete it and train anew."
            ) from None

    @classmethod
    def update(cls, path: Path, **changes: object) -> None:
        """Change fields of the state in the file `path`; does nothing where there is no file."""
        state = cls.load(path)
        if state is None:
            return

        def write(temporary: Path) -> None:
            shutil.copyfile(path, temporary)
            replace(state, **changes)._write_into(temporary)

        write_atomically(path, write)

    def save(self, path: Path, model: keras.Model) -> None:
        """Write this state and the weights and optimizer of `model` to `path`, or leave it."""

        def write(temporary: Path) -> None:
            model.save_weights(temporary)
            self._write_into(temporary)

        write_atomically(path, write)

    def _write_into(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            file.attrs[ATTRIBUTE] = json.dumps(asdict(self))


class SaveState(keras.callbacks.Callback):
    """Save a `TrainingState` after each epoch."""

    def __init__(self, path: Path, settings: dict, checkpoint: BestCheckpoint):
        """Write to `path`; `settings` is what a continued run must have in common."""
        super().__init__()
        self.path, self.settings, self.checkpoint = path, settings, checkpoint

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the state; Keras calls this."""
        name = self.checkpoint.path.name if self.checkpoint.path else None
        state = TrainingState(self.settings, epoch + 1, self.checkpoint.best, name)
        state.save(self.path, self.model)


def restore_weights(model: keras.Model, path: Path) -> None:
    """Load the weights and optimizer variables in `path` into the compiled `model`."""
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)


def require_same_settings(found: Mapping, wanted: Mapping, what: str, advice: str) -> None:
    """Raise `DataError` where `found`, the settings of `what`, differ from those `wanted`."""
    different = [name for name in wanted if wanted[name] != found.get(name)]
    if different:
        was = ", ".join(f"{name} {found.get(name)}" for name in different)
        now = ", ".join(f"{name} {wanted[name]}" for name in different)
        raise DataError(f"Expected the settings of {what} ({was}). Received: {now}. {advice}")


def trim_history(path: Path, epochs: int) -> None:
    """Cut the history at `path` (CSV) after its first `epochs` epochs.

    A run that was killed between writing the history and its state repeats that epoch.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_atomically(path, lambda new: new.write_text("".join(lines[: epochs + 1])))
