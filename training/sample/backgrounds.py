"""What is behind the flowers, and what a camera makes of the scene."""

from dataclasses import dataclass
from math import tau

import numpy as np
from PIL import Image, ImageFilter

from training.sample.shapes import Canvas, Colour, Points, Pose, blade, ellipse, lit, pick

SKY = ((70, 130, 205), (98, 156, 222), (120, 160, 196))
GREENS = ((62, 112, 40), (84, 132, 48), (48, 98, 52), (104, 142, 66))
SOIL = ((92, 66, 46), (118, 92, 68), (70, 54, 42))
WALL = ((226, 224, 218), (40, 42, 46), (150, 166, 180), (188, 172, 150), (96, 108, 104))
CLOUD, ROUND = ellipse(1, 0.3), ellipse(1, 0.8)
GRASS, LEAF = blade(-1, 0.06, 1, 0.6), blade(-1, 0.42, 0.9, 0.9)


@dataclass(frozen=True)
class Background:
    """A gradient of one of `colours`, with spots."""

    colours: tuple[Colour, ...]
    outline: Points  # of each spot
    spots: int
    radius: tuple[float, float]  # of a spot over the image's shorter side
    light: tuple[float, float]  # of a spot, 1 for the background's own colour
    angle: tuple[float, float]  # of a spot, radians
    blur: tuple[float, float]  # pixels


BACKGROUNDS = (
    Background(SKY, CLOUD, 9, (0.1, 0.3), (1.4, 1.9), (0, 0), (7, 9)),
    Background(GREENS, GRASS, 260, (0.1, 0.3), (0.5, 1.25), (-2, -1.1), (0.5, 3)),
    Background(SOIL, ROUND, 400, (0.005, 0.03), (0.55, 1.2), (0, tau), (0.6, 2)),
    Background(GREENS, ROUND, 24, (0.03, 0.13), (0.7, 1.5), (0, tau), (2.5, 7)),
    Background(GREENS, LEAF, 140, (0.08, 0.17), (0.4, 1), (0, tau), (0.6, 3.5)),
    Background(WALL, ROUND, 0, (0, 0), (1, 1), (0, 0), (0, 1)),
)


def draw_background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return one of `BACKGROUNDS` as an RGB image of `size` (width, height) pixels."""
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    colour = pick(rng, background.colours)
    top, bottom = lit(colour, rng.uniform(0.9, 1.3)), lit(colour, rng.uniform(0.5, 0.9))
    rows = np.linspace(top, bottom, size[1]).clip(0, 255).astype(np.uint8)
    canvas = Canvas(Image.fromarray(np.repeat(rows[:, None], size[0], axis=1)), rng)
    for _ in range(background.spots):
        radius = min(size) * rng.uniform(*background.radius)
        spot = Pose(*rng.uniform((0, 0), size), radius, rng.uniform(*background.angle))
        shade = lit(pick(rng, (colour,), 12), rng.uniform(*background.light))
        canvas.fill(spot.place(background.outline), shade)
    return canvas.image.filter(ImageFilter.GaussianBlur(rng.uniform(*background.blur)))


def photograph(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return `scene` as a camera might take it: uneven light, a colour cast, blur and noise."""
    blurred = scene.filter(ImageFilter.GaussianBlur(max(rng.uniform(-1, 0.8), 0)))
    pixels = (np.asarray(blurred, dtype=np.float32) / 255) ** rng.uniform(0.85, 1.2)
    across = np.linspace(*rng.uniform(0.85, 1.1, 2), scene.width)[:, None]
    down = np.linspace(*rng.uniform(0.9, 1.1, 2), scene.height)[:, None, None]
    cast = np.exp(rng.normal(0, 0.05) * np.array([1, 0, -1]))
    noise = rng.normal(0, rng.uniform(0.004, 0.02), pixels.shape)
    pixels = pixels * across * down * cast + noise
    return Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))
