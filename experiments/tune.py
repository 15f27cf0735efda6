"""Search settings of what learns on Xception's frozen base; a trial takes seconds.

    python -m experiments.tune                       # the original's three pairs, on flowers/
    python -m experiments.tune --tuner bayesian      # or random, hyperband: a real search
    python -m experiments.tune --tuner random --trials 50 --epochs 10

The base's features are computed once and kept in --cache. Trials are judged by their least loss on
pictures set apart for that. At the end the best setting and the original's are trained again, from
--repeats seeds each: the one of less mean loss there wins, and both are told by their accuracy on
other pictures, which took part in nothing. The last lines are the `train.py` command of the winner.
A search that was stopped goes on, and so does a finished one with more --trials.

Several processes share a search, on one machine or on several, as KerasTuner does it: start the
same command once as chief, which hands out the trials and reports, and as often as you like as
worker, each with an ID of its own. A worker that was lost has to be started again under its ID.

    export KERASTUNER_ORACLE_IP=127.0.0.1 KERASTUNER_ORACLE_PORT=8000
    KERASTUNER_TUNER_ID=chief python -m experiments.tune --tuner random &
    KERASTUNER_TUNER_ID=worker0 python -m experiments.tune --tuner random &
    KERASTUNER_TUNER_ID=worker1 python -m experiments.tune --tuner random
"""

import argparse
import contextlib
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments import charts
from experiments.command import count, parser, run
from experiments.networks import (
    AUGMENTATION,
    BATCH_SIZE,
    HEAD,
    LEARNING_RATE,
    MOMENTUM,
    XCEPTION,
    build_base,
    build_head,
    cached_features,
)
from experiments.page import Section, markdown_table, write_page
from experiments.records import Records, check_same
from training.backend import keras, tf
from training.checkpoint import write_atomically
from training.dataset import Split, scan, split
from training.generators import Activations, Batches, Pictures, TrainingBatches, progress
from training.metrics import wilson, with_interval
from training.model import weights_digest

import keras_tuner  # isort: skip  (imports Keras, which training.backend keeps quiet)
from keras_tuner.engine import base_tuner  # isort: skip

EPOCHS, STEPS, VIEWS, INPUT_SIZE = 30, 100, 4, 299  # what train.py does by itself
VALIDATION, SELECTION = 0.2, 0.125  # of each class; of what is then left
TRIALS = 20
RANDOM_FIRST = 6  # trials of bayesian; by itself KerasTuner would take 27
REPEATS = 3  # seeds
CACHE = Path(".cache", "activations")  # train.py's, which computes the same
# Learning rate and momentum. The original tried three; only the one it chose is on record.
PAIRS = ((LEARNING_RATE, MOMENTUM), (0.002, 0.8), (0.001, 0.9))
# The space of a search.
LEARNING_RATES = (1e-3, 0.3)
MOMENTUMS = (0.0, 0.5, 0.75, 0.9, 0.95)
LAYERS = (0, 3)
UNITS = (128, 256, 512, 1024)  # of the first layer; each next one has a quarter
DROPOUTS = (0.0, 0.6)
DIVERGED = 16.0  # nats: about where Keras' crossentropy ends
OBJECTIVE = keras_tuner.Objective("val_loss", "min")
SEARCH, REPEATED, SUMMARY, PAGE = "search", "repeats.jsonl", "tuning.json", "index.html"


@dataclass(frozen=True)
class Setting:
    """What is searched.

    Attributes:
        learning_rate: of SGD.
        momentum: of SGD, 0 to 1.
        head: units of the dense layers.
        dropout: of what the softmax layer sees, 0 to 1.
    """

    learning_rate: float
    momentum: float
    head: tuple[int, ...] = HEAD
    dropout: float = 0.0

    def __str__(self) -> str:
        """Return it for a table."""
        head = " ".join(map(str, self.head)) or "none"
        return (
            f"learning rate {self.learning_rate:.3g}, momentum {self.momentum:.3g}, "
            f"dense layers {head}, dropout {self.dropout:.2g}"
        )


ORIGINAL = Setting(LEARNING_RATE, MOMENTUM)


@dataclass(frozen=True)
class Task:
    """What every trial learns from and is judged on.

    Attributes:
        parts: which pictures.
        learned: features to learn from.
        judged: features to judge on.
        common: what the trials of a search have in common.
    """

    parts: Split
    learned: Activations
    judged: Activations
    common: dict


def main(arguments: list[str] | None = None) -> int:
    """Tune as the command line says and return the exit code."""
    return run(tune, parse_arguments(arguments))


def tune(options: argparse.Namespace) -> None:
    """Features, search, repeats, report."""
    tf.get_logger().setLevel("ERROR")  # a note on every new network that is traced
    task = prepare(options)
    folder = options.out / options.tuner
    folder.mkdir(parents=True, exist_ok=True)
    trials = search(task, folder, options)
    if trials is None:
        print("Done: the chief has all trials.")
        return
    best = trials[0][0]
    repeats = repeat([best, ORIGINAL], task, folder, options)
    show(trials, repeats, task, folder, options)


def prepare(options: argparse.Namespace) -> Task:
    """Return the features of the pictures of `options.data`, all of them computed."""
    print(f"Data: checking the pictures of {options.data} ...", flush=True)
    dataset = scan(options.data, options.exclude)
    parts = split(dataset, VALIDATION, options.seed, SELECTION)
    print(
        f"  {len(parts.train)} to train, {len(parts.selection)} to pick the setting, "
        f"{len(parts.validation)} to report on."
    )
    size = (INPUT_SIZE, INPUT_SIZE)
    keras.utils.set_random_seed(options.seed)  # of a base without weights
    frozen = build_base(XCEPTION, size, options.weights)
    pictures = Pictures(dataset, size, AUGMENTATION)
    learned, judged = cached_features(pictures, frozen, parts, VIEWS, options.cache)
    common = {
        "epochs": options.epochs,
        "seed": options.seed,
        "pictures": parts.fingerprint,
        "weights": weights_digest(frozen)[:16],
    }
    return Task(parts, learned, judged, common)


# One trial


def fit(setting: Setting, epochs: int, seed: int, task: Task) -> tuple[keras.Model, dict]:
    """Return (the head as it was after the epoch of least loss, facts of that epoch).

    The loss is that of the pictures that pick; a head that diverges has lost by `DIVERGED`. Facts
    are `val_loss`, `val_accuracy` (0 to 1) and `epoch` (from 1).
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    dataset = task.learned.dataset
    shape = task.learned.table.shape
    head = build_head(shape[0], setting.head, len(dataset.class_names), setting.dropout)
    head.compile(
        keras.optimizers.SGD(setting.learning_rate, momentum=setting.momentum),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    training = TrainingBatches(
        task.learned, task.parts.train, BATCH_SIZE, steps=STEPS, seed=seed, views=VIEWS
    )
    history = head.fit(
        training,
        validation_data=Batches(task.judged, task.parts.selection, BATCH_SIZE),
        epochs=epochs,
        shuffle=False,  # the batches are shuffled already
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_begin=training.begin_epoch),
            keras.callbacks.EarlyStopping("val_loss", patience=epochs, restore_best_weights=True),
        ],
    ).history
    losses = np.nan_to_num(history["val_loss"], nan=DIVERGED, posinf=DIVERGED)
    place = int(losses.argmin())
    facts = {
        "val_loss": min(float(losses[place]), DIVERGED),
        "val_accuracy": float(history["val_accuracy"][place]),
        "epoch": place + 1,
    }
    return head, facts


# The search


class Whole:
    """Makes what an oracle saves whole, or as it was before, and goes on with what was running.

    KerasTuner writes in place, where a kill leaves half a file, on which the next start fails; and
    it forgets a trial that a kill meets between its two files.

    Attributes:
        bar: of progress; moves with every trial that ends, here or in a worker.
    """

    bar: tqdm

    def save(self) -> None:
        """Write the state."""
        _save_whole(self, Path(self._get_oracle_fname()))

    def _save_trial(self, trial: object) -> None:
        _save_whole(trial, Path(self._get_trial_dir(trial.trial_id), "trial.json"))

    def reload(self) -> None:
        """Read what `save` wrote; trials that have not ended are to be run again."""
        super().reload()
        self._retry_queue = [i for i, t in self.trials.items() if t.status == "RUNNING"]

    def end_trial(self, trial: object) -> None:
        """Note that `trial` has ended; KerasTuner calls this."""
        super().end_trial(trial)
        self.bar.update()


def _save_whole(saved: object, path: Path) -> None:
    text = json.dumps(saved.get_state())
    write_atomically(path, lambda new: new.write_text(text, encoding="utf-8"))


class Pairs(Whole, keras_tuner.Oracle):
    """Hands out `PAIRS`, one after another; KerasTuner's own grid cannot go on after a stop."""

    def populate_space(self, trial_id: str) -> dict:
        """Return the next pair that is not tried yet; KerasTuner calls this."""
        fixed = self.get_space().values
        for place in range(len(PAIRS)):
            values = fixed | {"pair": place}
            if not self._duplicate(values):
                return {"status": "RUNNING", "values": values}
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}


class Random(Whole, keras_tuner.oracles.RandomSearchOracle):
    """KerasTuner's random search."""


class Bayesian(Whole, keras_tuner.oracles.BayesianOptimizationOracle):
    """KerasTuner's Bayesian optimization."""


class Hyperband(Whole, keras_tuner.oracles.HyperbandOracle):
    """KerasTuner's Hyperband."""

    def total(self) -> int:
        """Return how many trials all brackets have."""
        return sum(
            self._get_size(bracket, round_)
            for bracket in range(self._get_num_brackets())
            for round_ in range(self._get_num_rounds(bracket))
        )


TUNERS = {"grid": Pairs, "random": Random, "bayesian": Bayesian, "hyperband": Hyperband}


def build_oracle(options: argparse.Namespace, common: dict) -> keras_tuner.Oracle:
    """Return what hands out the settings of a search, each with what is `common` to all."""
    space = keras_tuner.HyperParameters()
    for name, value in common.items():
        space.Fixed(name, value)
    if options.tuner == "grid":
        space.Choice("pair", list(range(len(PAIRS))))
        return Pairs(OBJECTIVE, hyperparameters=space, seed=options.seed)
    space.Float("learning_rate", *LEARNING_RATES, sampling="log")
    space.Choice("momentum", list(MOMENTUMS))
    space.Int("layers", *LAYERS)
    deep = list(range(1, LAYERS[1] + 1))
    space.Choice("units", list(UNITS), parent_name="layers", parent_values=deep)
    space.Float("dropout", *DROPOUTS, step=0.1)
    if options.tuner == "hyperband":
        return Hyperband(
            OBJECTIVE, max_epochs=options.epochs, hyperparameters=space, seed=options.seed
        )
    shared = {"max_trials": options.trials, "hyperparameters": space, "seed": options.seed}
    if options.tuner == "bayesian":
        return Bayesian(OBJECTIVE, num_initial_points=RANDOM_FIRST, **shared)
    return Random(OBJECTIVE, **shared)


def setting_of(values: dict) -> Setting:
    """Return the setting that the `values` of a trial mean."""
    if "pair" in values:
        return Setting(*PAIRS[values["pair"]])
    head = tuple(values["units"] // 4**layer for layer in range(values["layers"]))
    return Setting(values["learning_rate"], values["momentum"], head, values["dropout"])


class Tuner(base_tuner.BaseTuner):
    """Runs the trials that an oracle hands out, here or in the process of the chief."""

    def __init__(self, oracle: keras_tuner.Oracle, task: Task, folder: Path):
        """Keep the search in `folder`, and go on with what is there."""
        self.task = task
        with contextlib.redirect_stdout(io.StringIO()):  # that it goes on we say ourselves
            super().__init__(oracle, directory=str(folder), project_name=SEARCH)

    def run_trial(self, trial: object) -> dict:
        """Return the facts of the trial's best epoch; KerasTuner calls this."""
        values = trial.hyperparameters.values
        try:
            # A worker's pictures may be others than the chief's.
            check_same(self.task.common, {n: values[n] for n in self.task.common}, Path(SEARCH))
            epochs = values.get("tuner/epochs", values["epochs"])  # Hyperband says how many
            _, facts = fit(setting_of(values), epochs, values["seed"], self.task)
        except Exception as error:
            # Not the setting's fault; KerasTuner would note a bad setting, and go on.
            raise keras_tuner.errors.FatalError from error
        return facts

    def save(self) -> None:
        """Write the state; KerasTuner calls this."""
        if not self._is_worker():
            self.oracle.save()
        _save_whole(self, Path(self._get_tuner_fname()))


def search(
    task: Task, folder: Path, options: argparse.Namespace
) -> list[tuple[Setting, dict]] | None:
    """Run the trials that are missing; return all as (setting, facts), the best first.

    None in a process that is only a worker.

    Raises:
        DataError: the search in `folder` has other settings.
    """
    oracle = build_oracle(options, task.common)
    oracle.verbose = 0
    tuner = Tuner(oracle, task, folder)
    if tuner.oracle is not oracle:
        print("Search: runs the trials that the chief hands out.", flush=True)
        run_trials(tuner)
        return None
    found = oracle.get_space().values
    check_same({name: found[name] for name in task.common}, task.common, folder)
    total = len(PAIRS) if options.tuner == "grid" else options.trials
    total = oracle.total() if options.tuner == "hyperband" else total
    done = len(finished(oracle))
    print(f"Search: {options.tuner}, {total} trials, {done} of them done.", flush=True)
    with progress(total, "  search", "trials") as oracle.bar:
        oracle.bar.update(done)
        run_trials(tuner)
    ended = sorted(finished(oracle), key=lambda trial: trial.score)
    return [(setting_of(trial.hyperparameters.values), facts_of(trial)) for trial in ended]


def run_trials(tuner: Tuner) -> None:
    """Run, or as a chief hand out, trials until there are no more."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # KerasTuner's workers print a 1 a message
            tuner.search()
    except keras_tuner.errors.FatalError as error:
        raise error.__cause__ from None


def finished(oracle: keras_tuner.Oracle) -> list:
    """Return the trials that have ended."""
    return [trial for trial in oracle.trials.values() if trial.status == "COMPLETED"]


def facts_of(trial: object) -> dict:
    """Return what `fit` said of a trial, and its number, from 0."""
    names = ("val_loss", "val_accuracy", "epoch")
    facts = {name: trial.metrics.get_best_value(name) for name in names}
    budget = trial.hyperparameters.values.get("tuner/epochs")
    return {"trial": int(trial.trial_id), "epochs": budget} | facts


# The report


def repeat(
    settings: Sequence[Setting], task: Task, folder: Path, options: argparse.Namespace
) -> dict[Setting, list[dict]]:
    """Train each of `settings` from several seeds; return their rows, with validation accuracy."""
    wanted = [
        (setting, options.seed + number)
        for setting in dict.fromkeys(settings)
        for number in range(options.repeats)
    ]
    records = Records(folder / REPEATED, task.common)
    known = {(row["setting"], row["seed"]): row for row in records.rows}
    missing = [(s, seed) for s, seed in wanted if (str(s), seed) not in known]
    print(f"Report: the best setting and the original's, from {options.repeats} seeds each.")
    validation = task.parts.validation
    truth = task.judged.dataset.labels(validation)
    with progress(len(missing), "  report", "fits") as bar:
        for setting, seed in missing:
            head, facts = fit(setting, options.epochs, seed, task)
            answers = head.predict(Batches(task.judged, validation, BATCH_SIZE), verbose=0)
            hits = int((answers.argmax(axis=1) == truth).sum())
            row = {"setting": str(setting), "seed": seed, "hits": hits, "n": len(truth)} | facts
            records.append(row)
            known[str(setting), seed] = row
            bar.update()
    rows: dict[Setting, list[dict]] = {}
    for setting, seed in wanted:
        rows.setdefault(setting, []).append(known[str(setting), seed])
    return rows


TRIAL_HEAD = ("learning rate", "momentum", "dense layers", "dropout", "loss", "accuracy", "epoch")
REPEAT_HEAD = ("setting", "validation accuracy", "each seed")


def show(
    trials: list[tuple[Setting, dict]],
    repeats: dict[Setting, list[dict]],
    task: Task,
    folder: Path,
    options: argparse.Namespace,
) -> None:
    """Draw, write and print what came out."""
    winner = min(repeats, key=lambda setting: loss_of(repeats[setting]))
    summary = {
        "common": task.common,
        "tuner": options.tuner,
        "trials": [asdict(setting) | facts for setting, facts in trials],
        "repeats": [asdict(setting) | {"rows": rows} for setting, rows in repeats.items()],
        "command": command(winner, options),
    }
    text = json.dumps(summary, indent=1)
    write_atomically(folder / SUMMARY, lambda new: new.write_text(text + "\n"))
    chart = folder / "trials.png"
    charts.save(charts.trials(trials, ORIGINAL), chart)
    verdict = describe(trials[0][0], winner, repeats)
    cells = [trial_row(setting, facts) for setting, facts in trials]
    repeat_cells = [repeat_row(setting, rows) for setting, rows in repeats.items()]
    how_to_use = [command(winner, options), *beyond_flags(winner)]
    notes = (
        f"Trials are judged by their least loss on {len(task.parts.selection)} pictures set apart; "
        f"accuracy and epoch are of that moment. The best setting and the original's were then "
        f"trained from {options.repeats} seeds each; the one of less mean loss on the same ones "
        f"wins. Both are told by {len(task.parts.validation)} pictures that took part in nothing: "
        "the mean of the seeds, in brackets Wilson's 95 % interval of one of them."
    )
    sections = [
        Section("Outcome", [verdict, notes], head=REPEAT_HEAD, rows=repeat_cells),
        Section("Use it", findings=how_to_use),
        Section("Trials", figures=[(chart, "all trials")], head=TRIAL_HEAD, rows=cells),
    ]
    title = f"Settings of the head, searched by {options.tuner}"
    write_page(folder / PAGE, title, f"On {options.data.resolve().name}.", sections)
    print(markdown_table(TRIAL_HEAD, cells[:10]))
    print(markdown_table(REPEAT_HEAD, repeat_cells))
    print(verdict)
    print(f"Look at it: {folder / PAGE}")
    for line in how_to_use:
        print(line)


def describe(best: Setting, winner: Setting, repeats: dict[Setting, list[dict]]) -> str:
    """Return how the best trial's setting did against the original's, for a person."""
    if best == ORIGINAL:
        return f"The original's setting won: {best}."
    gain = accuracy_of(repeats[best]) - accuracy_of(repeats[ORIGINAL])
    won = "which stays" if winner == ORIGINAL else "whose place it takes"
    return (
        f"{best}: against the original's setting, {won}, {gain * 100:+.1f} points of validation "
        f"accuracy; loss on the pictures that pick {loss_of(repeats[best]):.3f} against "
        f"{loss_of(repeats[ORIGINAL]):.3f}."
    )


def loss_of(rows: Sequence[dict]) -> float:
    """Return the mean loss of `rows` on the pictures that pick."""
    return float(np.mean([row["val_loss"] for row in rows]))


def accuracy_of(rows: Sequence[dict]) -> float:
    """Return the mean accuracy of `rows`."""
    return float(np.mean([row["hits"] / row["n"] for row in rows]))


def trial_row(setting: Setting, facts: dict) -> list[str]:
    """Return the cells of `TRIAL_HEAD`."""
    budget = f" of {facts['epochs']}" if facts["epochs"] else ""
    return [
        f"{setting.learning_rate:.3g}",
        f"{setting.momentum:.3g}",
        " ".join(map(str, setting.head)) or "none",
        f"{setting.dropout:.1f}",
        f"{facts['val_loss']:.3f}",
        f"{facts['val_accuracy']:.3f}",
        f"{facts['epoch']:.0f}{budget}",
    ]


def repeat_row(setting: Setting, rows: Sequence[dict]) -> list[str]:
    """Return the cells of `REPEAT_HEAD`."""
    mean, n = accuracy_of(rows), rows[0]["n"]
    name = f"the original's: {setting}" if setting == ORIGINAL else str(setting)
    each = ", ".join(f"{row['hits'] / row['n']:.3f}" for row in rows)
    return [name, with_interval(mean, wilson(round(mean * n), n)), each]


def command(best: Setting, options: argparse.Namespace) -> str:
    """Return the `train.py` command that uses `best`, as far as it has flags for it."""
    words = ["python", "train.py", "--learning-rate", f"{best.learning_rate:.4g}"]
    words += ["--momentum", f"{best.momentum:.4g}", "--epochs", str(options.epochs)]
    words += ["--head", ",".join(map(str, best.head)) or "none"] if best.head != HEAD else []
    words += ["--data", str(options.data), "--weights", options.weights]
    words += ["--exclude", str(options.exclude)] if options.exclude else []
    words += ["--seed", str(options.seed)]
    return shlex.join(words)


def beyond_flags(best: Setting) -> list[str]:
    """Return what of `best` train.py has no flag for, for a person."""
    return [f"train.py has no dropout; {best.dropout:.1f} of it was best here"] * bool(best.dropout)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    made = parser(__doc__, "tune", EPOCHS)
    add = made.add_argument
    add("--tuner", choices=TUNERS, default="grid", help="who chooses the settings [%(default)s]")
    add("--trials", type=count, default=TRIALS, help="of random and bayesian [%(default)s]")
    add("--repeats", type=count, default=REPEATS, help="seeds of the report [%(default)s]")
    add("--weights", default="imagenet", help="imagenet, none, or a file of Xception's [imagenet]")
    add("--cache", type=Path, default=CACHE, help="where features are kept [%(default)s/]")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
