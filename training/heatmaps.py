"""Writes images with their heat maps on top, as PNG files."""

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from serving.errors import UserError
from training.cli import reason_of
from training.evaluation.figures import overlay, read_heat
from training.image_files import is_url

MAX_SIDE = 1024  # pixels of an overlay
# Bytes of an image's name that its overlay takes over: file systems take 255 with the suffix and a
# number, encrypted ones 143.
MAX_NAME = 100
SUFFIX = ".heatmap.png"


class HeatmapFolder:
    """A folder of overlays; files in it are never overwritten."""

    def __init__(self, path: Path):
        """Make the folder `path` if it is missing.

        Raises:
            UserError: it cannot be made.
        """
        self.path = path
        self._count: Counter[str] = Counter()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._resolved = path.resolve()

    def is_output(self, path: str) -> bool:
        """Return whether the file at `path` is one of the heat maps in this folder."""
        return path.endswith(SUFFIX) and Path(path).parent.resolve() == self._resolved

    def write(self, name: str, image: Image.Image, heatmap: dict) -> Path:
        """Write `image`, a path or URL called `name`, with its `heatmap`, and return the new file.

        `image` is RGB, of any size, and `heatmap` is what `serving.answers.describe` returns.

        Raises:
            UserError: it cannot be written.
        """
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        colored = Image.fromarray(overlay(np.asarray(image), read_heat(heatmap)))
        stem = file_stem(name)
        while True:
            self._count[stem] += 1
            number = f"_{self._count[stem]}" if self._count[stem] > 1 else ""
            path = self.path / f"{stem}{number}{SUFFIX}"
            try:
                with path.open("xb") as file:
                    colored.save(file, "PNG")
                return path
            except FileExistsError:
                continue
            except OSError as error:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise _unwritable(path, error) from error


def file_stem(name: str) -> str:
    """Return a file name without suffix for the image `name`, a path or URL."""
    if is_url(name):
        name = unquote(urlsplit(name).path)
    stem = re.sub(r"[^\w.-]+", "_", Path(name).stem).encode()[:MAX_NAME]
    return stem.decode(errors="ignore").lstrip(".") or "image"


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"Expected to write heat maps. Received: {path} ({error.strerror or reason_of(error)}). "
        "Name another folder with --heatmap, or free disk space."
    )
