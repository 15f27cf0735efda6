"""Fine-tune Xception on a folder of images, one sub-folder a class.

    python train.py                                     # flowers/, the original's recipe: minutes
    python train.py --recipe fine-tune                  # more accurate: half an hour on two cores
    python train.py --data mine/ --models models/mine/  # your own images
    python train.py --resume                            # go on after an interruption
    python train.py --distribute                        # over all GPUs, or machines: see README

The best epoch is kept as models/xception_fin_{epoch}_{val_accuracy}.h5, and what there is to see of
it in the folder of that name; the last lines name both.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from training.distribute import cluster, launcher, workers

if __name__ == "__main__":
    launcher.relaunch()  # before Keras is imported, which then has to run on JAX

import numpy as np

from serving.errors import ModelError
from training.backend import is_out_of_memory, keras
from training.batches import Batches, PaddedBatches, TrainingBatches, image_indices
from training.checkpoint import CHECKPOINT, BestCheckpoint, load_checkpoint, remove_checkpoint
from training.dataset.checks import check_dataset, format_checks
from training.dataset.scan import Dataset, scan
from training.dataset.split import Split, split_dataset
from training.errors import CacheError, DataError, DistributeError
from training.features import CachedFeatures
from training.files import remove_unfinished
from training.images import ImageSource, Source
from training.inference import dtype_policy
from training.model import build_model, split_at_block, unfreeze, with_policy
from training.pretrained import load_base_weights
from training.resume import RunState, note_in_run, read_run, restore_run, trim_history


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; flags of the same names override some. These are the original's."""

    # data
    input_size: int = 299  # pixels, height and width
    inference_size: int | None = None  # of the finished network; None: input_size
    batch_size: int = 32
    validation_fraction: float = 0.2  # of all images; they are reported on
    selection_fraction: float = 0.0  # of the others; they pick the epoch, or else the above do
    seed: int = 69420
    # ImageDataGenerator's augmentation, of the training images only
    rotation_range: int = 40  # degrees
    width_shift_range: float = 0.4  # of the width
    height_shift_range: float = 0.4
    shear_range: float = 0.2  # degrees
    zoom_range: float | tuple[float, float] = 0.3  # 1 ± it, or from and to; below 1: closer
    horizontal_flip: bool = True
    fill_mode: str = "nearest"
    views: int = 4  # augmented views of each image, by turns; without the cache always new ones
    mixup_alpha: float = 0.0  # parameter of the beta distribution that images are mixed by; 0: not
    # network: Xception, global average pooling, dense layers (ReLU), softmax
    fine_tune_at: int | None = None  # of the base's 14: it learns from there on; None: frozen
    head: tuple[int, ...] = (512, 128, 32)
    head_epochs: int = 0  # for which the head learns alone, before
    # optimizer: stochastic gradient descent
    learning_rate: float = 0.01
    momentum: float = 0.75
    nesterov: bool = False
    label_smoothing: float = 0.0
    # schedule
    epochs: int = 30
    steps_per_epoch: int | None = 100  # None: each training image once
    warmup_epochs: float | None = None  # before a cosine decay; None: a constant learning rate
    monitor: str = "val_accuracy"  # the epoch that is best by it is kept

    @property
    def augmentation(self) -> dict:
        """The settings of the augmentation, by the names that `ImageDataGenerator` gives them."""
        return {
            "rotation_range": self.rotation_range,
            "width_shift_range": self.width_shift_range,
            "height_shift_range": self.height_shift_range,
            "shear_range": self.shear_range,
            "zoom_range": self.zoom_range,
            "horizontal_flip": self.horizontal_flip,
            "fill_mode": self.fill_mode,
        }


ORIGINAL = Recipe()
FINE_TUNE = Recipe(
    # Close crops show flowers larger than whole images do; larger images make up for some of
    # it (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    inference_size=363,
    selection_fraction=0.125,
    rotation_range=25,
    width_shift_range=0.1,
    height_shift_range=0.1,
    shear_range=0.1,
    zoom_range=(0.5, 1.0),
    views=9,
    mixup_alpha=0.2,
    fine_tune_at=5,
    head=(),
    head_epochs=15,
    learning_rate=8e-3,
    momentum=0.9,
    nesterov=True,
    label_smoothing=0.1,
    epochs=18,
    steps_per_epoch=None,
    warmup_epochs=0.5,
    monitor="val_loss",  # few images pick, so that accuracies differ by chance
)
RECIPES = {"original": ORIGINAL, "fine-tune": FINE_TUNE}

UNNAMED_BEST = (
    "xception_fin.picked.h5"  # the best epoch, until it is known what to put into its name
)
MIXED_PARAMETERS = 5_000_000  # a network of fewer, such as a head alone, learns in float32
STATE = "xception_fin.resume.weights.h5"
HISTORY = "xception_fin.history.csv"
TENSORBOARD = "tensorboard"
CACHE = Path(".cache", "activations")
HEAD_LEARNING_RATE = 1e-3  # of Adam, while the head learns by itself
SHIPPED = Path(__file__).parent / "models"


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    names = {field.name for field in fields(Recipe)}
    flags = {n: v for n, v in vars(options).items() if n in names and v is not None}
    recipe = replace(RECIPES[options.recipe], **flags)
    try:
        return train(recipe, options)
    except (DataError, ModelError, CacheError, DistributeError) as error:
        print(f"train.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped before the first epoch.", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"train.py: Expected to read {options.data} and to write to {options.models} and "
            f"{options.cache}. Received: {reason(error)}. Free space or rights, then go on with "
            "--resume.",
            file=sys.stderr,
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"train.py: Expected batches of {recipe.batch_size} images to fit into memory. "
            "Received: no memory left. Give a smaller --batch-size; what was written is whole.",
            file=sys.stderr,
        )
    return 1


def reason(error: OSError) -> str:
    """Return what went wrong, and with which file, on one line; HDF5 tells a page."""
    text = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
    return f"{text} ({error.filename})" if error.filename else text


def train(recipe: Recipe, options: argparse.Namespace) -> int:
    """Data, model, inputs, fit, report; return the exit code."""
    started = time.monotonic()
    workers = workers.initialize(options)
    rows = workers.rows(recipe.batch_size)
    keras.utils.set_random_seed(recipe.seed)
    if workers.is_main:
        options.models.mkdir(parents=True, exist_ok=True)
        remove_unfinished(options.models)

    # data
    dataset, split = load_data(recipe, options)
    size = (recipe.input_size, recipe.input_size)
    images = ImageSource(dataset, size, recipe.augmentation)
    settings = run_settings(recipe, options, split)
    workers.check_same(settings | {"precision": dtype_policy()})
    state = workers.broadcast_file(options.models / STATE)
    run = find_run(recipe, options, settings, state)

    # model
    model = build_model(size, recipe.head, len(dataset.class_names))
    weights, features = "the chief's weights", None
    if workers.is_main:  # the others get what it has made of the model
        weights = load_base_weights(model, options.weights, SHIPPED)
        print(f"Model: {describe(recipe, weights)}.", flush=True)
        features = compute_features(recipe, options, images, model)
        if recipe.head_epochs and not run:
            fit_head(recipe, model, features, dataset, split)
    if recipe.fine_tune_at:
        unfreeze(model, recipe.fine_tune_at)

    # inputs
    trainable_part, source, val_source = choose_inputs(recipe, options, images, split, model)
    steps = recipe.steps_per_epoch or max(1, len(split.train) // recipe.batch_size)
    training = TrainingBatches(
        source,
        split.train,
        recipe.batch_size,
        steps=steps,
        seed=recipe.seed,
        views=None if source is images else recipe.views,
        mixup_alpha=recipe.mixup_alpha,
        rows=rows,
    )
    batches = PaddedBatches if workers.distributed else Batches
    validation = batches(val_source, split.validation, recipe.batch_size, rows)

    # fit
    training_model = trainable_part
    if trainable_part.count_params() > MIXED_PARAMETERS and dtype_policy() != "float32":
        training_model = with_policy(trainable_part, dtype_policy())
    training_model = workers.replicate(training_model, recipe.seed)
    training_model.compile(
        optimizer=keras.optimizers.SGD(
            schedule(recipe, steps), momentum=recipe.momentum, nesterov=recipe.nesterov
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
        weighted_metrics=["accuracy"],
    )
    first_epoch = 0
    if run:
        restore_run(training_model, state)
        first_epoch = run["epochs"]
        print(f"Resume: after {first_epoch} finished epochs of the interrupted run.")

    def trained() -> keras.Model:
        if training_model is not trainable_part:
            trainable_part.set_weights(training_model.get_weights())
        return model

    pattern = UNNAMED_BEST if split.test else CHECKPOINT
    best = BestCheckpoint(
        options.models, pattern, trained, dataset.class_names, split, recipe.monitor, run
    )
    if workers.is_main:
        trim_history(options.models / HISTORY, first_epoch)
    if first_epoch < recipe.epochs:
        print(
            f"Fit: epochs {first_epoch + 1} to {recipe.epochs} of {steps} batches "
            f"of {recipe.batch_size}; history in {options.models / HISTORY}.",
            flush=True,
        )
    try:
        training_model.fit(
            training,
            validation_data=validation,
            epochs=recipe.epochs,
            initial_epoch=first_epoch,
            shuffle=False,  # the batches are shuffled already; Keras would reorder them
            verbose=(1 if sys.stdout.isatty() else 2) if workers.is_main else 0,
            callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_begin=training.begin_epoch),
                *workers.main_process_callbacks(
                    best,
                    keras.callbacks.CSVLogger(options.models / HISTORY, append=bool(run)),
                    *(
                        [keras.callbacks.TensorBoard(options.models / TENSORBOARD)]
                        * options.tensorboard
                    ),
                    RunState(options.models / STATE, settings, best),
                ),
            ],
        )
        workers.shutdown()
    except KeyboardInterrupt:
        print("\nStopped. Go on after the last finished epoch with --resume.")
        if best.path:
            print(f"The best epoch so far: {best.path}")
        return 130

    if not workers.is_main:
        return 0

    # report
    run_info = {
        "command": shlex.join(["python", "train.py", *sys.argv[1:]]),
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "weights": weights,
        "split": split.sizes,
        "seconds": round(time.monotonic() - started),
    }
    if final_size(recipe) != recipe.input_size:
        val_source = ImageSource(dataset, (final_size(recipe), final_size(recipe)))
    elif recipe.fine_tune_at is not None:
        val_source = images  # not activations: they are as coarse as training may be
    report(options, dataset, split, best, val_source, features, run_info)
    return 0


def load_data(recipe: Recipe, options: argparse.Namespace) -> tuple[Dataset, Split]:
    """Return the checked images of `--data` and their split, and print what they are."""
    print(f"Data: checking the images of {options.data} ...", flush=True)
    dataset = scan(options.data, options.exclude)
    for line in format_checks(check_dataset(dataset)):
        print(f"  {line}")
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts.items())
    split = split_dataset(
        dataset,
        recipe.seed,
        validation_fraction=recipe.selection_fraction,
        test_fraction=recipe.validation_fraction,
    )
    selecting = f", {len(split.validation)} to pick the epoch" if split.test else ""
    print(
        f"  {len(dataset.images)} images: {counts}; {len(dataset.skipped)} files skipped.\n"
        f"  {len(split.train)} to train{selecting}, {len(split.evaluated)} to validate."
    )
    return dataset, split


def run_settings(recipe: Recipe, options: argparse.Namespace, split: Split) -> dict:
    """Return what two parts of one run must have in common."""
    recorded = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(recipe).items()}
    del recorded["inference_size"]  # nothing of it before the report
    settings = recorded | {
        "weights": options.weights,
        "images": split.fingerprint,
        "cache": options.cache is not None,
    }
    if recipe.warmup_epochs is None:  # else the learning rate depends on it
        del settings["epochs"]
    return settings


def find_run(
    recipe: Recipe, options: argparse.Namespace, settings: dict, state: Path
) -> dict | None:
    """Return the facts of the run to resume, whose file is `state`, or None for a new one.

    Raises:
        ModelError: there is nothing to resume, or it was another kind of run.
    """
    run = read_run(state)
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
            "Resume with the same flags and images, or leave --resume out."
        )
    reported = run["epochs"] == recipe.epochs and run["reported"] == final_size(recipe)
    if run["epochs"] > recipe.epochs or reported:
        raise ModelError(
            f"Expected more epochs than the {run['epochs']} that are finished. "
            f"Received: --epochs {recipe.epochs}. Raise it to train on, or give the finished "
            "network another --inference-size."
        )
    return run


def final_size(recipe: Recipe) -> int:
    """Return the height and width of what the finished network looks at, in pixels."""
    return recipe.inference_size or recipe.input_size


def describe(recipe: Recipe, weights: str) -> str:
    """Return what the network is, for a person."""
    learning = {None: "frozen", 1: "all of it learning"}.get(
        recipe.fine_tune_at, f"learning from block {recipe.fine_tune_at} on"
    )
    head = f"dense layers {recipe.head} and a softmax" if recipe.head else "a softmax layer"
    return f"Xception with {weights}, {learning}; {head}"


def compute_features(
    recipe: Recipe, options: argparse.Namespace, images: ImageSource, model: keras.Model
) -> np.ndarray | None:
    """Return what the base of `model` makes of each of `images`, float32 (images, 2048).

    None where nothing wants it: with a frozen base on the plain path.
    """
    if not (options.cache or recipe.head_epochs):
        return None
    print("Base: what it makes of each image, as it is.", flush=True)
    samples = [(index, 0) for index in range(len(images.dataset.images))]
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        activations = CachedFeatures(images, split_at_block(model, None)[0], dtype_policy(), cache)
        activations.compute(samples)
        return activations.inputs(samples)


def fit_head(
    recipe: Recipe, model: keras.Model, features: np.ndarray, dataset: Dataset, split: Split
) -> None:
    """Let the head of `model` learn alone, from the frozen base's `features` of all images.

    Else its first random answers would tear at what the base knows.
    """
    print(f"Head: {recipe.head_epochs} epochs by itself.", flush=True)
    _, head = split_at_block(model, None)
    head.compile(
        keras.optimizers.Adam(HEAD_LEARNING_RATE),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
    )
    targets = keras.utils.to_categorical(dataset.labels(split.train), len(dataset.class_names))
    head.fit(
        features[image_indices(dataset, split.train)],
        targets,
        batch_size=recipe.batch_size,
        epochs=recipe.head_epochs,
        verbose=0,
    )


def choose_inputs(
    recipe: Recipe,
    options: argparse.Namespace,
    images: ImageSource,
    split: Split,
    model: keras.Model,
) -> tuple[keras.Model, Source, Source]:
    """Return (what learns, what it learns from, what it is judged on).

    On the plain path that is all of `model`, and images twice; with a cache the part above
    what is frozen, and activations, all of which are there on return.
    """
    if options.cache is None or recipe.fine_tune_at == 1:
        return model, images, images
    frozen, trainable_part = split_at_block(model, recipe.fine_tune_at)
    dataset = images.dataset
    source = val_source = CachedFeatures(images, frozen, dtype_policy(), options.cache)
    if recipe.fine_tune_at is None:
        # What the head answers to these is what the checkpoint will answer, to the fifth decimal.
        val_source = CachedFeatures(images, frozen, "float32", options.cache)
    print(f"Cache: {recipe.views} augmented views of each image, in {options.cache}.", flush=True)
    train = image_indices(dataset, split.train)
    source.compute([(i, view + 1) for view in range(recipe.views) for i in train])
    val_source.compute([(i, 0) for i in image_indices(dataset, (*split.validation, *split.test))])
    return trainable_part, source, val_source


def schedule(recipe: Recipe, steps: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate: a constant, or a warm-up and a cosine decay to nearly zero.

    `steps` is the number of batches an epoch.
    """
    if recipe.warmup_epochs is None:
        return recipe.learning_rate
    warmup = round(recipe.warmup_epochs * steps)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=recipe.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(1, recipe.epochs * steps - warmup),
    )


def report(
    options: argparse.Namespace,
    dataset: Dataset,
    split: Split,
    best: BestCheckpoint,
    val_source: Source,
    features: np.ndarray | None,
    run_info: dict,
) -> None:
    """Calibrate the best checkpoint, name it by its accuracy, and write and print its report.

    `val_source` gives inputs of the whole network, of the size that it is to have, or of its head.
    """
    from training.evaluation import (
        evaluate,  # and with it what draws and counts, which takes seconds
    )

    if best.path is None:
        raise ModelError(
            f"Expected the best checkpoint of the interrupted run in {options.models}. Received: "
            "none. Train anew, without --resume."
        )
    found = evaluate.calibrate(*load_checkpoint(best.path), dataset, split, val_source)
    path = evaluate.save(found, options.models, split)
    if best.path != path:
        note_in_run(options.models / STATE, checkpoint=path.name)
        remove_checkpoint(best.path)
        folder = path.with_suffix("")
        if best.path.with_suffix("").is_dir() and not folder.exists():
            best.path.with_suffix("").rename(folder)  # an earlier report on the same epoch
    evaluate.report(
        found, path, dataset, split, run_info, history=options.models / HISTORY, features=features
    )
    note_in_run(options.models / STATE, reported=found.model.input_shape[1])


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options; what is not given the recipe tells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", choices=RECIPES, default="original", help="which settings [%(default)s]")
    add("--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]")
    add("--exclude", type=Path, metavar="FILE", help="images to leave out, a class/file a line")
    add(
        "--weights",
        default="imagenet",
        help="what the base starts from: imagenet, none, or a file [imagenet]",
    )
    add("--models", type=Path, default=Path("models"), help="where to write to [models/]")
    add("--cache", type=Path, default=CACHE, help="where activations are kept [%(default)s/]")
    add(
        "--no-cache",
        dest="cache",
        action="store_const",
        const=None,
        help="the plain path: every image through the whole network, every time",
    )
    add("--resume", action="store_true", help="go on after the last finished epoch")
    add("--tensorboard", action="store_true", help=f"logs for TensorBoard in models/{TENSORBOARD}/")
    settings = parser.add_argument_group("settings of the recipe", "[original / fine-tune]")

    def override(name: str, kind: object, text: str = "") -> None:
        values = " / ".join(str(getattr(recipe, name)) for recipe in RECIPES.values())
        help_text = f"{text} [{values}]".lstrip()
        settings.add_argument(f"--{name.replace('_', '-')}", type=kind, help=help_text)

    override("head", layers, "dense layers below the softmax, such as 512,128,32, or none")
    override("inference_size", positive(int), "pixels, of the finished network; None: as trained")
    override("epochs", positive(int))
    override("batch_size", positive(int))
    override("learning_rate", positive(float))
    override("momentum", fraction, "0 to 1")
    override("label_smoothing", fraction, "0 to 1")
    override("mixup_alpha", fraction, "0 to 1; 0 mixes no images")
    override("steps_per_epoch", positive(int), "batches an epoch; None: all training images")
    override("views", positive(int), "augmented views of each image in the cache")
    override("zoom_range", zoom, "0.3: from 0.7 to 1.3; 0.5,1: from and to; below 1 is closer")
    override("fine_tune_at", block, "from which on the base learns, 1 to 14; None: frozen")
    override("seed", int, "of split, order and weights")
    cluster.add_flags(parser)
    options = parser.parse_args(arguments)
    if options.distribute:
        options.cache = None  # a cache is one process's, and one machine's
    return options


def layers(text: str) -> tuple[int, ...]:
    """Return `text`, numbers of units separated by commas, as the dense layers of a head."""
    units = [] if text == "none" else text.split(",")
    if not all(unit.strip().isdecimal() and int(unit) for unit in units):
        raise argparse.ArgumentTypeError(f"expected numbers above 0, or none. Received: {text}")
    return tuple(map(int, units))


def zoom(text: str) -> float | tuple[float, ...]:
    """Return `text` as `ImageDataGenerator` wants its `zoom_range`."""
    if "," not in text:
        return fraction(text)
    bounds = tuple(map(positive(float), text.split(",")))
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(
            f"expected one number, or a lower and an upper one. Received: {text}"
        )
    return bounds


def block(text: str) -> int:
    """Return `text` as the number of a block of Xception."""
    value = int(text)
    if not 1 <= value <= 14:
        raise argparse.ArgumentTypeError(f"expected a block from 1 to 14. Received: {text}")
    return value


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
