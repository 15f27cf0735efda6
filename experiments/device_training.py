"""Fine-tuning on one accelerator with JAX, for `experiments.device_runs`.

What the frozen blocks make of the images, or the images themselves where no block is frozen, stays
in the accelerator's memory, and an epoch is one compiled loop.
"""

import functools
import json
import multiprocessing
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class View:
    """A view of all images that is in the accelerator's memory.

    Attributes:
        size: (height, width) in pixels.
        settings: how it was augmented (JSON); empty for plain images.
        number: of the view, from 1; 0 for plain images.
        is_pixels: whether it is kept as pixels, uint8 (images, height, width, 3), or as what blocks
            1 to 4 make of them, (images, h, w, 728).
    """

    size: tuple[int, int]
    settings: str
    number: int
    is_pixels: bool


class Device:
    """Pretrained weights, and the inputs of what learns for views of all images.

    Attributes:
        dataset: whose images they are.
        kept: the views in memory.
        heads: softmax layers that were trained alone, by all that they depend on.
    """

    def __init__(self, dataset: Dataset, weights: str, processes: int):
        """Load `weights`, as train.py's --weights; read images in so many `processes`."""
        self.dataset, self.processes = dataset, processes
        keras.utils.set_random_seed(0)  # without weights, each process has the same base
        model = build_model((299, 299), (), len(dataset.class_names))
        print(f"Model: {load_pretrained(model, weights, SHIPPED)}, on {jax.devices()[0]}.")
        arrays = net.read_weights(model.get_layer(BASE_LAYER))
        self._low, *self._upper = jax.device_put(arrays)
        self.kept: dict[View, jax.Array] = {}
        self._wanted: Collection[View] = ()
        self.heads: dict[tuple, tuple[np.ndarray, ...]] = {}

    def network(self, fine_tune_at: int | None) -> tuple[net.Tree, net.Tree]:
        """Return (what learns, as it starts, but for its head; the scales beside it).

        Blocks below `fine_tune_at` are among what learns if they are in the middle.
        """
        return net.whole(self._low, *self._upper) if fine_tune_at == 1 else tuple(self._upper)

    def views(
        self, source: ImageSource, numbers: Sequence[int], *, as_pixels: bool = False
    ) -> list[jax.Array]:
        """Return the views `numbers` of all images, as described at `View`."""
        wanted = [view_of(source, number, is_pixels=as_pixels) for number in numbers]
        with pixels_of(source, self.processes) as read:
            for view in wanted:
                if view not in self.kept:
                    self._compute(read, view)
        return [self.kept[view] for view in wanted]

    def keep_only(self, views: Collection[View]) -> None:
        """Free the memory of all views but these, of which each image is to be read once."""
        self._wanted = views
        self.kept = {view: rows for view, rows in self.kept.items() if view in views}

    def _compute(self, read: Reader, view: View) -> None:
        both = [replace(view, is_pixels=kind) for kind in (False, True)]
        kinds = [each.is_pixels for each in both if each == view or each in self._wanted]
        rows: dict[bool, list[jax.Array]] = {kind: [] for kind in kinds}
        count, batch = len(self.dataset.images), []
        with progress(count, f"  view {view.number}") as bar:
            for pixels in read([(index, view.number) for index in range(count)]):
                batch.append(pixels)
                bar.update()
                if len(batch) == BATCH_SIZE or bar.n == count:
                    padding = [batch[0]] * (BATCH_SIZE - len(batch))
                    found = jax.device_put(np.stack(batch + padding))
                    for kind in kinds:
                        inputs = found if kind else _lower(self._low, found)
                        rows[kind].append(inputs[: len(batch)])
                    batch = []
        for kind in kinds:
            self.kept[replace(view, is_pixels=kind)] = jnp.concatenate(rows.pop(kind))


def view_of(source: ImageSource, number: int, *, is_pixels: bool) -> View:
    """Return what the view `number` of `source` is kept as."""
    settings = json.dumps(source.settings, sort_keys=True) if number else ""
    return View(source.size, settings, number, is_pixels)


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


@jax.jit
def _lower(low: net.Tree, pixels: jax.Array) -> jax.Array:
    return net.lower(low, _inputs(pixels))


def _inputs(rows: jax.Array) -> jax.Array:
    """Return rows of a view as inputs of a network: bfloat16, on CPUs float32."""
    if rows.dtype != jnp.uint8:
        return rows
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return (rows.astype(jnp.float32) / 127.5 - 1).astype(dtype)


@jax.jit
def predict(learned: net.Tree, frozen: net.Tree, view: jax.Array, index: jax.Array) -> jax.Array:
    """Return the logits, float32 (n, classes), of the rows `index` (n,) of a view."""
    batches = index.reshape(-1, min(BATCH_SIZE, len(index)))
    found = lax.map(lambda batch: net.logits(learned, frozen, _inputs(view[batch])), batches)
    return jnp.concatenate(found)


def probabilities_of(
    network: tuple[net.Tree, net.Tree], view: jax.Array, index: Sequence[int]
) -> np.ndarray:
    """Return the probabilities, float64 (n, classes), of the images `index` in a view.

    `network` is what was learned, and the scales beside it.
    """
    padded = np.pad(index, (0, -len(index) % BATCH_SIZE), mode="edge").astype(np.int32)
    scores = predict(*network, view, padded)[: len(index)]
    return np.asarray(jax.nn.softmax(scores), np.float64)


def soft_labels(
    networks: Sequence[tuple[net.Tree, net.Tree]], views: Sequence[jax.Array], run_: Run
) -> np.ndarray:
    """Return the mean probabilities of `networks`, float32 (views, training images, classes)."""
    index = image_indices(run_.images.dataset, run_.split.train)
    means = [
        np.mean([probabilities_of(each, view, index) for each in networks], axis=0)
        for view in views
    ]
    return np.array(means, np.float32)


def fit(device: Device, run_: Run, views: Sequence[jax.Array], soft: np.ndarray | None) -> net.Tree:
    """Return what `run_` learns from `views`, averaged if its recipe says so."""
    recipe, train = run_.recipe, run_.split.train
    keras.utils.set_random_seed(recipe.seed)
    learning, frozen = device.network(recipe.fine_tune_at)
    learned = jax.tree.map(jnp.array, {**learning, "head": first_head(device, run_)})
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
    is_learning = np.array([block >= (recipe.fine_tune_at or 1) for block in net.MIDDLE])
    settings = (recipe.momentum, float(recipe.nesterov), recipe.ema_momentum, is_learning)
    for epoch in range(recipe.epochs):
        batches.begin_epoch(epoch)
        pair, plan = plan_epoch(batches, smoothing)
        plan["rate"] = rates[epoch * steps : (epoch + 1) * steps]
        plan["first"] = np.arange(steps) + epoch == 0
        state = train_epoch(state, frozen, [views[each - 1] for each in pair], plan, settings)
    return state[2] if recipe.ema_momentum else state[0]


def first_head(device: Device, run_: Run) -> tuple[np.ndarray, ...]:
    """Return the softmax layer that train.py starts with: trained alone if the recipe says so."""
    recipe, dataset = run_.recipe, device.dataset
    settings = (recipe.input_size, recipe.seed, recipe.head_epochs)
    key = (run_.split.train, *settings, recipe.label_smoothing, recipe.batch_size)
    if key not in device.heads:
        model = build_model(recipe.image_size, recipe.head, len(dataset.class_names))
        if recipe.head_epochs:
            [plain] = device.views(ImageSource(dataset, recipe.image_size), [0])
            network = device.network(None)
            rows = range(0, len(plain), BATCH_SIZE)
            features = [_pool(*network, plain[i : i + BATCH_SIZE]) for i in rows]
            fit_head(run_, model, np.concatenate(features), recipe.head_epochs)
        device.heads[key] = tuple(model.layers[-1].get_weights())
    return device.heads[key]


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

    `pair` is its two views; `settings` are momentum, whether it is Nesterov's (0 or 1), the
    momentum of the average, and which blocks in the middle learn, bool (8,).
    """
    momentum, nesterov, averaging, is_learning = settings

    def mix(rows: jax.Array, batch: dict) -> jax.Array:
        share = batch["share"].astype(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1))
        return share * rows + (1 - share) * rows[batch["other"]]

    def step(state: tuple, batch: dict) -> tuple[tuple, None]:
        learned, velocity, average = state
        second = batch["is_second"][:, None, None, None]
        rows = jnp.where(second, pair[1][batch["index"]], pair[0][batch["index"]])
        inputs, targets = mix(_inputs(rows), batch), mix(batch["targets"], batch)

        def loss(learned: net.Tree) -> jax.Array:
            log = jax.nn.log_softmax(net.logits(learned, frozen, inputs))
            return -(targets * log).sum(axis=-1).mean()

        steps = jax.tree.map(lambda each: batch["rate"] * each, jax.grad(loss)(learned))
        steps["middle"] = tuple(
            jnp.where(is_learning.reshape(-1, *[1] * (each.ndim - 1)), each, 0)
            for each in steps["middle"]
        )
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
