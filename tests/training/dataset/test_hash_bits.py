"""training.dataset.perceptual_hash: each bit of a hash, and each bit of a mirrored one."""

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps

from training.dataset import perceptual_hash as module
from training.dataset.perceptual_hash import (
    BITS,
    MAX_DISTANCE,
    near_pairs,
    perceptual_hash,
    thumbnail,
)


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


@pytest.mark.parametrize("block", [1, 3, 4, 256])
def test_pairs_are_found_across_blocks_of_any_size_and_each_once(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(0)
    hashes = [int.from_bytes(rng.bytes(16), "big") for _ in range(8)]
    hashes[6] = hashes[1] ^ (2**MAX_DISTANCE - 1)
    hashes[7] = hashes[5] ^ (2 ** (MAX_DISTANCE + 1) - 1)  # one too far
    hashes[3] = int("".join("01"[int(bit > 0)] for bit in module._mirrored(signs(hashes[2]))[0]), 2)
    assert sorted(near_pairs(hashes)) == [(1, 6), (2, 3)]


def test_of_equal_hashes_each_is_paired_with_the_first():
    far = (1 << 128) - 1
    assert sorted(near_pairs([5, far, 5, 5])) == [(0, 2), (0, 3)]
