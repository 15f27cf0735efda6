"""Cross-validate recipes of train.py: every image is tested once, by a network that never saw it.

    python -m experiments.cross_validate --recipes fine-tune
    python -m experiments.cross_validate --recipes fine-tune "fine-tune --epochs 9 --views 4"
    python -m experiments.cross_validate --report --audit experiments/wrong_labels.txt

A recipe is a name and flags of train.py, in quotes. The images are split into --folds folds, class
by class, with copies of an image in the same one. For each fold a network is trained on the others
as train.py would: some of their images validate, which pick the epoch and fit the temperature, and
the fold itself is the test set. All recipes have the same folds, so every two are compared image by
image, by McNemar's test.

A finished fold is kept in --out, and a stopped one continues after its last finished epoch.
--report trains nothing: it reads predictions/RECIPE/fold_K.npz in --out, also of networks that were
trained elsewhere; experiments/README.md has the format.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import numpy as np

from experiments.command import OUT, add_base_flags, run
from experiments.cross_validate_report import (
    NamedRecipe,
    fold_file,
    print_report,
    read_recipes,
    slug_of,
)
from experiments.predictions import Predictions
from experiments.records import Records
from training import cli
from training.backend import keras
from training.checkpoint import BestCheckpoint, load_checkpoint
from training.dataset.checks import load_dataset
from training.dataset.scan import Dataset
from training.dataset.split import Split, split_folds
from training.distribute import Workers
from training.evaluation.evaluate import CalibratedModel, adopt_calibration, calibrate_scores
from training.evaluation.metrics import summarize, with_interval
from training.files import claim_folder, write_atomically
from training.final_head import fit_final_head
from training.fit import (
    HISTORY,
    Run,
    choose_inputs,
    claim_models,
    fit,
    make_training_model,
    prepare_model,
    require_best,
    start_run,
    with_weights_of,
)
from training.images import ImageSource
from training.model import build_model, unfreeze
from training.recipes import MAX_SEED, ORIGINAL, RunOptions, add_recipe_flags, read_recipe, within
from training.refit import Trained, start_refit
from training.resume import STATE, require_same_settings

FOLDS = (2, 100)
ROWS, SUMMARY, RUNS = "rows.jsonl", "summary.json", "runs"


def main(arguments: list[str] | None = None) -> int:
    """Cross-validate as the command line says and return the exit code."""
    return run(cross_validate, "cross_validate", parse_arguments(arguments))


def cross_validate(options: argparse.Namespace) -> None:
    """Train the folds that are missing, and report on all of them."""
    if not options.report:
        with claim_folder(options.out):
            train_missing(options)
    found = read_recipes(options.out, options.names)
    summary = print_report(found, options.audit)
    text = json.dumps(summary, indent=1)
    write_atomically(options.out / SUMMARY, lambda new: new.write_text(text + "\n"))
    print(f"Wrote {options.out / SUMMARY}.")


# Training


def train_missing(options: argparse.Namespace) -> None:
    """Train each recipe on each fold, unless that is done, and keep the predictions.

    Raises:
        DataError: the folds, or a recipe of the same name, were others in an earlier run.
    """
    dataset = load_dataset(options.data, options.exclude, options.audit)
    records = None
    for named in options.recipes:
        fraction = named.recipe.validation_fraction
        splits = split_folds(dataset, options.split_seed, options.folds, fraction)
        records = records or Records(options.out / ROWS, settings_of(splits, options))
        for number, split in enumerate(splits, 1):
            folder = options.out / RUNS / named.slug / f"fold_{number}"
            if is_finished(records, named, recipe_settings(named), number, options.out):
                print(f"{named.name}: fold {number} is finished.")
                remove_weights(folder)
                continue
            print(f"{named.name}: fold {number} of {len(splits)}, {split.describe()}.", flush=True)
            started = time.monotonic()
            result, val_probabilities = train_fold(named, dataset, split, folder, options)
            tested = Predictions(split.test, result.probabilities, dataset.class_names)
            validation = Predictions(split.validation, val_probabilities, dataset.class_names)
            path = fold_file(options.out, named.slug, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            tested.write(path)
            row = row_of(named, number, result, tested, validation)
            records.append(row | {"seconds": round(time.monotonic() - started)})
            remove_weights(folder)
            accuracy = with_interval(row["accuracy"], row["accuracy_interval"])
            print(f"{named.name}: fold {number}, test accuracy {accuracy}.", flush=True)


def settings_of(splits: tuple[Split, ...], options: argparse.Namespace) -> dict:
    """Return what the folds of all recipes have in common (JSON)."""
    tested = json.dumps([split.test for split in splits])
    return {
        "folds": options.folds,
        "split_seed": options.split_seed,
        "images": hashlib.sha256(tested.encode()).hexdigest()[:16],
        "weights": options.weights,
    }


def is_finished(
    records: Records, named: NamedRecipe, settings: dict, number: int, out: Path
) -> bool:
    """Return whether fold `number` of a recipe with `settings` has a record and predictions.

    Raises:
        DataError: the recipe of this name had other settings then.
    """
    rows = [row for row in records.rows if row["recipe"] == named.slug]
    for row in rows:  # either way: experiments.device_runs has settings of its own
        what, advice = f"{named.name} in {out}", "Give another --out."
        others = dict.fromkeys(row["settings"])
        require_same_settings(row["settings"], {**others, **settings}, what, advice)
    return (
        any(row["fold"] == number for row in rows) and fold_file(out, named.slug, number).exists()
    )


def recipe_settings(named: NamedRecipe) -> dict:
    """Return the settings of a recipe as JSON has them, with lists for tuples."""
    return json.loads(json.dumps(asdict(named.recipe)))


def train_fold(
    named: NamedRecipe, dataset: Dataset, split: Split, folder: Path, options: argparse.Namespace
) -> tuple[CalibratedModel, np.ndarray]:
    """Train by a recipe on `split`, or continue in `folder`.

    Returns the calibrated network and its probabilities of the validation images or, if it has
    learned them (--refit), those of the network before.
    """
    recipe, workers = named.recipe, Workers()
    places = RunOptions(
        data=options.data,
        exclude=options.exclude,
        weights=options.weights,
        models=folder,
        cache=options.cache,
        resume=(folder / STATE).exists(),
        command=options.command,
    )
    keras.utils.clear_session()  # of the fold before it
    with claim_models(places, workers):
        images = ImageSource(dataset, recipe.image_size, recipe.augmentation)
        first = train_network(start_run(recipe, places, workers, images, split))
        result = calibrate(first)
        val_probabilities = result.val_probabilities
        if recipe.refit:
            result = calibrate(train_network(start_refit(first)), result)
    return result, val_probabilities


def train_network(run_: Run) -> Trained:
    """Train as train.py does."""
    recipe, class_names = run_.recipe, run_.images.dataset.class_names
    keras.utils.set_random_seed(recipe.seed)
    model = build_model(recipe.image_size, recipe.head, len(class_names))
    weights, features = prepare_model(run_, model)
    if recipe.fine_tune_at:
        unfreeze(model, recipe.fine_tune_at)
    inputs = choose_inputs(run_, model)
    training_model = make_training_model(run_, inputs.trainable_part)
    best = BestCheckpoint(
        run_.options.models,
        run_.checkpoint_pattern,
        lambda: with_weights_of(training_model, inputs.trainable_part, model),
        class_names,
        run_.split,
        recipe.monitor if run_.split.validation else None,
    )
    fit(run_, inputs, training_model, best)
    return Trained(run_, inputs, best.path, weights, features)


def calibrate(trained: Trained, by: CalibratedModel | None = None) -> CalibratedModel:
    """Return the kept epoch of `trained`, calibrated and with its predictions, but no details.

    Where it has learned its validation images, it is calibrated as the network `by` is.
    """
    run_ = trained.run
    dataset, side = run_.images.dataset, run_.recipe.final_size
    model, metadata = load_checkpoint(require_best(trained.checkpoint, run_.options.models))
    if run_.recipe.final_head_epochs:
        model, metadata, _ = fit_final_head(run_, model, metadata, None)
    if by:
        metadata = adopt_calibration(model, metadata, by)
    source = ImageSource(dataset, (side, side))
    return calibrate_scores(model, metadata, dataset, run_.split, source)[0]


def row_of(
    named: NamedRecipe,
    number: int,
    result: CalibratedModel,
    tested: Predictions,
    validation: Predictions,
) -> dict:
    """Return the record of a finished fold (JSON)."""
    return {
        "recipe": named.slug,
        "name": named.name,
        "fold": number,
        "settings": recipe_settings(named),
        **summarize(tested.probabilities, tested.labels),
        "validation": summarize(validation.probabilities, validation.labels),
        "epoch": result.metadata.epoch,
        "temperature": result.metadata.temperature,
    }


def remove_weights(folder: Path) -> None:
    """Remove what a finished run left in `folder`, but for its history."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != HISTORY:
            path.unlink()


# Command line


class RecipeParser(argparse.ArgumentParser):
    """Parses a recipe inside of an argument."""

    def error(self, message: str) -> NoReturn:
        """Raise the error, for the parser outside to print; argparse calls this."""
        raise argparse.ArgumentTypeError(message)


def parse_recipe(text: str) -> NamedRecipe:
    """Return the recipe that `text` names, with its flags, such as "fine-tune --epochs 9"."""
    parser = RecipeParser(add_help=False, allow_abbrev=False)
    add_recipe_flags(parser)
    words = shlex.split(text)
    if any(word.split("=")[0] == "--split-seed" for word in words):
        raise argparse.ArgumentTypeError(
            "expected recipes on the same folds: give --split-seed to the command itself"
        )
    flags = parser.parse_args(["--recipe", *(words or ["none"])])
    return NamedRecipe(shlex.join(words), read_recipe(flags))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.make_parser(__doc__, "python -m experiments.cross_validate")
    cli.add_data_flags(parser)
    cli.add_audit_flag(parser)
    add_base_flags(parser)
    add = parser.add_argument
    add(
        "--recipes",
        nargs="+",
        metavar="RECIPE",
        help="names and flags, each in quotes; with --report those of folders of predictions "
        "[fine-tune; with --report all in --out]",
    )
    add("--folds", type=within(*FOLDS), default=5, help="[%(default)s]")
    add("--split-seed", type=within(0, MAX_SEED), default=ORIGINAL.seed, help="[%(default)s]")
    add("--report", action="store_true", help="report on finished predictions, train nothing")
    out = OUT / "cross_validate"
    add("--out", type=Path, default=out, help="where to write to [%(default)s/]")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "-m", "experiments.cross_validate", *arguments])
    options.names, options.recipes = options.recipes, []
    if not options.report:
        try:
            options.recipes = [parse_recipe(text) for text in options.names or ["fine-tune"]]
        except (argparse.ArgumentTypeError, ValueError) as error:  # or no closing quotation
            parser.error(f"argument --recipes: {error}")
        options.names = [named.name for named in options.recipes]
    slugs = [slug_of(name) for name in options.names or ()]
    if len(set(slugs)) < len(slugs):
        parser.error("expected recipes that differ. Received: two of the same name")
    return options


if __name__ == "__main__":
    sys.exit(main())
