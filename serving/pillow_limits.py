"""What the service changes in Pillow, and why; serving.image applies it."""

import ctypes
import logging
import math
import warnings
from io import SEEK_END
from pathlib import Path
from typing import IO, cast

from PIL import Image, TiffImagePlugin, WebPImagePlugin

from serving.bmp import RunLengthDecoder


def apply() -> None:
    """Change Pillow for this process; applying it again changes nothing more."""
    silence_python()
    silence_libtiff()
    TiffImagePlugin.ImageFileDirectory_v2 = BoundedDirectory  # ty: ignore[invalid-assignment]
    Image.register_decoder("bmp_rle", RunLengthDecoder)
    Image.OPEN["WEBP"] = FirstFrame, Image.OPEN["WEBP"][1]


def silence_python() -> None:
    """Ignore Pillow's warnings and messages.

    Strangers' files cause many that nobody can act on. They are ignored in the whole process,
    because threads share the list of warning filters.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def silence_libtiff() -> None:
    """Keep libtiff from writing about strangers' files to the standard error stream.

    Pillow has no setting for it; its wheels contain libtiff as a file of its own.
    """
    for library in Path(Image.__file__).parents[1].glob("pillow.libs/libtiff*"):
        for kind in ("Error", "Warning"):
            getattr(ctypes.CDLL(str(library)), f"TIFFSet{kind}Handler")(None)


class BoundedFile:
    """A file with a limit on reads and bytes.

    Attributes:
        reads: how many more.
    """

    def __init__(self, file: IO[bytes], reads: float = math.inf, count: float = math.inf):
        """Allow `reads` reads of `file`, and `count` bytes in total."""
        self._file, self.reads, self._left = file, reads, count
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        """Return the next `count` bytes.

        Raises:
            OSError: a limit is exceeded.
        """
        piece = self._file.read(count)
        self.reads -= 1
        self._left -= len(piece)
        if self.reads < 0 or self._left < 0:
            raise OSError("read too often or too much")
        return piece


class BoundedDirectory(TiffImagePlugin.ImageFileDirectory_v2):
    """The tags of a TIFF or EXIF, no longer than their file.

    The values of tags may overlap: 10 MB could hold 30,000 tags of 10 MB each, and Pillow 12 keeps
    a copy of each value. Pillow 13 has a bound of its own.
    """

    def load(self, fp: IO[bytes]) -> None:
        """Read the tags at the position of `fp`, within the bound."""
        place = fp.tell()
        length = fp.seek(0, SEEK_END)
        fp.seek(place)
        super().load(cast("IO[bytes]", BoundedFile(fp, count=length)))


class FirstFrame(WebPImagePlugin.WebPImageFile):
    """The first image of a WebP.

    libwebp has a canvas for this frame and one for the frame before. Without them, 12 bytes a
    pixel are the most that is needed at a time, instead of 20.
    """

    def _get_next(self) -> tuple[bytes, int, int]:
        frame = super()._get_next()
        del self._decoder
        return frame
