"""Finds and reads the images that a command line names: files, folders and URLs."""

import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from serving.errors import ImageError
from serving.events import clean_url
from serving.fetch import MAX_BYTES, fetch, too_large
from serving.image import open_image
from training.cli import reason_of

PIPES = ("/dev/stdin", "/dev/fd/")  # of our own process: `| predict.py /dev/stdin`, `<(command)`
NO_FILE = re.compile(r"(file|s3|gs|az|abfss?):/", re.IGNORECASE)  # addresses nobody fetches here
# {what no file is called: what to do instead}
ADVICE = {
    r"file:(?://(?:localhost)?)?(/.*)": "Give its path: {path}",
    r"(s3|gs|az|abfss?)://": "To label images in a bucket, add --out with a place for the results.",
    r"https?[:/]+(.*)": "If it is a URL, write https://{rest}",
    r"([a-z0-9-]+\.)+[a-z]{2,}(:\d+)?/": "If it is a URL, write https:// before it: https://{image}",
    r"[a-z]:\\": "Paths have no drive and no backslash here; on WSL, C:\\ is /mnt/c/.",
    r".*[*?[]": "If it is a pattern, no name matches it: name the folder, or leave out quotes.",
}
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expand(
    images: Iterable[str], is_output: Callable[[str], bool] = lambda _: False
) -> Iterator[str]:
    """Yield `images`, with each folder replaced by its visible files.

    Files in a folder that the caller has written itself, `is_output`, are not among them.
    """
    for image in images:
        if is_url(image) or not image:
            yield image
            continue
        path = image if os.path.lexists(image) else os.path.expanduser(image)
        if os.path.isdir(path):
            yield from visible_files(path, is_output)
        else:
            yield path


def is_url(image: str) -> bool:
    """Return whether `image` is a URL rather than a path."""
    return "://" in image


def visible_files(folder: str, is_output: Callable[[str], bool] = lambda _: False) -> Iterator[str]:
    """Yield the files in `folder` and below it in order, but none that is hidden or `is_output`.

    Links to folders are followed, each folder once. A folder that cannot be listed is yielded
    itself, and so is `folder` if there are no files: `read_images` says why it is no image.
    """
    paths, seen, empty = [str(Path(folder))], set(), True
    while paths:
        path = paths.pop()
        try:
            if os.path.isdir(path):
                inside = _list_once(path, seen)
                paths += [os.path.join(path, name) for name in sorted(inside, reverse=True)]
                continue
        except OSError:
            pass
        if is_output(path):
            continue
        empty = False
        yield path
    if empty:
        yield folder


def _list_once(folder: str, seen: set[tuple[int, int]]) -> list[str]:
    """Return the visible names in `folder`, or none if it is among those `seen`."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return []
    seen.add(identity)
    return [name for name in os.listdir(folder) if not name.startswith(".")]


def read_images(image: str, sizes: Sequence[tuple[int, int] | None]) -> list[Image.Image]:
    """Return the upright RGB image at a path or URL, once for each of `sizes`.

    A size is the (height, width) that it will be resized to, None for all its pixels. What copying
    adds to a URL is dropped.

    Raises:
        ServingError: it cannot be read or fetched, or is not an image.
    """
    if re.match(NO_FILE, image) and not os.path.lexists(image):
        raise _unreadable(image, "no file and no http address", advice_on(image))
    try:
        if is_url(image):
            source = fetch(clean_url(image))
        else:
            content = _read_pipe(image)
            source = _regular_file(image) if content is None else content
        return [open_image(source, size) for size in sizes]
    except OSError as error:
        raise _unreadable(image, error.strerror or reason_of(error), advice_on(image)) from error


def _regular_file(image: str) -> Path:
    """Return the path of `image`; raise ImageError where opening it would not end, or OSError."""
    mode = os.stat(image).st_mode
    if stat.S_ISDIR(mode):
        os.listdir(image)  # raises the reason if it cannot be listed
        raise ImageError(
            f"Expected a folder of images. Received: {image}, which holds no files to classify. "
            "Name another."
        )
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise _unreadable(image, kind, "Save the image as a file.")
    return Path(image)


def _read_pipe(image: str) -> bytes | None:
    """Return what the pipe `image` of this process holds, or None if it is something else."""
    if not image.startswith(PIPES) or not stat.S_ISFIFO(os.stat(image).st_mode):
        return None
    with open(image, "rb") as pipe:
        content = pipe.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise too_large()
    if not content:
        raise ImageError(
            f"Expected an image. Received: {image}, a pipe without content. Check the command that "
            "writes to it."
        )
    return content


def _unreadable(image: str, reason: str, advice: str) -> ImageError:
    return ImageError(
        f"Expected a file that can be read. Received: {image or 'an empty name'} ({reason}). "
        f"{advice}"
    )


def advice_on(image: str) -> str:
    """Return what to do about `image`, which could not be opened as a file."""
    if os.path.lexists(image):
        return "Check its permissions and, if it is a link, where it leads."
    for pattern, advice in ADVICE.items():
        found = re.match(pattern, image, re.IGNORECASE | re.DOTALL)
        if found:
            rest = found[found.lastindex or 0]
            return advice.format(image=image, rest=rest, path=shlex.quote(unquote(rest)))
    return "Check the path."
