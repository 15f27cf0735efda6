"""A folder of pictures, one sub-folder a class: checked, counted and split."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from serving.errors import ServingError
from serving.image import open_picture

MIN_PICTURES = 5  # a class, so that a fifth of it is at least one
HOW_TO_GET_DATA = (
    "Run `make data` for the real flowers or `make sample` for drawn ones, "
    "or name a folder of your own with --data."
)


class DataError(Exception):
    """The folder of pictures is not usable; `str(error)` says what to do."""


@dataclass(frozen=True)
class Dataset:
    """The usable pictures of a folder.

    Attributes:
        folder: where they are.
        class_names: names of its sub-folders, sorted.
        pictures: "class/file" of every usable picture, sorted.
        left_out: ("class/file", reason) of every file that is not usable.
    """

    folder: Path
    class_names: tuple[str, ...]
    pictures: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def counts(self) -> dict[str, int]:
        """Pictures of each class."""
        return {name: len(self.of_class(name)) for name in self.class_names}

    def of_class(self, name: str) -> list[str]:
        """Return "class/file" of the pictures of class `name`."""
        return [picture for picture in self.pictures if class_of(picture) == name]

    def labels(self, pictures: Iterable[str]) -> np.ndarray:
        """Return the class index of each of `pictures`, int (pictures,)."""
        indices = {name: index for index, name in enumerate(self.class_names)}
        return np.array([indices[class_of(picture)] for picture in pictures], dtype=int)


@dataclass(frozen=True)
class Split:
    """Which pictures train and which validate, as "class/file", and how they were drawn."""

    seed: int
    fraction: float
    train: tuple[str, ...]
    validation: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of all of this split, hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write this split to `path` as JSON."""
        path.write_text(json.dumps(asdict(self), indent=0) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Split":
        """Return the split that `write` put into `path`."""
        record = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            record["seed"],
            record["fraction"],
            tuple(record["train"]),
            tuple(record["validation"]),
        )


def class_of(picture: str) -> str:
    """Return the class of a "class/file"."""
    return picture.split("/", 1)[0]


def scan(folder: str | Path) -> Dataset:
    """Decode every file of `folder`'s sub-folders and return what is usable.

    Nothing is deleted or moved; files whose names begin with a dot are not looked at.

    Raises:
        DataError: no such folder, fewer than two classes, or a class with fewer than
            `MIN_PICTURES` usable pictures.
    """
    folder = Path(folder)
    class_names = _class_names(folder)
    files = [
        f"{name}/{path.name}"
        for name in class_names
        for path in sorted((folder / name).iterdir())
        if not path.name.startswith(".")
    ]
    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(lambda file: _unusable(folder / file), files))
    dataset = Dataset(
        folder,
        class_names,
        tuple(file for file, reason in zip(files, reasons, strict=True) if reason is None),
        tuple((file, reason) for file, reason in zip(files, reasons, strict=True) if reason),
    )
    for name, count in dataset.counts.items():
        if count < MIN_PICTURES:
            raise DataError(
                f"Expected at least {MIN_PICTURES} pictures of each class. "
                f"Received: {count} in {folder / name}. Add some, or take the folder away."
            )
    return dataset


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        received = "a file" if folder.exists() else "no such folder"
        raise DataError(
            f"Expected {folder} to hold one folder of pictures for each class. "
            f"Received: {received}. {HOW_TO_GET_DATA}"
        )
    names = tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    if len(names) < 2:
        received = f"only {names[0]}" if names else "none"
        raise DataError(
            f"Expected {folder} to hold one folder of pictures for each of two or more classes. "
            f"Received: {received}. {HOW_TO_GET_DATA}"
        )
    return names


def _unusable(path: Path) -> str | None:
    """Return why the file at `path` cannot be used, or None."""
    if not path.is_file():
        return "not a file"
    if path.stat().st_size == 0:
        return "empty"
    try:
        open_picture(path)
    except ServingError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def split(dataset: Dataset, fraction: float, seed: int) -> Split:
    """Return a split with `fraction` (0 to 1) of each class, rounded, for validation.

    The same pictures and seed give the same split; each class keeps at least one picture on
    either side.
    """
    rng = np.random.default_rng(seed)
    validation: set[str] = set()
    for name in dataset.class_names:
        pictures = dataset.of_class(name)
        count = min(max(round(fraction * len(pictures)), 1), len(pictures) - 1)
        validation.update(rng.permutation(pictures)[:count].tolist())
    return Split(
        seed,
        fraction,
        tuple(picture for picture in dataset.pictures if picture not in validation),
        tuple(picture for picture in dataset.pictures if picture in validation),
    )
