"""The state of a training run: written after each epoch, read by --resume."""

import json
import math
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py

from serving.errors import ModelError
from training.backend import keras
from training.checkpoint import (
    CHECKPOINT,
    HDF5_BYTES,
    UNNAMED_BEST,
    BestCheckpoint,
    file_size,
    read_metadata,
    remove_checkpoint,
    set_aside,
    split_record,
)
from training.errors import DataError, TrainingError
from training.files import require_disk_space, write_atomically
from training.recipes import ORIGINAL, Recipe, RunOptions

STATE = "xception_fin.resume.weights.h5"
ATTRIBUTE = "run"  # of the HDF5 file
# Settings that the states of earlier runs do not have, as they are where they are off.
ADDED_SETTINGS = {
    "ema_momentum": 0.0,
    "brightness_range": 0.0,
    "channel_shift_range": 0.0,
    "erasing": 0.0,
    "labels": None,
}


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
        final_head_epochs: for which the head was trained before that report.
        seconds: how long the run has taken, in all its processes together.
    """

    settings: dict
    epochs: int
    best: tuple[float, float]
    checkpoint: str | None
    reported: int | bool = False
    final_head_epochs: int = 0
    seconds: float = 0.0

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

        require_disk_space(path, path.stat().st_size + HDF5_BYTES)
        write_atomically(path, write)

    def save(self, path: Path, model: keras.Model) -> None:
        """Write this state and the weights and optimizer of `model` to `path`, or leave it.

        Raises:
            OSError: it cannot be written, or the disk has no room for it.
        """

        def write(temporary: Path) -> None:
            model.save_weights(temporary)
            self._write_into(temporary)

        require_disk_space(path, file_size(model))
        write_atomically(path, write)

    def _write_into(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            file.attrs[ATTRIBUTE] = json.dumps(asdict(self))


class SaveState(keras.callbacks.Callback):
    """Save a `TrainingState` after each epoch."""

    def __init__(
        self, path: Path, settings: dict, checkpoint: BestCheckpoint, clock: Callable[[], float]
    ):
        """Write to `path`; `settings` is what a continued run must have in common.

        `clock` returns the seconds that the run has taken.
        """
        super().__init__()
        self.path, self.settings, self.checkpoint = path, settings, checkpoint
        self.clock = clock

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the state; Keras calls this."""
        name = self.checkpoint.path.name if self.checkpoint.path else None
        state = TrainingState(
            self.settings, epoch + 1, self.checkpoint.best, name, seconds=self.clock()
        )
        state.save(self.path, self.model)


class HistoryLogger(keras.callbacks.CSVLogger):
    """Keras' log of epochs, which leaves that of an earlier run until the first epoch has ended."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Do nothing yet; Keras calls this."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write a line, at the first call into a file that is opened now; Keras calls this."""
        if self.csv_file is None:
            super().on_train_begin()
        super().on_epoch_end(epoch, logs)


class RequireFiniteLoss(keras.callbacks.Callback):
    """End training after an epoch whose loss is not a number, before anything of it is kept."""

    def __init__(self, learning_rate: float, best: BestCheckpoint):
        """Advise a rate below `learning_rate`, and name what `best` has kept."""
        super().__init__()
        self.learning_rate, self.best = learning_rate, best

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Raise `TrainingError` if a loss in `logs` is NaN or infinite; Keras calls this."""
        for name in ("loss", "val_loss"):
            value = (logs or {}).get(name)
            if value is None or math.isfinite(value):
                continue
            kept = f" The best epoch before it is kept: {self.best.path}." if self.best.path else ""
            raise TrainingError(
                f"Expected a {name} that is a number. Received: {value} in epoch {epoch + 1}. "
                f"Train anew with a lower --learning-rate than {self.learning_rate:g}, "
                f"such as {min(self.learning_rate / 10, ORIGINAL.learning_rate):g}.{kept}"
            )


class SetAsideEarlierRun(keras.callbacks.Callback):
    """After the first epoch, move the `checkpoints` of the run that this one replaces."""

    def __init__(self, checkpoints: Sequence[Path], outdated: Path):
        """Move `checkpoints`, with what belongs to them, into a folder `EARLIER` beside them.

        Remove `outdated`, the state of a second training that followed from an earlier epoch.
        """
        super().__init__()
        self.checkpoints, self.outdated = list(checkpoints), outdated

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Move them, once; Keras calls this."""
        self.outdated.unlink(missing_ok=True)
        while self.checkpoints:
            path = self.checkpoints.pop()
            set_aside(path, _own_name(path))


def unreported_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` that train.py neither calibrated nor reported on, sorted.

    They are what a run left that was stopped, and the lesser epochs of one that was not.
    """
    found = []
    for path in sorted(folder.glob("xception_fin[._]*.h5")):
        with suppress(ModelError):
            if (
                split_record(path).exists()
                and not path.with_suffix("").exists()
                and read_metadata(path).temperature == 1
            ):
                found.append(path)
    return found


def _own_name(checkpoint: Path) -> str:
    """Return a file name for `checkpoint` that the next run does not have as well."""
    if checkpoint.name != UNNAMED_BEST:
        return checkpoint.name
    metadata = read_metadata(checkpoint)
    return CHECKPOINT.format(epoch=metadata.epoch, val_accuracy=metadata.val_accuracy)


def resume_command(options: RunOptions) -> str:
    """Return the command line that continues the run of `options`, quoted for a shell."""
    return options.command if options.resume else f"{options.command} --resume"


def how_to_rerun(options: RunOptions, started: float) -> str:
    """Return how to go on after a run that ended early, having `started` at a time of the clock.

    That is with --resume if an epoch of it was finished, else from its start.
    """
    if has_finished_epoch(options, started):
        return f"rerun with --resume: {resume_command(options)}"
    return f"start it again: {options.command}"


def has_finished_epoch(options: RunOptions, started: float) -> bool:
    """Return whether --resume can continue the run of `options`, which `started` then."""
    path = options.models / STATE
    return path.exists() and (options.resume or path.stat().st_mtime >= started)


def describe_stop(recipe: Recipe, options: RunOptions, started: float) -> str:
    """Return what Ctrl-C leaves behind of a run that `started` then, and the commands to go on."""
    if not has_finished_epoch(options, started):
        kept = f" Finished features are kept in {options.cache}." if options.cache else ""
        return (
            f"Stopped before the first epoch ended.{kept} To start it again:\n  {options.command}"
        )
    lines = [
        "Stopped. Rerun with --resume to continue after the last finished epoch:",
        f"  {resume_command(options)}",
    ]
    state = TrainingState.load(options.models / STATE)
    checkpoint = options.models / (state.checkpoint or "") if state else options.models
    if checkpoint.is_file():
        lines += [
            f"The best epoch so far: {checkpoint}. To calibrate it and write its report "
            "without further training:",
            f"  {_report_command(recipe, options, checkpoint)}",
        ]
    return "\n".join(lines)


def _report_command(recipe: Recipe, options: RunOptions, checkpoint: Path) -> str:
    words = ["python", "-m", "training.evaluation", str(checkpoint), str(options.models)]
    words += ["--data", str(options.data)]
    words += ["--exclude", str(options.exclude)] if options.exclude else []
    words += ["--audit", str(options.audit)] if options.audit else []
    words += ["--inference-size", str(recipe.inference_size)] if recipe.inference_size else []
    return shlex.join(words)


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


def upgrade_settings(settings: Mapping) -> dict:
    """Return the `settings` of an interrupted run with those that it did not have yet.

    One seed drew the split as well then, and what came later was off.
    """
    return {"split_seed": settings.get("seed"), **ADDED_SETTINGS, **settings}


def rename_checkpoint(checkpoint: Path, path: Path) -> None:
    """Let `path`, made from the best `checkpoint`, take its place."""
    if checkpoint == path:
        return
    TrainingState.update(path.parent / STATE, checkpoint=path.name)
    remove_checkpoint(checkpoint)
    earlier = checkpoint.with_suffix("")  # a report on the same epoch
    if earlier.is_dir() and not path.with_suffix("").exists():
        earlier.rename(path.with_suffix(""))


def keep_picked(checkpoint: Path) -> Path:
    """Return the best `checkpoint` of a finished run, where no report takes its place.

    A report on another network of that run may have the same epoch and accuracy in its name.
    """
    kept = checkpoint.with_name(UNNAMED_BEST)
    if checkpoint != kept:
        write_atomically(kept, lambda new: shutil.copyfile(checkpoint, new))
        write_atomically(
            split_record(kept), lambda new: shutil.copyfile(split_record(checkpoint), new)
        )
        TrainingState.update(checkpoint.with_name(STATE), checkpoint=UNNAMED_BEST)
    return kept


def trim_history(path: Path, epochs: int) -> None:
    """Cut the history at `path` (CSV) after its first `epochs` epochs.

    A run that was killed between writing the history and its state repeats that epoch.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_atomically(path, lambda new: new.write_text("".join(lines[: epochs + 1])))
