"""Images that are copies of each other, by their bytes or by their looks."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from training.dataset.perceptual_hash import near_pairs
from training.dataset.scan import Dataset


def find_duplicates(dataset: Dataset) -> list[tuple[str, ...]]:
    """Return the groups of images that are copies of each other, sorted.

    Copies are identical files, images that look alike (`near_pairs`), and copies of copies; they
    may be of different classes.
    """
    images = dataset.images
    hashed = [image for image in images if image in dataset.hashes]
    near = near_pairs([dataset.hashes[image] for image in hashed])
    pairs = [(hashed[one], hashed[other]) for one, other in near]
    first: dict[str, str] = {}
    for image in images:
        pairs.append((first.setdefault(dataset.digests.get(image, image), image), image))
    members = defaultdict(list)
    for image, group in zip(images, _connected(images, pairs), strict=True):
        members[group].append(image)
    return sorted(tuple(sorted(group)) for group in members.values() if len(group) > 1)


def _connected(nodes: Sequence[str], pairs: Iterable[tuple[str, str]]) -> np.ndarray:
    """Return a component number for each of `nodes`, int (nodes,); `pairs` connect them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    index = {node: i for i, node in enumerate(nodes)}
    edges = np.array([(index[one], index[other]) for one, other in pairs], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(nodes), len(nodes)))
    return connected_components(graph, directed=False)[1]
