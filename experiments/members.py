"""Checkpoints of one split: members of a soup, or teachers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.backend import keras
from training.checkpoint import Metadata, load_checkpoint, read_split
from training.dataset.split import Split
from training.errors import DataError


@dataclass(frozen=True)
class Member:
    """A checkpoint.

    Attributes:
        path: its file.
        model: its network.
        metadata: what its file says of it.
        split: that it was trained on.
    """

    path: Path
    model: keras.Model
    metadata: Metadata
    split: Split


def read_members(
    paths: Sequence[Path],
    mismatch: Callable[[Member, Member], tuple[str, str] | None] = lambda *_: None,
) -> list[Member]:
    """Return the checkpoints at `paths`, which are of the same classes and of one split.

    `mismatch` may return what the first one is of, and what another one is of that does not belong
    to it.

    Raises:
        ModelError: a file is not a checkpoint, or has no split beside it.
        DataError: they do not belong together, or have learned the images that calibrate.
    """
    members = [Member(path, *load_checkpoint(path), read_split(path)) for path in paths]
    first = members[0]
    if not first.split.validation:
        raise DataError(
            "Expected checkpoints that have not learned their validation images, which calibrate "
            f"what is made of them. Received: {first.path}, which has (--refit)."
        )
    for other in members[1:]:
        if found := _mismatch(first, other) or mismatch(first, other):
            wanted, received = found
            raise DataError(
                f"Expected checkpoints of {wanted}, as {first.path} is. "
                f"Received: {other.path} of {received}."
            )
    return members


def _mismatch(first: Member, other: Member) -> tuple[str, str] | None:
    classes = [", ".join(member.metadata.class_names) for member in (first, other)]
    if classes[0] != classes[1]:
        return f"the classes {classes[0]}", f"the classes {classes[1]}"
    if _sets(first.split) != _sets(other.split):
        return "one split", (
            "another, so images that test the result may have trained it. Train all with the same "
            "images and the same seed of the split"
        )
    return None


def _sets(split: Split) -> tuple[frozenset[str], ...]:
    return tuple(map(frozenset, (split.train, split.validation, split.test)))
