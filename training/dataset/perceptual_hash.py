"""A perceptual hash of images, and the pairs of images whose hashes are near."""

from collections.abc import Iterator, Sequence

import imagehash
import numpy as np
from PIL import Image, ImageStat

SIDE = 32  # pixels, of the grey image that is hashed
BITS = 128  # of a hash
# Of BITS. Checked by eye in 3,458 photographs from Flickr: the 26 pairs up to 16 apart are the same
# photograph, edited or shot again, as are two pairs 20 apart; different flowers begin at 22. Saved
# at two thirds of their size and JPEG quality 60, 99.97% of the photographs stay this near to
# themselves, and 99.0% when mirrored as well.
MAX_DISTANCE = 16
# Standard deviation of the grey image, levels of 255. A flatter image has no structure to hash, and
# all such images would look alike. The flattest of those photographs has 15.
MIN_CONTRAST = 2.0
BLOCK = 256  # hashes compared at once with all others; of 50,000, some 100 MB


def thumbnail(image: Image.Image) -> Image.Image:
    """Return `image` in grey at `SIDE`×`SIDE` pixels, which its hash is computed from."""
    return image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)


def perceptual_hash(image: Image.Image) -> int | None:
    """Return a hash of `BITS` bits that hardly changes when `image` is resized or edited.

    It is imagehash's pHash, then its dHash, 64 bits each: one depends on coarse structure, the
    other on edges, and together they confuse fewer images than either alone. Colour does not
    count. An image that is nearly of one grey has no hash: None. An image and its `thumbnail` have
    the same hash.
    """
    small = thumbnail(image)
    if ImageStat.Stat(small).stddev[0] < MIN_CONTRAST:
        return None
    return int(f"{imagehash.phash(small)}{imagehash.dhash(small)}", 16)


def near_pairs(hashes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices into `hashes` whose images look alike, mirrored or not.

    Not every such pair is yielded, but enough to connect all images that look alike.
    """
    first: dict[int, int] = {}
    for index, value in enumerate(hashes):
        if first.setdefault(value, index) != index:
            yield first[value], index
    distinct = list(first.values())
    for one, other in _near(_signs([hashes[index] for index in distinct])):
        yield distinct[one], distinct[other]


def _near(signs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield every pair of rows of `signs`, (hashes, BITS) of -1 and 1, up to MAX_DISTANCE apart."""
    mirrored = _mirrored(signs)
    least = BITS - 2 * MAX_DISTANCE  # the dot product of two rows is BITS less twice the distance
    for start in range(0, len(signs), BLOCK):
        block = signs[start : start + BLOCK]
        near = block @ signs[start:].T >= least
        near |= block @ mirrored[start:].T >= least
        for one, other in np.argwhere(near).tolist():
            if one < other:
                yield start + one, start + other


def _signs(hashes: Sequence[int]) -> np.ndarray:
    """Return `hashes` as float32 (hashes, BITS) of -1 and 1; BLAS multiplies no other type."""
    packed = b"".join(value.to_bytes(BITS // 8, "big") for value in hashes)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(-1, BITS)
    return bits.astype(np.float32) * 2 - 1


def _mirrored(signs: np.ndarray) -> np.ndarray:
    """Return the signs of the mirrored images, correct to a few bits."""
    coarse, edges = signs.reshape(-1, 2, 8, 8).swapaxes(0, 1)
    alternating = np.where(np.arange(8) % 2, -1, 1)  # a cosine wave mirrored, by its frequency
    pair = np.stack([coarse * alternating, -edges[:, :, ::-1]], axis=1)
    return pair.reshape(-1, BITS).astype(np.float32)
