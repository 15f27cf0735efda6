"""Generators of files that cost as much as they can: legal ones, and lies.

Each draws a file of one format from a `random.Random`, from scratch. Counts are drawn so that small
ones are as frequent as large ones, up to what ten megabytes hold. The writers are our own: what
costs most is what encoders never write.
"""

import random
from collections.abc import Callable

from tests.fuzz.hostile.avif import draw_avif
from tests.fuzz.hostile.bmp import draw_bmp
from tests.fuzz.hostile.gif import draw_gif
from tests.fuzz.hostile.jpeg import draw_jpeg
from tests.fuzz.hostile.png import draw_png
from tests.fuzz.hostile.tiff import draw_tiff
from tests.fuzz.hostile.webp import draw_webp

GENERATORS: dict[str, Callable[[random.Random], bytes]] = {
    "JPEG": draw_jpeg,
    "PNG": draw_png,
    "TIFF": draw_tiff,
    "AVIF": draw_avif,
    "WebP": draw_webp,
    "GIF": draw_gif,
    "BMP": draw_bmp,
}


def draw_file(rng: random.Random) -> bytes:
    """Return a file of any format, of at most ten megabytes."""
    return rng.choice(tuple(GENERATORS.values()))(rng)
