"""training.dataset.perceptual_hash: images that look alike."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from training.dataset.perceptual_hash import BITS, near_pairs, perceptual_hash, thumbnail

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


def test_different_images_are_not_near(drawn):
    hashes = [perceptual_hash(Image.open(path)) for path in sorted(drawn.rglob("*.jpg"))]
    assert len(hashes) == 50
    assert all(0 <= value < 2**BITS for value in hashes)
    assert list(near_pairs(hashes)) == []


def test_a_mirrored_image_is_found_though_its_hash_is_far(rose):
    hashes = [perceptual_hash(rose), perceptual_hash(ImageOps.mirror(rose))]
    assert distance(*hashes) > MAX_DISTANCE
    assert list(near_pairs(hashes)) == [(0, 1)]


@pytest.mark.parametrize("color", ["black", "white", (200, 30, 40)])
def test_a_plain_image_has_no_hash(color):
    assert perceptual_hash(Image.new("RGB", (50, 40), color)) is None


@pytest.mark.parametrize(("contrast", "has_hash"), [(6, False), (8, True)])
def test_a_nearly_plain_image_has_no_hash(contrast, has_hash):
    ramp = np.linspace(100, 100 + contrast, 64).astype(np.uint8)  # standard deviations 1.8 and 2.3
    image = Image.fromarray(np.tile(ramp, (64, 1)))
    assert (perceptual_hash(image) is not None) == has_hash


def test_pairs_are_found_wherever_they_stand():
    rng = np.random.default_rng(0)
    hashes = [int.from_bytes(rng.bytes(BITS // 8), "big") for _ in range(1000)]
    hashes[999] = hashes[3] ^ (2**MAX_DISTANCE - 1)  # as far as may be, in another block
    hashes[500] = hashes[4] ^ (2 ** (MAX_DISTANCE + 1) - 1)  # a bit further
    hashes[700] = hashes[100]
    assert sorted(near_pairs(hashes)) == [(3, 999), (100, 700)]


def test_equal_hashes_are_chained_not_paired_each_with_each():
    pairs = list(near_pairs([12345] * 2000))
    assert len(pairs) == 1999
    assert {index for pair in pairs for index in pair} == set(range(2000))


def test_no_images_have_no_pairs():
    assert list(near_pairs([])) == []
    assert list(near_pairs([7])) == []
