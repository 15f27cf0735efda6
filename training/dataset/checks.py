"""Checks of a data set, for a person to read; nothing is deleted."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.dataset.duplicates import find_duplicates
from training.dataset.scan import EXCLUDED, Dataset, class_of, scan
from training.streams import counted, printable

Group = tuple[str, ...]  # "class/file" of images that are copies of each other, sorted


@dataclass(frozen=True)
class DatasetChecks:
    """Findings about a data set; `dataclasses.asdict` makes it JSON.

    Attributes:
        skipped: ("class/file", reason) of files that are broken, no images, or excluded.
        mismatched: ("class/file", "named .png, is JPEG").
        exact: groups of identical files.
        near: groups of images that look alike but are not all identical files.
        across_classes: the groups of copies that are in more than one class.
    """

    skipped: tuple[tuple[str, str], ...]
    mismatched: tuple[tuple[str, str], ...]
    exact: tuple[Group, ...]
    near: tuple[Group, ...]
    across_classes: tuple[Group, ...]


def load_dataset(folder: Path, exclude: Path | None = None, audit: Path | None = None) -> Dataset:
    """Return the usable images of `folder`, and print what is wrong with the others.

    Raises:
        DataError: as `scan`.
    """
    print(f"Data: checking the images of {printable(folder)} ...", flush=True)
    dataset = scan(folder, exclude, audit)
    for line in format_checks(check_dataset(dataset)):
        print(f"  {line}")
    counts, skipped = dataset.describe_counts(), len(dataset.skipped)
    print(f"  {len(dataset.images)} images: {counts}; {counted(skipped, 'file')} skipped.")
    if audit:
        wrong = dataset.wrong_labels.intersection(dataset.images)
        are = "is" if len(wrong) == 1 else "are"
        print(f"  Audit: {len(wrong)} of these labels {are} wrong. The images stay in the data.")
    return dataset


def check_dataset(dataset: Dataset) -> DatasetChecks:
    """Return the findings about `dataset`: unusable files and copies."""
    groups = find_duplicates(dataset)
    same_bytes = defaultdict(list)
    for image in dataset.images:
        same_bytes[dataset.digests.get(image, image)].append(image)
    return DatasetChecks(
        dataset.skipped,
        dataset.mismatched,
        tuple(tuple(group) for group in same_bytes.values() if len(group) > 1),
        tuple(group for group in groups if len({dataset.digests.get(p, p) for p in group}) > 1),
        tuple(group for group in groups if len({class_of(image) for image in group}) > 1),
    )


def format_checks(checks: DatasetChecks, limit: int = 5) -> list[str]:
    """Return lines for a person: counts, up to `limit` findings of each kind, what to do."""
    report = [
        f"Skipped: {len(checks.skipped)}; named as another type: {len(checks.mismatched)}; "
        f"groups of copies: {len(checks.exact)} exact, {len(checks.near)} near, "
        f"{len(checks.across_classes)} across classes."
    ]
    for title, findings in _sections(checks):
        if findings:
            report += [f"{title}:", *(f"  {finding}" for finding in findings[:limit])]
        if len(findings) > limit:
            report.append(f"  ... and {len(findings) - limit} more")
    if len(report) > 1:
        report.append(
            "Nothing was deleted. To leave images out, list them in a file, one class/file a line, "
            "and pass --exclude FILE."
        )
    return [printable(line) for line in report]


def _sections(checks: DatasetChecks) -> Iterator[tuple[str, list[str]]]:
    # Excluded files come last: they must not hide broken ones.
    known_last = sorted(checks.skipped, key=lambda file: file[1].startswith(EXCLUDED))
    yield "Skipped", [f"{file}: {reason}" for file, reason in known_last]
    yield "Named as another type", [f"{file}: {what}" for file, what in checks.mismatched]
    yield (
        "Across classes, so a label is probably wrong",
        [" = ".join(g) for g in checks.across_classes],
    )
    yield "Exact copies", [" = ".join(group) for group in checks.exact]
    yield "Near copies", [" ~ ".join(group) for group in checks.near]
