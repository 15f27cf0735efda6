"""The split into training, validation and test images, which is stored with a checkpoint."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from training.dataset.duplicates import find_duplicates
from training.dataset.names import composed
from training.dataset.scan import Dataset, class_of
from training.errors import DataError
from training.streams import printable


@dataclass(frozen=True)
class Split:
    """Which images train, validate and test, as "class/file", and how they were drawn.

    Attributes:
        seed: of the draw.
        train: what the network is fitted to.
        validation: what picks the epoch and fits the temperature; empty where these images have
            trained the network in the end.
        test: what takes part in nothing but the report; empty where the validation images are
            what is reported on, as in the original's recipe.
        validation_fraction: of each class without its test images, 0 to 1.
        test_fraction: of each class, 0 to 1.
    """

    seed: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()
    validation_fraction: float = 0.0
    test_fraction: float = 0.0

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The images that a report is about: the test set or, without one, the validation set."""
        return self.test or self.validation

    @property
    def evaluated_name(self) -> str:
        """Name of the set that a report is about: "test" or "validation"."""
        return "test" if self.test else "validation"

    def with_validation_in_training(self) -> "Split":
        """Return this split with its validation images among the training images."""
        return replace(
            self,
            train=tuple(sorted((*self.train, *self.validation))),
            validation=(),
            validation_fraction=0.0,
        )

    def without(self, images: set[str]) -> "Split":
        """Return this split without `images` in its validation and test sets.

        What a network was fitted to stays what it was.
        """
        kept = {
            name: tuple(image for image in getattr(self, name) if image not in images)
            for name in ("validation", "test")
        }
        return replace(self, **kept)

    def spelled_as(self, images: Sequence[str]) -> "Split":
        """Return this split with names spelled as in `images`, where they differ by accents only.

        macOS writes an accented letter as two characters, other systems as one.
        """
        known = {composed(image): image for image in images} | {image: image for image in images}
        spelled = {
            name: tuple(
                known.get(image) or known.get(composed(image), image)
                for image in getattr(self, name)
            )
            for name in ("train", "validation", "test")
        }
        return replace(self, **spelled)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each set; without a test set, of the other two."""
        names = ("train", "validation", "test") if self.test else ("train", "validation")
        return {name: len(getattr(self, name)) for name in names}

    def describe(self) -> str:
        """Return the number of images in each set, for a person."""
        return ", ".join(f"{count} {name}" for name, count in self.sizes.items()) + " images"

    @property
    def fingerprint(self) -> str:
        """A hash of all of this split, hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write this split to `path` as JSON."""
        path.write_text(json.dumps(asdict(self), indent=0) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Split":
        """Return the split that `write` put into `path`, or that version 1.0 did.

        Raises:
            DataError: `path` holds something else.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if "fraction" in record:
                record = _from_version_1(record)
            for name in ("train", "validation", "test"):
                record[name] = tuple(record[name])
            return cls(**record)
        except (ValueError, KeyError, TypeError):
            raise DataError(
                "Expected the record of a split, as train.py writes it. Received: something else "
                f"in {path}. Copy it again from the folder that it was trained in."
            ) from None


def _from_version_1(record: dict) -> dict:
    """Return a record of version 1.0 in today's terms.

    There, "validation" was what is reported on, and "selection", if any, what picked the epoch.
    """
    if not record.get("selection"):
        return {
            "seed": record["seed"],
            "train": record["train"],
            "validation": record["validation"],
            "test": (),
            "validation_fraction": record["fraction"],
        }
    return {
        "seed": record["seed"],
        "train": record["train"],
        "validation": record["selection"],
        "test": record["validation"],
        "validation_fraction": record["selection_fraction"],
        "test_fraction": record["fraction"],
    }


def split_dataset(
    dataset: Dataset, seed: int, *, validation_fraction: float, test_fraction: float = 0.0
) -> Split:
    """Split the images of `dataset` at random, class by class.

    `test_fraction` (0 to 1) of each class is the test set, none for 0; `validation_fraction` of
    the rest is the validation set. The same images and seed give the same split; each class keeps
    at least one image in every set; copies of an image stay in one set, for which the fractions
    give way where they must.

    Raises:
        DataError: a class has too few images, copies counted once, to be in every set.
    """
    groups = {image: group for group in find_duplicates(dataset) for image in group}
    test, generator = set(), np.random.default_rng(seed)
    if test_fraction:
        test = _draw(dataset.images, test_fraction, generator, groups)
        generator = np.random.default_rng([seed, 1])  # as if drawn apart
    rest = tuple(image for image in dataset.images if image not in test)
    validation = _draw(rest, validation_fraction, generator, groups)
    split = Split(
        seed,
        tuple(image for image in rest if image not in validation),
        tuple(image for image in rest if image in validation),
        tuple(image for image in dataset.images if image in test),
        validation_fraction,
        test_fraction,
    )
    _check_classes(split, dataset, groups)
    return split


def split_folds(
    dataset: Dataset, seed: int, folds: int, validation_fraction: float
) -> tuple[Split, ...]:
    """Return `folds` splits of `dataset` at random, class by class; each tests other images.

    Every image is tested in exactly one of them. `validation_fraction` (0 to 1) of each class's
    other images validates, the rest trains. Copies of an image stay in one set of each split. The
    same images and seed give the same folds.

    Raises:
        DataError: a class has too few images, copies counted once, to be in every set.
    """
    groups = {image: group for group in find_duplicates(dataset) for image in group}
    splits = []
    for number, test in enumerate(_deal(dataset, folds, np.random.default_rng(seed), groups)):
        rest = tuple(image for image in dataset.images if image not in test)
        generator = np.random.default_rng([seed, 1, number])
        validation = _draw(rest, validation_fraction, generator, groups)
        split = Split(
            seed,
            tuple(image for image in rest if image not in validation),
            tuple(image for image in rest if image in validation),
            tuple(image for image in dataset.images if image in test),
            validation_fraction,
            1 / folds,
        )
        _check_classes(split, dataset, groups)
        splits.append(split)
    return tuple(splits)


def _deal(
    dataset: Dataset, folds: int, rng: np.random.Generator, groups: dict[str, tuple[str, ...]]
) -> list[set[str]]:
    """Deal the images into `folds` sets, class by class, together with the copies in `groups`.

    Each goes to the set that has the fewest images of its class and, of those, the fewest in all.
    """
    dealt: list[set[str]] = [set() for _ in range(folds)]
    counts: list[Counter[str]] = [Counter() for _ in range(folds)]  # of each class
    of_class = _by_class(dataset.images)
    for name in sorted(of_class):
        order = rng.permutation(of_class[name]).tolist()
        # Copies may have come with an image of an earlier class.
        undealt = [p for p in order if not any(p in images for images in dealt)]
        same = dict.fromkeys(groups.get(p, (p,)) for p in undealt)
        for group in sorted(same, key=len, reverse=True):  # the largest first, to come out even
            fold = min(range(folds), key=lambda f: (counts[f][name], len(dealt[f])))
            dealt[fold].update(group)
            counts[fold].update(map(class_of, group))
    return dealt


def _by_class(images: Sequence[str]) -> dict[str, list[str]]:
    """Return the images of each class, in their order."""
    of_class = defaultdict(list)
    for image in images:
        of_class[class_of(image)].append(image)
    return of_class


def _draw(
    images: Sequence[str],
    fraction: float,
    rng: np.random.Generator,
    groups: dict[str, tuple[str, ...]],
) -> set[str]:
    """Draw `fraction` of each class of `images`, together with the copies in `groups`."""
    of_class = _by_class(images)
    drawn: set[str] = set()
    decided: set[str] = set()  # drawn or not, as copies of an image of an earlier class
    for name in sorted(of_class):
        members = of_class[name]
        order = rng.permutation(members).tolist()
        undecided = dict.fromkeys(groups.get(p, (p,)) for p in order if p not in decided)
        sizes = {group: sum(class_of(p) == name for p in group) for group in undecided}
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        taken = sum(image in drawn for image in members)
        for group in _fitting(sizes, count - taken, taken == 0, len(members)):
            drawn.update(group)
        for group in undecided:
            decided.update(group)
    return drawn


def _fitting(
    sizes: dict[tuple[str, ...], int], room: int, needed: bool, whole: int
) -> list[tuple[str, ...]]:
    """Return the first groups whose `sizes` fit into `room`.

    If none fits but one is `needed`, return the smallest, unless that is the `whole` class.
    """
    fitting = []
    for group, size in sizes.items():
        if size <= room:
            fitting.append(group)
            room -= size
    if needed and not fitting:
        smallest = min(sizes, key=lambda group: sizes[group], default=None)
        fitting = [smallest] if smallest and sizes[smallest] < whole else []
    return fitting


def _check_classes(split: Split, dataset: Dataset, groups: dict[str, tuple[str, ...]]) -> None:
    sets = [split.train, split.validation] + ([split.test] if split.test_fraction else [])
    present = [{class_of(image) for image in images} for images in sets]
    for name in dataset.class_names:
        if all(name in names for names in present):
            continue
        members = dataset.of_class(name)
        copies = sum(image in groups for image in members)
        raise DataError(
            f"Expected images of {printable(name)} for each of {len(sets)} sets, where copies, "
            f"also those in other classes, stay together. Received: {len(members)}, of which "
            f"{copies} have copies. Add different ones, or exclude copies."
        )
