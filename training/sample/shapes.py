"""Colours, outlines, poses and the canvas that flowers and backgrounds are drawn with."""

from dataclasses import dataclass
from math import cos, pi, sin, tau

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, ...]  # red, green, blue, 0 to 255
Points = np.ndarray  # (points, 2): x to the right, y down


def pick(rng: np.random.Generator, colours: tuple[Colour, ...], spread: float = 8) -> Colour:
    """Return one of `colours`, its channels varied by a standard deviation of `spread`."""
    return tuple(rng.choice(colours) + rng.normal(0, spread, 3))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour that has `share` (0 to 1) of `second` and the rest of `first`."""
    return tuple(a + (b - a) * share for a, b in zip(first, second, strict=True))


def lit(colour: Colour, light: float) -> Colour:
    """Return `colour` under `light`: below 1 towards black, above 1 towards white."""
    return mix((0, 0, 0), colour, light) if light <= 1 else mix(colour, (255,) * 3, light - 1)


def ellipse(width: float, height: float, x: float = 0) -> Points:
    """Return the outline of an ellipse around (`x`, 0) with half axes `width` and `height`."""
    t = np.linspace(0, tau, 24, endpoint=False)
    return np.stack([x + width * np.cos(t), height * np.sin(t)], 1)


def blade(start: float, width: float, bulge: float, point: float, teeth: int = 0) -> Points:
    """Return the outline of a petal or leaf along the x axis, from `start` to 1.

    It is at most 2 × `width` wide, nearer to its tip the larger `bulge` (1 for the middle). Its
    ends are blunt for a small `point` and pointed from 1; `teeth` are cut into either side.
    """
    t = np.linspace(0, 1, 2 * (teeth or 7) + 1)
    half = width * np.sin(pi * t**bulge).clip(0) ** point
    half[1::2] *= 0.6 if teeth else 1
    x = start + (1 - start) * t
    return np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]])


@dataclass(frozen=True)
class Pose:
    """Where a shape is, in pixels, and how it is turned.

    `angle` is its clockwise rotation in radians, `tilt` its apparent height over its width.
    """

    x: float
    y: float
    radius: float
    angle: float = 0
    tilt: float = 1

    def place(self, points: Points, angle: float = 0) -> Points:
        """Return `points`, in radii around the centre and rotated by `angle`, in pixels."""
        c, s = cos(self.angle + angle), sin(self.angle + angle)
        return points @ [[c, s], [-s, c]] * (1, self.tilt) * self.radius + (self.x, self.y)


class Canvas:
    """An RGB image to draw on, and the random numbers that vary the drawing."""

    def __init__(self, image: Image.Image, rng: np.random.Generator):
        """Draw on `image` in place."""
        self.image, self.rng = image, rng
        self._draw = ImageDraw.Draw(image)

    def fill(self, outline: Points, colour: Colour) -> None:
        """Fill `outline` (pixels) with `colour`."""
        rgb = (min(max(round(channel), 0), 255) for channel in colour)
        self._draw.polygon(outline.ravel().tolist(), tuple(rgb))

    def shade(self, outline: Points, focus: Points, rim: Colour, centre: Colour) -> None:
        """Fill `outline` (pixels) with a gradient from `rim` to `centre` at `focus`."""
        for share in (0, 0.2, 0.4, 0.6, 0.8):
            self.fill(focus + (outline - focus) * (1 - share), mix(rim, centre, share))
