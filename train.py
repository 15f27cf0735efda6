"""Fine-tune Xception on a folder of images, one sub-folder a class.

    python train.py                                     # flowers/, the original's recipe: minutes
    python train.py --recipe fine-tune                  # more accurate: an hour on two cores
    python train.py --data mine/ --models models/mine/  # your own images
    python train.py --resume                            # continue after an interruption
    python train.py --distribute                        # several GPUs or machines

The best epoch is kept as models/xception_fin_{epoch}_{val_accuracy}.h5, its report in a folder of
the same name; the last lines name both.
"""

import argparse
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from training import distribute

if __name__ == "__main__":
    distribute.relaunch()  # before Keras is imported, which then has to run on JAX

from serving.errors import ServingError
from training import cli
from training.backend import keras, tf
from training.checkpoint import BestCheckpoint, load_checkpoint
from training.dataset.checks import load_dataset
from training.dataset.split import split_dataset
from training.errors import TrainingError
from training.evaluation.run import RunInfo
from training.final_head import fit_final_head
from training.fit import (
    HISTORY,
    TENSORBOARD,
    Inputs,
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
from training.images import ImageSource, Source
from training.model import build_model, unfreeze
from training.recipes import (
    CACHE,
    CACHE_DAYS,
    Recipe,
    RunOptions,
    add_recipe_flags,
    read_recipe,
)
from training.refit import Trained, start_refit
from training.resume import (
    STATE,
    TrainingState,
    describe_stop,
    how_to_rerun,
    keep_picked,
    rename_checkpoint,
)

if TYPE_CHECKING:
    from training.evaluation.evaluate import CalibratedModel


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says and return the exit code."""
    started = time.time()
    flags = parse_arguments(arguments)
    recipe, options = read_recipe(flags), RunOptions.read(flags)

    def command() -> None:
        try:
            train(recipe, options, distribute.read_flags(flags))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(describe_stop(recipe, options, started)) from None
        except BrokenPipeError:  # the reader of what is printed has ended
            raise
        except OSError as error:
            raise interrupted(error, options, started) from error
        except ServingError as error:  # of an image that was one when the run began
            raise TrainingError(f"{error} Then {how_to_rerun(options, started)}") from error

    return cli.run_command(
        command,
        "train.py",
        memory_advice=f"Use a --batch-size below {recipe.batch_size} and train anew; finished "
        "features are kept.",
    )


def interrupted(error: OSError, options: RunOptions, started: float) -> TrainingError:
    """Return what to do about an `error` of the disk in a run that `started` then."""
    written = f"{options.models} and {options.cache}" if options.cache else options.models
    return TrainingError(
        f"Expected to read {options.data} and write to {written}. "
        f"Received: {cli.reason_of(error)}. Free disk space or fix the permissions, then "
        f"{how_to_rerun(options, started)}"
    )


def train(recipe: Recipe, options: RunOptions, flags: distribute.Flags | None = None) -> None:
    """Fine-tune Xception by `recipe`; leave the best checkpoint and its report in a folder."""
    workers = distribute.initialize(flags or distribute.Flags())  # one process unless --distribute
    with claim_models(options, workers):  # checked in a moment, then this run's alone
        # Data: Keras' ImageDataGenerator augments the training images, and no others
        dataset = load_dataset(options.data, options.exclude, options.audit)
        split = split_dataset(
            dataset,
            recipe.split_seed,
            validation_fraction=recipe.validation_fraction,
            test_fraction=recipe.test_fraction,
        )
        print(f"  {split.describe()}.")
        images = ImageSource(dataset, recipe.image_size, recipe.augmentation)
        run = start_run(recipe, options, workers, images, split)
        advise_recipe(run)

        # Network: the epoch that is best on the validation images and, with --refit, another one,
        # trained for as many epochs on these images as well
        first = train_network(run)
        second = train_network(start_refit(first)) if recipe.refit else None
        workers.shutdown()

        # Report: calibrate, name by accuracy, draw
        if workers.is_main:
            report(first, second)


def train_network(run: Run) -> Trained:
    """Train Xception from the start, or where an interrupted run has come to."""
    recipe, split, class_names = run.recipe, run.split, run.images.dataset.class_names
    keras.utils.set_random_seed(recipe.seed)

    # Model: Xception without its top, pretrained and frozen, and a new head
    model = build_model(recipe.image_size, recipe.head, len(class_names))
    weights, features = prepare_model(run, model)
    if recipe.fine_tune_at:
        unfreeze(model, recipe.fine_tune_at)

    # Inputs: the outputs of whatever is frozen are computed once and cached
    inputs = choose_inputs(run, model)

    # Fit, keeping the best epoch as models/xception_fin_{epoch:02d}_{val_accuracy:.3f}.h5
    training_model = make_training_model(run, inputs.trainable_part)
    best = BestCheckpoint(
        run.options.models,
        run.checkpoint_pattern,
        lambda: with_weights_of(training_model, inputs.trainable_part, model),
        class_names,
        split,
        recipe.monitor if split.validation else None,  # the last epoch
    )
    fit(run, inputs, training_model, best)
    return Trained(run, inputs, best.path, weights, features)


def report(first: Trained, second: Trained | None) -> None:
    """Calibrate the kept epoch, name it by its accuracy, and write and print its report.

    With a `second` network, which has learned the validation images of the `first`, the report is
    about that one.
    """
    # Here, since importing it takes seconds.
    from training.evaluation import evaluate

    models, dataset = first.run.options.models, first.run.images.dataset
    if second or first.run.recipe.final_head_epochs:  # further reports may need it
        first = replace(first, checkpoint=keep_picked(require_best(first.checkpoint, models)))
    kept = second or first
    result, info = calibrate(first), describe_run(kept)
    picked = None  # epoch of the first network, whose history is drawn
    if second:
        tf.get_logger().setLevel("ERROR")  # a note on each network that predicts
        accuracy = evaluate.describe_accuracy(result, dataset, first.run.split)
        print(f"First network: validation accuracy {accuracy}.", flush=True)
        earlier, result = result, calibrate(second, result)
        picked = earlier.metadata.epoch
        info = replace(info, **evaluate.describe_refit(earlier, result, first.run.split))
    checkpoint, split = require_best(kept.checkpoint, models), kept.run.split
    path = evaluate.save(result, models, split, checkpoint)
    if not second and not kept.run.recipe.final_head_epochs:
        rename_checkpoint(checkpoint, path)
    sources = evaluate.ReportSources(
        info, models / HISTORY, features=first.features, kept_epoch=picked
    )
    evaluate.report(result, path, dataset, split, sources)
    TrainingState.update(
        kept.run.options.models / STATE,
        reported=result.model.input_shape[1],
        final_head_epochs=kept.run.recipe.final_head_epochs,
        seconds=kept.run.seconds(),
    )


def calibrate(trained: Trained, by: "CalibratedModel | None" = None) -> "CalibratedModel":
    """Return the kept epoch of `trained`, calibrated on its validation images.

    Where it has learned these, it is calibrated as the network `by` is.
    """
    from training.evaluation import evaluate

    run = trained.run
    model, metadata = load_checkpoint(require_best(trained.checkpoint, run.options.models))
    # Its size may be that of an earlier report.
    size = (run.recipe.final_size, run.recipe.final_size)
    model, metadata = evaluate.at_size(model, metadata, size)
    # A frozen base is the final network's, too, so its features need not be computed again.
    is_frozen = run.recipe.fine_tune_at is None and run.recipe.final_size == run.recipe.input_size
    known = trained.features if is_frozen else None
    if run.recipe.final_head_epochs:
        model, metadata, known = fit_final_head(run, model, metadata, known)
    if by:
        metadata = evaluate.adopt_calibration(model, metadata, by)
    source = report_source(run, trained.inputs)
    return evaluate.calibrate(model, metadata, run.images.dataset, run.split, source, known)


def describe_run(trained: Trained) -> RunInfo:
    """Return what the report says about how `trained` was made."""
    run = trained.run
    return RunInfo(
        command=run.options.command,
        recipe=asdict(run.recipe),
        seed=run.recipe.seed,
        weights=trained.weights,
        split=run.split.sizes,
        seconds=round(run.seconds()),
    )


def report_source(run: Run, inputs: Inputs) -> Source:
    """Return inputs for the report: of the final size, and not coarser than images are."""
    recipe = run.recipe
    if recipe.final_size != recipe.input_size:
        return ImageSource(run.images.dataset, (recipe.final_size, recipe.final_size))
    return inputs.val_source if recipe.fine_tune_at is None else run.images


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options; what is not given the recipe says."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    cli.add_data_flags(parser)
    cli.add_audit_flag(parser)
    add(
        "--weights",
        default="imagenet",
        help="what the base starts from: imagenet, none, or a file [imagenet]",
    )
    add("--models", type=Path, default=Path("models"), help="where to write to [models/]")
    add("--cache", type=Path, default=CACHE, help="where features are kept [%(default)s/]")
    add(
        "--no-cache",
        dest="cache",
        action="store_const",
        const=None,
        help="no cache: every image through the whole network in every epoch",
    )
    add(
        "--cache-days",
        type=cli.at_least(1),
        default=CACHE_DAYS,
        metavar="DAYS",
        help="remove cached features that no run has used for so many days [%(default)s]",
    )
    add("--resume", action="store_true", help="continue after the last finished epoch")
    add("--tensorboard", action="store_true", help=f"logs for TensorBoard in models/{TENSORBOARD}/")
    add_recipe_flags(parser)
    distribute.add_flags(parser)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "train.py", *arguments])
    if options.distribute:
        options.cache = None  # a cache belongs to one process
    return options


if __name__ == "__main__":
    sys.exit(main())
