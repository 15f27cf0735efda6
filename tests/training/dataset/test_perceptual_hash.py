"""training.dataset.perceptual_hash: hashes that hardly change when an image does."""

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from training.dataset.perceptual_hash import BITS, perceptual_hash, thumbnail

MAX_DISTANCE = 16  # what was measured on photographs; another one splits a data set anew


@pytest.fixture(scope="module")
def rose(drawn):
    with Image.open(drawn / "rose" / "rose_0003.jpg") as image:
        return image.convert("RGB")


def distance(one, other):
    return (one ^ other).bit_count()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.resize((p.width * 2 // 3, p.height * 2 // 3)),
        lambda p: p.resize((p.width * 2, p.height * 2)),
        lambda p: p.convert("L").convert("RGB"),
        lambda p: ImageEnhance.Brightness(p).enhance(0.7),
        lambda p: ImageEnhance.Contrast(p).enhance(0.7),
    ],
    ids=["smaller", "larger", "grey", "darker", "flatter"],
)
def test_a_changed_image_is_near_itself(rose, change):
    assert distance(perceptual_hash(rose), perceptual_hash(change(rose))) <= MAX_DISTANCE


def test_the_small_grey_image_has_the_same_hash(rose):
    assert thumbnail(rose).size == (32, 32)
    assert perceptual_hash(thumbnail(rose)) == perceptual_hash(rose)


def test_each_pixel_of_the_small_grey_image_is_the_mean_of_its_place():
    board = (np.indices((352, 352)).sum(axis=0) % 2 * 255).astype(np.uint8)  # 11 pixels a place
    assert np.abs(np.asarray(thumbnail(Image.fromarray(board))).astype(int) - 127).max() <= 2


@pytest.mark.parametrize("color", ["black", "white", (200, 30, 40)])
def test_a_plain_image_has_no_hash(color):
    assert perceptual_hash(Image.new("RGB", (50, 40), color)) is None


@pytest.mark.parametrize(("contrast", "has_hash"), [(6, False), (8, True)])
def test_a_nearly_plain_image_has_no_hash(contrast, has_hash):
    ramp = np.linspace(100, 100 + contrast, 64).astype(np.uint8)  # standard deviations 1.8 and 2.3
    image = Image.fromarray(np.tile(ramp, (64, 1)))
    assert (perceptual_hash(image) is not None) == has_hash


@pytest.fixture(scope="module")
def waves():
    """A smooth image that is not its own mirror image."""
    y, x = np.mgrid[:64, :96]
    grey = np.sin(x / 9) * 40 + np.sin(y / 5 + x / 21) * 40 + x / 2 + 80
    return Image.fromarray(np.stack([grey, grey * 0.8, grey * 0.6], -1).clip(0, 255).astype("u1"))


def bits(value):
    return [int(bit) for bit in f"{value:0{BITS}b}"]


def test_a_hash_is_phash_then_dhash_of_the_small_grey_image(waves):
    small = waves.convert("L").resize((32, 32), Image.Resampling.BOX)
    assert np.array_equal(thumbnail(waves), small)
    expected = int(str(imagehash.phash(small)) + str(imagehash.dhash(small)), 16)
    assert perceptual_hash(waves) == expected
    coarse = np.array(bits(expected)[:64]).reshape(8, 8)
    assert np.array_equal(coarse, imagehash.phash(small).hash)


@pytest.mark.parametrize(("spread", "hashed"), [(2, True), (1, False)])
def test_an_image_with_a_contrast_of_two_levels_has_a_hash(spread, hashed):
    pixels = np.full((32, 32), 100, np.uint8)
    pixels[:, ::2] += 2 * spread  # half of them, so that the standard deviation is `spread`
    assert (perceptual_hash(Image.fromarray(pixels)) is not None) == hashed
