"""The candidates and trials of experiments.tune, in Optuna's database.

Processes share the trials, and a killed process loses no finished ones.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.records import check_same
from training.errors import DataError
from training.prefetch import progress
from training.recipes import ORIGINAL as RECIPE

optuna.logging.set_verbosity(optuna.logging.ERROR)  # an error ends the search and is printed then

LOST = 60  # seconds without a new epoch of any trial, after which the running ones are run again
POLL = 0.5  # seconds between reading the trials of other processes
SQLITE_TIMEOUT = 60  # seconds that SQLite waits for another process to finish writing
TUNERS = ("grid", "random", "bayesian", "hyperband")
RANDOM_FIRST = 6  # trials of bayesian
# Learning rate and momentum. The original tried three; only the one it chose is on record.
PAIRS = ((RECIPE.learning_rate, RECIPE.momentum), (0.002, 0.8), (0.001, 0.9))
# The space of a search.
LEARNING_RATES = (1e-3, 0.3)
MOMENTUMS = (0.0, 0.5, 0.75, 0.9, 0.95)
LAYERS = (0, 3)
UNITS = (128, 256, 512, 1024)  # of the first layer; each next one has a quarter
DROPOUTS = (0.0, 0.6)
COLUMNS = ("learning rate", "momentum", "dense layers", "dropout")
LIVE = (TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE)


@dataclass(frozen=True)
class Candidate:
    """Hyperparameters: SGD's, units of dense layers, dropout below the softmax."""

    learning_rate: float
    momentum: float
    head: tuple[int, ...] = RECIPE.head
    dropout: float = 0.0

    def __str__(self) -> str:
        """Return it for a table."""
        return ", ".join(map(" ".join, zip(COLUMNS, self.cells(), strict=True)))

    def cells(self) -> list[str]:
        """Return the cells of `COLUMNS`."""
        head = " ".join(map(str, self.head)) or "none"
        return [f"{self.learning_rate:.4g}", f"{self.momentum:.3g}", head, f"{self.dropout:.1f}"]


ORIGINAL = Candidate(RECIPE.learning_rate, RECIPE.momentum)


def suggest(trial: Trial, tuner: str, seed: int) -> Candidate:
    """Return the candidate of a trial.

    It depends on the seed and the trial's slot and, if `tuner` is bayesian, on earlier trials.
    """
    slot = trial.user_attrs["slot"]
    if tuner == "grid":
        rate, momentum = PAIRS[slot]
        trial.suggest_float("learning_rate", rate, rate)
        trial.suggest_float("momentum", momentum, momentum)
        return candidate_of(trial.params)
    # A sampler for all trials would draw the first ones again in each process.
    seed = int(np.random.SeedSequence((seed, slot)).generate_state(1)[0])
    trial.study.sampler = (
        optuna.samplers.TPESampler(n_startup_trials=RANDOM_FIRST, seed=seed)
        if tuner == "bayesian"
        else optuna.samplers.RandomSampler(seed)
    )
    trial.suggest_float("learning_rate", *LEARNING_RATES, log=True)
    trial.suggest_categorical("momentum", MOMENTUMS)
    if trial.suggest_int("layers", *LAYERS):
        trial.suggest_categorical("units", UNITS)
    trial.suggest_float("dropout", *DROPOUTS, step=0.1)
    return candidate_of(trial.params)


def candidate_of(params: dict) -> Candidate:
    """Return the candidate with the `params` of a trial.

    Its learning rate has the four digits that the train.py command is printed with.
    """
    rate = float(f"{params['learning_rate']:.4g}")
    if "layers" not in params:
        return Candidate(rate, params["momentum"])
    head = tuple(params["units"] // 4**layer for layer in range(params["layers"]))
    return Candidate(rate, params["momentum"], head, round(params["dropout"], 1))


class SurplusTrialError(Exception):
    """Other processes run all trials that are needed."""


def open_study(
    url: str, name: str, settings: dict, pruner: optuna.pruners.BasePruner | None = None
) -> optuna.Study:
    """Create or continue the study `name` in the database at `url`.

    Without a `pruner`, no trial ends early.

    Raises:
        DataError: the database cannot be opened, or the study has other settings (JSON).
    """
    wait = {"connect_args": {"timeout": SQLITE_TIMEOUT}} if url.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(url, wait)
        pruner = pruner or optuna.pruners.NopPruner()
        study = optuna.create_study(
            storage=storage, study_name=name, pruner=pruner, load_if_exists=True
        )
        if "settings" not in study.user_attrs:
            study.set_user_attr("settings", settings)
    except Exception as error:  # each database has its own errors
        raise DataError(
            f"Expected a database for the trials at {without_password(url)}. "
            f"Received: {str(error).splitlines()[0]}. Give another --storage or --out."
        ) from error
    flags = "--out, or another database with --storage"
    check_same(study.user_attrs["settings"], settings, f"the study '{name}'", flags)
    return study


def without_password(url: str) -> str:
    """Return a database's `url` with *** for its password."""
    return re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:***@", url)


def run_trials(
    study: optuna.Study, objective: Callable[[Trial], float], total: int, what: str
) -> list[FrozenTrial]:
    """Run trials until each of `total` slots has a finished one.

    `objective` finds its slot, from 0, in `trial.user_attrs["slot"]`, and reports each epoch. The
    slot of a trial that failed, or whose process was killed, goes to another trial. Returns all
    finished ones; `what` labels the bar.
    """
    seen, since = None, 0.0
    with progress(total, what, "trials") as bar:
        while True:
            trials = live_trials(study)
            wanted = [trial for trial in trials if trial.user_attrs["slot"] < total]
            finished = sum(trial.state.is_finished() for trial in wanted)
            bar.update(finished - bar.n)
            if finished >= total:
                return [trial for trial in trials if trial.state.is_finished()]
            if len(wanted) < total:
                run_one(study, objective, total)
                continue
            epochs = [(trial.number, trial.last_step) for trial in wanted]
            if epochs != seen:
                seen, since = epochs, time.monotonic()
            elif time.monotonic() - since > LOST:
                fail_running(study, wanted)
            time.sleep(POLL)


def run_one(study: optuna.Study, objective: Callable[[Trial], float], total: int) -> None:
    """Run one trial; an error fails it, and ends the search."""
    trial = study.ask()
    state, value = TrialState.FAIL, None
    try:
        claim_slot(study, trial, total)
        value = objective(trial)
        state = TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except (SurplusTrialError, optuna.exceptions.UpdateFinishedTrialError):
        pass  # another process was quicker, or took this trial for lost while this machine slept
    finally:
        study.tell(trial, value, state, skip_if_finished=True)


def fail_running(study: optuna.Study, trials: list[FrozenTrial]) -> None:
    """Fail those of `trials` that still run."""
    for trial in trials:
        if not trial.state.is_finished():
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def claim_slot(study: optuna.Study, trial: Trial, total: int) -> None:
    """Give `trial` the first free slot.

    Raises:
        SurplusTrialError: there is none, or another process claimed it at the same time.
    """
    taken = {other.user_attrs["slot"] for other in live_trials(study)}
    free = [slot for slot in range(total) if slot not in taken]
    if not free:
        raise SurplusTrialError
    trial.set_user_attr("slot", free[0])
    # Whoever claims it last sees both.
    if sum(other.user_attrs["slot"] == free[0] for other in live_trials(study)) > 1:
        raise SurplusTrialError


def live_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials with a slot that have not failed."""
    trials = study.get_trials(deepcopy=False, states=LIVE)
    return [trial for trial in trials if "slot" in trial.user_attrs]
