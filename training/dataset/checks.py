"""What is wrong with a folder of pictures, for a person to look at; nothing is deleted."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from training.dataset.duplicates import duplicates
from training.dataset.scan import EXCLUDED, Dataset, class_of

Group = tuple[str, ...]  # "class/file" of pictures that are copies of each other, sorted


@dataclass(frozen=True)
class Hygiene:
    """What was found; `dataclasses.asdict` makes it JSON.

    Attributes:
        left_out: ("class/file", reason) of what is broken, no picture, or excluded.
        mismatched: ("class/file", "named .png, is JPEG").
        exact: groups of files of the same bytes.
        near: groups of pictures that look alike, among which are files of different bytes.
        across_classes: those of all groups that are in more than one class.
    """

    left_out: tuple[tuple[str, str], ...]
    mismatched: tuple[tuple[str, str], ...]
    exact: tuple[Group, ...]
    near: tuple[Group, ...]
    across_classes: tuple[Group, ...]


def inspect(dataset: Dataset) -> Hygiene:
    """Return what is wrong with the pictures of `dataset`, as `scan` found them."""
    groups = duplicates(dataset)
    same_bytes = defaultdict(list)
    for picture in dataset.pictures:
        same_bytes[dataset.digests.get(picture, picture)].append(picture)
    return Hygiene(
        dataset.left_out,
        dataset.mismatched,
        tuple(tuple(group) for group in same_bytes.values() if len(group) > 1),
        tuple(group for group in groups if len({dataset.digests.get(p, p) for p in group}) > 1),
        tuple(group for group in groups if len({class_of(picture) for picture in group}) > 1),
    )


def lines(hygiene: Hygiene, limit: int = 5) -> list[str]:
    """Return a report for people: counts, at most `limit` findings of each kind, what to do."""
    report = [
        f"Left out: {len(hygiene.left_out)}; named as another type: {len(hygiene.mismatched)}; "
        f"groups of copies: {len(hygiene.exact)} exact, {len(hygiene.near)} near, "
        f"{len(hygiene.across_classes)} across classes."
    ]
    for title, findings in _sections(hygiene):
        if findings:
            report += [f"{title}:", *(f"  {finding}" for finding in findings[:limit])]
        if len(findings) > limit:
            report.append(f"  ... and {len(findings) - limit} more")
    if len(report) > 1:
        report.append(
            "Nothing was deleted. To leave pictures out, list them in a file, a class/file a line, "
            "and pass --exclude FILE."
        )
    # Names of old archives may hold bytes that are no text, which could not be printed.
    return [line.encode(errors="backslashreplace").decode() for line in report]


def _sections(hygiene: Hygiene) -> Iterator[tuple[str, list[str]]]:
    # What a person excluded is known, so it comes last and does not hide what is broken.
    known_last = sorted(hygiene.left_out, key=lambda file: file[1].startswith(EXCLUDED))
    yield "Left out", [f"{file}: {reason}" for file, reason in known_last]
    yield "Named as another type", [f"{file}: {what}" for file, what in hygiene.mismatched]
    yield (
        "Across classes, so a label is probably wrong",
        [" = ".join(g) for g in hygiene.across_classes],
    )
    yield "Exact copies", [" = ".join(group) for group in hygiene.exact]
    yield "Near copies", [" ~ ".join(group) for group in hygiene.near]
