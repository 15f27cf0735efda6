"""Inputs, compiling and epochs: how a network is trained. experiments.compare trains by it, too."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from serving.errors import ModelError
from training.averaging import InsertAverages, RemoveAverages
from training.backend import keras
from training.batches import (
    Batches,
    PaddedBatches,
    TrainingBatches,
    errors_as_raised,
    image_indices,
    shown_samples,
)
from training.checkpoint import CHECKPOINT, EARLIER, UNNAMED_BEST, BestCheckpoint
from training.dataset.scan import find_classes
from training.dataset.split import Split
from training.distribute import Workers
from training.errors import DataError
from training.feature_store import remove_unused
from training.features import CachedFeatures, Job, announce, infer_once
from training.files import claim_folder, remove_unfinished, require_outside
from training.images import ImageSource, Sample, Source
from training.inference import dtype_policy
from training.model import split_at_block, weights_digest, with_policy
from training.pretrained import load_pretrained
from training.recipes import Recipe, RunOptions
from training.resume import (
    STATE,
    HistoryLogger,
    RequireFiniteLoss,
    SaveState,
    SetAsideEarlierRun,
    TrainingState,
    require_same_settings,
    restore_weights,
    trim_history,
    unreported_checkpoints,
    upgrade_settings,
)
from training.streams import counted

REFIT = "xception_fin.refit"  # folder of the second training, on validation images as well
HISTORY = "xception_fin.history.csv"
TENSORBOARD = "tensorboard"
MIXED_PARAMETERS = 5_000_000  # a network of fewer, such as a head alone, learns in float32
HEAD_LEARNING_RATE = 1e-3  # of Adam, while the head is trained alone
# Its base stands in for Keras' download.
SHIPPED = Path(__file__).parent.parent / "models" / "xception_fin_15_0.966.h5"
MIN_FREE_BYTES = 600e6  # of the disk: two checkpoints and two states
FROZEN = "frozen"  # setting of a state: the digest of what stays as it was pretrained
FEW_BATCHES = 10  # an epoch of fewer changes a fine-tuned network little
AVERAGED_SHARE = 5  # a fifth of all batches, of which weights may be averaged
FEW_IMAGES = 500  # of fewer, --recipe fine-tune makes more than a frozen base


@dataclass(frozen=True)
class Run:
    """A training run: its recipe, its images, and how far an earlier process came.

    Attributes:
        recipe: what is done.
        options: where to read and write.
        workers: the processes that share it.
        images: the data set, augmented by the recipe.
        split: which images train and which validate.
        state: what --resume continues, None for a new run.
        state_file: where this process can read the weights that belong to `state`.
        replaced: checkpoints of an earlier run, which move aside after the first epoch.
        labels: what the soft labels are that it learns from; None for the images' classes.
        started: when it started or, if it was continued, as if it had not stopped in between, in
            seconds of `time.monotonic`.
    """

    recipe: Recipe
    options: RunOptions
    workers: Workers
    images: ImageSource
    split: Split
    state: TrainingState | None = None
    state_file: Path | None = None
    replaced: tuple[Path, ...] = ()
    labels: str | None = None
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Return how long the run has taken, in all its processes together."""
        return time.monotonic() - self.started

    @property
    def settings(self) -> dict:
        """What two parts of one run must have in common (JSON)."""
        recipe = asdict(self.recipe)
        for name in ("inference_size", "refit", "refit_epochs", "final_head_epochs"):
            del recipe[name]  # nothing of it before these epochs are finished
        if self.recipe.warmup_epochs is None:  # else the learning rate depends on it
            del recipe["epochs"]
        recipe = {n: list(v) if isinstance(v, tuple) else v for n, v in recipe.items()}
        return recipe | {
            "weights": self.options.weights,
            "images": self.split.fingerprint,
            "cache": self.options.cache is not None,
            "labels": self.labels,
        }

    @property
    def is_trained(self) -> bool:
        """Whether all its epochs are finished, so that only a report is left to write."""
        return self.state is not None and self.state.epochs >= self.recipe.epochs

    @property
    def checkpoint_pattern(self) -> str:
        """Name of the best epoch's file, without an accuracy where that comes after training."""
        is_unnamed = self.split.test or self.recipe.final_head_epochs
        return UNNAMED_BEST if is_unnamed else CHECKPOINT


@contextmanager
def claim_models(options: RunOptions, workers: Workers) -> Generator[None]:
    """Check in a moment what a run needs, and keep its folder of models for it alone.

    Raises:
        DataError: there are no class folders, the folders of `options` are in each other's way, the
            disk is nearly full, or another run writes to the folder of models.
        ModelError: there is no such weights file, or nothing to resume.
        OSError: the folder of models cannot be written.
    """
    if not workers.is_main:
        yield
        return
    find_classes(options.data)
    for flag, folder in (("--models", options.models), ("--cache", options.cache)):
        if folder:
            require_outside(folder, options.data, flag)
    if options.weights not in {"imagenet", "none"} and not Path(options.weights).exists():
        raise ModelError(
            "Expected a weights file of Xception without its top, or a checkpoint. Received: "
            f"{options.weights}, which does not exist. Give another with --weights, or use "
            "--weights imagenet."
        )
    if options.resume and workers.count == 1:  # several find it out together
        require_state(TrainingState.load(options.models / STATE), options.models)
    with claim_folder(options.models):
        free = shutil.disk_usage(options.models).free
        if free < MIN_FREE_BYTES:
            raise DataError(
                f"Expected {MIN_FREE_BYTES / 1e6:.0f} MB of free disk space for checkpoints in "
                f"{options.models}. Received: {free / 1e6:.0f} MB. Free some, or name another "
                "folder with --models."
            )
        yield


def require_state(state: TrainingState | None, models: Path) -> TrainingState:
    """Return `state`; raise `ModelError` if there is none in the folder `models`."""
    if state is None:
        raise ModelError(
            f"Expected an interrupted run in {models}. Received: none. "
            "Leave --resume out to start one."
        )
    return state


def start_run(
    recipe: Recipe,
    options: RunOptions,
    workers: Workers,
    images: ImageSource,
    split: Split,
    labels: str | None = None,
) -> Run:
    """Return the run to train, with the state of the one that --resume continues.

    `labels` are those of `Run`.

    Raises:
        ModelError: there is nothing to resume, or it has finished.
        DataError: it had other settings, or the recipe needs test images and there are none.
        DistributeError: the processes have different settings.
    """
    if recipe.refit and not split.test:
        raise DataError(
            "Expected a recipe with test images for --refit, which trains on the validation images "
            "as well. Received: one without. Add --recipe fine-tune, or leave --refit out."
        )
    workers.rows(recipe.batch_size)  # raises where the devices cannot share a batch
    if workers.is_main:
        options.models.mkdir(parents=True, exist_ok=True)
        remove_unfinished(options.models)
    run = Run(recipe, options, workers, images, split, labels=labels)
    workers.check_same(run.settings | {"precision": dtype_policy()})
    state_file = workers.broadcast_file(options.models / STATE)
    state = TrainingState.load(state_file)
    if options.resume:
        return continue_run(run, _require_resumable(run, state), state_file)
    if state:
        print(
            f"{options.models} holds a run of {counted(state.epochs, 'finished epoch')}, which "
            "--resume would continue; this new run replaces it when its first epoch ends."
        )
    replaced = unreported_checkpoints(options.models) if workers.is_main else []
    if replaced:
        others = f" and {len(replaced) - 1} more" * (len(replaced) > 1)
        print(
            f"{replaced[-1]}{others} of an earlier run, without a report, will move to "
            f"{options.models / EARLIER}{os.sep} then: the best of this folder will be of this run."
        )
    return replace(run, replaced=tuple(replaced))


def continue_run(run: Run, state: TrainingState, state_file: Path | None) -> Run:
    """Return `run` as it goes on after `state`, whose weights are in `state_file`."""
    started = min(run.started, time.monotonic() - state.seconds)
    return replace(run, state=state, state_file=state_file, started=started)


def _require_resumable(run: Run, state: TrainingState | None) -> TrainingState:
    """Return `state`; raise `ModelError` or `DataError` if `run` cannot continue it."""
    recipe = run.recipe
    state = require_state(state, run.options.models)
    require_same_settings(
        upgrade_settings(state.settings),
        run.settings,
        "the interrupted run",
        "Resume with the same flags and images, or leave --resume out.",
    )
    if state.epochs > recipe.epochs or (state.epochs == recipe.epochs and _is_reported(run, state)):
        # With a schedule, all learning rates depend on the number of epochs.
        longer = "Raise it to train on, or give" if recipe.warmup_epochs is None else "Give"
        raise ModelError(
            f"Expected something left to do after {counted(state.epochs, 'finished epoch')}. "
            f"Received: --epochs {recipe.epochs}. {longer} the finished network another "
            "--inference-size or --final-head-epochs."
        )
    return state


def _is_reported(run: Run, state: TrainingState) -> bool:
    """Return whether there is the report on the finished run of `state` that is asked for."""
    recipe, found = run.recipe, state
    if recipe.refit:
        place = run.options.models / REFIT / STATE
        second = TrainingState.load(run.workers.broadcast_file(place))
        if second is None or recipe.refit_epochs not in {None, second.epochs}:
            return False
        found = second
    wanted = (recipe.final_size, recipe.final_head_epochs)
    return (found.reported, found.final_head_epochs) == wanted


def require_best(checkpoint: Path | None, models: Path) -> Path:
    """Return the best `checkpoint`; raise `ModelError` if the folder `models` has lost it."""
    if checkpoint is None:
        raise ModelError(
            f"Expected the best checkpoint of the interrupted run in {models}. Received: "
            "none. Train anew, without --resume."
        )
    return checkpoint


def prepare_model(run: Run, model: keras.Model) -> tuple[str, np.ndarray | None]:
    """Load pretrained weights into the base of `model`, and train its head alone if asked to.

    Returns where the weights came from, and the base's features of all images, float32
    (images, 2048), or None where nothing wants them: with a frozen base and no cache.
    """
    if not run.workers.is_main:  # they get the main process' weights when training starts
        return "the main process' weights", None
    recipe, options = run.recipe, run.options
    weights = load_pretrained(model, options.weights, SHIPPED)
    if not all(np.isfinite(values).all() for values in model.get_weights()):
        raise ModelError(
            f"Expected weights that are numbers. Received: {weights}, some of which are NaN or "
            "infinite. Give another file with --weights."
        )
    if run.state and run.state.settings.get(FROZEN) not in {None, frozen_digest(recipe, model)}:
        raise ModelError(
            "Expected the pretrained weights that the interrupted run started from. Received: "
            f"{weights}, others. Give these with --weights, resume it where Keras' download is "
            "found as before, or train anew, without --resume."
        )
    print(f"Model: {describe(recipe, weights)}.", flush=True)
    if options.weights == "imagenet" and weights.startswith("the base of"):
        print(
            "  It stands in for ImageNet's weights, and was trained on the flowers of this "
            "project: accuracies on those come out too high. For images of your own it is a sound "
            "start.",
            flush=True,
        )
    if options.cache:
        plan_cache(run, model, options.cache)
    elif not recipe.head_epochs:
        return weights, None
    print("Features: running the frozen base once per image.", flush=True)
    features = compute_features(run.images, model, options.cache)
    if recipe.head_epochs and not run.state:
        print(f"Head: {counted(recipe.head_epochs, 'epoch')} alone.", flush=True)
        fit_head(run, model, features, recipe.head_epochs)
    return weights, features


def frozen_digest(recipe: Recipe, model: keras.Model) -> str:
    """Return the SHA-256 (hexadecimal) of the weights of `model` that do not learn."""
    if recipe.fine_tune_at == 1:
        return ""
    frozen, _ = split_at_block(model, recipe.fine_tune_at)
    return weights_digest(frozen)


def describe(recipe: Recipe, weights: str) -> str:
    """Return what the network is, for a person."""
    learning = {None: "frozen", 1: "all of it learning"}.get(
        recipe.fine_tune_at, f"learning from block {recipe.fine_tune_at} on"
    )
    head = f"dense layers {recipe.head} and a softmax" if recipe.head else "a softmax layer"
    return f"Xception with {weights}, {learning}; {head}"


def plan_cache(run: Run, model: keras.Model, cache: Path) -> None:
    """Print what filling `cache` will take, after removing from it what no run used for a while.

    Raises:
        CacheError: the disk has no room for it.
    """
    recipe, options = run.recipe, run.options
    base, _ = split_at_block(model, None)
    plain = [(index, 0) for index in range(len(run.images.dataset.images))]
    jobs: list[Job] = [(CachedFeatures(run.images, base, dtype_policy(), cache), plain)]
    if recipe.fine_tune_at != 1:
        frozen, _ = split_at_block(model, recipe.fine_tune_at)
        jobs += cache_jobs(run, frozen, cache)
        second = TrainingState.load(options.models / REFIT / STATE) if options.resume else None
        if recipe.refit and not (second and second.reported):
            epochs = recipe.refit_epochs or recipe.epochs
            split = run.split.with_validation_in_training()
            again = replace(run, recipe=replace(recipe, epochs=epochs), split=split, state=None)
            jobs += cache_jobs(again, frozen, cache)
    # After these are opened, so that they stay, however long ago they were used.
    count, size = remove_unused(cache, options.cache_days)
    if count:
        print(
            f"Cache: removed {counted(count, 'set')} of features, {size / 1e9:.1f} GB, that no run "
            f"used for {counted(options.cache_days, 'day')}.",
            flush=True,
        )
    announce(jobs)


def cache_jobs(run: Run, frozen: keras.Model, cache: Path) -> tuple[Job, Job]:
    """Return what training needs of the outputs of `frozen`, and what validation and report do.

    Training needs the augmented views of its images, as far as the recipe shows them. The report
    on a network that has learned as a whole is about images, so it needs none of the outputs.
    """
    recipe, images, split = run.recipe, run.images, run.split
    source = val_source = CachedFeatures(images, frozen, dtype_policy(), cache)
    if recipe.fine_tune_at is None:
        # In float32 the head gives the probabilities of the checkpoint, to the fifth decimal.
        val_source = CachedFeatures(images, frozen, "float32", cache)
    views: list[Sample] = []
    if not run.is_trained:
        train = image_indices(images.dataset, split.train)
        views = shown_samples(train, recipe.views, recipe.rows(len(train)), recipe.seed)
    evaluated = () if run.is_trained else split.validation
    if recipe.fine_tune_at is None:
        evaluated = (*split.validation, *split.test)
    plain = [(index, 0) for index in image_indices(images.dataset, evaluated)]
    return (source, views), (val_source, plain)


def compute_features(images: ImageSource, model: keras.Model, cache: Path | None) -> np.ndarray:
    """Return the pooled features of all `images`, float32 (images, 2048); kept in `cache`."""
    base, _ = split_at_block(model, None)
    if cache is None:
        return infer_once(base, images, images.dataset.images, "plain")
    samples = [(index, 0) for index in range(len(images.dataset.images))]
    features = CachedFeatures(images, base, dtype_policy(), cache)
    features.compute(samples)
    return features.inputs(samples)


def fit_head(run: Run, model: keras.Model, features: np.ndarray, epochs: int) -> None:
    """Train the head of `model` alone, from the frozen base's `features` of all images.

    The first gradients of a random head would destroy what the base has learned.
    """
    dataset, recipe = run.images.dataset, run.recipe
    _, head = split_at_block(model, None)
    head.compile(
        keras.optimizers.Adam(HEAD_LEARNING_RATE),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
    )
    labels = dataset.labels(run.split.train)
    head.fit(
        features[image_indices(dataset, run.split.train)],
        keras.utils.to_categorical(labels, len(dataset.class_names)),
        batch_size=recipe.batch_size,
        epochs=epochs,
        verbose=0,
    )


@dataclass(frozen=True)
class Inputs:
    """What is trained, and on what.

    Attributes:
        trainable_part: the part of the network that learns; it shares its layers.
        source: inputs of that part for training.
        val_source: inputs of that part for validation.
        soft_labels: targets of the training images' views, float32 (views, images, classes); None
            for their classes.
    """

    trainable_part: keras.Model
    source: Source
    val_source: Source
    soft_labels: np.ndarray | None = None


def choose_inputs(run: Run, model: keras.Model) -> Inputs:
    """Return all of `model` and images or, with a cache, what learns and its cached inputs.

    All cached inputs that training needs are computed on return.
    """
    recipe, cache = run.recipe, run.options.cache
    if cache is None or recipe.fine_tune_at == 1:
        return Inputs(model, run.images, run.images)
    frozen, trainable_part = split_at_block(model, recipe.fine_tune_at)
    jobs = cache_jobs(run, frozen, cache)
    if not run.is_trained:
        views = counted(recipe.shown_views(len(run.split.train)), "augmented view")
        print(f"Cache: {views} of each image, in {cache}.", flush=True)
    for features, samples in jobs:
        features.compute(samples)
    (source, _), (val_source, _) = jobs
    return Inputs(trainable_part, source, val_source)


def make_training_model(run: Run, part: keras.Model) -> keras.Model:
    """Return `part`, or a copy of it in mixed precision or on all devices, to be trained."""
    if part.count_params() > MIXED_PARAMETERS and dtype_policy() != "float32":
        part = with_policy(part, dtype_policy())
    return run.workers.replicate(part, run.recipe.seed)


def with_weights_of(
    training_model: keras.Model, part: keras.Model, model: keras.Model
) -> keras.Model:
    """Return `model`, whose `part` gets the weights of its copy `training_model`, if it is one."""
    if training_model is not part:
        part.set_weights(training_model.get_weights())
    return model


def advise_recipe(run: Run) -> None:
    """Print which settings suit few images, if there are few and it has others."""
    recipe, count = run.recipe, len(run.split.train)
    if recipe.ema_momentum:
        _advise_averaging(recipe, count)
    if recipe.steps_per_epoch is None and count < FEW_BATCHES * recipe.batch_size:
        batches = max(1, count // recipe.batch_size)
        print(
            f"  Few images: an epoch is {batches} batch{'es' * (batches > 1)}. Raise --epochs "
            f"above {recipe.epochs} until the validation loss stops falling, or lower "
            f"--batch-size from {recipe.batch_size}."
        )
    elif recipe.fine_tune_at is None and count < FEW_IMAGES:
        print(
            "  Few images: if the result is poor, try --recipe fine-tune, which learns more from "
            "each, with more --epochs (docs/training.md#few-images-or-a-poor-result)."
        )


def _advise_averaging(recipe: Recipe, count: int) -> None:
    """Print a lower momentum if the averaged weights would go back to the first ones."""
    batches = recipe.epochs * recipe.steps(count)
    averaged = round(1 / (1 - recipe.ema_momentum))
    if averaged > batches / AVERAGED_SHARE:
        fitting = max(0, 1 - 2 * AVERAGED_SHARE / batches)
        print(
            f"  Averaged weights would be those of the last {averaged} batches or so, of {batches} "
            f"in all. Lower --ema-momentum to {fitting:.3g}."
        )


def fit(run: Run, inputs: Inputs, training_model: keras.Model, best: BestCheckpoint) -> None:
    """Train `training_model` epoch by epoch, or continue; `best` keeps the best epoch.

    Raises:
        TrainingError: the loss is not a number.
    """
    recipe, options, workers = run.recipe, run.options, run.workers
    training = training_batches(run, inputs)
    rate = learning_rate(recipe, training.steps)
    compile_model(
        training_model,
        rate,
        recipe.momentum,
        recipe.nesterov,
        recipe.label_smoothing,
        recipe.ema_momentum,
    )
    first_epoch = run.state.epochs if run.state else 0
    if run.state and run.state_file:
        best.restore(run.state.best, run.state.checkpoint)
        restore_weights(training_model, run.state_file)
        done = counted(first_epoch, "finished epoch")
        print(f"Resume: after {done} of the interrupted run.")
    if workers.is_main and run.state:
        trim_history(options.models / HISTORY, first_epoch)
    if not run.is_trained:
        print(
            f"Fit: epochs {first_epoch + 1} to {recipe.epochs} of {training.steps} batch"
            f"{'es' * (training.steps != 1)} of "
            f"{recipe.batch_size}; history in {options.models / HISTORY}.",
            flush=True,
        )
        frozen = frozen_digest(recipe, best.full_model()) if workers.is_main else ""
        fit_epochs(
            training_model,
            training,
            validation_batches(run, inputs.val_source),
            epochs=(first_epoch, recipe.epochs),
            verbose=(1 if sys.stdout.isatty() else 2) if workers.is_main else 0,
            callbacks=make_callbacks(run, best, frozen),
        )
    workers.release()


def make_callbacks(
    run: Run, best: BestCheckpoint, frozen: str = ""
) -> list[keras.callbacks.Callback]:
    """Return what is done at the end of each epoch of `run`, in this order.

    `frozen` is the digest of the weights that do not learn, for --resume to find the same ones.
    """
    options, for_main = run.options, run.workers.main_process_callbacks
    settings = run.settings | {FROZEN: frozen}
    checkpoint, *records = keep_epochs(
        best, options.models / HISTORY, options.models / STATE, settings, run.state, run.seconds
    )
    if options.tensorboard:
        records.insert(1, keras.callbacks.TensorBoard(options.models / TENSORBOARD))
    outdated = options.models / REFIT / STATE
    kept = for_main(SetAsideEarlierRun(run.replaced, outdated), checkpoint)
    if run.recipe.ema_momentum:  # in all processes, which hold the same weights
        insert = InsertAverages()
        kept = [insert, *kept, RemoveAverages(insert)]
    # Of all processes, as they have the same loss: none waits for another that has ended.
    guard = RequireFiniteLoss(run.recipe.learning_rate, best)
    return [guard, *kept, *for_main(*records)]


def training_batches(run: Run, inputs: Inputs) -> TrainingBatches:
    """Return the shuffled, augmented batches that `run` trains on."""
    recipe = run.recipe
    return TrainingBatches(
        inputs.source,
        run.split.train,
        recipe.batch_size,
        steps=recipe.steps(len(run.split.train)),
        seed=recipe.seed,
        views=None if inputs.source is run.images else recipe.views,
        mixup_alpha=recipe.mixup_alpha,
        rows=run.workers.rows(recipe.batch_size),
        soft_labels=inputs.soft_labels,
    )


def validation_batches(run: Run, source: Source) -> Batches | None:
    """Return the batches that each epoch of `run` is validated on, if it has any."""
    if not run.split.validation:
        return None
    batches = PaddedBatches if run.workers.distributed else Batches
    size = run.recipe.batch_size
    return batches(source, run.split.validation, size, run.workers.rows(size))


def learning_rate(
    recipe: Recipe, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
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


def compile_model(
    model: keras.Model,
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    momentum: float,
    nesterov: bool = False,
    label_smoothing: float = 0.0,
    ema_momentum: float = 0.0,
) -> None:
    """Compile `model` for stochastic gradient descent at the learning rate `rate`.

    With an `ema_momentum` above 0, its optimizer keeps a moving average of the weights.
    """
    averaging = {"use_ema": True, "ema_momentum": ema_momentum} if ema_momentum else {}
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=momentum, nesterov=nesterov, **averaging),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing),
        weighted_metrics=["accuracy"],
    )


def keep_epochs(
    best: BestCheckpoint,
    history: Path,
    state_file: Path,
    settings: dict,
    state: object,
    clock: Callable[[], float] = lambda: 0.0,
) -> list[keras.callbacks.Callback]:
    """Return the callbacks after which an epoch is not lost: checkpoint, history, state.

    `state` is what the run continues, None for a new one; `clock` returns the seconds that the run
    has taken.
    """
    return [
        best,
        HistoryLogger(history, append=bool(state)),
        SaveState(state_file, settings, best, clock),
    ]


def fit_epochs(
    model: keras.Model,
    training: TrainingBatches,
    validation: Batches | None,
    *,
    epochs: tuple[int, int],
    verbose: int | str = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Fit the compiled `model` from the first of `epochs` (from 0) up to the last (exclusive)."""
    with errors_as_raised(training, validation):
        return model.fit(
            training,
            validation_data=validation,
            epochs=epochs[1],
            initial_epoch=epochs[0],
            shuffle=False,  # the batches are shuffled already; Keras would reorder them
            verbose=verbose,
            callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_begin=training.begin_epoch),
                *callbacks,
            ],
        )
