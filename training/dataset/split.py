"""Which images train, validate and test: drawn by class and seed, kept with the checkpoint."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from training.dataset.duplicates import duplicates
from training.dataset.scan import Dataset, class_of
from training.errors import DataError


@dataclass(frozen=True)
class Split:
    """Which images train and which validate, as "class/file", and how they were drawn.

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

    def without(self, images: set[str]) -> "Split":
        """Return this split with none of `images` among what is measured on or picked on.

        What a network was fitted to stays what it was.
        """
        kept = {
            part: tuple(image for image in getattr(self, part) if image not in images)
            for part in ("selection", "validation")
        }
        return replace(self, **kept)

    @property
    def sizes(self) -> dict[str, int]:
        """Images of each part."""
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


def split(dataset: Dataset, fraction: float, seed: int, selection: float = 0.0) -> Split:
    """Return a split with `fraction` (0 to 1) of each class, rounded, for validation.

    `selection` (0 to 1) of what then is left of each class is set apart to pick a checkpoint on;
    it does not change what validates. The same images and seed give the same split; each class
    keeps at least one image in every part; copies of an image are all in one part, for which
    the shares give way where they must.

    Raises:
        DataError: a class has too few images, copies counted once, to be in every part.
    """
    groups = {image: group for group in duplicates(dataset) for image in group}
    validation = _draw(dataset.images, fraction, np.random.default_rng(seed), groups)
    rest = tuple(image for image in dataset.images if image not in validation)
    selected = set()
    if selection:
        selected = _draw(rest, selection, np.random.default_rng([seed, 1]), groups)
    parts = Split(
        seed,
        fraction,
        tuple(image for image in rest if image not in selected),
        tuple(image for image in dataset.images if image in validation),
        tuple(image for image in rest if image in selected),
        selection,
    )
    _check_parts(parts, dataset, groups)
    return parts


def _draw(
    images: Sequence[str],
    fraction: float,
    rng: np.random.Generator,
    groups: dict[str, tuple[str, ...]],
) -> set[str]:
    """Return `fraction` of each class of `images`, and with each one its group in `groups`."""
    of_class = defaultdict(list)
    for image in images:
        of_class[class_of(image)].append(image)
    drawn: set[str] = set()
    decided: set[str] = set()  # with a class before, which has copies of it
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
        if all(any(class_of(image) == name for image in side) for side in sides):
            continue
        members = dataset.of_class(name)
        copies = sum(image in groups for image in members)
        raise DataError(
            f"Expected images of {name} for each of {len(sides)} parts, where copies, also those "
            f"in other classes, stay together. Received: {len(members)}, of which {copies} have "
            "copies. Add different ones, or exclude copies."
        )
