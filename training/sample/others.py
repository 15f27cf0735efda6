"""Drawn images of other things than a data set's, to see whether a model finds them strange."""

from collections.abc import Callable
from itertools import pairwise
from math import pi, tau

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from training.sample.shapes import Colour, mix

PER_KIND = 24
SIZES = ((320, 240), (240, 320), (280, 280))  # (width, height), pixels
LETTERS = np.array(list("aaabcdeeeefghiiiklmnnoooprrsssttuvwy"))

Random = np.random.Generator
Size = tuple[int, int]


def draw_others(per_kind: int = PER_KIND) -> dict[str, list[Image.Image]]:
    """Return `per_kind` RGB images of each of `KINDS`, the same ones every time."""
    return {
        kind: [_draw(kind, place, number) for number in range(per_kind)]
        for place, kind in enumerate(KINDS)
    }


def _draw(kind: str, place: int, number: int) -> Image.Image:
    rng = np.random.default_rng([place, number])
    return KINDS[kind](rng, SIZES[rng.integers(len(SIZES))])


def _colour(rng: Random, low: int = 0, high: int = 256) -> tuple[int, ...]:
    return tuple(map(int, rng.integers(low, high, 3)))


def _words(rng: Random, count: int) -> str:
    return " ".join("".join(rng.choice(LETTERS, rng.integers(2, 9))) for _ in range(count))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _image(values: np.ndarray) -> Image.Image:
    """Return an image of `values`, float (height, width, 3), 0 to 255."""
    return Image.fromarray(np.uint8(values.clip(0, 255)))


def _blend(shares: np.ndarray, first: Colour, second: Colour) -> Image.Image:
    """Return an image that has `shares` (height, width), 0 to 1, of the `second` colour."""
    shares = shares[..., np.newaxis]
    return _image(np.array(first) * (1 - shares) + np.array(second) * shares)


def _grid(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of each pixel, float (height, width), -1 to 1 along the shorter side."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    return (2 * x - width) / min(size), (2 * y - height) / min(size)


def document(rng: Random, size: Size) -> Image.Image:
    """Draw a page of text with a title, at times with a table, at times askew."""
    paper, ink = _colour(rng, 225), _colour(rng, 0, 80)
    image = Image.new("RGB", size, paper)
    draw, height = ImageDraw.Draw(image), int(rng.integers(8, 13))
    draw.text((18, 12), _words(rng, 3), ink, _font(int(rng.integers(16, 24))))
    y, step, text = 48, height * 1.4, _font(height)
    while y < size[1] - 20:
        if rng.random() < 0.15:
            draw.rectangle((18, y, size[0] - 18, y + step), outline=ink)
            draw.text((22, y), f"{_words(rng, 1)}   {rng.uniform(1, 999):.2f}", ink, text)
        else:
            draw.text((18, y), _words(rng, size[0] // 40), ink, text)
        y += step * rng.choice((1, 1, 1, 2))
    if rng.random() < 0.4:
        image = image.rotate(rng.uniform(-6, 6), Image.Resampling.BICUBIC, fillcolor=_colour(rng))
    return image


def chart(rng: Random, size: Size) -> Image.Image:
    """Draw a diagram: bars, lines, points or a pie."""
    image = Image.new("RGB", size, _colour(rng, 235))
    draw, ink = ImageDraw.Draw(image), _colour(rng, 0, 90)
    left, top, right, bottom = 30, 30, size[0] - 15, size[1] - 30
    draw.text((left, 8), _words(rng, 3), ink, _font(int(rng.integers(11, 16))))
    kind, count = rng.integers(4), int(rng.integers(5, 12))
    if kind == 3:
        edges = np.append(0, rng.uniform(1, 4, count).cumsum())
        for start, end in pairwise(360 * edges / edges[-1]):
            draw.pieslice((left, top, right, bottom), start, end, _colour(rng), ink)
        return image
    for y in np.linspace(top, bottom, 5):
        draw.line((left, y, right, y), (200, 200, 200))
        draw.text((4, y - 6), f"{rng.integers(100)}", ink, _font(9))
    xs = np.linspace(left, right, count + 1)
    for _ in range(1 if kind == 0 else rng.integers(1, 4)):
        colour, ys = _colour(rng, 0, 200), rng.uniform(top, bottom, count + 1)
        for i in range(count):
            if kind == 0:
                draw.rectangle((xs[i] + 3, ys[i], xs[i + 1] - 3, bottom), colour)
            elif kind == 1:
                draw.line((xs[i], ys[i], xs[i + 1], ys[i + 1]), colour, 3)
            else:
                draw.ellipse((xs[i], ys[i], xs[i] + 7, ys[i] + 7), colour)
    draw.line((left, top, left, bottom, right, bottom), ink, 2)
    return image


def screen(rng: Random, size: Size) -> Image.Image:
    """Draw a program's window: a bar, a list at its side, buttons, cards and text."""
    is_dark = rng.random() < 0.4
    paper, ink = (_colour(rng, 15, 50), _colour(rng, 200)) if is_dark else ((250,) * 3, (30,) * 3)
    accent = _colour(rng, 40, 220)
    image = Image.new("RGB", size, paper)
    draw, text = ImageDraw.Draw(image), _font(int(rng.integers(9, 12)))
    side = 80 if rng.random() < 0.6 else 0
    draw.rectangle((0, 0, size[0], 24), accent)
    draw.text((8, 5), _words(rng, 3), (255,) * 3, text)
    draw.rectangle((0, 24, side, size[1]), _toned(paper, accent))
    y = 34
    while y < size[1] - 30:
        if side:
            draw.text((6, y), _words(rng, 1), ink, text)
        kind = rng.integers(3)
        if kind == 0:
            draw.rounded_rectangle((side + 10, y, side + 90, y + 20), 5, accent)
            draw.text((side + 18, y + 4), _words(rng, 1), (255,) * 3, text)
        elif kind == 1:
            draw.rectangle((side + 10, y, size[0] - 10, y + 22), outline=ink)
            draw.ellipse((side + 14, y + 4, side + 28, y + 18), _colour(rng))
            draw.text((side + 36, y + 5), _words(rng, 2), ink, text)
        else:
            draw.text((side + 10, y), _words(rng, 4), ink, text)
        y += 28
    return image


def _toned(first: Colour, second: Colour) -> tuple[int, ...]:
    return tuple(round(channel) for channel in mix(first, second, 0.15))


def texture(rng: Random, size: Size) -> Image.Image:
    """Draw a material: clouds of several scales, or veins through them."""
    total = np.zeros(size[::-1])
    for octave in range(2, 7):
        coarse = Image.fromarray(np.float32(rng.normal(size=(2**octave, 2**octave))))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / 1.6**octave
    total /= total.std()
    x, y = _grid(size)
    angle, count = rng.uniform(0, pi), rng.uniform(2, 14)
    veins = np.sin(count * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0.5, 3) * total)
    shares = (veins + 1) / 2 if rng.random() < 0.6 else 1 / (1 + np.exp(-2 * total))
    return _blend(shares, _colour(rng), _colour(rng))


def noise(rng: Random, size: Size) -> Image.Image:
    """Draw noise: of each channel, grey, of large squares, or single pixels on one colour."""
    width, height = size
    kind = rng.integers(4)
    if kind == 0:
        values = rng.normal(128, rng.uniform(10, 90), (height, width, 3))
    elif kind == 1:
        values = rng.uniform(0, 256, (height, width, 1)).repeat(3, axis=2)
    elif kind == 2:
        cell = int(rng.integers(4, 40))
        cells = rng.uniform(0, 256, (-(-height // cell), -(-width // cell), 3))
        values = cells.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    else:
        spots = rng.random((height, width, 1)) < rng.uniform(0.01, 0.3)
        values = np.where(spots, _colour(rng), np.array(_colour(rng)))
    return _image(values)


def gradient(rng: Random, size: Size) -> Image.Image:
    """Draw one colour turning into another, along a line or around a point; at times just one."""
    x, y = _grid(size)
    angle = rng.uniform(0, tau)
    shares = (x * np.cos(angle) + y * np.sin(angle) + 1.4) / 2.8
    if rng.random() < 0.4:
        shares = np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) / 2
    if rng.random() < 0.15:
        shares = shares * 0
    return _blend(shares.clip(0, 1), _colour(rng), _colour(rng))


def pattern(rng: Random, size: Size) -> Image.Image:
    """Draw a pattern: stripes, squares, dots or rings, sharp or soft."""
    x, y = _grid(size)
    angle, count = rng.uniform(0, pi), rng.uniform(3, 25)
    u = count * (x * np.cos(angle) + y * np.sin(angle))
    v = count * (y * np.cos(angle) - x * np.sin(angle))
    waves = (np.sin(u), np.sin(u) * np.sin(v), np.cos(u) + np.cos(v), np.sin(np.hypot(u, v)))
    wave = waves[rng.integers(4)] - rng.uniform(-0.3, 0.3)
    image = _blend((wave > 0).astype(float), _colour(rng), _colour(rng))
    return image.filter(ImageFilter.GaussianBlur(rng.choice((0, 0.7, 3))))


KINDS: dict[str, Callable[[Random, Size], Image.Image]] = {
    "documents": document,
    "charts": chart,
    "screens": screen,
    "textures": texture,
    "noise": noise,
    "gradients": gradient,
    "patterns": pattern,
}
