"""training.batches: which images and views are in which batch, and what the cache is told."""

import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

from training import features
from training.backend import keras
from training.batches import Batches, PaddedBatches, TrainingBatches, image_indices
from training.dataset.scan import Dataset, scan
from training.feature_store import FeatureStore
from training.features import CachedFeatures
from training.images import ImageSource, InMemoryImages, read_pixels
from training.inference import best_engine
from training.model import weights_digest
from training.prefetch import WORKERS, prefetch, progress

SIZE = (8, 10)
NAMES = tuple(f"{name}/{i}" for name in "ab" for i in range(5))


class Picks:
    """A source whose inputs are the picks themselves."""

    dataset = Dataset(None, ("a", "b"), NAMES, (), {name: f"{name} digest" for name in NAMES})

    def inputs(self, samples):
        return np.array(samples, np.float32).reshape(-1, 2)


def classes(targets):
    assert targets.dtype == np.float32
    assert np.array_equal(targets.sum(axis=1), np.ones(len(targets)))
    return targets.argmax(axis=1).tolist()


def test_places_are_those_among_all_images():
    assert image_indices(Picks.dataset, ["b/0", "a/1", "b/0"]) == [5, 1, 5]


# In order.


def test_batches_hold_all_images_once_in_order_as_they_are():
    names = ("b/4", "a/0", "b/1", "a/2", "a/3", "b/0", "a/1")
    batches = Batches(Picks(), names, 3)
    assert len(batches) == 3
    picked = [batches[i] for i in range(3)]
    assert [inputs.tolist() for inputs, _ in picked] == [
        [[9, 0], [0, 0], [6, 0]],
        [[2, 0], [3, 0], [5, 0]],
        [[1, 0]],
    ]
    assert [classes(targets) for _, targets in picked] == [[1, 0, 1], [0, 0, 1], [0]]
    assert len(Batches(Picks(), names[:6], 3)) == 2
    assert (batches.workers, batches.max_queue_size) == (WORKERS, 2 * WORKERS + 2)


def test_of_each_batch_only_the_rows_asked_for_are_made():
    batches = Batches(Picks(), NAMES, 4, slice(2, 4))
    assert [batches[i][0][:, 0].tolist() for i in range(3)] == [[2, 3], [6, 7], []]


def test_even_batches_are_filled_up_with_what_weighs_nothing():
    batches = PaddedBatches(Picks(), NAMES[3:], 4, slice(1, 4))  # 7 images in 2 batches
    (first, first_targets, first_weights), (last, last_targets, last_weights) = batches
    assert (first[:, 0].tolist(), classes(first_targets)) == ([4, 5, 6], [0, 1, 1])
    assert (last[:, 0].tolist(), classes(last_targets)) == ([8, 9, 9], [1, 1, 1])
    assert (first[:, 1] == 0).all()
    assert first_weights == pytest.approx([8 / 7] * 3)
    assert last_weights == pytest.approx([8 / 7, 8 / 7, 0])
    assert first_weights.dtype == np.float32


# Shuffled.


def order(seed, round_, count=10):
    return np.random.default_rng((seed, round_)).permutation(count).tolist()


@pytest.mark.parametrize("views", [None, 1, 2])
def test_training_goes_through_rounds_of_all_images_each_in_its_view(views):
    batches = TrainingBatches(Picks(), NAMES, 4, steps=3, seed=5, views=views)
    assert len(batches) == 3
    picked = []
    for epoch in range(2):
        batches.begin_epoch(epoch)
        for index in range(3):
            inputs, targets = batches[index]
            assert classes(targets) == [int(sample >= 5) for sample in inputs[:, 0]]
            picked += inputs.astype(int).tolist()
    sequence = [
        [sample, round_ % (views or 3) + 1] for round_ in range(3) for sample in order(5, round_)
    ]
    assert picked == sequence[:24]


def test_training_draws_from_the_images_it_is_given():
    batches = TrainingBatches(Picks(), ("b/1", "a/3"), 2, steps=1, seed=0)
    for epoch in range(4):
        batches.begin_epoch(epoch, {"loss": 1.0})
        inputs, targets = batches[0]
        assert sorted(inputs[:, 0]) == [3, 6]
        assert sorted(classes(targets)) == [0, 1]


def test_without_mixup_only_the_rows_asked_for_are_made():
    whole = TrainingBatches(Picks(), NAMES, 6, steps=2, seed=1)[1]
    part = TrainingBatches(Picks(), NAMES, 6, steps=2, seed=1, rows=slice(4, 6))[1]
    for one, other in zip(whole, part, strict=True):
        assert np.array_equal(one[4:], other)


def test_mixup_draws_its_shares_and_pairs_anew_for_each_batch():
    plain = TrainingBatches(Picks(), NAMES, 6, steps=2, seed=1)
    mixed = TrainingBatches(Picks(), NAMES, 6, steps=2, seed=1, mixup_alpha=0.4, rows=slice(1, 5))
    for epoch in range(2):
        plain.begin_epoch(epoch)
        mixed.begin_epoch(epoch)
        for index in range(2):
            rng = np.random.default_rng((1, 2 * epoch + index, 1))
            shares = rng.beta(0.4, 0.4, 6)[:, np.newaxis]
            others = rng.permutation(6)
            for rows, found in zip(plain[index], mixed[index], strict=True):
                expected = shares * rows + (1 - shares) * rows[others]
                assert found.dtype == np.float32
                assert found == pytest.approx(expected[1:5], abs=1e-5)


# Images.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images of noise, in two classes."""
    folder = tmp_path_factory.mktemp("noise")
    for number, name in enumerate(NAMES):
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 14, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def test_a_remembered_image_is_read_once(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        "training.images.read_pixels", lambda *of: read.append(of) or read_pixels(*of)
    )
    dataset = scan(folder)
    settings = {"rotation_range": 40}
    remembered = InMemoryImages(dataset, SIZE, settings)
    plain = ImageSource(dataset, SIZE, settings)
    for samples in ([(1, 0), (2, 1)], [(2, 0), (1, 1), (2, 2)]):
        assert np.array_equal(remembered.inputs(samples), plain.inputs(samples))
    files = [path.name for path, _ in read]
    assert files.count("1.png") == 1 + 2
    assert files.count("2.png") == 1 + 3
    assert all(size == SIZE for _, size in read)


def test_without_settings_all_views_are_the_image(folder):
    images = ImageSource(scan(folder), SIZE)
    assert images.settings == {}
    [plain, view] = images.inputs([(0, 0), (0, 5)])
    assert np.array_equal(plain, view)


# Activations.


@pytest.fixture(scope="module")
def network():
    """A frozen network; `pooled` says whether its outputs have lost their place."""

    def build(pooled):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((*SIZE, 3))
        x = keras.layers.Conv2D(4, 3, strides=2)(inputs)
        return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x) if pooled else x)

    return build


SETTINGS = {"zoom_range": 0.1, "rotation_range": 40}
AUGMENTATION = hashlib.sha256(b'{"rotation_range": 40, "zoom_range": 0.1}').hexdigest()[:8]


@pytest.mark.parametrize(("pooled", "dtype"), [(True, "float32"), (False, "float16")])
def test_the_cache_is_told_all_that_activations_depend_on(folder, network, tmp_path, pooled, dtype):
    frozen = network(pooled)
    images = ImageSource(scan(folder), SIZE, SETTINGS)
    activations = CachedFeatures(images, frozen, "float32", tmp_path)
    plain, augmented = (
        json.loads((store.folder / "key.json").read_text())
        for store in (activations.plain, activations.augmented)
    )
    assert plain == augmented | {"augmentation": None}
    assert augmented == {
        "augmentation": SETTINGS,
        "weights": weights_digest(frozen),
        "input_size": [8, 10],
        "preprocessing": f"xception, pillow {version('pillow')}",
        "engine": f"{best_engine()} float32",
        "shape": list(frozen.output_shape[1:]),
        "dtype": dtype,
    }
    assert activations.compute([(3, 0), (3, 2)]) == 2
    digest = activations.dataset.digests["a/3.png"]
    assert (activations.plain.folder / "index.txt").read_text() == f"{digest}\n"
    names = (activations.augmented.folder / "index.txt").read_text()
    assert names == f"{digest}/{AUGMENTATION}/2\n"
    found = activations.inputs([(3, 2), (3, 0)])
    assert found.dtype == np.float32
    expected = frozen.predict(images.inputs([(3, 2), (3, 0)]), verbose=0)
    assert found == pytest.approx(expected, abs=1e-2 if dtype == "float16" else 1e-5)


def test_what_version_1_has_cached_in_one_store_is_used(folder, network, tmp_path):
    frozen = network(True)
    images = ImageSource(scan(folder), SIZE, SETTINGS)
    three, four = (images.dataset.digests[f"a/{number}.png"] for number in (3, 4))
    key = {
        "weights": weights_digest(frozen),
        "input_size": [8, 10],
        "preprocessing": f"xception, pillow {version('pillow')}",
        "engine": f"{best_engine()} float32",
    }
    names = [three, f"{three}/{AUGMENTATION}/2", f"{four}/01234567/1"]
    old = FeatureStore(tmp_path, key, (4,), "float32")
    with old.writer() as writer:
        writer.append(names, np.arange(12).reshape(3, 4))

    cached = CachedFeatures(images, frozen, "float32", tmp_path)
    samples = [(3, 0), (4, 1), (3, 2), (4, 0)]
    assert cached.missing(samples) == [(4, 1), (4, 0)]
    assert cached.compute(samples) == 2
    rows = cached.inputs(samples)
    assert rows[::2].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    expected = frozen.predict(images.inputs(samples[1::2]), verbose=0)
    assert rows[1::2] == pytest.approx(expected, abs=1e-5)
    assert (old.folder / "index.txt").read_text().split() == names
    assert CachedFeatures(images, frozen, "float32", tmp_path / "other").earlier is None


def test_missing_activations_are_computed_in_batches_each_once(
    folder, network, tmp_path, monkeypatch
):
    compiled, asked = [], []
    compile_inference = features.compile_inference

    def note(*arguments):
        compiled.append(arguments[1:])
        forward = compile_inference(*arguments)
        return lambda inputs: asked.append(len(inputs)) or forward(inputs)

    monkeypatch.setattr("training.features.compile_inference", note)
    images = ImageSource(scan(folder), SIZE)
    activations = CachedFeatures(images, network(True), "float32", tmp_path)
    checked = []
    monkeypatch.setattr(features, "require_room", lambda *asked: checked.append(asked))
    samples = [(index, 0) for index in range(7)]
    assert activations.compute([*samples, *samples], batch_size=3) == 7
    assert activations.compute(samples) == 0
    assert activations.compute([*samples, (9, 0)]) == 1
    assert compiled == [("float32", 3), ("float32", 32)]
    assert asked == [3, 3, 1, 1]
    assert checked == [(tmp_path, count * 4 * 4) for count in (7, 0, 1)]
    assert np.array_equal(activations.inputs([(9, 0)]), activations.inputs([(9, 0), (0, 0)])[:1])


def test_what_another_process_filled_meanwhile_is_not_computed_again(folder, network, tmp_path):
    images = ImageSource(scan(folder), SIZE)
    first, second = (CachedFeatures(images, network(True), "float32", tmp_path) for _ in range(2))
    assert first.compute([(0, 0), (1, 0)]) == 2
    assert second.compute([(0, 0), (1, 0), (2, 0)]) == 1


# Reading ahead.


def test_batches_are_read_ahead_and_come_in_order():
    started = []

    def read(batch):
        started.append(batch)
        return batch * 10

    reading = prefetch([1, 2, 3, 4, 5, 6, 7, 8, 9], read, workers=1)
    assert next(reading) == (1, 10)
    for _ in range(1000):  # three are asked for before the first is waited for
        if len(started) == 3:
            break
        threading.Event().wait(0.005)
    assert started == [1, 2, 3]
    assert list(reading) == [(n, n * 10) for n in range(2, 10)]


def test_what_is_no_longer_wanted_is_not_read(monkeypatch):
    started, go = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *arguments, **named):  # which waits for what is being read
            go.set()
            super().shutdown(*arguments, **named)

    def read(batch):
        started.append(batch)
        if batch > 1:
            go.wait(10)
        return batch

    monkeypatch.setattr("training.prefetch.ThreadPoolExecutor", Pool)
    reading = prefetch([1, 2, 3, 4], read, workers=1)
    assert next(reading) == (1, 1)
    reading.close()
    assert 3 not in started


# Progress.


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_rarely_where_there_is_no_terminal(monkeypatch, terminal):
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 2 and terminal)
    monkeypatch.setattr("training.prefetch.tqdm", lambda **options: options)
    shown = {
        "total": 10,
        "desc": "  activations",
        "unit": " images",
        "disable": False,
        "delay": 0,
        "initial": 0,
        "mininterval": 0.1 if terminal else 30,
        "ncols": None if terminal else 80,
    }
    assert progress(10, "  activations") == shown
    assert progress(10, "  activations", delay=5) == shown | {"delay": 5}
    assert progress(0, "  activations", "trials") == shown | {
        "total": 0,
        "unit": " trials",
        "disable": True,
    }
