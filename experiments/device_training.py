"""Fine-tuning on one accelerator with JAX, for `experiments.device_runs`.

What the frozen blocks make of the images stays in the accelerator's memory, and an epoch is one
compiled loop.
"""

import functools
import json
import multiprocessing
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import device_network as net
from training.backend import keras
from training.batches import TrainingBatches, image_indices
from training.dataset.scan import Dataset
from training.fit import SHIPPED, Run, fit_head
from training.images import ImageSource, Sample
from training.model import BASE_LAYER, build_model
from training.prefetch import progress
from training.pretrained import load_pretrained
from training.recipes import Recipe

BATCH_SIZE = 128  # of the forward pass

Reader = Callable[[Iterable[Sample]], Iterable[np.ndarray]]


class Device:
    """Pretrained weights, and the outputs of the frozen blocks for views of all images.

    Attributes:
        dataset: whose images they are.
        dtype: bfloat16, on CPUs float32.
        learning: what learns, as it starts, but for its head.
        frozen: scales of batch normalization beside it.
    """

    def __init__(self, dataset: Dataset, weights: str, processes: int):
        """Load `weights`, as train.py's --weights; read images in so many `processes`."""
        self.dataset, self.processes = dataset, processes
        self.dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        keras.utils.set_random_seed(0)  # without weights, each process has the same base
        model = build_model((299, 299), (), len(dataset.class_names))
        print(f"Model: {load_pretrained(model, weights, SHIPPED)}, on {jax.devices()[0]}.")
        arrays = net.read_weights(model.get_layer(BASE_LAYER))
        self._low, self.learning, self.frozen = jax.device_put(arrays)
        self._views: dict[tuple, jax.Array] = {}

    def views(self, source: ImageSource, numbers: Sequence[int]) -> list[jax.Array]:
        """Return the features of the views `numbers` of all images, (images, h, w, 728) each."""
        settings = json.dumps(source.settings, sort_keys=True)
        keys = [(source.size, settings if number else "", number) for number in numbers]
        missing = [key for key in dict.fromkeys(keys) if key not in self._views]
        with pixels_of(source, self.processes) as read:
            for key in missing:
                self._views[key] = self._features(read, key[-1])
        return [self._views[key] for key in keys]

    def _features(self, read: Reader, view: int) -> jax.Array:
        count, rows, batch = len(self.dataset.images), [], []
        with progress(count, f"  view {view}") as bar:
            for pixels in read([(index, view) for index in range(count)]):
                batch.append(pixels)
                bar.update()
                if len(batch) == BATCH_SIZE or bar.n == count:
                    padding = [batch[0]] * (BATCH_SIZE - len(batch))
                    found = _lower(self._low, np.stack(batch + padding), self.dtype)
                    rows.append(found[: len(batch)])
                    batch = []
        return jnp.concatenate(rows)


@contextmanager
def pixels_of(source: ImageSource, processes: int) -> Generator[Reader]:
    """Yield a function from samples of `source` to their pixels, uint8 (height, width, 3) each."""
    if processes == 1:
        yield lambda samples: map(functools.partial(_pixels, source), samples)
        return
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would lose
    with ProcessPoolExecutor(processes, context) as pool:
        yield lambda samples: pool.map(functools.partial(_pixels, source), samples, chunksize=32)


def _pixels(source: ImageSource, sample: Sample) -> np.ndarray:
    return np.rint((source.inputs([sample])[0] + 1) * 127.5).astype(np.uint8)


_pool = jax.jit(net.upper)


@functools.partial(jax.jit, static_argnames="dtype")
def _lower(low: net.Tree, pixels: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return net.lower(low, (pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype))


@jax.jit
def predict(
    learned: net.Tree, frozen: net.Tree, features: jax.Array, index: jax.Array
) -> jax.Array:
    """Return the logits, float32 (n, classes), of the rows `index` (n,) of `features`."""
    rows = index.reshape(-1, min(BATCH_SIZE, len(index)))
    return jnp.concatenate(lax.map(lambda row: net.logits(learned, frozen, features[row]), rows))


def probabilities_of(
    device: Device, learned: net.Tree, view: jax.Array, index: Sequence[int]
) -> np.ndarray:
    """Return the probabilities, float64 (n, classes), of the images `index` in a view."""
    padded = np.pad(index, (0, -len(index) % BATCH_SIZE), mode="edge").astype(np.int32)
    scores = predict(learned, device.frozen, view, padded)[: len(index)]
    return np.asarray(jax.nn.softmax(scores), np.float64)


def soft_labels(device: Device, networks: list, views: list[jax.Array], run_: Run) -> np.ndarray:
    """Return the mean probabilities of `networks`, float32 (views, training images, classes)."""
    index = image_indices(device.dataset, run_.split.train)
    means = [
        np.mean([probabilities_of(device, each, view, index) for each in networks], axis=0)
        for view in views
    ]
    return np.array(means, np.float32)


def fit(device: Device, run_: Run, views: Sequence[jax.Array], soft: np.ndarray | None) -> net.Tree:
    """Return what `run_` learns from `views`, averaged if its recipe says so."""
    recipe, train = run_.recipe, run_.split.train
    keras.utils.set_random_seed(recipe.seed)
    head = first_head(device, run_)
    learned = jax.tree.map(jnp.array, {**device.learning, "head": head})
    state = (learned, jax.tree.map(jnp.zeros_like, learned), jax.tree.map(jnp.array, learned))
    steps = recipe.steps(len(train))
    batches = TrainingBatches(
        run_.images,
        train,
        recipe.batch_size,
        steps=steps,
        seed=recipe.seed,
        views=recipe.views,
        mixup_alpha=recipe.mixup_alpha,
        soft_labels=soft,
    )
    smoothing = 0.0 if soft is not None else recipe.label_smoothing
    rates = learning_rates(recipe, steps)
    settings = (recipe.momentum, float(recipe.nesterov), recipe.ema_momentum)
    for epoch in range(recipe.epochs):
        batches.begin_epoch(epoch)
        pair, plan = plan_epoch(batches, smoothing)
        plan["rate"] = rates[epoch * steps : (epoch + 1) * steps]
        plan["first"] = np.arange(steps) + epoch == 0
        state = train_epoch(
            state, device.frozen, [views[each - 1] for each in pair], plan, settings
        )
    return state[2] if recipe.ema_momentum else state[0]


def first_head(device: Device, run_: Run) -> tuple[np.ndarray, ...]:
    """Return the softmax layer that train.py starts with: trained alone if the recipe says so."""
    recipe, dataset = run_.recipe, device.dataset
    model = build_model(recipe.image_size, recipe.head, len(dataset.class_names))
    if recipe.head_epochs:
        [plain] = device.views(ImageSource(dataset, recipe.image_size), [0])
        features = [
            _pool(device.learning, device.frozen, plain[i : i + BATCH_SIZE])
            for i in range(0, len(plain), BATCH_SIZE)
        ]
        fit_head(run_, model, np.concatenate(features), recipe.head_epochs)
    return tuple(model.layers[-1].get_weights())


def learning_rates(recipe: Recipe, steps: int) -> np.ndarray:
    """Return the learning rate of each batch of a training, as `training.fit.learning_rate`."""
    warmup, step = round((recipe.warmup_epochs or 0) * steps), np.arange(recipe.epochs * steps)
    done = np.clip((step - warmup) / max(1, len(step) - warmup), 0, 1)
    rising = recipe.learning_rate * step / max(1, warmup)
    falling = recipe.learning_rate * (1 + np.cos(np.pi * done)) / 2
    return np.where(step < warmup, rising, falling).astype(np.float32)


def plan_epoch(batches: TrainingBatches, smoothing: float) -> tuple[tuple[int, int], dict]:
    """Return the two views that an epoch of `batches` takes, and what each batch is made of.

    An epoch is at most one round through the images, so no more views are in it.
    """
    drawn = [batches.drawn(index) for index in range(batches.steps)]
    places, numbers = np.moveaxis(np.array(drawn), -1, 0)
    pair = (int(numbers[0, 0]), int(numbers[-1, -1]))
    targets = batches.targets[places]
    if batches.soft_labels is not None:
        targets = batches.soft_labels[numbers - 1, places]
    shares, others = np.ones(places.shape, np.float32), np.zeros(places.shape, int)
    if batches.mixup_alpha:
        mixing = [batches.mixing(index) for index in range(batches.steps)]
        shares, others = (np.array(part) for part in zip(*mixing, strict=True))
    plan = {
        "index": np.array(batches.image_indices)[places].astype(np.int32),
        "is_second": numbers != pair[0],
        "targets": targets * (1 - smoothing) + smoothing / targets.shape[-1],
        "share": shares,
        "other": others.astype(np.int32),
    }
    return pair, plan


@functools.partial(jax.jit, donate_argnums=0)
def train_epoch(
    state: tuple, frozen: net.Tree, pair: list[jax.Array], plan: dict, settings: tuple
) -> tuple:
    """Return `state`, (learned, velocity, average), after an epoch of batches as in `plan`.

    `pair` is the features of its two views; `settings` are momentum, whether it is Nesterov's (0 or
    1), and the momentum of the average.
    """
    momentum, nesterov, averaging = settings

    def mix(rows: jax.Array, batch: dict) -> jax.Array:
        share = batch["share"].astype(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1))
        return share * rows + (1 - share) * rows[batch["other"]]

    def step(state: tuple, batch: dict) -> tuple[tuple, None]:
        learned, velocity, average = state
        second = batch["is_second"][:, None, None, None]
        rows = jnp.where(second, pair[1][batch["index"]], pair[0][batch["index"]])
        inputs, targets = mix(rows, batch), mix(batch["targets"], batch)

        def loss(learned: net.Tree) -> jax.Array:
            log = jax.nn.log_softmax(net.logits(learned, frozen, inputs))
            return -(targets * log).sum(axis=-1).mean()

        steps = jax.tree.map(lambda each: batch["rate"] * each, jax.grad(loss)(learned))
        velocity = jax.tree.map(lambda v, s: momentum * v - s, velocity, steps)
        learned = jax.tree.map(
            lambda w, v, s: w + nesterov * (momentum * v - s) + (1 - nesterov) * v,
            learned,
            velocity,
            steps,
        )
        kept = jnp.where(batch["first"], 0.0, averaging)  # as Keras, which begins with the weights
        average = jax.tree.map(lambda a, w: kept * a + (1 - kept) * w, average, learned)
        return (learned, velocity, average), None

    return lax.scan(step, state, plan)[0]
