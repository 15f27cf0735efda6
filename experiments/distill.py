r"""Train one network from the predictions of several: distillation.

    python -m experiments.distill one/xception_fin_15_0.954.h5 two/xception_fin_14_0.948.h5 \
        --data flowers/ --out distilled/ --epochs 45
    python -m experiments.distill ... --resume    # continue after an interruption

A student that is trained for long, from labels that its teachers give to exactly the views that it
sees, can come close to all of them together at the cost of one network (Beyer et al. 2022,
"Knowledge distillation: A good teacher is patient and consistent"). The teachers are checkpoints
of one split. They label each cached augmented view of the training images, by default mirrored as
well and at 299 and 363 pixels, and the mean of all their probabilities takes the place of the
class. No other image is labelled. The student begins with the pretrained weights, as train.py does,
and is trained by a recipe on the split of the teachers; validation, calibration and report go by
the images' classes.

The temperature of each teacher is undone first, so the labels are as soft as those that it learned
from, and the student's recipe smoothes them no further unless it is asked to.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from experiments.command import add_base_flags
from experiments.members import Member, read_members
from experiments.soft_labels import SoftLabels
from training import cli
from training.backend import keras
from training.checkpoint import BestCheckpoint, load_checkpoint
from training.dataset.scan import require
from training.distribute import Workers
from training.evaluation import evaluate
from training.evaluation.run import RunInfo
from training.fit import (
    HISTORY,
    Run,
    advise_recipe,
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
from training.recipes import (
    INPUT_SIZES,
    Recipe,
    RunOptions,
    add_recipe_flags,
    read_recipe,
    within,
)
from training.refit import Trained
from training.resume import STATE, TrainingState, describe_stop, rename_checkpoint

SIZES = (299, 363)  # pixels, at which the teachers look at each view
LABELS = "labels"  # folder of the soft labels


def main(arguments: list[str] | None = None) -> int:
    """Distill as the command line says and return the exit code."""
    started = time.time()
    flags = parse_arguments(arguments)
    recipe, options = read_recipe(flags), RunOptions.read(flags)

    def command() -> None:
        try:
            distill(recipe, options, flags)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(describe_stop(recipe, options, started)) from None

    return cli.run_command(
        command,
        "experiments.distill",
        paths=f"read {options.data} and the teachers, and write to {options.models}",
        advice="Free disk space or fix the permissions, then rerun, with --resume if an epoch was "
        "finished; labels are kept.",
    )


def distill(recipe: Recipe, options: RunOptions, flags: argparse.Namespace) -> None:
    """Label the views, train the student, calibrate it, and report on it.

    Raises:
        ModelError: a teacher is not a checkpoint, or has no split beside it.
        DataError: the teachers do not belong together, or images of their split are missing.
    """
    workers = Workers()
    with claim_models(options, workers):
        teachers = read_members(flags.teachers)
        class_names, whole_split = teachers[0].metadata.class_names, teachers[0].split
        dataset = evaluate.scan_classes(options.data, class_names, options.exclude, options.audit)
        whole_split = whole_split.spelled_as([*dataset.images, *dataset.excluded])
        split = evaluate.remaining(whole_split, dataset, options.exclude)
        require(dataset, split.train)
        print(f"Teachers: {len(teachers)} of one split. {split.describe()}.", flush=True)
        sizes = tuple(dict.fromkeys(flags.sizes))
        views = [ImageSource(dataset, (size, size), recipe.augmentation) for size in sizes]
        labels = SoftLabels(teachers, views, flags.mirror, options.models / LABELS)
        images = ImageSource(dataset, recipe.image_size, recipe.augmentation)
        run = start_run(recipe, options, workers, images, split, labels.name)
        advise_recipe(run)
        labels.compute(split.train, recipe.shown_views(len(split.train)))
        student = train_student(run, labels)
        report(student, describe(student, teachers, flags))


def train_student(run: Run, labels: SoftLabels) -> Trained:
    """Train Xception on `labels` as train.py does on classes, or continue."""
    recipe, class_names = run.recipe, run.images.dataset.class_names
    keras.utils.set_random_seed(recipe.seed)
    model = build_model(recipe.image_size, recipe.head, len(class_names))
    weights, features = prepare_model(run, model)
    if recipe.fine_tune_at:
        unfreeze(model, recipe.fine_tune_at)
    inputs = choose_inputs(run, model)
    train = run.split.train
    inputs = replace(inputs, soft_labels=labels.read(train, recipe.shown_views(len(train))))
    training_model = make_training_model(run, inputs.trainable_part)
    best = BestCheckpoint(
        run.options.models,
        run.checkpoint_pattern,
        lambda: with_weights_of(training_model, inputs.trainable_part, model),
        class_names,
        run.split,
        recipe.monitor,
    )
    fit(run, inputs, training_model, best)
    return Trained(run, inputs, best.path, weights, features)


def describe(student: Trained, teachers: Sequence[Member], flags: argparse.Namespace) -> RunInfo:
    """Return what the report says about how `student` was made."""
    run = student.run
    names = ", ".join(str(teacher.path) for teacher in teachers)
    sizes = " and ".join(map(str, dict.fromkeys(flags.sizes)))
    mirrored = "and its mirror image " * flags.mirror
    return RunInfo(
        command=run.options.command,
        recipe=asdict(run.recipe),
        seed=run.recipe.seed,
        weights=student.weights,
        labels=f"mean predictions of {names} for each view {mirrored}at {sizes} pixels",
        split=run.split.sizes,
        seconds=round(run.seconds()),
    )


def report(student: Trained, info: RunInfo) -> None:
    """Calibrate the best epoch, name it by its accuracy, and write and print its report."""
    run = student.run
    models, dataset, size = run.options.models, run.images.dataset, run.recipe.final_size
    checkpoint = require_best(student.checkpoint, models)
    source = ImageSource(dataset, (size, size))
    result = evaluate.calibrate(*load_checkpoint(checkpoint), dataset, run.split, source)
    path = evaluate.save(result, models, run.split, checkpoint)
    rename_checkpoint(checkpoint, path)
    sources = evaluate.ReportSources(info, models / HISTORY, features=student.features)
    evaluate.report(result, path, dataset, run.split, sources)
    TrainingState.update(
        models / STATE, reported=result.model.input_shape[1], seconds=run.seconds()
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options; what is not given the recipe says."""
    parser = cli.make_parser(__doc__, "python -m experiments.distill")
    add = parser.add_argument
    add("teachers", type=Path, nargs="+", metavar="TEACHER", help=".h5 files of train.py")
    cli.add_data_flags(parser)
    cli.add_audit_flag(parser)
    add_base_flags(parser)
    add(
        "--out",
        dest="models",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where to write labels, checkpoint and report to",
    )
    add(
        "--sizes",
        type=within(*INPUT_SIZES),
        nargs="+",
        default=SIZES,
        metavar="PIXELS",
        help=f"at which the teachers see each view [{' '.join(map(str, SIZES))}]",
    )
    add(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="teachers see each view mirrored as well [--mirror]",
    )
    add("--resume", action="store_true", help="continue after the last finished epoch")
    add_recipe_flags(parser)
    parser.set_defaults(recipe="fine-tune", label_smoothing=0.0)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if len({path.resolve() for path in options.teachers}) < len(options.teachers):
        parser.error("expected teachers that differ")
    check_recipe(parser, options)
    options.command = shlex.join(["python", "-m", "experiments.distill", *arguments])
    return options


def check_recipe(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a sentence where a flag of the recipe does not go with soft labels."""
    recipe = read_recipe(options)
    if options.split_seed is not None:
        parser.error("expected no --split-seed: the student has the split of its teachers")
    if recipe.refit or recipe.final_head_epochs:
        parser.error(
            "expected a recipe without --refit and --final-head-epochs, which learn from classes"
        )
    if recipe.fine_tune_at == 1:
        parser.error("expected --fine-tune-at 2 to 14: only cached views have labels")


if __name__ == "__main__":
    sys.exit(main())
