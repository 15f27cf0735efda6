"""training.dataset.perceptual_hash: images that look alike."""

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from training.dataset import perceptual_hash as module
from training.dataset.perceptual_hash import (
    BITS,
    near_pairs,
    perceptual_hash,
    thumbnail,
)

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


@pytest.fixture(scope="module")
def waves():
    """A smooth image that is not its own mirror image."""
    y, x = np.mgrid[:64, :96]
    grey = np.sin(x / 9) * 40 + np.sin(y / 5 + x / 21) * 40 + x / 2 + 80
    return Image.fromarray(np.stack([grey, grey * 0.8, grey * 0.6], -1).clip(0, 255).astype("u1"))


def bits(value):
    return [int(bit) for bit in f"{value:0{BITS}b}"]


def signs(*values):
    return np.array([[2 * bit - 1 for bit in bits(value)] for value in values], np.float32)


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


def test_signs_are_the_bits_from_the_highest():
    values = [1, 1 << 127, (1 << 100) - 1]
    assert module._signs(values).dtype == np.float32
    assert np.array_equal(module._signs(values), signs(*values))


def test_mirrored_twice_is_as_it_was(waves):
    once = module._mirrored(signs(perceptual_hash(waves)))
    assert once.shape == (1, BITS)
    assert once.dtype == np.float32
    assert np.array_equal(module._mirrored(once), signs(perceptual_hash(waves)))


def test_mirrored_signs_are_those_of_the_mirrored_image_to_a_few(waves):
    expected = signs(perceptual_hash(ImageOps.mirror(waves)))
    mirrored = module._mirrored(signs(perceptual_hash(waves)))
    for half in (slice(0, 64), slice(64, 128)):
        assert (mirrored[0, half] != expected[0, half]).sum() <= 6


def test_mirrored_odd_columns_of_the_cosine_change_and_edges_change_sides():
    one = -np.ones((1, BITS), np.float32)
    one[0, 0], one[0, 1], one[0, 64 + 2] = 1, 1, 1
    coarse, edges = module._mirrored(one).reshape(2, 8, 8)
    assert coarse[0].tolist() == [1, -1, -1, 1, -1, 1, -1, 1]
    assert (coarse[1:] == [-1, 1] * 4).all()
    assert edges[0].tolist() == [1, 1, 1, 1, 1, -1, 1, 1]
    assert (edges[1:] == 1).all()


def mirrored(value):
    return int("".join("01"[int(sign > 0)] for sign in module._mirrored(signs(value))[0]), 2)


@pytest.mark.parametrize("block", [1, 3, 4, 256])
def test_pairs_are_found_across_blocks_of_any_size_and_each_once(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(0)
    hashes = [int.from_bytes(rng.bytes(16), "big") for _ in range(8)]
    hashes[6] = hashes[1] ^ (2**module.MAX_DISTANCE - 1)
    hashes[7] = hashes[5] ^ (2 ** (module.MAX_DISTANCE + 1) - 1)  # one too far
    hashes[3] = mirrored(hashes[2]) ^ (2**module.MAX_DISTANCE - 1)
    hashes[4] = mirrored(hashes[0]) ^ (2 ** (module.MAX_DISTANCE + 1) - 1)  # one too far
    assert sorted(near_pairs(hashes)) == [(1, 6), (2, 3)]


def test_of_equal_hashes_each_is_paired_with_the_first():
    far = (1 << 128) - 1
    assert sorted(near_pairs([5, far, 5, 5])) == [(0, 2), (0, 3)]
