"""Reads a folder of images, one sub-folder a class, and finds out which files are usable."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from serving.errors import ServingError
from serving.image import open_image, read_image_file
from training.dataset.perceptual_hash import perceptual_hash, thumbnail
from training.errors import DataError

MIN_IMAGES = 5  # in each class, so that a fifth of it is at least one
HOW_TO_GET_DATA = (
    "Run `make data` for the real flowers or `make sample` for drawn ones, "
    "or name a folder of your own with --data."
)
EXCLUDED = "excluded by"  # begins the reason why an excluded file is skipped
SAME_TYPE = {"MPO": "JPEG", "DIB": "BMP"}  # phones' variant of JPEG, Windows' of BMP


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
    """

    folder: Path
    class_names: tuple[str, ...]
    images: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    digests: dict[str, str] = field(default_factory=dict, hash=False, repr=False)
    hashes: dict[str, int] = field(default_factory=dict, hash=False, repr=False)
    mismatched: tuple[tuple[str, str], ...] = ()

    @property
    def excluded(self) -> set[str]:
        """The skipped files that a person excluded."""
        return {file for file, reason in self.skipped if reason.startswith(EXCLUDED)}

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each class."""
        return {name: len(self.of_class(name)) for name in self.class_names}

    def describe_counts(self) -> str:
        """Return the number of images of each class, for a person."""
        return ", ".join(f"{name} {count}" for name, count in self.counts.items())

    def of_class(self, name: str) -> list[str]:
        """Return "class/file" of the images of class `name`."""
        return [image for image in self.images if class_of(image) == name]

    def labels(self, images: Iterable[str]) -> np.ndarray:
        """Return the class index of each of `images`, int (images,)."""
        indices = {name: index for index, name in enumerate(self.class_names)}
        return np.array([indices[class_of(image)] for image in images], dtype=int)


@dataclass(frozen=True)
class _File:
    """What is known about a file: why it is unusable or, of a usable image, the rest."""

    unusable: str | None = None
    digest: str = ""
    thumbnail: Image.Image | None = None
    mismatch: str | None = None


def class_of(image: str) -> str:
    """Return the class of a "class/file"."""
    return image.split("/", 1)[0]


def scan(folder: str | Path, exclude: Path | None = None) -> Dataset:
    """Read and decode every file in the sub-folders of `folder`.

    Nothing is deleted or moved. Files whose names begin with a dot are ignored, files that the
    text file `exclude` lists ("class/file", one a line, `#` begins a comment) are skipped.

    Raises:
        DataError: there is no such folder, it has fewer than two classes or a class with fewer than
            `MIN_IMAGES` usable images, or `exclude` names a file that does not exist.
    """
    folder = Path(folder)
    class_names = _class_names(folder)
    files = [
        f"{name}/{path.name}"
        for name in class_names
        for path in sorted((folder / name).iterdir())
        if not path.name.startswith(".")
    ]
    excluded = _excluded(exclude, folder, set(files)) if exclude else set()
    excluding = _File(f"{EXCLUDED} {exclude}")
    with ThreadPoolExecutor() as pool:
        found = dict(
            zip(
                files,
                pool.map(lambda f: excluding if f in excluded else _check_file(folder / f), files),
                strict=True,
            )
        )
    dataset = _dataset(folder, class_names, found)
    for name, count in dataset.counts.items():
        if count < MIN_IMAGES:
            raise DataError(
                f"Expected at least {MIN_IMAGES} images of each class. "
                f"Received: {count} in {folder / name}. Add some, or take the folder away."
            )
    return dataset


def require(dataset: Dataset, images: Sequence[str]) -> None:
    """Raise `DataError` unless `dataset` has all `images`."""
    missing = set(images) - set(dataset.images)
    if missing:
        raise DataError(
            f"Expected {dataset.folder} to hold the {len(images)} images of the split. "
            f"Received: a folder without {len(missing)} of them. Name the right one with --data."
        )


def _dataset(folder: Path, class_names: tuple[str, ...], found: dict[str, _File]) -> Dataset:
    usable = {name: file for name, file in found.items() if file.unusable is None}
    # Not on the threads that read: steps as short as these would wait for the interpreter lock.
    thumbnails = {name: file.thumbnail for name, file in usable.items() if file.thumbnail}
    hashes = {name: perceptual_hash(small) for name, small in thumbnails.items()}
    return Dataset(
        folder,
        class_names,
        tuple(usable),
        tuple((name, file.unusable) for name, file in found.items() if file.unusable),
        {name: file.digest for name, file in usable.items()},
        {name: value for name, value in hashes.items() if value is not None},
        tuple((name, file.mismatch) for name, file in usable.items() if file.mismatch),
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        received = "a file" if folder.exists() else "no such folder"
        raise DataError(
            f"Expected {folder} to hold one folder of images for each class. "
            f"Received: {received}. {HOW_TO_GET_DATA}"
        )
    names = tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    if len(names) < 2:
        received = f"only {names[0]}" if names else "none"
        raise DataError(
            f"Expected {folder} to hold one folder of images for each of two or more classes. "
            f"Received: {received}. {HOW_TO_GET_DATA}"
        )
    return names


def _excluded(path: Path, folder: Path, files: set[str]) -> set[str]:
    """Return the `files` ("class/file") that the text file `path` lists."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(
            "Expected a text file that lists images to exclude. "
            f"Received: {path} ({error.strerror}). Correct its name, or omit --exclude."
        ) from None
    excluded = set()
    for number, line in enumerate(text.split("\n"), 1):
        readings = list(_without_comment(line))
        file = next((reading for reading in readings if reading in files), None)
        if file:
            excluded.add(file)
        elif readings[-1]:
            raise DataError(
                f"Expected each line of {path} to name a file of {folder} as class/file. "
                f"Received: {readings[-1]} in line {number}. Correct or remove the line."
            )
    return excluded


def _without_comment(line: str) -> Iterator[str]:
    """Yield `line` without its comment, the shortest comment first: names may contain ` #`."""
    yield line.strip()
    for mark in reversed(list(re.finditer(r"(^|\s)#", line))):
        yield line[: mark.start()].strip()


def _check_file(path: Path) -> _File:
    if not path.is_file():
        return _File("not a file")
    try:
        if not path.stat().st_size:
            return _File("empty")
        content = read_image_file(path)
        image = open_image(content)
    except ServingError as error:
        return _File(str(error))
    except OSError as error:
        return _File(f"cannot be read ({error.strerror})")
    return _File(
        digest=hashlib.sha256(content).hexdigest(),
        thumbnail=thumbnail(image),
        mismatch=_mismatch(path.suffix.lower(), image.info["format"]),
    )


def _mismatch(suffix: str, held: str) -> str | None:
    """Return how `suffix`, such as ".png", contradicts the format `held`, or None."""
    if not suffix[1:2].isalpha():  # "rose" and "rose.2" are names without a type
        return None
    named = Image.EXTENSION.get(suffix)
    return None if SAME_TYPE.get(named, named) == held else f"named {suffix}, is {held}"
