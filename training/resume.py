"""The state of a training run: written after each epoch, read by --resume."""

import json
import shutil
from pathlib import Path

import h5py

from serving.errors import ModelError
from training.backend import keras
from training.checkpoint import BestCheckpoint
from training.files import write_atomically


class RunState(keras.callbacks.Callback):
    """Keep what a run needs to go on after its last finished epoch.

    One `.weights.h5` file holds it all, the weights, the optimizer's variables and, in its
    attribute `run`, the facts: so that they can never disagree.
    """

    def __init__(self, path: Path, settings: dict, checkpoint: BestCheckpoint):
        """Write to `path`; `settings` is what a resumed run has to have in common."""
        super().__init__()
        self.path, self.settings, self.checkpoint = path, settings, checkpoint

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the state; Keras calls this."""
        run = {
            "settings": self.settings,
            "epochs": epoch + 1,
            "best": self.checkpoint.best,
            "checkpoint": self.checkpoint.path.name if self.checkpoint.path else None,
            "reported": False,
        }

        def write(temporary: Path) -> None:
            self.model.save_weights(temporary)
            with h5py.File(temporary, "a") as file:
                file.attrs["run"] = json.dumps(run)

        write_atomically(self.path, write)


def read_run(path: Path) -> dict | None:
    """Return the facts of the run whose state is at `path`, or None where there is none.

    Keys: `settings`, `epochs` (finished), `best` (validation accuracy and loss), `checkpoint`
    (its file name or None), `reported` (at which input size its report is written, or false).

    Raises:
        ModelError: the file is no state of a run.
    """
    if not path.exists():
        return None
    try:
        with h5py.File(path) as file:
            return json.loads(file.attrs["run"])
    except (OSError, KeyError, ValueError):
        raise ModelError(
            f"Expected the state of a training run. Received: {path}, which is none. "
            "Delete it and train anew."
        ) from None


def note_in_run(path: Path, **facts: object) -> None:
    """Change `facts` of the run whose state is at `path`; nothing where there is none."""
    run = read_run(path)
    if run is None:
        return

    def write(temporary: Path) -> None:
        shutil.copyfile(path, temporary)
        with h5py.File(temporary, "a") as file:
            file.attrs["run"] = json.dumps(run | facts)

    write_atomically(path, write)


def trim_history(path: Path, epochs: int) -> None:
    """Take out of the history at `path` (CSV) what came after its first `epochs` epochs.

    A run that was killed between writing the history and its state repeats that epoch.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_atomically(path, lambda new: new.write_text("".join(lines[: epochs + 1])))


def restore_run(model: keras.Model, path: Path) -> None:
    """Give the compiled `model` and its optimizer the state that `path` holds."""
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
