"""training.generators: the same pixels as serving's, and the same views every time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from serving.image import open_picture
from serving.preprocess import preprocess, scale
from training import generators
from training.backend import keras
from training.dataset import scan
from training.generators import Activations, Batches, Pictures, TrainingBatches, read_pixels

SIZE = (71, 90)


@pytest.fixture(scope="module")
def dataset(drawn):
    return scan(drawn)


def training_batches(dataset, views=None, mixup=0.0, **augmentation):
    source = Pictures(dataset, SIZE, augmentation)
    return TrainingBatches(source, dataset.pictures, 8, steps=3, seed=5, views=views, mixup=mixup)


def drawn_at(batches, count):
    return [batches._draw(position)[0] for position in range(count)]


def test_an_unaugmented_training_batch_is_servings_input_to_the_last_bit(dataset):
    batches = training_batches(dataset)
    inputs, targets = batches[0]
    chosen = drawn_at(batches, 8)
    files = [dataset.folder / dataset.pictures[i] for i in chosen]
    expected = np.concatenate([preprocess(open_picture(f.read_bytes(), SIZE), SIZE) for f in files])
    assert inputs.dtype == expected.dtype == np.float32
    assert np.array_equal(inputs, expected)
    assert np.array_equal(targets.argmax(axis=1), dataset.labels(dataset.pictures)[chosen])


def test_a_large_picture_is_read_as_serving_reads_it(tmp_path):
    height, width = SIZE
    waves = np.sin(np.mgrid[: height * 9, : width * 9].sum(0) / 50) * 100 + 128
    for name in ("large.jpg", "large.png"):
        path = tmp_path / name
        Image.fromarray(waves.astype(np.uint8)).save(path)
        expected = preprocess(open_picture(path.read_bytes(), SIZE), SIZE)[0]
        assert open_picture(path, SIZE).width < width * 9
        assert np.array_equal(scale(read_pixels(path, SIZE)), expected)


def test_validation_is_never_augmented_and_covers_all_once(dataset):
    names = dataset.pictures[3:]
    batches = Batches(Pictures(dataset, SIZE, {"rotation_range": 90}), names, 8)
    assert len(batches) == 6  # 47 pictures
    inputs, targets = (
        np.concatenate(part) for part in zip(*[batches[i] for i in range(6)], strict=True)
    )
    expected = [preprocess(open_picture(dataset.folder / p, SIZE), SIZE)[0] for p in names]
    assert np.array_equal(inputs, np.stack(expected))
    assert np.array_equal(targets.argmax(axis=1), dataset.labels(names))
    assert np.array_equal(targets.sum(axis=1), np.ones(47))


def test_every_picture_is_drawn_before_one_comes_again(dataset):
    drawn = drawn_at(training_batches(dataset), 150)
    for round_ in range(3):
        one = drawn[round_ * 50 : (round_ + 1) * 50]
        assert sorted(one) == list(range(50))
        assert one != list(range(50))


def test_views_come_by_turns_or_are_always_new(dataset):
    limited, endless = training_batches(dataset, views=2), training_batches(dataset)
    assert [limited._draw(50 * round_)[1] for round_ in range(5)] == [1, 2, 1, 2, 1]
    assert [endless._draw(50 * round_)[1] for round_ in range(5)] == [1, 2, 3, 4, 5]


def test_a_batch_depends_on_its_epoch_and_place_alone(dataset):
    one, other = (
        training_batches(dataset, rotation_range=40, zoom_range=0.3, mixup=0.4) for _ in range(2)
    )
    one.begin_epoch(1)
    for index in (2, 0):  # as if the run had another past
        other[index]
    other.begin_epoch(1)
    for mine, same in zip(one[2], other[2], strict=True):
        assert np.array_equal(mine, same)
    one.begin_epoch(2)
    assert not np.array_equal(one[2][0], other[2][0])


def test_a_view_depends_on_the_pictures_content_alone(dataset, tmp_path):
    name = dataset.pictures[7]
    for folder, copy in (("a", "first.png"), ("b", "other.png")):
        (tmp_path / folder).mkdir()
        for other in dataset.pictures[10:15]:
            target = tmp_path / folder / f"{folder}{other.replace('/', '_')}"
            target.write_bytes((dataset.folder / other).read_bytes())
        (tmp_path / folder / copy).write_bytes((dataset.folder / name).read_bytes())
    elsewhere = scan(tmp_path)
    settings = {"rotation_range": 40}
    here = Pictures(dataset, SIZE, settings).inputs([(7, 1), (7, 2)])
    places = [elsewhere.pictures.index(n) for n in ("a/first.png", "b/other.png")]
    there = [Pictures(elsewhere, SIZE, settings).inputs([(i, 1), (i, 2)]) for i in places]
    assert np.array_equal(here, there[0])
    assert np.array_equal(here, there[1])
    assert not np.array_equal(here[0], here[1])


def test_a_flip_is_the_picture_or_its_mirror_image(dataset):
    source = Pictures(dataset, SIZE, {"horizontal_flip": True})
    mirrored = []
    for index in range(24):
        [row] = source.inputs([(index, 1)])
        original = scale(read_pixels(dataset.folder / dataset.pictures[index], SIZE))
        mirrored.append(np.array_equal(row, original[:, ::-1]))
        assert mirrored[-1] or np.array_equal(row, original)
    assert 4 < sum(mirrored) < 20


def test_a_shift_is_within_its_range_and_filled_with_the_nearest(dataset):
    source = Pictures(dataset, SIZE, {"height_shift_range": 0.4, "width_shift_range": 0.4})
    for index in range(8):
        name = dataset.pictures[index]
        original = read_pixels(dataset.folder / name, SIZE).astype(np.float32)
        entropy = (int(dataset.digests[name][:16], 16), 1)
        drawn = np.random.SeedSequence(entropy).generate_state(1)[0]
        change = source._augmentation.get_random_transform(original.shape, seed=int(drawn))
        shift = np.array([change["tx"], change["ty"]])
        assert (np.abs(shift) <= 0.4 * np.array(SIZE)).all()
        # Keras lays tx along the columns and ty along the rows, whatever it calls them.
        expected = ndimage.shift(original, (*-shift[::-1], 0), order=1, mode="nearest")
        assert np.allclose(scale(expected), source.inputs([(index, 1)])[0], atol=1e-4)


def test_threads_of_the_loader_do_not_disturb_each_other(dataset):
    batches = training_batches(dataset, rotation_range=40, width_shift_range=0.4)
    alone = [batches[index][0] for index in range(3)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: batches[index % 3][0], range(12)))
    assert all(np.array_equal(alone[i % 3], batch) for i, batch in enumerate(together))


def test_mixup_mixes_pictures_and_their_classes_alike(dataset):
    plain, mixed = training_batches(dataset), training_batches(dataset, mixup=1.0)
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


@pytest.fixture(scope="module")
def frozen():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(4, 5, strides=4, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def test_activations_are_the_networks_and_computed_once(dataset, frozen, tmp_path, monkeypatch):
    pictures = Pictures(dataset, SIZE, {"rotation_range": 40})
    picks = [(3, 0), (4, 1), (4, 2), (3, 1)]
    activations = Activations(pictures, frozen, "float32", tmp_path)
    assert activations.compute(picks, batch_size=3) == 4
    expected = frozen.predict(pictures.inputs(picks), verbose=0)
    assert np.allclose(activations.inputs(picks), expected, atol=1e-5)

    def nothing(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(generators, "compile_forward", nothing)
    again = Activations(pictures, frozen, "float32", tmp_path)
    assert again.compute(picks) == 0
    assert np.array_equal(again.inputs(picks), activations.inputs(picks))


def test_what_changed_is_computed_again(dataset, frozen, tmp_path):
    def computed(settings=None, model=frozen, size=SIZE, picks=((3, 0), (3, 1))):
        pictures = Pictures(dataset, size, settings or {"rotation_range": 40})
        return Activations(pictures, model, "float32", tmp_path).compute(picks)

    assert computed() == 2
    assert computed({"rotation_range": 30}) == 1  # the view as it is stays what it was
    assert computed(picks=[(5, 1)]) == 1
    other = keras.models.clone_model(frozen)
    assert computed(model=other) == 2
    assert computed() == 0


def test_copies_of_a_picture_are_computed_once(drawn, frozen, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index, file in enumerate(sorted(drawn.glob("rose/*"))[:5]):
            (tmp_path / "data" / name / f"{name}{index}.jpg").write_bytes(file.read_bytes())
    activations = Activations(
        Pictures(scan(tmp_path / "data"), SIZE), frozen, "float32", tmp_path / "cache"
    )
    assert activations.compute([(i, 0) for i in range(10)]) == 5
    rows = activations.inputs([(i, 0) for i in range(10)])
    assert np.array_equal(rows[:5], rows[5:])
