"""training.batches: the same pixels as serving's, and the same views every time."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from serving.image import open_image
from serving.preprocess import preprocess, scale
from training import feature_store
from training.backend import keras
from training.batches import Batches, TrainingBatches, predict
from training.dataset.scan import scan
from training.errors import CacheError
from training.features import CachedFeatures
from training.fit import compile_model, fit_epochs
from training.images import ImageSource, InMemoryImages, read_pixels
from training.prefetch import prefetch

SIZE = (71, 90)


@pytest.fixture(scope="module")
def dataset(drawn):
    return scan(drawn)


def training_batches(dataset, views=None, mixup_alpha=0.0, **augmentation):
    source = ImageSource(dataset, SIZE, augmentation)
    return TrainingBatches(
        source, dataset.images, 8, steps=3, seed=5, views=views, mixup_alpha=mixup_alpha
    )


def drawn_at(batches, count):
    return [batches._draw(position)[0] for position in range(count)]


class Numbers:
    """A source whose input of an image is its number, one-hot, in whatever view."""

    def __init__(self, dataset):
        self.dataset = dataset

    def inputs(self, samples):
        return np.eye(len(self.dataset.images), dtype=np.float32)[[index for index, _ in samples]]


def numbers(dataset, names=None, seed=5, steps=3, **options):
    names = dataset.images if names is None else names
    return TrainingBatches(Numbers(dataset), names, 8, steps=steps, seed=seed, **options)


def test_an_unaugmented_training_batch_is_servings_input_to_the_last_bit(dataset):
    batches = training_batches(dataset)
    inputs, targets = batches[0]
    chosen = drawn_at(batches, 8)
    files = [dataset.folder / dataset.images[i] for i in chosen]
    expected = np.concatenate([preprocess(open_image(f.read_bytes(), SIZE), SIZE) for f in files])
    assert inputs.dtype == expected.dtype == np.float32
    assert np.array_equal(inputs, expected)
    assert np.array_equal(targets.argmax(axis=1), dataset.labels(dataset.images)[chosen])


def test_a_large_image_is_read_as_serving_reads_it(tmp_path):
    height, width = SIZE
    waves = np.sin(np.mgrid[: height * 9, : width * 9].sum(0) / 50) * 100 + 128
    for name in ("large.jpg", "large.png"):
        path = tmp_path / name
        Image.fromarray(waves.astype(np.uint8)).save(path)
        expected = preprocess(open_image(path.read_bytes(), SIZE), SIZE)[0]
        assert open_image(path, SIZE).width < width * 9
        assert np.array_equal(scale(read_pixels(path, SIZE)), expected)


def test_validation_is_never_augmented_and_covers_all_once(dataset):
    names = dataset.images[3:]
    batches = Batches(ImageSource(dataset, SIZE, {"rotation_range": 90}), names, 8)
    assert len(batches) == 6  # 47 images
    inputs, targets = (
        np.concatenate(part) for part in zip(*[batches[i] for i in range(6)], strict=True)
    )
    expected = [preprocess(open_image(dataset.folder / p, SIZE), SIZE)[0] for p in names]
    assert np.array_equal(inputs, np.stack(expected))
    assert np.array_equal(targets.argmax(axis=1), dataset.labels(names))
    assert np.array_equal(targets.sum(axis=1), np.ones(47))


def test_every_image_is_drawn_before_one_comes_again(dataset):
    drawn = drawn_at(training_batches(dataset), 150)
    for round_ in range(3):
        assert sorted(drawn[round_ * 50 : (round_ + 1) * 50]) == list(range(50))


def test_each_round_and_each_seed_has_an_order_of_its_own(dataset):
    orders = [np.arange(50), *np.reshape(drawn_at(numbers(dataset), 150), (3, 50))]
    orders.append(drawn_at(numbers(dataset, seed=6), 50))
    for number, order in enumerate(orders):
        for other in orders[:number]:
            # Of two orders drawn apart, about one place in 50 holds the same image.
            assert np.mean(order == other) < 0.2
    for order in orders[1:]:
        assert np.mean(np.diff(order) == 1) < 0.2  # also not the folders' order begun elsewhere


def test_a_batch_holds_none_but_the_images_it_was_given(dataset):
    names = dataset.images[1::3]
    batches = numbers(dataset, names, steps=2)
    inputs, targets = (np.concatenate(part) for part in zip(batches[0], batches[1], strict=True))
    served = [dataset.images[place] for place in inputs.argmax(axis=1)]
    assert len(set(served)) == 16
    assert set(served) <= set(names)
    assert np.array_equal(targets.argmax(axis=1), dataset.labels(served))


def test_an_epoch_goes_on_where_the_one_before_has_ended(dataset):
    batches = numbers(dataset, steps=4)
    served = []
    for epoch in range(3):
        batches.begin_epoch(epoch)
        served += [place for index in range(4) for place in batches[index][0].argmax(axis=1)]
    assert served == drawn_at(batches, 96)


def test_views_come_by_turns_or_are_always_new(dataset):
    limited, endless = training_batches(dataset, views=2), training_batches(dataset)
    assert [limited._draw(50 * round_)[1] for round_ in range(5)] == [1, 2, 1, 2, 1]
    assert [endless._draw(50 * round_)[1] for round_ in range(5)] == [1, 2, 3, 4, 5]


def test_a_batch_depends_on_its_epoch_and_place_alone(dataset):
    one, other = (
        training_batches(dataset, rotation_range=40, zoom_range=0.3, mixup_alpha=0.4)
        for _ in range(2)
    )
    one.begin_epoch(1)
    for index in (2, 0):  # as if the run had another past
        other[index]
    other.begin_epoch(1)
    for mine, same in zip(one[2], other[2], strict=True):
        assert np.array_equal(mine, same)
    one.begin_epoch(2)
    assert not np.array_equal(one[2][0], other[2][0])


def test_a_view_depends_on_the_images_content_alone(dataset, tmp_path):
    name = dataset.images[7]
    for folder, copy in (("a", "first.png"), ("b", "other.png")):
        (tmp_path / folder).mkdir()
        for other in dataset.images[10:15]:
            target = tmp_path / folder / f"{folder}{other.replace('/', '_')}"
            target.write_bytes((dataset.folder / other).read_bytes())
        (tmp_path / folder / copy).write_bytes((dataset.folder / name).read_bytes())
    elsewhere = scan(tmp_path)
    settings = {"rotation_range": 40}
    here = ImageSource(dataset, SIZE, settings).inputs([(7, 1), (7, 2)])
    places = [elsewhere.images.index(n) for n in ("a/first.png", "b/other.png")]
    there = [ImageSource(elsewhere, SIZE, settings).inputs([(i, 1), (i, 2)]) for i in places]
    assert np.array_equal(here, there[0])
    assert np.array_equal(here, there[1])
    assert not np.array_equal(here[0], here[1])


def test_a_flip_is_the_image_or_its_mirror_image(dataset):
    source = ImageSource(dataset, SIZE, {"horizontal_flip": True})
    mirrored = []
    for index in range(24):
        [row] = source.inputs([(index, 1)])
        original = scale(read_pixels(dataset.folder / dataset.images[index], SIZE))
        mirrored.append(np.array_equal(row, original[:, ::-1]))
        assert mirrored[-1] or np.array_equal(row, original)
    assert 4 < sum(mirrored) < 20


def test_a_shift_is_within_its_range_and_filled_with_the_nearest(dataset):
    source = ImageSource(dataset, SIZE, {"height_shift_range": 0.4, "width_shift_range": 0.4})
    for index in range(8):
        name = dataset.images[index]
        original = read_pixels(dataset.folder / name, SIZE).astype(np.float32)
        entropy = (int(dataset.digests[name][:16], 16), 1)
        drawn = np.random.SeedSequence(entropy).generate_state(1)[0]
        change = source._augmentation.get_random_transform(original.shape, seed=int(drawn))
        shift = np.array([change["tx"], change["ty"]])
        assert (np.abs(shift) <= 0.4 * np.array(SIZE)).all()
        # Keras lays tx along the columns and ty along the rows, whatever it calls them.
        expected = ndimage.shift(original, (*-shift[::-1], 0), order=1, mode="nearest")
        assert np.allclose(scale(expected), source.inputs([(index, 1)])[0], atol=1e-4)


def test_threads_of_the_loader_do_not_disturb_each_other(dataset, monkeypatch):
    batches = training_batches(dataset, rotation_range=40, width_shift_range=0.4)
    alone = [batches[index][0] for index in range(3)]
    seed = np.random.seed

    def seed_slowly(*given):
        seed(*given)
        time.sleep(0.002)  # enough for another thread to come between the seed and the draw

    monkeypatch.setattr(np.random, "seed", seed_slowly)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: batches[index % 3][0], range(12)))
    assert all(np.array_equal(alone[i % 3], batch) for i, batch in enumerate(together))


def test_mixup_mixes_images_and_their_classes_alike(dataset):
    plain, mixed = training_batches(dataset), training_batches(dataset, mixup_alpha=1.0)
    inputs, targets = plain[1]
    mixed_inputs, mixed_targets = mixed[1]
    assert np.allclose(mixed_targets.sum(axis=1), 1)
    pairs = set()
    for row, target in zip(mixed_inputs, mixed_targets, strict=True):
        # The pair and the share that explain the pixels also explain the class.
        fits = []
        for i in range(8):
            for j in range(8):
                difference = inputs[i] - inputs[j]
                scale_ = (difference**2).sum()
                share = ((row - inputs[j]) * difference).sum() / scale_ if scale_ else 1.0
                error = np.abs(share * inputs[i] + (1 - share) * inputs[j] - row).max()
                fits.append((error, i, j, share))
        error, i, j, share = min(fits)
        assert error < 1e-4
        assert np.allclose(share * targets[i] + (1 - share) * targets[j], target, atol=1e-3)
        pairs.add((i, j))
    assert len(pairs) > 4


def pairs_and_shares(batches, index):
    """Return of each row of a batch of `numbers` which one it is mixed with, and its own share."""
    batch = batches.epoch * batches.steps + index
    own = [batches._draw(batch * 8 + row)[0] for row in range(8)]
    inputs, _ = batches[index]
    shares = inputs[np.arange(8), own]
    inputs[np.arange(8), own] = 0
    others = [own.index(row.argmax()) if row.any() else n for n, row in enumerate(inputs)]
    return others, shares


def test_mixup_draws_pairs_and_shares_anew_for_every_batch(dataset):
    batches = numbers(dataset, mixup_alpha=0.4)
    drawn = []
    for epoch in range(2):
        batches.begin_epoch(epoch)
        drawn += [pairs_and_shares(batches, index) for index in range(3)]
    assert len({tuple(others) for others, _ in drawn}) == 6
    mixed = [share for others, shares in drawn for n, share in enumerate(shares) if others[n] != n]
    assert len(set(mixed)) == len(mixed) > 30


def test_mixups_shares_are_those_of_its_beta_distribution(dataset):
    for alpha in (0.2, 2.0):
        batches = numbers(dataset, mixup_alpha=alpha, steps=200)
        drawn = [pairs_and_shares(batches, index) for index in range(200)]
        shares = np.array([share for o, s in drawn for n, share in enumerate(s) if o[n] != n])
        assert shares.mean() == pytest.approx(0.5, abs=0.04)
        assert shares.var() == pytest.approx(1 / (8 * alpha + 4), rel=0.1)


def test_remembered_images_are_the_same_and_decoded_once(dataset, monkeypatch):
    samples = [(3, 0), (4, 1), (3, 1), (3, 2), (4, 0)]
    expected = ImageSource(dataset, SIZE, {"rotation_range": 40}).inputs(samples)
    decoded = []
    monkeypatch.setattr(
        "training.images.read_pixels",
        lambda *given: decoded.append(given[0]) or read_pixels(*given),
    )
    remembered = InMemoryImages(dataset, SIZE, {"rotation_range": 40})
    assert np.array_equal(remembered.inputs(samples), expected)
    assert np.array_equal(remembered.inputs(samples), expected)
    assert decoded == [dataset.folder / dataset.images[index] for index in (3, 4)]


def test_batches_are_read_ahead_and_come_in_their_order():
    started = []

    def read(batch):
        started.append(batch[0])
        time.sleep(0.002 * (batch[0] % 3))  # so that they are done in another order
        return np.array(batch)

    batches = [[number, -number] for number in range(20)]
    reading = prefetch(batches, read, workers=2)
    batch, inputs = next(reading)
    assert len(started) <= 5  # what waits is bounded: twice the workers, and the one given
    received = [(batch, inputs), *reading]
    assert [batch for batch, _ in received] == batches
    assert all(np.array_equal(inputs, batch) for batch, inputs in received)


def test_nothing_more_is_read_once_nobody_wants_it():
    started = []

    def read(batch):
        started.append(batch)
        time.sleep(0.01)
        return np.array(batch)

    reading = prefetch([[number] for number in range(100)], read, workers=1)
    next(reading)
    reading.close()
    count = len(started)
    assert count <= 3
    time.sleep(0.03)
    assert len(started) == count


@pytest.fixture(scope="module")
def frozen():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(4, 5, strides=4, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def test_activations_are_the_networks_and_computed_once(dataset, frozen, tmp_path, monkeypatch):
    images = ImageSource(dataset, SIZE, {"rotation_range": 40})
    samples = [(3, 0), (4, 1), (4, 2), (3, 1)]
    activations = CachedFeatures(images, frozen, "float32", tmp_path)
    assert activations.compute(samples, batch_size=3) == 4
    expected = frozen.predict(images.inputs(samples), verbose=0)
    assert np.allclose(activations.inputs(samples), expected, atol=1e-5)

    def nothing(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr("training.features.compile_inference", nothing)
    again = CachedFeatures(images, frozen, "float32", tmp_path)
    assert again.compute(samples) == 0
    assert np.array_equal(again.inputs(samples), activations.inputs(samples))


@pytest.fixture
def no_network(monkeypatch):
    """Compute nothing: each activation is 0."""

    def compile_zeros(model, policy, batch_size):
        return lambda inputs: np.zeros((len(inputs), *model.output_shape[1:]))

    monkeypatch.setattr("training.features.compile_inference", compile_zeros)


@pytest.mark.usefixtures("no_network")
def test_what_changed_is_computed_again(dataset, frozen, tmp_path, monkeypatch):
    def computed(
        settings=None, model=frozen, size=SIZE, policy="float32", samples=((3, 0), (3, 1))
    ):
        images = ImageSource(dataset, size, settings or {"rotation_range": 40, "zoom_range": 0.1})
        return CachedFeatures(images, model, policy, tmp_path).compute(samples)

    assert computed() == 2
    # The view as it is stays what it was.
    assert computed({"rotation_range": 30, "zoom_range": 0.1}) == 1
    assert computed({"zoom_range": 0.1, "rotation_range": 40}) == 0
    assert computed(samples=[(5, 1)]) == 1
    assert computed(model=keras.models.clone_model(frozen)) == 2
    assert computed(size=(71, 91)) == 2
    assert computed(size=(90, 71)) == 2
    assert computed(policy="mixed_bfloat16") == 2
    for name, other in (
        ("best_engine", lambda: "another engine"),
        ("version", lambda package: "99"),
        ("INPUT_SCALING", "pixels / 255"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(f"training.features.{name}", other)
            assert computed() == 2
    assert computed() == 0


@pytest.mark.usefixtures("no_network")
def test_what_another_process_has_computed_meanwhile_is_not_computed_again(
    dataset, frozen, tmp_path, monkeypatch
):
    images = ImageSource(dataset, SIZE)
    mine, other = (CachedFeatures(images, frozen, "float32", tmp_path) for _ in range(2))
    writer = mine.plain.writer

    @contextmanager
    def write_after_the_other():
        assert other.compute([(0, 0), (1, 0)]) == 2
        with writer() as mine_writer:
            yield mine_writer

    monkeypatch.setattr(mine.plain, "writer", write_after_the_other)
    assert mine.compute([(1, 0), (2, 0)]) == 1
    [index] = tmp_path.glob("*/index.txt")
    names = index.read_text().split()
    assert sorted(names) == sorted(dataset.digests[dataset.images[i]] for i in range(3))


def test_without_room_nothing_is_computed(dataset, frozen, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    activations = CachedFeatures(ImageSource(dataset, SIZE), frozen, "float32", tmp_path)
    with pytest.raises(CacheError):
        activations.compute([(0, 0)])
    assert activations.compute([]) == 0


def test_pooled_activations_are_kept_exactly_and_larger_ones_at_half_the_size(
    dataset, frozen, tmp_path
):
    places = keras.Model(frozen.input, frozen.layers[1].output)
    kept = [
        CachedFeatures(ImageSource(dataset, SIZE), model, "float32", tmp_path).plain.dtype
        for model in (frozen, places)
    ]
    assert kept == [np.float32, np.float16]


def test_copies_of_an_image_are_computed_once(drawn, frozen, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index, file in enumerate(sorted(drawn.glob("rose/*"))[:5]):
            (tmp_path / "data" / name / f"{name}{index}.jpg").write_bytes(file.read_bytes())
    activations = CachedFeatures(
        ImageSource(scan(tmp_path / "data"), SIZE), frozen, "float32", tmp_path / "cache"
    )
    assert activations.compute([(i, 0) for i in range(10)]) == 5
    rows = activations.inputs([(i, 0) for i in range(10)])
    assert np.array_equal(rows[:5], rows[5:])


def test_soft_labels_are_those_of_the_view_and_are_mixed_as_classes_are(dataset):
    count, classes = len(dataset.images), len(dataset.class_names)
    labels = np.random.default_rng(0).dirichlet(np.ones(classes), (2, count)).astype(np.float32)
    plain = numbers(dataset, views=2, soft_labels=labels)
    for batch in range(2 * count // 8):
        plain.begin_epoch(batch // 3)
        inputs, targets = plain[batch % 3]
        for row in range(8):
            place, view = plain._draw(batch * 8 + row)
            assert inputs[row].argmax() == place
            assert np.array_equal(targets[row], labels[view - 1, place])
    mixed = numbers(dataset, views=2, soft_labels=labels, mixup_alpha=1.0)
    inputs, targets = mixed[0]
    assert np.allclose(targets, inputs @ labels[0], atol=1e-6)


class Gone(Numbers):
    """Numbers whose last image cannot be read."""

    def inputs(self, samples):
        if len(self.dataset.images) - 1 in [index for index, _ in samples]:
            raise FileNotFoundError(2, "No such file or directory", "gone.jpg")
        return super().inputs(samples)


@pytest.mark.parametrize("when", ["predict", "fit", "validate"])
def test_what_keeps_a_late_batch_from_being_read_is_raised_as_it_was(dataset, when):
    sound, broken = (Batches(source(dataset), dataset.images, 2) for source in (Numbers, Gone))
    classes = len(dataset.class_names)
    inputs = keras.Input((len(dataset.images),))
    model = keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(inputs))
    compile_model(model, 0.1, 0.9)
    trained = TrainingBatches(broken.source, dataset.images, 2, steps=len(broken), seed=5)
    run = {
        "predict": lambda: predict(model, broken),
        "fit": lambda: fit_epochs(model, trained, sound, epochs=(0, 1)),
        "validate": lambda: fit_epochs(model, numbers(dataset), broken, epochs=(0, 1)),
    }
    with pytest.raises(FileNotFoundError) as caught:
        run[when]()
    assert caught.value.filename == "gone.jpg"


def test_an_error_of_something_else_is_raised_as_it_is(dataset):
    def stop(*_):
        raise OSError("full")

    inputs = keras.Input((len(dataset.images),))
    model = keras.Model(inputs, keras.layers.Dense(len(dataset.class_names))(inputs))
    compile_model(model, 0.1, 0.9)
    stopping = [keras.callbacks.LambdaCallback(on_epoch_end=stop)]
    with pytest.raises(OSError, match="full"):
        fit_epochs(model, numbers(dataset), None, epochs=(0, 1), callbacks=stopping)
