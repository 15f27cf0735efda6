"""Search hyperparameters of the head on Xception's frozen base.

    python -m experiments.tune                       # the original's three pairs, on flowers/
    python -m experiments.tune --tuner bayesian      # a larger search; or random, or hyperband
    python -m experiments.tune --tuner random --trials 50 --epochs 10

The base's features are computed once and kept in --cache, so that a trial takes seconds. It is
judged by its lowest loss on the validation images. Then the best candidate and the original's are
trained again from --repeats seeds each. The one with the lower mean validation loss wins; both are
reported with their accuracy on the test images, which took part in nothing. The last lines are the
winner's train.py command.

Trials are kept in a database in --out. A stopped search continues with the same command, a
finished one with more --trials. Start the same command several times to share a search between
processes, and give all of them the same --storage to share it between machines. The line "Watch"
is the command that shows the trials in a browser.
"""

import argparse
import fcntl
import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna

from experiments import networks
from experiments.command import add_base_flags, load_data, make_parser, run
from experiments.search import (
    ORIGINAL,
    PAIRS,
    TUNERS,
    Candidate,
    candidate_of,
    live_trials,
    open_study,
    run_trials,
    suggest,
    without_password,
)
from experiments.tune_report import report
from training.backend import keras, tf
from training.batches import Batches, TrainingBatches, predict
from training.cli import positive
from training.dataset.split import Split
from training.features import CachedFeatures
from training.fit import compile_model, fit_epochs
from training.images import ImageSource
from training.model import weights_digest
from training.recipes import ORIGINAL as RECIPE
from training.streams import counted

TRIALS, REPEATS = 20, 3
DIVERGED = 16.0  # nats; about the largest cross-entropy that Keras returns
DATABASE, LOCK = "trials.db", "lock"


@dataclass(frozen=True)
class SearchData:
    """The inputs of all trials.

    Attributes:
        split: into training, validation and test images.
        training: features of the training images, in augmented views.
        evaluation: features of the validation and test images.
        settings: what all trials of a search have in common (JSON).
    """

    split: Split
    training: CachedFeatures
    evaluation: CachedFeatures
    settings: dict


def main(arguments: list[str] | None = None) -> int:
    """Tune as the command line says and return the exit code."""
    return run(tune, "tune", parse_arguments(arguments))


def tune(options: argparse.Namespace) -> None:
    """Compute features, search, repeat the best candidates and report."""
    tf.get_logger().setLevel("ERROR")  # a note on every new network that is traced
    data = prepare(options)
    print(f"Watch: {shlex.join(['optuna-dashboard', without_password(options.storage)])}")
    try:
        trials = search(data, options)
        seeds = counted(options.repeats, "seed")
        print(f"Report: the best candidate and the original's, from {seeds} each.")
        candidates = dict.fromkeys([trials[0][0], ORIGINAL])
        repeats = {candidate: repeat(candidate, data, options) for candidate in candidates}
    except optuna.exceptions.StorageInternalError as error:  # a full disk, a lost connection
        raise OSError(str(error.__cause__ or error).splitlines()[0]) from error
    with locked(options.out):
        report(trials, repeats, data.split, data.settings, options)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the lock of a search in `folder`; other processes wait."""
    with open(folder / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare(options: argparse.Namespace) -> SearchData:
    """Return the features of all images of `options.data`."""
    dataset, split = load_data(options)
    keras.utils.set_random_seed(options.seed)  # of a base without weights
    base = networks.build_base(networks.XCEPTION, RECIPE.image_size, options.weights)
    images = ImageSource(dataset, RECIPE.image_size, RECIPE.augmentation)
    views = replace(RECIPE, epochs=options.epochs).shown_views(len(split.train))
    training, evaluation = networks.cached_features(images, base, split, options.cache, views)
    settings = {
        "epochs": options.epochs,
        "seed": options.seed,
        "images": split.fingerprint,
        "weights": weights_digest(base)[:16],
    }
    return SearchData(split, training, evaluation, settings)


def fit(
    candidate: Candidate,
    epochs: int,
    seed: int,
    data: SearchData,
    trial: optuna.Trial | None = None,
) -> tuple[keras.Model, dict]:
    """Train a head; return it as of its best epoch, and its metrics.

    Metrics are the lowest `val_loss` (at most `DIVERGED`), the `val_accuracy` (0 to 1) then,
    `epoch` (its number, from 1) and `epochs` (how many were trained: fewer if `trial` was pruned).
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    [features] = data.training.plain.shape
    class_count = len(data.training.dataset.class_names)
    head = networks.build_head(features, candidate.head, class_count, candidate.dropout)
    compile_model(head, candidate.learning_rate, candidate.momentum)
    batches = TrainingBatches(
        data.training,
        data.split.train,
        RECIPE.batch_size,
        steps=RECIPE.steps_per_epoch or 1,
        seed=seed,
        views=RECIPE.views,
    )
    losses: list[float] = []

    def note_loss(epoch: int, logs: dict) -> None:
        losses.append(float(min(np.nan_to_num(logs["val_loss"], nan=DIVERGED), DIVERGED)))
        if trial:
            trial.report(losses[-1], epoch + 1)
            head.stop_training = trial.should_prune()

    history = fit_epochs(
        head,
        batches,
        Batches(data.evaluation, data.split.validation, RECIPE.batch_size),
        epochs=(0, epochs),
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss", patience=epochs, restore_best_weights=True),
            keras.callbacks.LambdaCallback(on_epoch_end=note_loss),
        ],
    ).history
    best = int(np.argmin(losses))
    accuracy = float(history["val_accuracy"][best])
    metrics = {"val_loss": losses[best], "val_accuracy": accuracy, "epoch": best + 1}
    return head, metrics | {"epochs": len(losses)}


def search(data: SearchData, options: argparse.Namespace) -> list[tuple[Candidate, dict]]:
    """Run the missing trials; return all as (candidate, metrics), the best first.

    Raises:
        DataError: the search was started with other settings.
    """

    def objective(trial: optuna.Trial) -> float:
        candidate = suggest(trial, options.tuner, options.seed)
        _, metrics = fit(candidate, options.epochs, options.seed, data, trial)
        trial.set_user_attr("metrics", metrics)
        if metrics["epochs"] < options.epochs:
            raise optuna.TrialPruned
        return metrics["val_loss"]

    hyperband = options.tuner == "hyperband"
    pruner = optuna.pruners.HyperbandPruner(1, options.epochs) if hyperband else None
    with locked(options.out):
        study = open_study(options.storage, options.tuner, data.settings, pruner)
    total = len(PAIRS) if options.tuner == "grid" else options.trials
    done = sum(trial.state.is_finished() for trial in live_trials(study))
    print(
        f"Search: {options.tuner}, {counted(total, 'trial')}, {done} of them finished.", flush=True
    )
    trials = run_trials(study, objective, total, "  search")
    trials.sort(key=lambda trial: (trial.user_attrs["metrics"]["val_loss"], trial.number))
    return [(candidate_of(t.params), {"trial": t.number} | t.user_attrs["metrics"]) for t in trials]


def repeat(candidate: Candidate, data: SearchData, options: argparse.Namespace) -> list[dict]:
    """Train `candidate` from each seed; return its metrics, with `seed` and `test_accuracy`.

    Each seed is a trial of a study of its own, so it is shared and survives a kill as well.
    """
    test = data.split.evaluated
    labels = data.evaluation.dataset.labels(test)

    def objective(trial: optuna.Trial) -> float:
        seed = options.seed + trial.user_attrs["slot"]
        head, metrics = fit(candidate, options.epochs, seed, data, trial)
        batches = Batches(data.evaluation, test, RECIPE.batch_size)
        probabilities = predict(head, batches)
        correct = int((probabilities.argmax(axis=1) == labels).sum())
        metrics |= {"seed": seed, "test_accuracy": correct / len(test)}
        trial.set_user_attr("metrics", metrics)
        return metrics["val_loss"]

    name = f"{options.tuner}, repeated: {candidate}"
    with locked(options.out):
        study = open_study(options.storage, name, data.settings)
    trials = run_trials(study, objective, options.repeats, "  repeats")
    rows = sorted((t.user_attrs["metrics"] for t in trials), key=lambda row: row["seed"])
    return rows[: options.repeats]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "tune", RECIPE.epochs)
    add_base_flags(parser)
    add, count = parser.add_argument, positive(int)
    add("--tuner", choices=TUNERS, default="grid", help="what chooses candidates [%(default)s]")
    add("--trials", type=count, default=TRIALS, help="of every tuner but grid [%(default)s]")
    add("--repeats", type=count, default=REPEATS, help="seeds of the report [%(default)s]")
    add("--storage", metavar="URL", help=f"database of the trials [{DATABASE} in --out]")
    options = parser.parse_args(arguments)
    options.storage = options.storage or f"sqlite:///{options.out / DATABASE}"
    return options


if __name__ == "__main__":
    sys.exit(main())
