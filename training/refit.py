"""A second training, on training and validation images together, once the first has picked."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from training.checkpoint import read_metadata
from training.files import remove_unfinished
from training.fit import REFIT, Inputs, Run, continue_run, require_best
from training.resume import STATE, TrainingState
from training.streams import counted


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        run: which trained it.
        inputs: of its last epochs.
        checkpoint: its best epoch or, without validation images, its last one; None if it is lost.
        weights: where the pretrained weights came from.
        features: of all images by the pretrained base, float32 (images, 2048), or None.
    """

    run: Run
    inputs: Inputs
    checkpoint: Path | None
    weights: str
    features: np.ndarray | None = None


def start_refit(first: Trained) -> Run:
    """Return the run that trains from the start again, on training and validation images together.

    It takes as many epochs as the best one of `first` has as its number, unless the recipe says how
    many. It writes into a folder of its own, where --resume continues it.
    """
    run = first.run
    recipe, workers, folder = run.recipe, run.workers, run.options.models / REFIT
    picked = 0
    if workers.is_main:
        picked = read_metadata(require_best(first.checkpoint, run.options.models)).epoch
        folder.mkdir(exist_ok=True)
        remove_unfinished(folder)
    second = replace(
        run,
        recipe=replace(recipe, epochs=recipe.refit_epochs or workers.broadcast(picked)),
        options=replace(run.options, models=folder),
        split=run.split.with_validation_in_training(),
        state=None,
        state_file=None,
        replaced=(),
    )
    print(
        f"Refit: from the start again, {counted(second.recipe.epochs, 'epoch')}, also on the "
        f"validation images: {len(second.split.train)} in all.",
        flush=True,
    )
    if not run.options.resume:
        return second
    state_file = workers.broadcast_file(folder / STATE)
    state = TrainingState.load(state_file)
    same = state and all(state.settings.get(n) == each for n, each in second.settings.items())
    if state and same and state.epochs <= second.recipe.epochs:
        return continue_run(second, state, state_file)
    return second
