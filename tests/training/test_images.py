"""training/images.py: colours of views, and what is erased from them."""

import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from serving.preprocess import scale
from training.backend import keras
from training.dataset.scan import scan
from training.features import CachedFeatures
from training.images import ERASED_AREA, ImageDataGenerator, ImageSource, erase
from training.recipes import FINE_TUNE, ORIGINAL

SIZE = (71, 90)


@pytest.fixture(scope="module")
def dataset(drawn):
    return scan(drawn)


def seed_of(dataset, index, view):
    entropy = (int(dataset.digests[dataset.images[index]][:16], 16), view)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def keras_view(dataset, index, view, settings):
    """Return a view as ImageDataGenerator alone makes it, and the change that it drew."""
    generator = ImageDataGenerator(**settings)
    pixels = ImageSource(dataset, SIZE).read(index)
    change = generator.get_random_transform(pixels.shape, seed=seed_of(dataset, index, view))
    return generator.apply_transform(pixels.astype(np.float32), change), change


@pytest.mark.parametrize("recipe", [ORIGINAL, FINE_TUNE], ids=["original", "fine-tune"])
def test_the_recipes_views_are_image_data_generators_to_the_bit(recipe, dataset):
    views = ImageSource(dataset, SIZE, recipe.augmentation).inputs([(3, 1), (8, 2)])
    for row, (index, view) in zip(views, [(3, 1), (8, 2)], strict=True):
        expected, _ = keras_view(dataset, index, view, recipe.augmentation)
        assert np.array_equal(row, scale(expected[None])[0])


@pytest.mark.parametrize("recipe", [ORIGINAL, FINE_TUNE], ids=["original", "fine-tune"])
def test_colours_and_erasing_have_stores_of_their_own_and_leave_others_valid(
    recipe, dataset, tmp_path
):
    inputs = keras.Input((*SIZE, 3))
    frozen = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))

    def store_of(settings):
        images = ImageSource(dataset, SIZE, settings)
        return CachedFeatures(images, frozen, "float32", tmp_path).augmented.folder

    key = json.loads((store_of(recipe.augmentation) / "key.json").read_text())
    assert key["augmentation"] == json.loads(json.dumps(recipe.augmentation))
    others = [
        recipe.augmentation | changed
        for changed in (
            {"brightness_range": (0.5, 1.5)},
            {"brightness_range": (0.5, 1.0)},
            {"channel_shift_range": 20.0},
            {"erasing": 0.5},
            {"erasing": 0.25},
        )
    ]
    assert len({store_of(settings) for settings in (recipe.augmentation, *others)}) == 6


def test_brightness_is_a_factor_of_all_pixels_and_ends_at_white(dataset):
    settings = {"brightness_range": (0.5, 1.8)}
    factors = []
    for index in range(24):
        [row] = ImageSource(dataset, SIZE, settings).inputs([(index, 1)])
        _, change = keras_view(dataset, index, 1, settings)
        image = Image.fromarray(ImageSource(dataset, SIZE).read(index))
        expected = np.asarray(ImageEnhance.Brightness(image).enhance(change["brightness"]))
        assert np.array_equal(row, scale(expected[None])[0])
        factors.append(change["brightness"])
    assert 0.5 <= min(factors) < 0.8
    assert 1.4 < max(factors) <= 1.8


def test_a_channel_shift_is_the_same_for_all_channels_and_ends_at_the_images_own_bounds(dataset):
    settings = {"channel_shift_range": 60.0}
    shifts = []
    for index in range(8):
        [row] = ImageSource(dataset, SIZE, settings).inputs([(index, 1)])
        _, change = keras_view(dataset, index, 1, settings)
        plain = ImageSource(dataset, SIZE).read(index).astype(np.float32)
        expected = np.clip(plain + change["channel_shift_intensity"], plain.min(), plain.max())
        assert np.allclose(row, scale(expected[None])[0], atol=1e-6)
        shifts.append(change["channel_shift_intensity"])
    assert max(np.abs(shifts)) <= 60
    assert min(shifts) < 0 < max(shifts)


def test_colours_leave_the_geometry_of_a_view_as_it_was(dataset):
    _, plain = keras_view(dataset, 5, 1, FINE_TUNE.augmentation)
    colours = {"brightness_range": (0.5, 1.5), "channel_shift_range": 30.0}
    _, coloured = keras_view(dataset, 5, 1, FINE_TUNE.augmentation | colours)
    names = set(plain) - {"brightness", "channel_shift_intensity"}
    assert {name: coloured[name] for name in names} == {name: plain[name] for name in names}


@pytest.mark.parametrize("level", [0, 255])
def test_interpolation_does_not_leave_the_range_that_brightness_is_meant_for(level):
    """Above 255, Keras would stretch an image's contrast before it changes its brightness."""
    generator = ImageDataGenerator(**FINE_TUNE.augmentation)
    pixels = np.full((*SIZE, 3), level, np.float32)
    for seed in range(50):
        change = generator.get_random_transform(pixels.shape, seed=seed)
        view = generator.apply_transform(pixels, change)
        assert view.min() >= 0
        assert view.max() <= 255


def test_a_rectangle_of_noise_is_inside_the_image_and_of_many_sizes_and_shapes():
    pixels = np.full((100, 80, 3), -1, np.float32)
    areas, aspects = [], []
    for seed in range(300):
        erased = erase(pixels, np.random.default_rng(seed))
        assert (pixels == -1).all()
        changed = (erased != -1).all(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert changed.sum() == len(rows) * len(columns)
        areas.append(changed.mean())
        aspects.append(len(rows) / len(columns))
        noise = erased[changed]
        assert 0 <= noise.min() < 40
        assert 215 < noise.max() <= 255
        assert 100 < noise.mean() < 155
    assert ERASED_AREA[0] - 0.005 < min(areas) < 0.04
    assert 0.3 < max(areas) < ERASED_AREA[1] + 0.02
    assert 0.25 < min(aspects) < 0.5
    assert 2.5 < max(aspects) < 3.8


def test_what_is_erased_depends_on_image_and_view_alone_and_the_rest_is_as_without(dataset):
    settings, samples = FINE_TUNE.augmentation, [(i, view) for i in range(12) for view in (1, 2)]
    plain = ImageSource(dataset, SIZE, settings).inputs([*samples, (0, 0)])
    rows = ImageSource(dataset, SIZE, settings | {"erasing": 0.5}).inputs([*samples, (0, 0)])
    again = ImageSource(dataset, SIZE, settings | {"erasing": 0.5}).inputs(samples[::-1])
    assert np.array_equal(again[::-1], rows[:-1])
    assert np.array_equal(rows[-1], plain[-1]), "view 0 is the plain image"
    shares = [(one != other).any(axis=2).mean() for one, other in zip(rows, plain, strict=True)]
    erased = [share for share in shares if share]
    assert 6 <= len(erased) <= 18  # about half of 24
    assert all(0.01 < share < 0.42 for share in erased)
    assert len({round(share, 6) for share in erased}) > 3
