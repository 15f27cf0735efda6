"""Fine-tune Xception on a folder of pictures, one sub-folder a class.

    python train.py                                     # flowers/, 30 epochs; hours without a GPU
    python train.py --data mine/ --models models/mine/  # your own pictures
    python train.py --resume                            # go on after an interruption

The best epoch is kept as models/xception_fin_{epoch}_{val_accuracy}.h5; the last line names it.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from serving.models import ModelError
from training.backend import keras
from training.checkpoint import (
    BestCheckpoint,
    RunState,
    read_run,
    remove_unfinished,
    restore_run,
    trim_history,
)
from training.dataset import DataError, Dataset, Split, scan, split
from training.generators import ImageDataGenerator, PictureBatches, TrainingBatches
from training.model import build_model, load_base_weights


@dataclass(frozen=True)
class Recipe:
    """The original's settings; flags of the same names override some."""

    # data
    input_size: int = 299  # pixels, height and width
    batch_size: int = 32
    validation_fraction: float = 0.2
    seed: int = 69420
    # ImageDataGenerator's augmentation, of the training pictures only
    rotation_range: int = 40  # degrees
    width_shift_range: float = 0.4  # of the width
    height_shift_range: float = 0.4
    shear_range: float = 0.2  # degrees
    zoom_range: float = 0.3
    horizontal_flip: bool = True
    fill_mode: str = "nearest"
    # network: frozen Xception, global average pooling, dense layers (ReLU), softmax
    head: tuple[int, ...] = (512, 128, 32)
    # optimizer: stochastic gradient descent
    learning_rate: float = 0.01
    momentum: float = 0.75
    # schedule
    epochs: int = 30
    steps_per_epoch: int = 100


AUGMENTATION = (
    "rotation_range",
    "width_shift_range",
    "height_shift_range",
    "shear_range",
    "zoom_range",
    "horizontal_flip",
    "fill_mode",
)
CHECKPOINT = "xception_fin_{epoch:02d}_{val_accuracy:.3f}.h5"
STATE = "xception_fin.resume.weights.h5"
HISTORY = "xception_fin.history.csv"
SHIPPED = Path(__file__).parent / "models"


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    flags = {name: value for name, value in vars(options).items() if hasattr(Recipe, name)}
    try:
        return train(replace(Recipe(), **flags), options)
    except (DataError, ModelError) as error:
        print(f"train.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped before the first epoch.", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"train.py: Expected to read {options.data} and to write to {options.models}. "
            f"Received: {error}. Free space or rights, then go on with --resume.",
            file=sys.stderr,
        )
    return 1


def train(recipe: Recipe, options: argparse.Namespace) -> int:
    """Data, model, fit, report; return the exit code."""
    keras.utils.set_random_seed(recipe.seed)
    options.models.mkdir(parents=True, exist_ok=True)
    remove_unfinished(options.models)

    # data
    dataset, parts = load_data(recipe, options.data)

    # model
    settings = run_settings(recipe, options, parts)
    run = find_run(recipe, options, settings)
    size = (recipe.input_size, recipe.input_size)
    model = build_model(size, recipe.head, len(dataset.class_names))
    if run:
        print(f"Model: the interrupted run's, after {run['epochs']} epochs.")
    else:
        source = load_base_weights(model, options.weights, SHIPPED)
        print(f"Model: Xception with {source}, frozen; dense layers {recipe.head} and a softmax.")
    model.compile(
        optimizer=keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    first_epoch = 0
    if run:
        restore_run(model, options.models / STATE)
        first_epoch = run["epochs"]

    # fit
    best = BestCheckpoint(options.models, CHECKPOINT, dataset.class_names, parts, run)
    training = TrainingBatches(
        dataset,
        parts.train,
        size,
        recipe.batch_size,
        steps=recipe.steps_per_epoch,
        seed=recipe.seed,
        augmentation=ImageDataGenerator(**{n: getattr(recipe, n) for n in AUGMENTATION}),
    )
    validation = PictureBatches(dataset, parts.validation, size, recipe.batch_size)
    trim_history(options.models / HISTORY, first_epoch)
    print(
        f"Fit: epochs {first_epoch + 1} to {recipe.epochs} of {recipe.steps_per_epoch} batches "
        f"of {recipe.batch_size}; history in {options.models / HISTORY}.",
        flush=True,
    )
    try:
        model.fit(
            training,
            validation_data=validation,
            epochs=recipe.epochs,
            initial_epoch=first_epoch,
            shuffle=False,  # the batches are shuffled already; Keras would reorder them
            verbose=1 if sys.stdout.isatty() else 2,
            callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_begin=training.begin_epoch),
                best,
                keras.callbacks.CSVLogger(options.models / HISTORY, append=bool(run)),
                RunState(options.models / STATE, settings, best),
            ],
        )
        exit_code = 0
    except KeyboardInterrupt:
        print("\nStopped. Go on after the last finished epoch with --resume.")
        exit_code = 130

    # report
    report(best, len(parts.validation))
    return exit_code


def load_data(recipe: Recipe, folder: Path) -> tuple[Dataset, Split]:
    """Return the checked pictures of `folder` and their split, and print what they are."""
    print(f"Data: checking the pictures of {folder} ...", flush=True)
    dataset = scan(folder)
    for file, reason in dataset.left_out:
        print(f"  left out: {folder / file}: {reason}")
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts.items())
    parts = split(dataset, recipe.validation_fraction, recipe.seed)
    print(
        f"  {len(dataset.pictures)} pictures: {counts}; {len(dataset.left_out)} files left out.\n"
        f"  {len(parts.train)} to train, {len(parts.validation)} to validate."
    )
    return dataset, parts


def run_settings(recipe: Recipe, options: argparse.Namespace, parts: Split) -> dict:
    """Return what two parts of one run must have in common: all but the number of epochs."""
    settings = asdict(recipe) | {
        "head": list(recipe.head),
        "weights": options.weights,
        "pictures": parts.fingerprint,
    }
    del settings["epochs"]
    return settings


def find_run(recipe: Recipe, options: argparse.Namespace, settings: dict) -> dict | None:
    """Return the facts of the run to resume, or None for a new one.

    Raises:
        ModelError: there is nothing to resume, or it was another kind of run.
    """
    run = read_run(options.models / STATE)
    if not options.resume:
        if run:
            print(
                f"{options.models} has a run of {run['epochs']} finished epochs that --resume "
                "would go on with; this new one takes its place when its first epoch ends."
            )
        return None
    if run is None:
        raise ModelError(
            f"Expected an interrupted run in {options.models}. Received: none. "
            "Leave --resume out to start one."
        )
    different = [name for name in settings if settings[name] != run["settings"].get(name)]
    if different:
        was = ", ".join(f"{name} {run['settings'].get(name)}" for name in different)
        now = ", ".join(f"{name} {settings[name]}" for name in different)
        raise ModelError(
            f"Expected the settings of the interrupted run ({was}). Received: {now}. "
            "Resume with the same flags and pictures, or leave --resume out."
        )
    if run["epochs"] >= recipe.epochs:
        raise ModelError(
            f"Expected more epochs than the {run['epochs']} that are finished. "
            f"Received: --epochs {recipe.epochs}. Raise it to train on."
        )
    return run


def report(best: BestCheckpoint, validation_count: int) -> None:
    """Print which checkpoint to use."""
    if best.path is None:
        print("No epoch was finished, so there is no checkpoint.")
        return
    print(f"Best validation accuracy: {best.best:.3f} on {validation_count} pictures.")
    print(f"Use it: python convert_to_tflite.py {best.path}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options; the recipe gives their defaults."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]")
    add(
        "--weights",
        default="imagenet",
        help="what the base starts from: imagenet, none, or a file [imagenet]",
    )
    add("--epochs", type=positive(int), default=recipe.epochs, help="[%(default)s]")
    add("--batch-size", type=positive(int), default=recipe.batch_size, help="[%(default)s]")
    add("--learning-rate", type=positive(float), default=recipe.learning_rate, help="[%(default)s]")
    add("--momentum", type=fraction, default=recipe.momentum, help="0 to 1 [%(default)s]")
    add(
        "--steps-per-epoch",
        type=positive(int),
        default=recipe.steps_per_epoch,
        help="batches an epoch [%(default)s]",
    )
    add("--seed", type=int, default=recipe.seed, help="of split, order and weights [%(default)s]")
    add("--models", type=Path, default=Path("models"), help="where to write to [models/]")
    add("--resume", action="store_true", help="go on after the last finished epoch")
    return parser.parse_args(arguments)


def positive(kind: type) -> object:
    """Return an argparse type for `kind` that takes only numbers above 0."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above 0. Received: {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def fraction(text: str) -> float:
    """Return `text` as a number from 0 up to, but without, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1. Received: {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
