"""Images that are copies of each other, by their bytes or by their looks."""

from collections import defaultdict
from functools import lru_cache

import numpy as np

from training.dataset.near_copies import near_groups
from training.dataset.scan import Dataset


@lru_cache(maxsize=1)  # the checks and the split need them one after the other
def find_duplicates(dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    """Return the groups of images that are copies of each other, sorted.

    Copies are identical files, images that look alike (`near_groups`), and copies of copies; they
    may be of different classes.
    """
    hashed = [image for image in dataset.images if image in dataset.hashes]
    near = near_groups([dataset.hashes[image] for image in hashed])
    looks = dict(zip(hashed, near.tolist(), strict=True))
    first: dict[str | int, int] = {}  # {bytes or look: number of the first image that has them}
    edges = []
    for number, image in enumerate(dataset.images):
        edges.append((first.setdefault(dataset.digests.get(image, image), number), number))
        if image in looks:
            edges.append((first.setdefault(looks[image], number), number))
    members = defaultdict(list)
    for image, group in zip(dataset.images, _connected(len(dataset.images), edges), strict=True):
        members[group].append(image)
    return tuple(sorted(tuple(sorted(group)) for group in members.values() if len(group) > 1))


def _connected(count: int, edges: list[tuple[int, int]]) -> np.ndarray:
    """Return a component number for each of `count` nodes, int (count,); `edges` connect them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(edges, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), ends), shape=(count, count))
    return connected_components(graph, directed=False)[1]
