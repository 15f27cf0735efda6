"""The report of a search, with the winner's train.py command."""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from experiments import charts
from experiments.page import Section, write_page
from experiments.search import COLUMNS, ORIGINAL, Candidate
from training.dataset.split import Split
from training.evaluation.metrics import wilson, with_interval
from training.files import write_atomically
from training.markdown import markdown_table
from training.streams import counted

SUMMARY, PAGE, CHART = "tuning.json", "index.html", "trials.png"
TRIAL_COLUMNS = (*COLUMNS, "loss", "accuracy", "epoch")
REPEAT_COLUMNS = ("candidate", "validation loss", "test accuracy", "each seed")


def report(
    trials: list[tuple[Candidate, dict]],
    repeats: dict[Candidate, list[dict]],
    split: Split,
    settings: dict,
    options: argparse.Namespace,
) -> None:
    """Draw, write and print the results."""
    folder = options.out / options.tuner
    folder.mkdir(exist_ok=True)
    winner = min(repeats, key=lambda candidate: mean(repeats[candidate], "val_loss"))
    how_to_use = [command(winner, options), *beyond_flags(winner)]
    summary = {
        "settings": settings,
        "tuner": options.tuner,
        "trials": [asdict(candidate) | metrics for candidate, metrics in trials],
        "repeats": [asdict(candidate) | {"rows": rows} for candidate, rows in repeats.items()],
        "command": how_to_use[0],
    }
    text = json.dumps(summary, indent=1)
    write_atomically(folder / SUMMARY, lambda new: new.write_text(text + "\n"))
    chart = folder / CHART
    charts.save(charts.trials(trials, ORIGINAL), chart)
    verdict = describe(trials[0][0], winner, repeats)
    trial_cells = [trial_row(candidate, metrics) for candidate, metrics in trials]
    count = len(split.evaluated)
    repeat_cells = [repeat_row(candidate, rows, count) for candidate, rows in repeats.items()]
    notes = (
        f"A trial is judged by its lowest loss on {len(split.validation)} validation images; its "
        "accuracy and epoch are those of that loss. The best candidate and the original's were "
        f"then trained from {counted(options.repeats, 'seed')} each, and the lower mean validation "
        "loss wins. "
        f"Test accuracy is on {counted(count, 'image')} that took part in nothing: the "
        "mean of the seeds, and in brackets Wilson's 95 % interval of one of them."
    )
    sections = [
        Section("Outcome", [verdict, notes], head=REPEAT_COLUMNS, rows=repeat_cells),
        Section("Use it", findings=how_to_use),
        Section("Trials", figures=[(chart, "all trials")], head=TRIAL_COLUMNS, rows=trial_cells),
    ]
    title = f"Hyperparameters of the head, searched by {options.tuner}"
    write_page(folder / PAGE, title, f"On {options.data.resolve().name}.", sections)
    print(markdown_table(TRIAL_COLUMNS, trial_cells[:10]))
    print(markdown_table(REPEAT_COLUMNS, repeat_cells))
    print(verdict, f"Wrote {folder / PAGE}.", *how_to_use, sep="\n")


def trial_row(candidate: Candidate, metrics: dict) -> list[str]:
    """Return the row of a trial, by `TRIAL_COLUMNS`."""
    numbers = [f"{metrics[key]:.3f}" for key in ("val_loss", "val_accuracy")]
    return [*candidate.cells(), *numbers, f"{metrics['epoch']} of {metrics['epochs']}"]


def describe(best: Candidate, winner: Candidate, repeats: dict[Candidate, list[dict]]) -> str:
    """Return a sentence that compares the best candidate with the original's."""
    if best == ORIGINAL:
        return f"The original's hyperparameters won: {best}."
    gain = 100 * (mean(repeats[best], "test_accuracy") - mean(repeats[ORIGINAL], "test_accuracy"))
    outcome = "which stay" if winner == ORIGINAL else "whose place they take"
    return (
        f"{best}: against the original's hyperparameters, {outcome}, {gain:+.1f} points of test "
        f"accuracy; validation loss {mean(repeats[best], 'val_loss'):.3f} against "
        f"{mean(repeats[ORIGINAL], 'val_loss'):.3f}."
    )


def repeat_row(candidate: Candidate, rows: Sequence[dict], count: int) -> list[str]:
    """Return the cells of `REPEAT_COLUMNS`, for accuracies on `count` test images."""
    name = f"the original's: {candidate}" if candidate == ORIGINAL else str(candidate)
    accuracy = mean(rows, "test_accuracy")
    interval = wilson(round(accuracy * count), count)
    each = ", ".join(f"{row['test_accuracy']:.3f}" for row in rows)
    return [name, f"{mean(rows, 'val_loss'):.3f}", with_interval(accuracy, interval), each]


def mean(rows: Sequence[dict], metric: str) -> float:
    """Return the mean of a metric of `rows`."""
    return float(np.mean([row[metric] for row in rows]))


def command(best: Candidate, options: argparse.Namespace) -> str:
    """Return the `train.py` command for `best`; see `beyond_flags`."""
    words = ["python", "train.py", "--learning-rate", f"{best.learning_rate:.4g}"]
    words += ["--momentum", f"{best.momentum:.4g}", "--epochs", str(options.epochs)]
    words += (
        ["--head", ",".join(map(str, best.head)) or "none"] if best.head != ORIGINAL.head else []
    )
    words += ["--data", str(options.data), "--weights", options.weights]
    words += ["--exclude", str(options.exclude)] if options.exclude else []
    words += ["--split-seed", str(options.split_seed), "--seed", str(options.seed)]
    return shlex.join(words)


def beyond_flags(best: Candidate) -> list[str]:
    """Return sentences on hyperparameters of `best` without a train.py flag."""
    if not best.dropout:
        return []
    return [f"train.py has no dropout; {best.dropout:.1f} of it was best here"]
