"""Drawn images for the page."""

from pathlib import Path

import numpy as np
from PIL import Image

CHANNELS = ("red", "green", "blue")
EXIF_ORIENTATION = 0x0112
# {value in EXIF: what a camera did to the upright image before it wrote the file}
TURNED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def patches(folder: Path, color: str, name: str | None = None) -> Path:
    """Write an image of random patches, mostly `color`, which the small model knows."""
    path = folder / (name or f"{color}.png")
    generator = np.random.default_rng(CHANNELS.index(color))
    coarse = generator.integers(0, 256, (4, 6, 3)) * np.where(
        np.eye(3)[CHANNELS.index(color)], 1, 0.5
    )
    Image.fromarray(np.uint8(coarse).repeat(10, axis=0).repeat(10, axis=1)).save(path, "PNG")
    return path


def scene(size: tuple[int, int]) -> Image.Image:
    """Return a reddish image, brighter to the right, blue in its lower left quarter."""
    width, height = size
    x, y = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 40 + 190 * x
    pixels[..., 1] = 10 + 110 * y
    pixels[height // 2 :, : width // 2] = (20, 30, 240)
    # Grain, without which a photo would be a small file.
    grain = np.random.default_rng(0).integers(0, 16, pixels.shape, np.uint8)
    return Image.fromarray(np.minimum(pixels, 239) + grain)


def photo(path: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    """Write `scene` as a camera would, which was turned as EXIF's `orientation` says."""
    image = scene(size)
    if orientation != 1:
        image = image.transpose(TURNED[orientation])
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    image.save(path, "JPEG", quality=92, exif=exif)
    return path
