"""The tables of `experiments.cross_validate`, from the predictions of its folds."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.predictions import Predictions, joined, read_predictions
from training.dataset.names import FileIndex, read_list
from training.errors import DataError
from training.evaluation.metrics import audited, describe_audited, summarize, with_interval
from training.evaluation.paired import compare_hits
from training.markdown import markdown_table
from training.recipes import Recipe
from training.streams import counted

PREDICTIONS = "predictions"
HEAD = ("recipe", "accuracy of each fold", "mean ± SD of folds", "all images", "loss", "ECE")


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe and what it is called.

    Attributes:
        name: the words of the command line.
        recipe: its settings.
    """

    name: str
    recipe: Recipe

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return slug_of(self.name)


def slug_of(name: str) -> str:
    """Return the name of a recipe's folder.

    Other characters than letters, digits, dots and _ become dashes.
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-")


@dataclass(frozen=True)
class Folds:
    """The predictions of a recipe.

    Attributes:
        name: of the recipe.
        numbers: of the finished folds, from 1.
        parts: predictions of each.
    """

    name: str
    numbers: tuple[int, ...]
    parts: tuple[Predictions, ...]


def fold_file(out: Path, slug: str, number: int) -> Path:
    """Return where the predictions of fold `number` (from 1) of a recipe are, in `out`."""
    return out / PREDICTIONS / slug / f"fold_{number}.npz"


def read_recipes(out: Path, names: Sequence[str] | None) -> list[Folds]:
    """Return the predictions of the recipes `names` in `out`; for None of all that are there.

    Raises:
        DataError: there are none, or a file holds something else.
    """
    folder = out / PREDICTIONS
    if names is None:
        found = (path.name for path in sorted(folder.glob("*")))
        wanted = {name: name for name in found if _numbered(folder / name)}
    else:
        wanted = {slug_of(name): name for name in names}
    files = {slug: _numbered(folder / slug) for slug in wanted}
    missing = [slug for slug, numbered in files.items() if not numbered]
    if missing or not files:
        raise DataError(
            f"Expected predictions of finished folds, {folder}/RECIPE/fold_K.npz. Received: none "
            f"of {', '.join(missing) or 'any recipe'}. Run it without --report, or name another "
            "--out."
        )
    parts = iter(read_predictions([path for each in files.values() for path in each.values()]))
    return [
        Folds(wanted[slug], tuple(numbered), tuple(next(parts) for _ in numbered))
        for slug, numbered in files.items()
    ]


def _numbered(folder: Path) -> dict[int, Path]:
    """Return the files of folds in `folder` by their numbers, in order."""
    found = {}
    for path in folder.glob("fold_*.npz"):
        if number := re.fullmatch(r"fold_([1-9]\d*)", path.stem):
            found[int(number[1])] = path
    return dict(sorted(found.items()))


def print_report(recipes: Sequence[Folds], audit: Path | None) -> dict:
    """Print the tables on `recipes`, and return their numbers (JSON).

    `audit` lists images whose labels are wrong; those of other images are ignored.
    """
    whole = {folds.name: joined(folds.parts) for folds in recipes}
    names = {name for predictions in whole.values() for name in predictions.names}
    wrong = read_audit(audit, names) if audit else None
    summaries = [summarize_folds(folds, whole[folds.name], wrong) for folds in recipes]
    print(f"\n{markdown_table(HEAD, [_row(summary) for summary in summaries])}\n")
    print(
        "All images: accuracy with Wilson's 95 % interval, which covers the choice of images; the "
        "standard deviation (SD) of the folds also covers that of training images."
    )
    for summary in summaries:
        if found := summary.get("audited"):
            print(f"Audited, {summary['recipe']}: {describe_audited(found)}.")
    first, *others = whole.items()
    pairs = [compare(first, other, wrong) for other in others]
    shared = count_shared_mistakes(list(whole.values()), wrong) if others else {}
    return {"recipes": summaries, "paired": pairs, "mistakes_of_all": shared}


def read_audit(path: Path, names: set[str]) -> set[str]:
    """Return which of the images `names` the list at `path` names, and print how many.

    Raises:
        DataError: it cannot be read, or names none of them.
    """
    try:
        lines = read_list(path, FileIndex(Path(), names))
    except OSError as error:
        raise DataError(
            "Expected a text file that lists images whose labels are wrong. "
            f"Received: {path} ({error.strerror}). Correct its name, or omit --audit."
        ) from None
    wrong = {file for line in lines for file in line.files}
    if not wrong:
        raise DataError(
            f"Expected a list of images among the {len(names)} predicted ones. Received: {path} "
            "without any. Name another with --audit, or omit it."
        )
    are = "is" if len(wrong) == 1 else "are"
    print(f"Audit: {len(wrong)} of the {counted(len(lines), 'image')} in {path} {are} among these.")
    return wrong


def summarize_folds(folds: Folds, whole: Predictions, wrong: set[str] | None) -> dict:
    """Return the numbers of a recipe (JSON), and those without the `wrong` labels."""
    each = [summarize(part.probabilities, part.labels) for part in folds.parts]
    accuracies = [row["accuracy"] for row in each]
    summary = {
        "recipe": folds.name,
        "folds": [{"fold": n} | row for n, row in zip(folds.numbers, each, strict=True)],
        "mean": float(np.mean(accuracies)),
        "standard_deviation": float(np.std(accuracies, ddof=1)) if len(each) > 1 else None,
        **summarize(whole.probabilities, whole.labels),
    }
    if wrong is not None:
        marked = np.array([name in wrong for name in whole.names])
        summary["audited"] = audited(whole.probabilities, whole.labels, marked)
    return summary


def _row(summary: dict) -> list[str]:
    deviation = summary["standard_deviation"]
    return [
        summary["recipe"],
        ", ".join(f"{row['accuracy']:.3f}" for row in summary["folds"]),
        f"{summary['mean']:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else ""),
        f"{with_interval(summary['accuracy'], summary['accuracy_interval'])}, n = {summary['n']}",
        f"{summary['log_loss']:.3f}",
        f"{summary['expected_calibration_error']:.3f}",
    ]


def compare(
    first: tuple[str, Predictions], second: tuple[str, Predictions], wrong: set[str] | None
) -> dict:
    """Compare two recipes on the images that both have predictions of; print and return it.

    Raises:
        DataError: there are none.
    """
    (first_name, one), (second_name, other) = first, second
    hits = [dict(zip(each.names, each.hits, strict=True)) for each in (one, other)]
    common = [name for name in one.names if name in hits[1]]
    if not common:
        raise DataError(
            f"Expected predictions of the same images. Received: none in common of {first_name} "
            f"and {second_name}. Train both on the same folds."
        )
    found: dict = {"first": first_name, "second": second_name}
    print(f"{second_name} (second) less {first_name} (first):")
    sets = {"as labelled": common}
    if wrong is not None:
        sets["audited"] = [name for name in common if name not in wrong]
    for title, names in sets.items():
        if names:
            pair = compare_hits(*(np.array([each[name] for name in names]) for each in hits))
            print(f"  {title}: {pair.describe()}.")
            found[title.replace(" ", "_")] = asdict(pair) | {"n": pair.n}
    return found


def count_shared_mistakes(whole: Sequence[Predictions], wrong: set[str] | None) -> dict:
    """Print and return (JSON) what all recipes get wrong, of the images that all have predicted.

    Nothing that chooses among their predictions can do better than without these mistakes.
    """
    hits = [dict(zip(each.names, each.hits, strict=True)) for each in whole]
    common = [name for name in hits[0] if all(name in each for each in hits)]
    sets = {"as labelled": common}
    if wrong is not None:
        sets["audited"] = [name for name in common if name not in wrong]
    found = {}
    for title, names in sets.items():
        if names:
            count = sum(not any(each[name] for each in hits) for name in names)
            print(
                f"All {len(hits)} recipes are wrong on {count} of {counted(len(names), 'image')}, "
                f"{title}: the best choice among them for each image would reach "
                f"{1 - count / len(names):.4f}."
            )
            found[title.replace(" ", "_")] = {"n": len(names), "mistakes": count}
    return found
