"""A folder of pictures, one sub-folder a class: checked, counted and split.

python -m training.dataset flowers/                        # what is wrong with the pictures
python -m training.dataset flowers/ --exclude doubtful.txt  # without those that it lists
"""

import argparse
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from serving.errors import ServingError
from serving.image import FORMATS, open_picture
from training.dataset.perceptual_hash import near_pairs, perceptual_hash, small_grey

MIN_PICTURES = 5  # a class, so that a fifth of it is at least one
HOW_TO_GET_DATA = (
    "Run `make data` for the real flowers or `make sample` for drawn ones, "
    "or name a folder of your own with --data."
)
EXCLUDED = "excluded by"  # begins the reason of what `--exclude` leaves out
LISTED = 10  # findings of each kind; --json has all
SAME_TYPE = {"MPO": "JPEG", "DIB": "BMP"}  # what phones call a JPEG, and Windows a BMP


class DataError(Exception):
    """The folder of pictures is not usable; `str(error)` says what to do."""


@dataclass(frozen=True)
class Dataset:
    """The usable pictures of a folder.

    Attributes:
        folder: where they are.
        class_names: names of its sub-folders, sorted.
        pictures: "class/file" of every usable picture, sorted.
        left_out: ("class/file", reason) of every file that is not usable, or excluded.
        digests: the SHA-256 of the file of each of `pictures`, hexadecimal.
        hashes: the `perceptual_hash` of each of `pictures` that has one.
        mismatched: ("class/file", what is at odds) of those of `pictures` whose content is of
            another type than their name says; they are usable all the same.
    """

    folder: Path
    class_names: tuple[str, ...]
    pictures: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    digests: dict[str, str] = field(default_factory=dict, hash=False, repr=False)
    hashes: dict[str, int] = field(default_factory=dict, hash=False, repr=False)
    mismatched: tuple[tuple[str, str], ...] = ()

    @property
    def excluded(self) -> set[str]:
        """Those of `left_out` that a person excluded."""
        return {file for file, reason in self.left_out if reason.startswith(EXCLUDED)}

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
    """Which pictures train and which validate, as "class/file", and how they were drawn.

    Attributes:
        seed: of the draw.
        fraction: of each class that validates, 0 to 1.
        train: what the network is fitted to.
        validation: what it is measured on.
        selection: what a run picks its checkpoint on; none of them are in `train`.
        selection_fraction: of each class without its `validation`, 0 to 1.
    """

    seed: int
    fraction: float
    train: tuple[str, ...]
    validation: tuple[str, ...]
    selection: tuple[str, ...] = ()
    selection_fraction: float = 0.0

    def without(self, pictures: set[str]) -> "Split":
        """Return this split with none of `pictures` among what is measured on or picked on.

        What a network was fitted to stays what it was.
        """
        kept = {
            part: tuple(picture for picture in getattr(self, part) if picture not in pictures)
            for part in ("selection", "validation")
        }
        return replace(self, **kept)

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures of each part."""
        return {part: len(getattr(self, part)) for part in ("train", "selection", "validation")}

    @property
    def fingerprint(self) -> str:
        """A hash of all of this split, hexadecimal."""
        return hashlib.sha256(json.dumps(self._record()).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write this split to `path` as JSON."""
        path.write_text(json.dumps(self._record(), indent=0) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Split":
        """Return the split that `write` put into `path`."""
        record = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            record["seed"],
            record["fraction"],
            tuple(record["train"]),
            tuple(record["validation"]),
            tuple(record.get("selection", ())),
            record.get("selection_fraction", 0.0),
        )

    def _record(self) -> dict:
        record = asdict(self)
        if not self.selection:  # the record, and so the fingerprint, from before there was one
            del record["selection"], record["selection_fraction"]
        return record


@dataclass(frozen=True)
class _File:
    """What one look at a file found; all but `unusable` is of usable pictures only."""

    unusable: str | None = None
    digest: str = ""
    look: Image.Image | None = None  # a small_grey
    mismatch: str | None = None


def class_of(picture: str) -> str:
    """Return the class of a "class/file"."""
    return picture.split("/", 1)[0]


def scan(folder: str | Path, exclude: Path | None = None) -> Dataset:
    """Read and decode every file of `folder`'s sub-folders and return what is usable.

    Nothing is deleted or moved; files whose names begin with a dot are not looked at, nor are
    those that the file `exclude` lists: "class/file", one a line, `#` begins a comment.

    Raises:
        DataError: no such folder, fewer than two classes, a class with fewer than
            `MIN_PICTURES` usable pictures, or `exclude` names what is not there.
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
                pool.map(lambda f: excluding if f in excluded else _look_at(folder / f), files),
                strict=True,
            )
        )
    dataset = _dataset(folder, class_names, found)
    for name, count in dataset.counts.items():
        if count < MIN_PICTURES:
            raise DataError(
                f"Expected at least {MIN_PICTURES} pictures of each class. "
                f"Received: {count} in {folder / name}. Add some, or take the folder away."
            )
    return dataset


def require(dataset: Dataset, pictures: Sequence[str]) -> None:
    """Raise `DataError` where `dataset` does not have all `pictures`."""
    missing = set(pictures) - set(dataset.pictures)
    if missing:
        raise DataError(
            f"Expected {dataset.folder} to hold the {len(pictures)} pictures of the split. "
            f"Received: a folder without {len(missing)} of them. Name the right one with --data."
        )


def _dataset(folder: Path, class_names: tuple[str, ...], found: dict[str, _File]) -> Dataset:
    usable = {name: file for name, file in found.items() if file.unusable is None}
    # Not by the threads that read: of so many short steps each would wait for the interpreter.
    hashes = {name: perceptual_hash(file.look) for name, file in usable.items()}
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


def _excluded(path: Path, folder: Path, files: set[str]) -> set[str]:
    """Return those of `files`, "class/file", that the lines of `path` name."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(
            "Expected a text file that lists pictures to exclude. "
            f"Received: {path} ({error.strerror}). Correct its name, or leave --exclude out."
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
                f"Received: {readings[-1]} in line {number}. Correct the line, or take it out."
            )
    return excluded


def _without_comment(line: str) -> Iterator[str]:
    """Yield `line` without a comment, then with ever longer ones: names, too, may hold a ` #`."""
    yield line.strip()
    for mark in reversed(list(re.finditer(r"(^|\s)#", line))):
        yield line[: mark.start()].strip()


def _look_at(path: Path) -> _File:
    if not path.is_file():
        return _File("not a file")
    try:
        content = path.read_bytes()
        if not content:
            return _File("empty")
        picture = open_picture(content)
    except ServingError as error:
        return _File(str(error))
    except OSError as error:
        return _File(f"cannot be read ({error.strerror})")
    return _File(
        digest=hashlib.sha256(content).hexdigest(),
        look=small_grey(picture),
        mismatch=_mismatch(path.suffix.lower(), content),
    )


def _mismatch(suffix: str, content: bytes) -> str | None:
    """Return how `suffix`, ".png" or the like, is at odds with a picture's `content`, or None."""
    if not suffix[1:2].isalpha():  # "rose", or "rose.2": a name without a type
        return None
    with Image.open(BytesIO(content), formats=FORMATS) as picture:  # reads no more than the head
        held = SAME_TYPE.get(picture.format, picture.format)
    named = Image.EXTENSION.get(suffix)
    return None if SAME_TYPE.get(named, named) == held else f"named {suffix}, is {held}"


def duplicates(dataset: Dataset) -> list[tuple[str, ...]]:
    """Return the groups of pictures that are copies of each other, each group sorted, and all.

    Copies are files of the same bytes and pictures that look alike (`near_pairs`), as well as
    copies of copies; they may be of different classes.
    """
    pictures = dataset.pictures
    hashed = [picture for picture in pictures if picture in dataset.hashes]
    near = near_pairs([dataset.hashes[picture] for picture in hashed])
    pairs = [(hashed[one], hashed[other]) for one, other in near]
    first: dict[str, str] = {}
    for picture in pictures:
        pairs.append((first.setdefault(dataset.digests.get(picture, picture), picture), picture))
    members = defaultdict(list)
    for picture, group in zip(pictures, _connected(pictures, pairs), strict=True):
        members[group].append(picture)
    return sorted(tuple(sorted(group)) for group in members.values() if len(group) > 1)


def _connected(nodes: Sequence[str], pairs: Iterable[tuple[str, str]]) -> np.ndarray:
    """Return a number for each of `nodes`, int (nodes,); what `pairs` connect has the same."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    index = {node: i for i, node in enumerate(nodes)}
    edges = np.array([(index[one], index[other]) for one, other in pairs], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(nodes), len(nodes)))
    return connected_components(graph, directed=False)[1]


def split(dataset: Dataset, fraction: float, seed: int, selection: float = 0.0) -> Split:
    """Return a split with `fraction` (0 to 1) of each class, rounded, for validation.

    `selection` (0 to 1) of what then is left of each class is set apart to pick a checkpoint on;
    it does not change what validates. The same pictures and seed give the same split; each class
    keeps at least one picture in every part; copies of a picture are all in one part, for which
    the shares give way where they must.

    Raises:
        DataError: a class has too few pictures, copies counted once, to be in every part.
    """
    groups = {picture: group for group in duplicates(dataset) for picture in group}
    validation = _draw(dataset.pictures, fraction, np.random.default_rng(seed), groups)
    rest = tuple(picture for picture in dataset.pictures if picture not in validation)
    selected = set()
    if selection:
        selected = _draw(rest, selection, np.random.default_rng([seed, 1]), groups)
    parts = Split(
        seed,
        fraction,
        tuple(picture for picture in rest if picture not in selected),
        tuple(picture for picture in dataset.pictures if picture in validation),
        tuple(picture for picture in rest if picture in selected),
        selection,
    )
    _check_parts(parts, dataset, groups)
    return parts


def _draw(
    pictures: Sequence[str],
    fraction: float,
    rng: np.random.Generator,
    groups: dict[str, tuple[str, ...]],
) -> set[str]:
    """Return `fraction` of each class of `pictures`, and with each one its group in `groups`."""
    of_class = defaultdict(list)
    for picture in pictures:
        of_class[class_of(picture)].append(picture)
    drawn: set[str] = set()
    decided: set[str] = set()  # with a class before, which has copies of it
    for name in sorted(of_class):
        members = of_class[name]
        order = rng.permutation(members).tolist()
        undecided = dict.fromkeys(groups.get(p, (p,)) for p in order if p not in decided)
        sizes = {group: sum(class_of(p) == name for p in group) for group in undecided}
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        taken = sum(picture in drawn for picture in members)
        for group in _fitting(sizes, count - taken, taken == 0, len(members)):
            drawn.update(group)
        for group in undecided:
            decided.update(group)
    return drawn


def _fitting(
    sizes: dict[tuple[str, ...], int], room: int, needed: bool, whole: int
) -> list[tuple[str, ...]]:
    """Return the first groups whose `sizes` fit into `room`.

    Where none fits but one is `needed`, the smallest it is, unless that is the `whole` class.
    """
    fitting = []
    for group, size in sizes.items():
        if size <= room:
            fitting.append(group)
            room -= size
    if needed and not fitting:
        smallest = min(sizes, key=sizes.get, default=None)
        fitting = [smallest] if smallest and sizes[smallest] < whole else []
    return fitting


def _check_parts(parts: Split, dataset: Dataset, groups: dict[str, tuple[str, ...]]) -> None:
    sides = [parts.train, parts.validation] + [parts.selection] * bool(parts.selection_fraction)
    for name in dataset.class_names:
        if all(any(class_of(picture) == name for picture in side) for side in sides):
            continue
        members = dataset.of_class(name)
        copies = sum(picture in groups for picture in members)
        raise DataError(
            f"Expected pictures of {name} for each of {len(sides)} parts, where copies, also those "
            f"in other classes, stay together. Received: {len(members)}, of which {copies} have "
            "copies. Add different ones, or exclude copies."
        )


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong with the command line's folder and return the exit code."""
    from training.dataset.checks import inspect, lines

    options = parse_arguments(arguments)
    try:
        dataset = scan(options.folder, options.exclude)
        hygiene = inspect(dataset)
    except DataError as error:
        print(f"dataset: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"dataset: Expected to read {options.folder}. Received: {error}. "
            "Correct the rights of the folder.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\ndataset: Stopped.", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(asdict(hygiene), indent=1))
        return 0
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts.items())
    print(f"{len(dataset.pictures)} usable pictures in {options.folder}: {counts}.")
    print("\n".join(lines(hygiene, limit=LISTED)))
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m training.dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, help="one folder a class")
    add("--exclude", type=Path, metavar="FILE", help="pictures to leave out, a class/file a line")
    add("--json", action="store_true", help="all that was found, as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
