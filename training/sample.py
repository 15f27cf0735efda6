"""Draw a small data set of five flowers, for where the real pictures cannot be had.

python -m training.sample
python -m training.sample --out drawn/ --per-class 100 --seed 1
"""

import argparse
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin, tau
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from training.dataset import DataError
from training.staging import staged

Colour = tuple[float, float, float]  # red, green, blue, 0 to 255
Points = np.ndarray  # (points, 2): x to the right, y down
Choice = TypeVar("Choice")

OUT = Path("flowers")
PER_CLASS = 40
SEED = 0

OVERSAMPLING = 3  # drawn this much larger, since Pillow's polygons have jagged edges
GOLDEN_ANGLE = pi * (3 - 5**0.5)  # by which seeds and inner petals follow each other in nature
SIZES = ((320, 240), (320, 213), (300, 240), (240, 320), (213, 320))
JPEG_QUALITY = 88

WHITE, BLACK = (255.0, 255.0, 255.0), (0.0, 0.0, 0.0)
GREENS = ((62, 112, 40), (84, 132, 48), (48, 98, 52), (104, 142, 66))
PETALS = {
    "rose": (
        (196, 22, 44),
        (168, 12, 34),
        (232, 96, 138),
        (244, 168, 182),
        (250, 236, 214),
        (246, 160, 96),
        (238, 64, 74),
    ),
    "tulip": (
        (214, 26, 40),
        (246, 186, 28),
        (238, 92, 140),
        (132, 44, 132),
        (246, 118, 34),
        (250, 238, 226),
        (190, 30, 84),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Draw what the command line says and return the exit code."""
    options = parse_arguments(arguments)
    try:
        write_sample(options.out, options.per_class, options.seed)
    except DataError as error:
        print(f"sample: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"sample: Expected a folder that can be written. Received: {options.out} "
            f"({error.strerror}). Name another with --out.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nsample: Stopped; nothing was written.", file=sys.stderr)
        return 130
    data = "" if options.out == OUT else f" --data {options.out}"
    print(
        f"Drawn: {options.per_class} pictures each of {', '.join(LABELS)}, in {options.out}. "
        f"Next: python train.py{data}"
    )
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m training.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder to fill [{OUT}]")
    parser.add_argument(
        "--per-class", type=at_least(1), default=PER_CLASS, help=f"pictures of each [{PER_CLASS}]"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=SEED, help=f"the same seed draws the same [{SEED}]"
    )
    return parser.parse_args(arguments)


def at_least(smallest: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `smallest` up, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(
                f"Expected a whole number from {smallest} up. Received: {text}."
            )
        return int(text)

    return parse


def write_sample(out: str | Path, per_class: int = PER_CLASS, seed: int = SEED) -> None:
    """Draw `per_class` JPEGs of each of `LABELS` into `out`/label/, all of them or none.

    A picture depends on its label, its number and `seed` alone: the first ten of forty are the
    same as ten.

    Raises:
        DataError: `out` holds pictures already, or is no folder.
        OSError: `out` cannot be written.
    """
    with staged(out) as folder:
        for index, label in enumerate(LABELS):
            print(f"Drawing {label} ({index + 1} of {len(LABELS)}) ...", flush=True)
            (folder / label).mkdir()
            for number in range(per_class):
                rng = np.random.default_rng([seed, index, number])
                picture = draw(label, rng, SIZES[rng.integers(len(SIZES))])
                picture.save(folder / label / f"{label}_{number:04d}.jpg", quality=JPEG_QUALITY)


def draw(label: str, rng: np.random.Generator, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Return a picture of `label` (one of `LABELS`), RGB, `size` (width, height) pixels.

    Raises:
        ValueError: no such label.
    """
    if label not in PLANTS:
        raise ValueError(f"Expected one of {', '.join(LABELS)}. Received: {label}.")
    canvas = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    blossoms = arrangement(rng, canvas, upright=label == "tulip")
    scene = pick(rng, BACKGROUNDS)(rng, size)
    scene = cast_shadows(scene.resize(canvas, Image.Resampling.BILINEAR), blossoms)
    brush = ImageDraw.Draw(scene)
    PLANTS[label](brush, rng, blossoms, canvas)
    return develop(scene.reduce(OVERSAMPLING), rng)


# Chance and colour


def pick(rng: np.random.Generator, choices: tuple[Choice, ...]) -> Choice:
    """Return one of `choices`."""
    return choices[rng.integers(len(choices))]


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour that has `share` (0 to 1) of `second` and the rest of `first`."""
    return tuple(a + (b - a) * share for a, b in zip(first, second, strict=True))


def lit(colour: Colour, light: float) -> Colour:
    """Return `colour` under `light`: below 1 towards black, above 1 towards white."""
    return blend(BLACK, colour, light) if light <= 1 else blend(colour, WHITE, light - 1)


def varied(rng: np.random.Generator, colour: Colour, spread: float = 10) -> Colour:
    """Return `colour` with a standard deviation of `spread` levels added to each channel."""
    return tuple(np.clip(np.add(colour, rng.normal(0, spread, 3)), 0, 255).tolist())


def ink(colour: Colour) -> tuple[int, int, int]:
    """Return `colour` as Pillow wants it."""
    red, green, blue = (min(max(round(channel), 0), 255) for channel in colour)
    return red, green, blue


# Shapes


@dataclass(frozen=True)
class Pose:
    """Where a blossom is and how it is turned.

    Attributes:
        x, y: its middle, pixels.
        radius: pixels.
        angle: turned by, clockwise, radians.
        tilt: its height seen from the side over its height seen from above, 0 to 1.
        lean: direction in which it is tilted, radians.
    """

    x: float
    y: float
    radius: float
    angle: float = 0.0
    tilt: float = 1.0
    lean: float = 0.0

    def place(self, points: Points) -> Points:
        """Return `points`, in units of the radius around the middle, in pixels."""
        turned = turn(points, self.angle - self.lean) * (1, self.tilt)
        return turn(turned, self.lean) * self.radius + (self.x, self.y)


def turn(points: Points, angle: float) -> Points:
    """Return `points` turned around (0, 0), clockwise in pictures, by radians."""
    return points @ np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])


def ring(x: float, y: float, width: float, height: float, points: int = 28) -> Points:
    """Return the outline of an ellipse with the half axes `width` and `height`."""
    t = np.linspace(0, tau, points, endpoint=False)
    return np.stack([x + width * np.cos(t), y + height * np.sin(t)], axis=1)


def blade(start: float, end: float, width: float, bulge: float = 1.0, blunt: float = 0.6) -> Points:
    """Return the outline of a petal or leaf along the x axis.

    Args:
        start, end: where it begins and ends.
        width: half its width.
        bulge: above 1 moves the widest place towards the end, below 1 towards the start.
        blunt: how its width grows, small for a blunt end, 1 and above for a pointed one.
    """
    t = np.linspace(0, 1, 14)
    half = width * np.sin(pi * t**bulge).clip(0) ** blunt
    x = start + (end - start) * t
    return np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]])


def fill(brush: ImageDraw.ImageDraw, outline: Points, colour: Colour) -> None:
    """Fill `outline` (pixels) with one colour."""
    brush.polygon(outline.ravel().tolist(), fill=ink(colour))


def shade(
    brush: ImageDraw.ImageDraw,
    outline: Points,
    focus: Points,
    edge: Colour,
    core: Colour,
    steps: int = 5,
) -> None:
    """Fill `outline` (pixels) with a gradient from `edge` at its rim to `core` at `focus`."""
    for step in range(steps):
        share = step / steps
        fill(brush, focus + (outline - focus) * (1 - share), blend(edge, core, share))


def stroke(brush: ImageDraw.ImageDraw, line: Points, colour: Colour, width: float) -> None:
    """Draw `line` (pixels)."""
    brush.line(line.ravel().tolist(), fill=ink(colour), width=max(round(width), 1), joint="curve")


def curve(start: Points, bend: Points, end: Points, points: int = 14) -> Points:
    """Return a line from `start` to `end` that is drawn towards `bend`."""
    t = np.linspace(0, 1, points)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end


# Where the blossoms are


def arrangement(rng: np.random.Generator, canvas: tuple[int, int], upright: bool) -> list[Pose]:
    """Return one to six blossoms on `canvas` (width, height), the farthest first."""
    count = int(pick(rng, (1, 1, 1, 1, 2, 3, 3, 5, 6)))
    middle, extent = np.array(canvas) / 2, min(canvas)
    largest = {1: 0.48, 2: 0.32, 3: 0.27}.get(count, 0.2)
    scatter = 0.09 if count == 1 else 0.33
    poses: list[Pose] = []
    for _ in range(40):
        if len(poses) == count:
            break
        x, y = middle + rng.uniform(-scatter, scatter, 2) * canvas
        radius = extent * largest * rng.uniform(0.7, 1)
        if all(np.hypot(x - p.x, y - p.y) > 0.85 * (radius + p.radius) for p in poses):
            poses.append(Pose(x, y, radius, *_turned(rng, upright)))
    return sorted(poses, key=lambda pose: pose.radius)


def _turned(rng: np.random.Generator, upright: bool) -> tuple[float, float, float]:
    """Return the angle, tilt and lean of a blossom seen from its side or from above."""
    if upright:
        return rng.normal(0, 0.12), 1.0, 0.0
    return rng.uniform(0, tau), rng.uniform(0.68, 1), rng.normal(0, 0.5)


def cast_shadows(scene: Image.Image, blossoms: list[Pose]) -> Image.Image:
    """Return `scene` with the soft shadows that `blossoms` throw on what is behind them."""
    scale = 8  # a shadow is soft anyway
    mask = Image.new("L", (scene.width // scale, scene.height // scale), 255)
    brush = ImageDraw.Draw(mask)
    for pose in blossoms:
        shadow = Pose(pose.x + pose.radius * 0.1, pose.y + pose.radius * 0.16, pose.radius)
        outline = shadow.place(ring(0, 0, 0.92, 0.92 * pose.tilt)) / scale
        brush.polygon(outline.ravel().tolist(), fill=165)
    mask = mask.filter(ImageFilter.GaussianBlur(min(mask.size) / 18))
    mask = mask.resize(scene.size, Image.Resampling.BILINEAR)
    return ImageChops.multiply(scene, Image.merge("RGB", [mask] * 3))


# What is behind them, `size` (width, height) pixels


def sky(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return a blue sky with clouds."""
    top = varied(rng, pick(rng, ((70, 130, 205), (98, 156, 222), (120, 160, 196))), 8)
    scene = gradient(size, top, blend(top, WHITE, rng.uniform(0.4, 0.75)))
    clouds = Image.new("L", size, 0)
    brush = ImageDraw.Draw(clouds)
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(0, 1, 2) * size
        for _ in range(7):
            dx, dy = rng.normal(0, (size[0] * 0.09, size[1] * 0.03))
            outline = ring(x + dx, y + dy, size[0] * 0.08, size[1] * 0.06)
            brush.polygon(outline.ravel().tolist(), fill=int(rng.integers(120, 230)))
    clouds = clouds.filter(ImageFilter.GaussianBlur(size[0] / 40))
    scene.paste(Image.new("RGB", size, (252, 252, 252)), mask=clouds)
    return scene


def grass(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return a meadow, in focus or a little out of it."""
    base = varied(rng, pick(rng, GREENS), 8)
    scene = gradient(size, lit(base, rng.uniform(0.7, 1.2)), lit(base, 0.55))
    brush = ImageDraw.Draw(scene)
    for _ in range(260):
        foot = rng.uniform((0, 0), (size[0], size[1] * 1.25))
        height = size[1] * rng.uniform(0.1, 0.32)
        tip = np.add(foot, (rng.normal(0, height * 0.4), -height))
        bend = np.add(foot, (0, -height * 0.7))
        colour = lit(varied(rng, base, 12), rng.uniform(0.55, 1.25))
        stroke(brush, curve(foot, bend, tip, 6), colour, rng.uniform(1, 3.4))
    return scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))


def soil(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return earth with crumbs and stones."""
    base = varied(rng, pick(rng, ((92, 66, 46), (118, 92, 68), (70, 54, 42))), 6)
    scene = gradient(size, lit(base, 1.08), lit(base, 0.75))
    brush = ImageDraw.Draw(scene)
    for _ in range(420):
        x, y = rng.uniform(0, 1, 2) * size
        width = rng.gamma(2, size[0] / 140)
        colour = lit(varied(rng, base, 9), rng.uniform(0.55, 1.2))
        fill(brush, ring(x, y, width, width * rng.uniform(0.5, 1), 9), colour)
    return scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2)))


def bokeh(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return lights and leaves far out of focus."""
    base = lit(varied(rng, pick(rng, GREENS), 14), rng.uniform(0.35, 0.9))
    scene = gradient(size, lit(base, rng.uniform(0.6, 1.3)), lit(base, rng.uniform(0.5, 1.1)))
    brush = ImageDraw.Draw(scene)
    for _ in range(rng.integers(12, 34)):
        x, y = rng.uniform(0, 1, 2) * size
        width = min(size) * rng.uniform(0.03, 0.13)
        light = blend(varied(rng, base, 22), varied(rng, (226, 226, 170), 20), rng.uniform(0, 0.45))
        fill(brush, ring(x, y, width, width), light)
    return scene.filter(ImageFilter.GaussianBlur(rng.uniform(2.5, 7)))


def foliage(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return a hedge: leaf over leaf."""
    base = varied(rng, pick(rng, GREENS), 10)
    scene = gradient(size, lit(base, 0.5), lit(base, 0.35))
    brush = ImageDraw.Draw(scene)
    for number in range(110):
        x, y = rng.uniform(0, 1, 2) * size
        length = min(size) * rng.uniform(0.08, 0.17)
        pose = Pose(x, y, length, rng.uniform(0, tau))
        colour = lit(varied(rng, base, 9), 0.4 + 0.5 * number / 110 + rng.uniform(0, 0.2))
        fill(brush, pose.place(blade(-1, 1, 0.42, 0.9, 0.9)), colour)
        stroke(brush, pose.place(np.array([[-1, 0], [0.9, 0]])), lit(colour, 1.15), 1)
    return scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 3.5)))


def studio(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return a plain wall with light falling on it."""
    walls = ((226, 224, 218), (40, 42, 46), (150, 166, 180), (188, 172, 150), (96, 108, 104))
    wall = varied(rng, pick(rng, walls), 8)
    scene = gradient(size, lit(wall, 1.12), lit(wall, 0.72))
    return scene.rotate(180) if rng.random() < 0.3 else scene


def gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    """Return a picture that goes from `top` to `bottom`."""
    share = np.linspace(0, 1, size[1])[:, None, None]
    rows = np.array(top) * (1 - share) + np.array(bottom) * share
    rows = np.broadcast_to(rows, (size[1], size[0], 3))
    return Image.fromarray(rows.clip(0, 255).astype(np.uint8))


BACKGROUNDS = (sky, grass, soil, bokeh, bokeh, foliage, studio)


# Stems and leaves


def stem(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    pose: Pose,
    canvas: tuple[int, int],
    width: float,
    colour: Colour,
) -> Points:
    """Draw a stem from the middle of `pose` out of the picture; return its line."""
    top = np.array([pose.x, pose.y])
    foot = np.array([pose.x + rng.normal(0, 0.1) * canvas[0], canvas[1] * 1.05])
    bend = np.array([pose.x + rng.normal(0, 0.03) * canvas[0], (pose.y + foot[1]) / 2])
    line = curve(top, bend, foot)
    width *= pose.radius
    stroke(brush, line, lit(colour, 0.6), width)
    stroke(brush, line - (width * 0.1, 0), colour, width * 0.7)
    stroke(brush, line - (width * 0.2, 0), lit(colour, 1.2), width * 0.25)
    return line


def leaf(brush: ImageDraw.ImageDraw, pose: Pose, outline: Points, colour: Colour) -> None:
    """Draw a leaf along the x axis of `pose`, with its ribs."""
    placed = pose.place(outline)
    shade(brush, placed, pose.place(np.array([[0.5, 0.06]])), lit(colour, 0.62), colour, 4)
    stroke(brush, pose.place(np.array([[0, 0], [0.94, 0]])), lit(colour, 1.3), pose.radius * 0.025)
    if np.abs(outline[:, 1]).max() < 0.15:  # too narrow for ribs
        return
    upper = outline[: len(outline) // 2]
    for x in (0.16, 0.32, 0.48, 0.64):
        half = 0.7 * np.interp(x + 0.14, upper[:, 0], upper[:, 1])
        for side in (-half, half):
            rib = pose.place(np.array([[x, 0], [x + 0.14, side]]))
            stroke(brush, rib, lit(colour, 1.12), pose.radius * 0.012)


def toothed(outline: Points, teeth: int, depth: float) -> Points:
    """Return a leaf's `outline` along the x axis, cut in by `teeth` of `depth` (0 to 1)."""
    x = np.linspace(0, 1, teeth * 2 + 1)
    upper = outline[: len(outline) // 2]
    half = np.interp(x, upper[:, 0], upper[:, 1])
    half[1::2] *= 1 - depth
    return np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]])


def leaves_along(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    line: Points,
    length: float,
    outline: Points,
    colour: Colour,
) -> None:
    """Draw a few leaves at a stem's `line`, `length` pixels long, to either side."""
    for place in rng.permutation(np.arange(5, 12))[: rng.integers(1, 4)]:
        angle = pick(rng, (-0.4, pi + 0.4)) + rng.normal(0, 0.3)
        pose = Pose(*line[place], length * rng.uniform(0.7, 1.1), angle)
        leaf(brush, pose, outline, varied(rng, colour, 6))


# Blossoms seen from above


def petals(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    pose: Pose,
    outline: Points,
    count: int,
    colours: tuple[Colour, Colour],
    turned: float = 0.0,
    spread: float = 4,
) -> None:
    """Draw a wreath of `count` petals, `colours` at the rim and at the base of each.

    `outline` is the petal along the x axis; lit from the upper left.
    """
    order = rng.permutation(count)
    for number in order:
        angle = turned + tau * number / count + rng.normal(0, 0.25) / count * 3
        light = 1 + 0.13 * cos(pose.angle + angle - 1.25 * pi) + rng.normal(0, 0.03)
        shape = turn(outline * (rng.uniform(0.9, 1.04), rng.uniform(0.85, 1.1)), angle)
        rim = lit(varied(rng, colours[0], spread), light)
        base = lit(colours[1], light)
        placed = pose.place(shape)
        fill(brush, placed, lit(rim, 0.74))
        root = pose.place(turn(outline[:1], angle))
        body = root + (pose.place(turn(outline * (0.985, 0.84), angle)) - root)
        shade(brush, body, root, rim, base, 4)
        for side in (-0.3, 0.3):
            half = np.abs(outline[:, 1]).max() * side
            groove = np.array(
                [[outline[0, 0] + 0.12, half * 0.7], [outline[:, 0].max() * 0.9, half]]
            )
            stroke(brush, pose.place(turn(groove, angle)), lit(rim, 0.88), pose.radius * 0.012)


def disc(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    pose: Pose,
    radius: float,
    colours: tuple[Colour, Colour],
    seeds: int,
) -> None:
    """Draw a blossom's domed middle, `colours` at its rim and its centre, with `seeds`."""
    rim, centre = colours
    light = pose.place(turn(np.array([[-0.25, -0.3]]) * radius, -pose.angle))
    shade(brush, pose.place(ring(0, 0, radius, radius)), light, lit(rim, 0.72), centre, 8)
    number = np.arange(1, seeds)
    distance = radius * 0.96 * np.sqrt(number / seeds)
    around = number * GOLDEN_ANGLE
    spots = pose.place(np.stack([distance * np.cos(around), distance * np.sin(around)], 1))
    size = 0.8 * radius * pose.radius / seeds**0.5
    bright = rng.uniform(0.75, 1.22, seeds)
    for spot, share, glow in zip(spots, distance / radius, bright, strict=False):
        colour = lit(blend(centre, rim, share), glow)
        box = (*(spot - size).tolist(), *(spot + size).tolist())
        brush.ellipse(
            (box[0], box[1] + size * 0.5, box[2], box[3] + size * 0.5), ink(lit(colour, 0.7))
        )
        brush.ellipse(box, ink(colour))


def daisy(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    blossoms: list[Pose],
    canvas: tuple[int, int],
) -> None:
    """Draw daisies: many narrow white petals around a small yellow dome."""
    green = varied(rng, pick(rng, GREENS), 6)
    for pose in blossoms:
        line = stem(brush, rng, pose, canvas, 0.07, green)
        spoon = blade(0, 1, 0.17, 1.7, 0.7)
        leaves_along(brush, rng, line, pose.radius * 0.7, spoon, green)
    count = int(rng.integers(15, 25))
    white = varied(rng, (250, 250, 248), 3)
    shadow = pick(rng, ((206, 210, 222), (214, 216, 206), (228, 206, 216)))
    for pose in blossoms:
        petal = blade(0.16, 1, 2.1 / count, 1.25, 0.42)
        petals(brush, rng, pose, petal, count, (lit(white, 0.93), shadow), 0.1, 3)
        petals(brush, rng, pose, petal * (0.95, 1), count, (white, shadow), pi / count, 3)
        disc(brush, rng, pose, rng.uniform(0.27, 0.34), ((222, 150, 14), (252, 210, 40)), 90)


def sunflower(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    blossoms: list[Pose],
    canvas: tuple[int, int],
) -> None:
    """Draw sunflowers: pointed golden petals around a wide, dark disc of seeds."""
    green = varied(rng, (88, 128, 44), 8)
    heart = blade(0, 1, 0.42, 0.62, 0.75)
    for pose in blossoms:
        line = stem(brush, rng, pose, canvas, 0.13, green)
        leaves_along(brush, rng, line, pose.radius * 1.1, heart, green)
    gold = varied(rng, pick(rng, ((252, 196, 16), (250, 178, 10), (254, 208, 34))), 5)
    dark = varied(rng, pick(rng, ((62, 36, 18), (44, 26, 16), (84, 52, 22))), 4)
    for pose in blossoms:
        count = int(rng.integers(18, 26))
        petal = blade(0.36, 1, 0.125, 0.8, 0.85)
        base = lit(blend(gold, (226, 110, 0), 0.65), 0.95)
        petals(brush, rng, pose, petal, count, (lit(gold, 0.86), base))
        petals(brush, rng, pose, petal * (0.93, 1), count, (gold, base), pi / count)
        radius = rng.uniform(0.44, 0.54)
        disc(brush, rng, pose, radius, (lit(dark, 1.12), lit(dark, 0.8)), 260)
        eye = blend(dark, (120, 128, 50), rng.uniform(0.1, 0.6))
        disc(brush, rng, pose, radius * 0.42, (eye, lit(eye, 0.85)), 60)


def dandelion(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    blossoms: list[Pose],
    canvas: tuple[int, int],
) -> None:
    """Draw dandelions: yellow pompons, or the white balls that they become."""
    green = varied(rng, (92, 140, 50), 8)
    jagged = toothed(blade(0, 1, 0.2, 1.5, 0.8), 7, 0.62)
    for pose in blossoms:
        line = stem(brush, rng, pose, canvas, 0.06, varied(rng, (150, 150, 92), 10))
        foot = np.minimum(line[-1], canvas)
        for angle in rng.uniform(-pi, 0, rng.integers(2, 6)):
            reach = Pose(*foot, pose.radius * rng.uniform(1.1, 1.7), angle)
            leaf(brush, reach, jagged, varied(rng, green, 6))
    gone_to_seed = rng.random() < 0.35
    for pose in blossoms:
        (_seed_head if gone_to_seed else _pompon)(brush, rng, pose)


def _pompon(brush: ImageDraw.ImageDraw, rng: np.random.Generator, pose: Pose) -> None:
    yellow = varied(rng, (252, 214, 22), 5)
    floor = pose.place(ring(0, 0, 0.8, 0.8))
    shade(brush, floor, floor.mean(0), (206, 150, 8), (226, 160, 4), 3)
    for layer, reach in enumerate(np.linspace(1, 0.22, 9)):
        count = round(16 + 34 * reach)
        depth = lit(yellow, 0.84 + 0.2 * layer / 9)
        for angle in rng.permutation(count) * tau / count + layer * 0.7:
            angle += rng.normal(0, 0.05)
            strap = turn(_strap(reach * rng.uniform(0.86, 1.04), rng.uniform(0.022, 0.036)), angle)
            light = 1 + 0.14 * cos(pose.angle + angle - 1.25 * pi) + rng.normal(0, 0.05)
            placed = pose.place(strap)
            fill(brush, np.add(placed, (0, pose.radius * 0.014)), lit(yellow, 0.66))
            fill(brush, placed, lit(varied(rng, depth, 4), light))
    core = pose.place(rng.normal(0, 0.08, (46, 2)))
    for x, y in core.tolist():
        size = pose.radius * 0.022
        brush.ellipse(
            (x - size, y - size, x + size, y + size), ink(lit(yellow, rng.uniform(0.7, 1.1)))
        )


def _strap(reach: float, width: float) -> Points:
    """Return a floret's outline: narrow, with the small teeth at its blunt end."""
    start = reach * 0.35
    x = np.array([start, reach * 0.8, reach, reach * 0.97, reach, reach * 0.97, reach, reach * 0.8])
    y = np.array([-0.5, -1, -1, -0.4, 0, 0.4, 1, 1]) * width
    return np.stack([x, y], 1)


def _seed_head(brush: ImageDraw.ImageDraw, rng: np.random.Generator, pose: Pose) -> None:
    """Draw the white ball: fine rays, each ending in a little parasol."""
    pale = varied(rng, (232, 234, 236), 4)
    count = 190
    height = 1 - 2 * (np.arange(count) + 0.5) / count  # spread evenly over a ball
    reach = np.sqrt(1 - height**2)
    around = np.arange(count) * GOLDEN_ANGLE
    ends = np.stack([reach * np.cos(around), reach * np.sin(around)], 1)
    for end, up in sorted(
        zip(ends.tolist(), height.tolist(), strict=True), key=lambda pair: pair[1]
    ):
        colour = lit(pale, 0.72 + 0.28 * (up + 1) / 2 + rng.normal(0, 0.03))
        tip = np.array(end) * 0.84 + rng.normal(0, 0.012, 2)
        stroke(
            brush, pose.place(np.stack([tip * 0.14, tip])), lit(colour, 0.86), pose.radius * 0.009
        )
        turned = np.arctan2(tip[1], tip[0])
        open_to = 0.35 + 0.65 * (1 - np.hypot(*tip))  # seen from above it is a star
        for spoke in np.linspace(-pi * open_to, pi * open_to, 11):
            hair = tip + 0.17 * np.array([cos(turned + spoke), sin(turned + spoke)])
            stroke(brush, pose.place(np.stack([tip, hair])), colour, pose.radius * 0.007)
    disc(brush, rng, pose, 0.12, ((96, 92, 56), (150, 140, 96)), 24)


def rose(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    blossoms: list[Pose],
    canvas: tuple[int, int],
) -> None:
    """Draw roses: broad petals that wind around each other into a tight heart."""
    green = varied(rng, (52, 94, 48), 8)
    oval = toothed(blade(0, 1, 0.34, 0.85, 0.8), 13, 0.12)
    for pose in blossoms:
        line = stem(brush, rng, pose, canvas, 0.09, green)
        leaves_along(brush, rng, line, pose.radius * 0.85, oval, green)
        for angle in rng.uniform(0, tau, rng.integers(2, 5)):
            reach = Pose(pose.x, pose.y, pose.radius * 1.45, angle)
            leaf(brush, reach, oval, varied(rng, green, 6))
    colour = varied(rng, pick(rng, PETALS["rose"]), 8)
    for pose in blossoms:
        _whorl(brush, rng, pose, colour)


def _whorl(
    brush: ImageDraw.ImageDraw, rng: np.random.Generator, pose: Pose, colour: Colour
) -> None:
    deep = lit(blend(colour, (150, 0, 20), 0.12), 0.5)
    layers = ((1.0, 5), (0.86, 5), (0.7, 5), (0.55, 4), (0.42, 4), (0.3, 3), (0.2, 3))
    for layer, (reach, count) in enumerate(layers):
        turned = layer * 0.75 + rng.uniform(0, 0.4)
        for number in range(count):
            angle = turned + tau * number / count + rng.normal(0, 0.08)
            _fold(brush, rng, pose, (reach, angle), (colour, deep), layer / len(layers))
    heart = np.linspace(0.3, 3.2 * tau, 60)[:, None]
    spiral = np.concatenate([np.cos(heart), np.sin(heart)], 1) * (0.012 + 0.0062 * heart)
    stroke(brush, pose.place(spiral), lit(deep, 0.9), pose.radius * 0.03)
    stroke(brush, pose.place(spiral * 1.12), lit(colour, 1.06), pose.radius * 0.014)


def _fold(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    pose: Pose,
    at: tuple[float, float],
    colours: tuple[Colour, Colour],
    inner: float,
) -> None:
    """Draw one petal of a rose, `at` (reach, angle): its rim is turned over and catches light."""
    (reach, angle), (colour, deep) = at, colours
    t = np.linspace(0, tau, 34, endpoint=False)
    wave = 1 + 0.03 * np.cos(5 * t + rng.uniform(0, tau)) + 0.03 * np.cos(3 * t)
    bulge = np.stack([0.46 * np.cos(t), 0.62 * np.sin(t)], 1) * wave[:, None] * reach
    shape = turn(np.add(bulge, (0.54 * reach, 0)), angle)
    light = 1.02 + 0.13 * cos(pose.angle + angle - 1.25 * pi) - 0.16 * inner + rng.normal(0, 0.025)
    heart = pose.place(np.zeros((1, 2)))
    placed = pose.place(shape)
    if inner:  # its shadow on the petals below
        for size, depth in ((1.09, 0.86), (1.06, 0.74), (1.03, 0.6)):
            fill(brush, heart + (placed - heart) * size, lit(colour, light * depth))
    fill(brush, heart + (placed - heart) * 1.012, lit(colour, light * 0.72))
    fill(brush, placed, lit(colour, light * 1.15))
    body = heart + (placed - heart) * 0.95
    shade(brush, body, heart, lit(colour, light), lit(deep, 0.25), 9)


# A blossom seen from its side


def tulip(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    blossoms: list[Pose],
    canvas: tuple[int, int],
) -> None:
    """Draw tulips: smooth upright cups on long stems between lance-shaped leaves."""
    green = varied(rng, (92, 142, 82), 8)
    lance = blade(0, 1, 0.085, 0.75, 0.8)
    for pose in blossoms:
        base = Pose(*pose.place(np.array([[0, 0.7]]))[0], pose.radius)
        line = stem(brush, rng, base, canvas, 0.11, green)
        for side in (-1, 1):
            reach = Pose(*line[-1], pose.radius * rng.uniform(1.8, 2.6))
            angle = -pi / 2 + side * rng.uniform(0.12, 0.5)
            reach = Pose(reach.x, reach.y, reach.radius, angle)
            leaf(brush, reach, lance, varied(rng, green, 6))
    colour = varied(rng, pick(rng, PETALS["tulip"]), 8)
    tip = blend(colour, pick(rng, (colour, WHITE, (250, 210, 60))), 0.45)
    for pose in blossoms:
        _cup(brush, rng, pose, (colour, tip))


def _cup(
    brush: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    pose: Pose,
    colours: tuple[Colour, Colour],
) -> None:
    opening = rng.uniform(0.75, 1.15)
    # x of the tip, half width, length and light: those behind first, the one in front last
    shapes = (
        (-0.26, 0.36, 1.58, 0.66),
        (0.26, 0.36, 1.58, 0.62),
        (0.0, 0.4, 1.6, 0.7),
        (-0.5, 0.44, 1.56, 0.98),
        (0.5, 0.44, 1.56, 0.8),
        (0.0, 0.47, 1.46, 1.04),
    )
    for x, width, length, light in shapes:
        length *= rng.uniform(0.96, 1.04)
        _upright_petal(brush, pose, (x * opening, width, length), colours, light)


def _upright_petal(
    brush: ImageDraw.ImageDraw,
    pose: Pose,
    shape: tuple[float, float, float],
    colours: tuple[Colour, Colour],
    light: float,
) -> None:
    """Draw one petal of a tulip, `shape` (x of its tip, half width, length), from below up."""
    tip_x, width, length = shape
    t = np.linspace(0, 1, 22)
    half = width * np.sin(pi * t**0.72).clip(0) ** 0.62
    middle = tip_x * np.sin(t * pi / 2) ** 0.8
    y = 0.75 - length * t

    def outline(share: float) -> Points:
        sides = [np.stack([middle + s * half * share, y + (1 - share) * 0.05], 1) for s in (-1, 1)]
        return pose.place(np.concatenate([sides[0], sides[1][::-1]]))

    colour, tip = (lit(c, light) for c in colours)
    fill(brush, outline(1.0), lit(colour, 0.68))
    for step, share in enumerate(np.linspace(0.95, 0.1, 9)):
        fill(brush, outline(share), lit(blend(tip, colour, min(step / 4, 1)), 0.9 + 0.025 * step))
    for side in (-0.5, -0.25, 0, 0.25, 0.5):
        vein = np.stack([middle + side * half, y], 1)[3:-3]
        stroke(brush, pose.place(vein), lit(colour, 0.9), pose.radius * 0.012)


PLANTS = {
    "daisy": daisy,
    "dandelion": dandelion,
    "rose": rose,
    "sunflower": sunflower,
    "tulip": tulip,
}
LABELS = tuple(PLANTS)


# From the drawing to the photograph


def develop(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return `scene` as a camera might have taken it: light, warmth, softness, noise."""
    if rng.random() < 0.35:
        scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    pixels = np.asarray(scene, dtype=np.float32) / 255
    height, width = pixels.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    towards = rng.uniform(0, tau)
    falloff = 1 + rng.uniform(0, 0.16) * (x * cos(towards) + y * sin(towards))
    falloff -= rng.uniform(0, 0.14) * (x**2 + y**2)
    warmth = np.exp(rng.normal(0, 0.05)) ** np.array([1, 0.1, -1])
    pixels = pixels ** np.float32(rng.uniform(0.85, 1.2)) * falloff[:, :, None] * warmth
    pixels *= rng.uniform(0.88, 1.1)
    pixels += rng.normal(0, rng.uniform(0.004, 0.02), pixels.shape)
    return Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
