"""training.dataset.near_copies: the groups are those that comparing all with all would find."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from training.dataset import near_copies
from training.dataset.near_copies import mirror, near_groups
from training.dataset.perceptual_hash import BITS, perceptual_hash

MAX_DISTANCE = 16  # what was measured on photographs; another one splits a data set anew


def bits(value):
    return np.array([int(bit) for bit in f"{value:0{BITS}b}"], np.uint8)


def mirrored(value):
    return int("".join(map(str, mirror(bits(value)[None])[0])), 2)


def changed(value, count, seed=0):
    """Return `value` with `count` other bits, anywhere."""
    for place in np.random.default_rng(seed).choice(BITS, count, replace=False):
        value ^= 1 << int(place)
    return value


def drawn_hashes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [int.from_bytes(rng.bytes(BITS // 8), "big") for _ in range(count)]


def groups_by_all_pairs(hashes):
    """Return what `near_groups` does, by comparing all with all."""
    found = list(range(len(hashes)))
    for place, value in enumerate(hashes):
        for turned in (value, mirrored(value)):
            for other in range(place):
                if (turned ^ hashes[other]).bit_count() <= MAX_DISTANCE:
                    old, new = found[other], found[place]
                    found = [new if group == old else group for group in found]
    return found


def as_sets(groups):
    """Return the groups as sets of indices, whatever their numbers are."""
    members = {}
    for place, group in enumerate(groups):
        members.setdefault(group, set()).add(place)
    return sorted(map(sorted, members.values()))


@st.composite
def families(draw):
    """Hashes of which many are near each other, just so, or just not, mirrored or not."""
    numbers = st.integers(0, 2**BITS - 1)
    hashes = draw(st.lists(numbers, min_size=1, max_size=4))
    for _ in range(draw(st.integers(0, 16))):
        value = draw(st.sampled_from(hashes))
        value = mirrored(value) if draw(st.booleans()) else value
        count = draw(st.sampled_from([0, 1, 8, MAX_DISTANCE, MAX_DISTANCE + 1]))
        hashes.append(changed(value, count, draw(st.integers(0, 2**32 - 1))))
    return draw(st.permutations(hashes))


@given(families(), st.integers(8, MAX_DISTANCE + 1), st.sampled_from([1, 7, 1 << 18]))
@settings(deadline=None, max_examples=60)
def test_the_groups_are_those_of_all_pairs_in_any_number_of_pieces(hashes, pieces, compared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_copies, "PIECES", (pieces, pieces))
        patch.setattr(near_copies, "COMPARED", compared)
        assert as_sets(near_groups(hashes)) == as_sets(groups_by_all_pairs(hashes))


@pytest.mark.parametrize("count", [0, 1, 2, 100, 1000, 100_000, 10**7])
def test_in_one_piece_at_least_no_more_bits_differ_than_are_looked_for(count):
    pieces = list(near_copies._pieces(count))
    assert sorted(np.concatenate([columns for columns, _ in pieces])) == list(range(BITS))
    assert sum(radius + 1 for _, radius in pieces) == MAX_DISTANCE + 1
    assert all(0 <= radius <= 2 for _, radius in pieces)


def test_pieces_are_as_long_as_the_logarithm_of_the_number():
    for count, pieces in ((2, 17), (3458, 10), (30_000, 8), (100_000, 7), (10**9, 6)):
        assert len(list(near_copies._pieces(count))) == pieces


def test_no_hashes_have_no_groups():
    assert near_groups([]).tolist() == []
    assert len(near_groups([7])) == 1


def test_equal_hashes_are_one_group():
    groups = near_groups([5, (1 << 128) - 1, 5, 5])
    assert as_sets(groups) == [[0, 2, 3], [1]]


def test_copies_are_found_wherever_they_stand():
    hashes = drawn_hashes(1000)
    hashes[999] = hashes[3] ^ (2**MAX_DISTANCE - 1)  # as far as may be, in few pieces
    hashes[500] = hashes[4] ^ (2 ** (MAX_DISTANCE + 1) - 1)  # a bit further
    hashes[600] = changed(hashes[5], MAX_DISTANCE)
    hashes[601] = changed(hashes[6], MAX_DISTANCE + 1)
    hashes[800] = mirrored(changed(hashes[700], MAX_DISTANCE))
    several = [group for group in as_sets(near_groups(hashes)) if len(group) > 1]
    assert several == [[3, 999], [5, 600], [700, 800]]


def test_what_others_connect_is_one_group():
    first = drawn_hashes(1)[0]
    chain = [first ^ (2 ** (10 * length) - 1) for length in range(12)]  # each 10 from the next
    assert as_sets(near_groups(chain)) == [list(range(12))]
    assert as_sets(near_groups(chain[::2])) == [[place] for place in range(6)]


def test_different_images_are_not_near(drawn):
    hashes = [perceptual_hash(Image.open(path)) for path in sorted(drawn.rglob("*.jpg"))]
    assert len(hashes) == len(set(near_groups(hashes))) == 50


def test_a_mirrored_image_is_found_though_its_hash_is_far(drawn):
    with Image.open(drawn / "rose" / "rose_0003.jpg") as image:
        rose, turned = perceptual_hash(image), perceptual_hash(ImageOps.mirror(image))
    assert (rose ^ turned).bit_count() > MAX_DISTANCE
    assert len(set(near_groups([rose, turned]))) == 1


def test_mirrored_twice_is_as_it_was():
    for value in drawn_hashes(20):
        assert mirrored(mirrored(value)) == value != mirrored(value)


def test_mirrored_bits_are_those_of_the_mirrored_image_to_a_few():
    y, x = np.mgrid[:64, :96]
    grey = np.sin(x / 9) * 40 + np.sin(y / 5 + x / 21) * 40 + x / 2 + 80
    waves = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    expected = bits(perceptual_hash(ImageOps.mirror(waves)))
    found = mirror(bits(perceptual_hash(waves))[None])[0]
    assert found.dtype == np.uint8
    for half in (slice(0, 64), slice(64, 128)):
        assert (found[half] != expected[half]).sum() <= 6


def test_mirrored_odd_columns_of_the_cosine_change_and_edges_change_sides():
    one = np.zeros((1, BITS), np.uint8)
    one[0, [0, 1, 64 + 2]] = 1
    coarse, edges = mirror(one).reshape(2, 8, 8)
    assert coarse[0].tolist() == [1, 0, 0, 1, 0, 1, 0, 1]
    assert (coarse[1:] == [0, 1] * 4).all()
    assert edges[0].tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    assert (edges[1:] == 1).all()


SETS = {
    "different images": lambda count: drawn_hashes(count),
    "frames of one scene": lambda count: near_one(drawn_hashes(1)[0], count),
    "frames of a scene among other images": lambda count: (
        near_one(drawn_hashes(1)[0], count // 2) + drawn_hashes(count // 2, seed=1)
    ),
}


def near_one(value, count):
    rng = np.random.default_rng(2)
    flips = rng.integers(0, BITS, (count, 7))
    return [value ^ sum(1 << place for place in set(row)) for row in flips.tolist()]


@pytest.mark.parametrize("kind", SETS)
def test_few_are_compared_and_memory_is_bounded(kind, monkeypatch):
    compared, near = [], near_copies._near

    def count_and_compare(one, other):
        compared.append(len(one))
        return near(one, other)

    monkeypatch.setattr(near_copies, "_near", count_and_compare)
    hashes = SETS[kind](20_000)
    tracemalloc.start()
    started = time.process_time()
    near_groups(hashes)
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(compared) < 0.02 * 20_000**2 / 2  # of all pairs, of which each would be two
    assert peak < 60e6
    assert seconds < 20
