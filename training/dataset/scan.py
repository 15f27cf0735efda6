"""Reads a folder of images, one sub-folder a class, and finds out which files are usable."""

import hashlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from serving import jpeg
from serving.errors import ServingError
from serving.image import open_image, read_image_file
from training.dataset.check_cache import UNSETTLED, CheckCache, Stamp, Usable, settled_stamp
from training.dataset.explain import (
    LISTED,
    advise,
    explain_empty,
    explain_skipped,
    suggest_folder,
)
from training.dataset.names import (
    FileIndex,
    check_class_names,
    composed,
    has_line_break,
    read_list,
)
from training.dataset.perceptual_hash import perceptual_hash, thumbnail
from training.errors import DataError
from training.prefetch import prefetch, progress
from training.streams import counted, printable

MIN_IMAGES = 5  # in each class, so that a fifth of it is at least one
HOW_TO_GET_DATA = (
    "Run `make data` for the real flowers or `make sample` for drawn ones, "
    "or name a folder of your own with --data."
)
EXCLUDED = "excluded by"  # begins the reason why an excluded file is skipped
LISTS = {"--exclude": "to exclude", "--audit": "whose labels are wrong"}  # {flag: of which images}
SAME_TYPE = {"MPO": "JPEG", "DIB": "BMP"}  # phones' variant of JPEG, Windows' of BMP
NO_FILE = "not a file"
SMALL_BYTES = 20_000_000  # files up to this size are read by several threads at once
_READING_LARGE = threading.Lock()
AT_ONCE = 16  # files that a thread checks before it hands them over
QUIET_SECONDS = 5  # a check that takes longer shows its progress
# (height, width) in pixels. A larger JPEG is reduced while it is decoded, to no less than twice
# this, in a quarter of the time. All of the file is read nevertheless, so what is broken is found.
# Its hash changes a little: by at most 3 bits in 100 photographs, enlarged to 2000 by 1500 pixels.
CHECKED_SIZE = (128, 128)


@dataclass(frozen=True)
class Dataset:
    """The usable images of a folder.

    Attributes:
        folder: where the images are.
        class_names: names of its sub-folders, sorted.
        images: "class/file" of every usable image, sorted.
        skipped: ("class/file", reason) of every file that is unusable or excluded.
        digests: SHA-256 of each image file, hexadecimal.
        hashes: `perceptual_hash` of each image that has one.
        mismatched: ("class/file", "named .png, is JPEG") of images with a wrong suffix; they are
            usable.
        wrong_labels: "class/file" of those whose label an audit found wrong.
    """

    folder: Path
    class_names: tuple[str, ...]
    images: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    digests: dict[str, str] = field(default_factory=dict, hash=False, repr=False)
    hashes: dict[str, int] = field(default_factory=dict, hash=False, repr=False)
    mismatched: tuple[tuple[str, str], ...] = ()
    wrong_labels: frozenset[str] = frozenset()

    @property
    def excluded(self) -> set[str]:
        """The skipped files that a person excluded."""
        return {file for file, reason in self.skipped if reason.startswith(EXCLUDED)}

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each class."""
        count = Counter(composed(class_of(image)) for image in self.images)
        return {name: count[composed(name)] for name in self.class_names}

    def describe_counts(self) -> str:
        """Return the number of images of each class, for a person."""
        return printable(", ".join(f"{name} {count}" for name, count in self.counts.items()))

    def of_class(self, name: str) -> list[str]:
        """Return "class/file" of the images of class `name`."""
        return [image for image in self.images if composed(class_of(image)) == composed(name)]

    def labels(self, images: Iterable[str]) -> np.ndarray:
        """Return the class index of each of `images`, int (images,)."""
        indices = {composed(name): index for index, name in enumerate(self.class_names)}
        return np.array([indices[composed(class_of(image))] for image in images], dtype=int)


class TooFewImagesError(DataError):
    """A class has too few usable images.

    Attributes:
        dataset: what is usable.
    """

    def __init__(self, sentence: str, dataset: Dataset):
        """Say `sentence` about `dataset`."""
        super().__init__(sentence)
        self.dataset = dataset


@dataclass(frozen=True)
class _Checked:
    """What a thread finds out about a file.

    Attributes:
        result: why it is unusable or, of a usable image, what is known.
        thumbnail: which its hash is computed from, None where that is not to be done.
        stamp: of the file.
    """

    result: Usable | str
    thumbnail: Image.Image | None = None
    stamp: Stamp = UNSETTLED

    def finish(self) -> Usable | str:
        """Return the result, with the hash."""
        if isinstance(self.result, str) or not self.thumbnail:
            return self.result
        return self.result._replace(hash=perceptual_hash(self.thumbnail))


def class_of(image: str) -> str:
    """Return the class of a "class/file"."""
    return image.split("/", 1)[0]


def scan(folder: str | Path, exclude: Path | None = None, audit: Path | None = None) -> Dataset:
    """Read and decode every file in the sub-folders of `folder`.

    Nothing is deleted or moved. Files whose names begin with a dot are ignored, files that the
    text file `exclude` lists ("class/file", one a line, `#` begins a comment) are skipped. Those
    that `audit` lists in the same way stay; they are the data set's `wrong_labels`.

    Raises:
        DataError: there is no such folder, it has fewer than two classes or names that a model
            cannot carry, or a list names a file that does not exist.
        TooFewImagesError: a class has fewer than `MIN_IMAGES` usable images.
    """
    folder = Path(folder)
    class_names = find_classes(folder)
    files, found = [], {}
    for name in class_names:
        try:
            files += [f"{name}/{file}" for file in _list_files(folder / name)]
        except OSError as error:
            found[name] = f"cannot be listed ({error.strerror})"
    excluded = _listed(exclude, "--exclude", folder, files) if exclude else set()
    wrong_labels = _listed(audit, "--audit", folder, files) if audit else set()
    checked = _check_files(folder, [file for file in files if file not in excluded])
    found |= {file: checked.get(file, f"{EXCLUDED} {exclude}") for file in files}
    dataset = _dataset(folder, class_names, found)
    _require_enough(dataset)
    return replace(dataset, wrong_labels=frozenset(wrong_labels))


def _list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _require_enough(dataset: Dataset) -> None:
    """Raise `TooFewImagesError`, which says why, if a class has fewer than `MIN_IMAGES`."""
    folder, skipped = dataset.folder, dataset.skipped
    short = {name: count for name, count in dataset.counts.items() if count < MIN_IMAGES}
    if not short:
        return
    received = []
    for name, count in list(short.items())[:LISTED]:
        why = explain_skipped(folder, name, skipped)
        if not count and not why:
            why = explain_empty(folder / name)
        received.append(f"{count} in {printable(folder / name)}{why}")
    more = f", and too few in {len(short) - LISTED} more" if len(short) > LISTED else ""
    raise TooFewImagesError(
        f"Expected at least {MIN_IMAGES} images of each class. "
        f"Received: {', '.join(received)}{more}. {advise(folder, list(short), skipped)}",
        dataset,
    )


def require(dataset: Dataset, images: Sequence[str]) -> None:
    """Raise `DataError` unless `dataset` has all `images`."""
    missing = set(images) - set(dataset.images)
    if missing:
        raise DataError(
            f"Expected {dataset.folder} to hold the {counted(len(images), 'image')} of the split. "
            f"Received: a folder without {len(missing)} of them. Name the right one with --data."
        )


def _dataset(folder: Path, class_names: tuple[str, ...], found: dict[str, Usable | str]) -> Dataset:
    usable = {name: result for name, result in found.items() if isinstance(result, Usable)}
    mismatches = {name: _mismatch(name, result.format) for name, result in usable.items()}
    return Dataset(
        folder,
        class_names,
        tuple(usable),
        tuple((name, result) for name, result in found.items() if isinstance(result, str)),
        {name: result.digest for name, result in usable.items()},
        {name: result.hash for name, result in usable.items() if result.hash is not None},
        tuple((name, mismatch) for name, mismatch in mismatches.items() if mismatch),
    )


def find_classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders in `folder`, sorted.

    Raises:
        DataError: there is no such folder, it holds fewer than two, or a name is unusable.
    """
    if not folder.is_dir():
        received = "a file" if folder.exists() else "no such folder"
        raise DataError(
            f"Expected {printable(folder)} to hold one folder of images for each class. "
            f"Received: {received}. {HOW_TO_GET_DATA}"
        )
    names = tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    if len(names) < 2:
        received = f"only {printable(names[0])}" if names else "none"
        raise DataError(
            f"Expected {printable(folder)} to hold one folder of images for each of two or more "
            f"classes. Received: {received}. {suggest_folder(folder) or HOW_TO_GET_DATA}"
        )
    check_class_names(folder, names)
    return names


def _listed(path: Path, flag: str, folder: Path, files: Sequence[str]) -> set[str]:
    """Return the `files` ("class/file") that the text file `path`, given by `flag`, lists."""
    try:
        lines = read_list(path, FileIndex(folder, files))
    except OSError as error:
        raise DataError(
            f"Expected a text file that lists images {LISTS[flag]}. "
            f"Received: {path} ({error.strerror}). Correct its name, or omit {flag}."
        ) from None
    for line in lines:
        if not line.files:
            raise DataError(
                f"Expected each line of {path} to name a file of {folder} as class/file. Received: "
                f"{printable(line.text)} in line {line.number}. Correct or remove the line."
            )
    return {file for line in lines for file in line.files}


def _check_files(folder: Path, files: Sequence[str]) -> dict[str, Usable | str]:
    """Return the result for each of `files` ("class/file"): of one that is unusable, why."""
    found: dict[str, Usable | str] = {}
    with CheckCache(folder) as cache:
        for file in files:
            if known := _find_known(folder, file, cache):
                found[file] = known
        new = [file for file in files if file not in found]
        batches = [new[start : start + AT_ONCE] for start in range(0, len(new), AT_ONCE)]

        def check(batch: Sequence[str]) -> list[_Checked]:
            return [_check_file(folder / file, cache) for file in batch]

        with progress(len(new), "  checked", delay=QUIET_SECONDS) as bar:
            for batch, results in prefetch(batches, check):
                for file, checked in zip(batch, results, strict=True):
                    # Not on the threads: steps as short as this wait for the interpreter lock.
                    found[file] = result = checked.finish()
                    if isinstance(result, Usable):
                        cache.keep(file, checked.stamp, result)
                bar.update(len(batch))
    return found


def _find_known(folder: Path, file: str, cache: CheckCache) -> Usable | None:
    """Return what `cache` knows about a `file` ("class/file") that can still be read, or None."""
    path = os.path.join(folder, file)
    try:
        status = os.stat(path)
    except OSError:
        return None
    return cache.find(file, status) if os.access(path, os.R_OK) else None


def _check_file(path: Path, cache: CheckCache) -> _Checked:
    if not path.is_file():
        dangles = path.is_symlink() and not path.exists()
        return _Checked("a link to nothing" if dangles else NO_FILE)
    if has_line_break(path.name):
        return _Checked("has a line break in its name, which lists cannot hold")
    try:
        before, now = path.stat(), time.time_ns()
        with _READING_LARGE if before.st_size > SMALL_BYTES else nullcontext():
            content = read_image_file(path)
            stamp = settled_stamp(before, path.stat(), now)
            return replace(_check_content(content, cache), stamp=stamp)
    except ServingError as error:
        # What comes after it is said to callers of the service, who can send another image.
        return _Checked(re.sub(r"(Received: .+?\.) [A-Z].*", r"\1", str(error)))
    except OSError as error:
        return _Checked(f"cannot be read ({error.strerror})")


def _check_content(content: bytes, cache: CheckCache) -> _Checked:
    if not content:
        return _Checked("empty")
    digest = hashlib.sha256(content).hexdigest()
    if known := cache.find_content(digest):
        return _Checked(known)
    # Where the end is missing, whether pixels are missing too shows in full size only.
    whole = content.startswith(jpeg.START) and not content.endswith(jpeg.END)
    image = open_image(content, None if whole else CHECKED_SIZE)
    return _Checked(Usable(digest, image.info["format"], None), thumbnail(image))


def _mismatch(name: str, held: str) -> str | None:
    """Return how the suffix of `name`, such as ".png", contradicts the format `held`, or None."""
    suffix = os.path.splitext(name)[1].lower()
    if not suffix[1:2].isalpha():  # "rose" and "rose.2" are names without a type
        return None
    held, named = SAME_TYPE.get(held, held), Image.EXTENSION.get(suffix, "")
    return None if SAME_TYPE.get(named, named) == held else f"named {suffix}, is {held}"
