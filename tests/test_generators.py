"""training.generators: the same pixels as serving's, and the same augmentation every time."""

import numpy as np
import pytest
from scipy import ndimage

from serving.image import open_picture
from serving.preprocess import preprocess, scale
from training.dataset import scan
from training.generators import ImageDataGenerator, PictureBatches, TrainingBatches, read_pixels

SIZE = (71, 90)


@pytest.fixture(scope="module")
def dataset(drawn):
    return scan(drawn)


def training_batches(dataset, **augmentation):
    return TrainingBatches(
        dataset,
        dataset.pictures,
        SIZE,
        batch_size=8,
        steps=3,
        seed=5,
        augmentation=ImageDataGenerator(**augmentation),
    )


def test_an_unaugmented_training_batch_is_servings_input_to_the_last_bit(dataset):
    batches = training_batches(dataset)
    inputs, targets = batches[0]
    chosen = [batches._chosen(position) for position in range(8)]
    expected = np.concatenate(
        [preprocess(open_picture(batches.paths[i].read_bytes()), SIZE) for i in chosen]
    )
    assert inputs.dtype == expected.dtype == np.float32
    assert np.array_equal(inputs, expected)
    assert np.array_equal(targets.argmax(axis=1), dataset.labels(dataset.pictures)[chosen])


def test_validation_is_never_augmented_and_covers_all_once(dataset):
    batches = PictureBatches(dataset, dataset.pictures, SIZE, batch_size=8)
    assert len(batches) == 7  # 50 pictures
    inputs, targets = (
        np.concatenate(part) for part in zip(*[batches[i] for i in range(7)], strict=True)
    )
    expected = [preprocess(open_picture(dataset.folder / p), SIZE)[0] for p in dataset.pictures]
    assert np.array_equal(inputs, np.stack(expected))
    assert np.array_equal(targets.argmax(axis=1), dataset.labels(dataset.pictures))
    assert np.array_equal(targets.sum(axis=1), np.ones(50))


def test_every_picture_is_drawn_before_one_comes_again(dataset):
    batches = training_batches(dataset)
    for round_ in range(3):
        drawn = [batches._chosen(round_ * 50 + place) for place in range(50)]
        assert sorted(drawn) == list(range(50))
        assert drawn != list(range(50))


def test_a_batch_depends_on_its_epoch_and_place_alone(dataset):
    one, other = (training_batches(dataset, rotation_range=40, zoom_range=0.3) for _ in range(2))
    one.begin_epoch(1)
    for index in (2, 0):  # as if the run had another past
        other[index]
    other.begin_epoch(1)
    assert np.array_equal(one[2][0], other[2][0])
    one.begin_epoch(2)
    assert not np.array_equal(one[2][0], other[2][0])


def test_a_flip_is_the_picture_or_its_mirror_image(dataset):
    batches = training_batches(dataset, horizontal_flip=True)
    mirrored = []
    for index in range(3):
        for place, row in enumerate(batches[index][0]):
            chosen = batches._chosen(index * 8 + place)
            original = scale(read_pixels(batches.paths[chosen], SIZE))
            mirrored.append(np.array_equal(row, original[:, ::-1]))
            assert mirrored[-1] or np.array_equal(row, original)
    assert 4 < sum(mirrored) < 20  # of 24


def test_a_shift_is_within_its_range_and_filled_with_the_nearest(dataset):
    batches = training_batches(dataset, height_shift_range=0.4, width_shift_range=0.4)
    inputs, _ = batches[0]
    for place, row in enumerate(inputs):
        original = read_pixels(batches.paths[batches._chosen(place)], SIZE).astype(np.float32)
        drawn = np.random.SeedSequence((5, place)).generate_state(1)[0]
        change = batches.augmentation.get_random_transform(original.shape, seed=int(drawn))
        shift = np.array([change["tx"], change["ty"]])
        assert (np.abs(shift) <= 0.4 * np.array(SIZE)).all()
        # Keras lays tx along the columns and ty along the rows, whatever it calls them.
        expected = ndimage.shift(original, (*-shift[::-1], 0), order=1, mode="nearest")
        assert np.allclose(scale(expected), row, atol=1e-4)


def test_threads_of_the_loader_do_not_disturb_each_other(dataset):
    from concurrent.futures import ThreadPoolExecutor

    batches = training_batches(dataset, rotation_range=40, width_shift_range=0.4)
    alone = [batches[index][0] for index in range(3)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: batches[index % 3][0], range(12)))
    assert all(np.array_equal(alone[i % 3], batch) for i, batch in enumerate(together))
