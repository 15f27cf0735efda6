"""Draw one image of a daisy, dandelion, rose, sunflower or tulip."""

from math import cos, pi, tau

import numpy as np
from PIL import Image

from training.sample.backgrounds import GREENS, draw_background, photograph
from training.sample.shapes import Canvas, Colour, Points, Pose, blade, ellipse, lit, mix, pick

OVERSAMPLING = 2  # flowers are drawn this much larger, since Pillow's polygons have jagged edges
GOLDEN_ANGLE = pi * (3 - 5**0.5)  # between one seed of a real flower and the next
UP = -pi / 2

WHITE, YELLOW, BROWN = (250, 249, 246), (252, 208, 24), (62, 36, 18)
ROSES = ((196, 22, 44), (232, 96, 138), (244, 168, 182), (250, 236, 214), (246, 160, 96))
TULIPS = ((214, 26, 40), (246, 186, 28), (238, 92, 140), (132, 44, 132), (246, 118, 34))


def draw(label: str, rng: np.random.Generator, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Return an RGB image of `label` (one of `LABELS`), `size` (width, height) pixels.

    Raises:
        ValueError: no such label.
    """
    if label not in FLOWERS:
        raise ValueError(f"Expected one of {', '.join(LABELS)}. Received: {label}.")
    large = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    scene = draw_background(rng, size).resize(large, Image.Resampling.BILINEAR)
    FLOWERS[label](Canvas(scene, rng), arrange(rng, large))
    return photograph(scene.reduce(OVERSAMPLING), rng)


def arrange(rng: np.random.Generator, size: tuple[int, int]) -> list[Pose]:
    """Return one to six poses apart from each other in `size` (width, height), smallest first."""
    count = int(rng.choice((1, 1, 1, 1, 2, 3, 3, 5, 6)))
    largest = 0.48 * min(size) / count**0.5
    scatter = 0.09 if count == 1 else 0.33
    poses: list[Pose] = []
    for _ in range(40):
        x, y = (0.5 + rng.uniform(-scatter, scatter, 2)) * size
        pose = Pose(x, y, largest * rng.uniform(0.7, 1), rng.uniform(0, tau), rng.uniform(0.68, 1))
        if all(np.hypot(x - p.x, y - p.y) > 0.85 * (pose.radius + p.radius) for p in poses):
            poses.append(pose)
    return sorted(poses[:count], key=lambda pose: pose.radius)


def stems(canvas: Canvas, poses: list[Pose], width: float, leaf: Points, low: bool = False) -> None:
    """Draw stems, `width` radii wide, and some of `leaf` along them or, if `low`, at their foot."""
    rng, bottom, green = canvas.rng, canvas.image.height * 1.02, pick(canvas.rng, GREENS)
    t = np.linspace(0, 1, 14)
    for pose in poses:
        sway, down = rng.normal(0, 0.1) * bottom, bottom - pose.y
        line = np.stack([pose.x + sway * t**2, pose.y + down * t], 1)
        side = (width / 2 * pose.radius, 0)
        canvas.fill(np.concatenate([line - side, (line + side)[::-1]]), lit(green, 0.7))
        for place in rng.integers(5, 12, rng.integers(2, 5)):
            angle = UP + rng.normal(0, 0.4) + (0 if low else rng.choice((-1.2, 1.2)))
            spot = Pose(*line[-1 if low else place], pose.radius * rng.uniform(0.7, 1.1), angle)
            outline = spot.place(leaf)
            canvas.shade(outline, outline.mean(0), lit(green, 0.62), pick(rng, (green,)))
            canvas.fill(spot.place(leaf * (0.95, 0.08)), lit(green, 1.3))


def petal(canvas: Canvas, pose: Pose, outline: Points, angle: float, colours: list[Colour]) -> None:
    """Draw a petal from the centre of `pose` towards `angle`; `colours` from edge to centre."""
    light = 1 + 0.13 * cos(pose.angle + angle - 1.25 * pi) + canvas.rng.normal(0, 0.03)
    edge, rim, centre = (lit(colour, light) for colour in colours)
    canvas.fill(pose.place(outline, angle), edge)
    inside = pose.place(outline * (0.98, 0.85), angle)
    canvas.shade(inside, np.array([pose.x, pose.y]), rim, centre)


def wreath(canvas: Canvas, pose: Pose, outline: Points, count: int, colours: list[Colour]) -> None:
    """Draw `count` petals all around the centre of `pose`, in random order."""
    first = canvas.rng.uniform(0, tau)
    for number in canvas.rng.permutation(count):
        angle = first + tau * (number + canvas.rng.normal(0, 0.12)) / count
        petal(canvas, pose, outline * canvas.rng.uniform((0.9, 0.85), (1.04, 1.1)), angle, colours)


def disc(canvas: Canvas, pose: Pose, radius: float, colour: Colour) -> None:
    """Draw the middle of a flower, `radius` of 1 for all of it, with a spiral of seeds."""
    outline = pose.place(ellipse(radius, radius))
    canvas.shade(outline, outline.mean(0), lit(colour, 0.7), colour)
    for number in range(150):
        share = (number / 150) ** 0.5
        seed = radius * np.add(ellipse(0.055, 0.055)[::4], (0.95 * share, 0))
        light = canvas.rng.uniform(0.85, 1.25) - 0.2 * share
        canvas.fill(pose.place(seed, number * GOLDEN_ANGLE), lit(colour, light))


def daisy(canvas: Canvas, poses: list[Pose]) -> None:
    """Draw daisies: many narrow white petals around a small yellow disc."""
    rng, count = canvas.rng, int(canvas.rng.integers(13, 21))
    stems(canvas, poses, 0.07, blade(0, 0.12, 1.7, 0.6))
    white, yellow = pick(rng, (WHITE,), 3), pick(rng, (YELLOW,))
    outline = blade(0.16, 2.2 / count, 1.25, 0.42)
    for pose in poses:
        for length in (1, 0.93):
            colours = [lit(white, 0.65), lit(white, 1.9 - length), lit(white, 0.84)]
            wreath(canvas, pose, outline * (length, 1), count, colours)
        disc(canvas, pose, rng.uniform(0.26, 0.34), yellow)


def sunflower(canvas: Canvas, poses: list[Pose]) -> None:
    """Draw sunflowers: pointed golden petals around a wide, dark disc of seeds."""
    rng, count = canvas.rng, int(canvas.rng.integers(18, 25))
    stems(canvas, poses, 0.13, blade(0, 0.42, 0.62, 0.75))
    gold, brown = pick(rng, (YELLOW,)), pick(rng, (BROWN,))
    outline = blade(0.36, 0.125, 0.8, 0.85)
    for pose in poses:
        for length in (1, 0.93):
            colours = [lit(gold, 0.65), lit(gold, 1.9 - length), mix(gold, (226, 110, 0), 0.65)]
            wreath(canvas, pose, outline * (length, 1), count, colours)
        disc(canvas, pose, rng.uniform(0.44, 0.54), brown)


def dandelion(canvas: Canvas, poses: list[Pose]) -> None:
    """Draw dandelions: yellow pompons or, in a third of the images, white balls of seeds."""
    rng = canvas.rng
    stems(canvas, poses, 0.06, blade(0, 0.26, 1.5, 0.8, teeth=7) * 1.4, low=True)
    seeding = rng.random() < 1 / 3
    colour = pick(rng, (WHITE if seeding else YELLOW,), 5)
    t = np.linspace(-1.3, 1.3, 15)
    hairs = np.where(np.arange(15) % 2, 0.22, 0.015)
    seed = np.stack([0.8 + hairs * np.cos(t), hairs * np.sin(t)], 1)
    seed = np.concatenate([seed, [[0, 0]]])  # the stalk of the parasol
    for pose in poses:
        for reach in np.linspace(1, 0.15, 8):
            outline = seed if seeding else blade(0.2, 0.04 / reach, 1.6, 0.3)
            colours = [lit(colour, light - 0.25 * reach) for light in (0.8, 1.05, 1.05)]
            wreath(canvas, pose, outline * reach, round((24 if seeding else 50) * reach), colours)


def rose(canvas: Canvas, poses: list[Pose]) -> None:
    """Draw roses: broad petals around each other, ever smaller, into a dark heart."""
    leaf = blade(0, 0.34, 0.85, 0.8, teeth=13)
    stems(canvas, poses, 0.09, leaf)
    green, colour = pick(canvas.rng, GREENS), pick(canvas.rng, ROSES)
    for pose in poses:
        wreath(canvas, pose, leaf * 1.4, 4, [lit(green, 0.5), lit(green, 0.7), green])
        for reach in np.geomspace(1, 0.16, 7):
            rim = lit(colour, 0.8 + 0.2 * reach)
            colours = [lit(rim, 1.2), rim, lit(colour, 0.25)]
            wreath(canvas, pose, ellipse(0.44, 0.6, 0.56) * reach, round(3 + 2 * reach), colours)


def tulip(canvas: Canvas, poses: list[Pose]) -> None:
    """Draw tulips: smooth upright cups, seen from the side, between long narrow leaves."""
    stems(canvas, poses, 0.11, blade(0, 0.085, 0.75, 0.8) * 2.4, low=True)
    colour = pick(canvas.rng, TULIPS)
    tip = mix(colour, pick(canvas.rng, (colour, WHITE, YELLOW)), 0.45)
    for pose in poses:
        foot, opening = pose.y + 0.8 * pose.radius, canvas.rng.uniform(0.75, 1.15)
        cup = Pose(pose.x, foot, 1.6 * pose.radius, canvas.rng.normal(0, 0.12))
        # Two petals behind, two at the sides, one in front
        for angle, light in ((-0.16, 0.7), (0.16, 0.65), (-0.3, 1), (0.3, 0.85), (0, 1.05)):
            colours = [lit(colour, 0.7 * light), lit(tip, light), lit(colour, light)]
            petal(canvas, cup, blade(0, 0.27, 0.72, 0.6), UP + angle * opening, colours)


FLOWERS = {flower.__name__: flower for flower in (daisy, dandelion, rose, sunflower, tulip)}
LABELS = tuple(FLOWERS)
