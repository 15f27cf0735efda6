"""Groups of near perceptual hashes, found without comparing all with all.

Hashes are cut into pieces. If two hashes differ in at most `MAX_DISTANCE` bits, then in at least
one piece they differ in one or two bits, or in none. Only hashes with such a piece are compared,
and none is missed (Norouzi, Punjani and Fleet 2012, "Fast search in Hamming space with multi-index
hashing").
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from training.dataset.perceptual_hash import BITS, MAX_DISTANCE

PIECES = (6, 17)  # fewest: of 22 bits, which index 17 MB; most: each of them equal or not
COMPARED = 1 << 18  # pairs at once, some 20 MB


def near_groups(hashes: Sequence[int]) -> np.ndarray:
    """Return a group number for each of `hashes`, int (hashes,).

    Two hashes up to `MAX_DISTANCE` bits apart are in one group, also if that is so when one of the
    images is mirrored, and so are hashes that others connect.
    """
    packed = b"".join(value.to_bytes(BITS // 8, "big") for value in hashes)
    words, place = np.unique(
        np.frombuffer(packed, np.uint64).reshape(-1, BITS // 64), axis=0, return_inverse=True
    )
    return _groups(words)[place]


def _groups(words: np.ndarray) -> np.ndarray:
    """Return a group number for each hash, int (hashes,); `words` are distinct, uint64 (hashes, 2).

    The groups found so far save comparisons within them, so that thousands of images of one scene
    cost no more than as many different ones.
    """
    groups = np.arange(len(words))
    bits = np.unpackbits(words.view(np.uint8), axis=1)
    mirrored = mirror(bits)
    queries = (words, np.packbits(mirrored, axis=1).view(np.uint64))
    pieces = list(_pieces(len(words)))
    for columns, _ in pieces:  # most of the copies, which are neighbours when sorted
        order = np.argsort(_keys(bits[:, columns]))
        one, other = order[:-1], order[1:]
        groups = _join(groups, one, other, _near(words[one], words[other]))
    for columns, radius in pieces:
        index = _Index(_keys(bits[:, columns]), groups, 1 << len(columns))
        for query, query_bits in zip(queries, (bits, mirrored), strict=True):
            keys = _keys(query_bits[:, columns])
            for mask in _masks(len(columns), radius):
                for one, other in index.find(keys ^ mask):
                    groups = _join(groups, one, other, _near(query[one], words[other]))
    return groups


def mirror(bits: np.ndarray) -> np.ndarray:
    """Return the bits of the mirrored images' hashes, correct to a few.

    Both are uint8 (hashes, BITS), 0 or 1. A cosine wave of odd frequency across changes its sign,
    and edges change sides.
    """
    coarse, edges = bits.reshape(-1, 2, 8, 8).swapaxes(0, 1)
    odd = np.arange(8, dtype=np.uint8) % 2
    return np.stack([coarse ^ odd, edges[:, :, ::-1] ^ 1], axis=1).reshape(-1, BITS)


def _pieces(count: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the bits of each piece, and how many of them may differ, for `count` hashes.

    If in every piece one more bit differed than may, it would be `MAX_DISTANCE` + 1 in all. A piece
    of about log2(count) bits has as many values as there are hashes. Neighbouring bits, which are
    alike, are spread over the pieces.
    """
    fewest, most = PIECES
    pieces = min(max(BITS // max(count.bit_length(), 1), fewest), most)
    spread = np.random.default_rng(0).permutation(BITS)
    may_differ = MAX_DISTANCE + 1 - pieces
    for number in range(pieces):
        yield np.sort(spread[number::pieces]), (may_differ + number) // pieces


def _masks(width: int, radius: int) -> Iterator[int]:
    """Yield the numbers of `width` bits of which at most `radius` are set."""
    for count in range(radius + 1):
        for places in combinations(range(width), count):
            yield sum(1 << place for place in places)


def _keys(bits: np.ndarray) -> np.ndarray:
    """Return the number that each row of `bits`, (hashes, width), spells, int32 (hashes,)."""
    return (bits @ (1 << np.arange(bits.shape[1]))).astype(np.int32)


class _Index:
    """Finds hashes by the key of a piece, except those of one's own group."""

    def __init__(self, keys: np.ndarray, groups: np.ndarray, key_count: int):
        """Index hashes by their `keys`, below `key_count`, and their `groups`, both (hashes,)."""
        self.groups = groups
        self._order = np.lexsort((groups, keys))
        keys, sorted_groups = keys[self._order], groups[self._order]
        # A run is hashes of one key and one group.
        is_first = np.r_[True, (np.diff(keys) != 0) | (np.diff(sorted_groups) != 0)][: len(keys)]
        self._first = np.flatnonzero(is_first)
        self._length = np.diff(self._first, append=len(keys))
        self._group = sorted_groups[self._first]
        self._runs = np.bincount(keys[self._first], minlength=key_count).astype(np.int32)
        self._run = (np.cumsum(self._runs) - self._runs).astype(np.int32)  # the first of each key

    def find(self, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs (number of a key, hash) where one of the `keys` is that of the hash.

        Keys are of the same hashes in the same order. Pairs of one group are left out, and so is
        one of the two orders of a pair.
        """
        queries = np.flatnonzero(self._runs[keys])
        counts = self._runs[keys[queries]]
        for part in _parts(counts):
            asked, runs = queries[part], counts[part]
            run, query = _ranges(self._run[keys[asked]], runs), np.repeat(asked, runs)
            other = self._group[run] != self.groups[query]
            run, query = run[other], query[other]
            for inner in _parts(self._length[run]):
                length = self._length[run[inner]]
                found = self._order[_ranges(self._first[run[inner]], length)]
                asking = np.repeat(query[inner], length)
                once = asking < found
                yield asking[once], found[once]


def _parts(counts: np.ndarray) -> Iterator[slice]:
    """Yield slices of `counts` whose sum is `COMPARED` or, of more than one, not much more."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, done + COMPARED, side="right")))
        yield slice(start, end)
        start = end


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the numbers from each of `starts` on, as many as `counts` says, int (sum,)."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def _near(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the rows in which two hashes, uint64 (pairs, 2), are near."""
    rows = np.arange(len(one))
    distance = np.zeros(len(one), np.uint64)
    for word in range(one.shape[1]):  # one word is enough to rule out nearly all
        distance = distance + _bit_count(one[rows, word] ^ other[rows, word])
        near = distance <= MAX_DISTANCE
        rows, distance = rows[near], distance[near]
    return rows


def _bit_count(words: np.ndarray) -> np.ndarray:
    """Return how many bits of each of `words`, uint64, are set; NumPy 1 has no function for it."""
    pairs, nibbles, bytes_, ones = (
        np.uint64(pattern)
        for pattern in (
            0x5555555555555555,
            0x3333333333333333,
            0x0F0F0F0F0F0F0F0F,
            0x0101010101010101,
        )
    )
    words = words - ((words >> np.uint64(1)) & pairs)
    words = (words & nibbles) + ((words >> np.uint64(2)) & nibbles)
    words = (words + (words >> np.uint64(4))) & bytes_
    return (words * ones) >> np.uint64(56)


def _join(groups: np.ndarray, one: np.ndarray, other: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return `groups` with those joined that a pair connects: `one` and `other` in rows `near`."""
    if not len(near):
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = groups[one[near]], groups[other[near]]
    graph = coo_array((np.ones(len(near)), edges), shape=(len(groups), len(groups)))
    return connected_components(graph, directed=False)[1][groups]
