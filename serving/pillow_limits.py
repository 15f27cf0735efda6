"""What the service changes in Pillow, and why; serving.image applies it."""

import ctypes
import logging
import warnings
from pathlib import Path
from typing import IO

from PIL import AvifImagePlugin, Image, WebPImagePlugin

from serving.bmp import RunLengthDecoder


def apply() -> None:
    """Change Pillow for this process; applying it again changes nothing more."""
    silence_python()
    silence_libtiff()
    # Each thread more takes memory.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # ty: ignore[invalid-assignment]
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
    """A file with a limit on reads.

    Attributes:
        reads: how many more.
    """

    def __init__(self, file: IO[bytes], reads: float):
        """Allow `reads` reads of `file`."""
        self._file, self.reads = file, reads
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        """Return the next `count` bytes.

        Raises:
            OSError: these are too many reads.
        """
        self.reads -= 1
        if self.reads < 0:
            raise OSError("read too often")
        return self._file.read(count)


class FirstFrame(WebPImagePlugin.WebPImageFile):
    """The first image of a WebP.

    libwebp has a canvas for this frame and one for the frame before. Without them, 12 bytes a
    pixel are the most that is needed at a time, instead of 20.
    """

    def _get_next(self) -> tuple[bytes, int, int]:
        frame = super()._get_next()
        del self._decoder
        return frame
