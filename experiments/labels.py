r"""List labels that networks contradict, and what an audit says about them.

    python -m experiments.labels .cache/experiments/cross_validate/predictions \
        --audit experiments/wrong_labels.txt

The predictions must be of networks that have not learned from the images, as are those of the folds
of experiments.cross_validate. Where several files have the same image, its probabilities are
averaged. Writes a page to look at, index.html, the whole table,
labels.csv, and candidates.txt: contradicted labels that the audit does not list, to be looked at
one by one and added to the list if they are plainly wrong. A network that contradicts a label may
be wrong itself, and one that was trained on wrong labels of one kind repeats them.
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments import charts
from experiments.command import OUT, run
from experiments.cross_validate_report import read_audit
from experiments.page import Section, write_page
from experiments.predictions import Predictions, averaged, read_predictions
from training import cli
from training.errors import DataError
from training.evaluation.label_errors import LabelIssue, write_label_issues
from training.evaluation.metrics import percent, shown, wilson
from training.files import write_atomically
from training.markdown import markdown_table
from training.streams import counted, printable

LIMIT, PRINTED, PER_FIGURE = 120, 20, 24  # images on the page, rows, images of a figure
PAGE, TABLE, CANDIDATES = "index.html", "labels.csv", "candidates.txt"
HEAD = ("image", "label", "prediction", "confidence", "probability of the label", "audit")
CONTRADICTED, AGREED = "contradicted", "agreed"
# Of the page's sections; the keys begin the names of their figures.
TITLES = {
    "unlisted": "Contradicted, and not in the audit",
    "listed": "Contradicted, and wrong by the audit",
    AGREED: "Wrong by the audit, but the network agrees with the label",
}


@dataclass(frozen=True)
class Finding:
    """An image whose label a prediction contradicts, or the audit does.

    Attributes:
        image: "class/file".
        label: its class by its folder.
        predicted: the class of highest probability.
        confidence: its probability, 0 to 1.
        own: the probability of `label`.
        is_audited: whether the audit lists the image.
    """

    image: str
    label: str
    predicted: str
    confidence: float
    own: float
    is_audited: bool

    @property
    def is_contradicted(self) -> bool:
        """Whether the prediction is not the label."""
        return self.predicted != self.label

    @property
    def cells(self) -> list[str]:
        """The cells of `HEAD`."""
        audit = "wrong" if self.is_audited else ""
        numbers = [f"{self.confidence:.3f}", f"{self.own:.3f}"]
        return [printable(self.image), shown(self.label), shown(self.predicted), *numbers, audit]


def main(arguments: list[str] | None = None) -> int:
    """List as the command line says and return the exit code."""
    return run(list_labels, "labels", parse_arguments(arguments))


def list_labels(options: argparse.Namespace) -> None:
    """Read predictions, list what contradicts, print and write it."""
    paths = list(expand(options.predictions))
    predictions = averaged(read_predictions(paths))
    images = counted(len(predictions.names), "image")
    print(f"Predictions: {images} in {counted(len(paths), 'file')}.")
    wrong = read_audit(options.audit, set(predictions.names)) if options.audit else set()
    contradicted, agreed = find(predictions, wrong)
    counts = count(len(predictions.names), contradicted, agreed)
    print(f"\n{markdown_table(HEAD, [row.cells for row in contradicted[:PRINTED]])}")
    if len(contradicted) > PRINTED:
        print(f"... and {len(contradicted) - PRINTED} more, in {options.out / TABLE}.")
    print("\n" + "\n".join(counts))
    write(options, contradicted, agreed, counts)


def expand(places: Sequence[Path]) -> list[Path]:
    """Return the files among `places` and the .npz files in folders among them, sorted.

    Raises:
        DataError: a place does not exist, or a folder holds none.
    """
    paths = []
    for place in places:
        found = sorted(place.rglob("*.npz")) if place.is_dir() else [place]
        if not found or not place.exists():
            received = "a folder without any" if place.is_dir() else "no such file"
            raise DataError(
                f"Expected .npz files of predictions. Received: {place}, {received}. Run "
                "python -m experiments.cross_validate first, or name others."
            )
        paths += found
    return list(dict.fromkeys(paths))


def find(predictions: Predictions, wrong: set[str]) -> tuple[list[Finding], list[Finding]]:
    """Return the contradicted images, and those of `wrong` whose labels the network agrees with.

    Both are sorted, the most confident first.
    """
    names, rows = predictions.class_names, np.arange(len(predictions.names))
    findings = [
        Finding(image, names[label], names[best], float(confidence), float(own), image in wrong)
        for image, label, best, confidence, own in zip(
            predictions.names,
            predictions.labels,
            predictions.predicted_classes,
            predictions.probabilities.max(axis=1),
            predictions.probabilities[rows, predictions.labels],
            strict=True,
        )
    ]
    findings.sort(key=lambda row: (-row.confidence, row.image))
    return (
        [row for row in findings if row.is_contradicted],
        [row for row in findings if row.is_audited and not row.is_contradicted],
    )


def count(total: int, contradicted: Sequence[Finding], agreed: Sequence[Finding]) -> list[str]:
    """Return sentences on how network and audit agree, of `total` images."""
    both = sum(row.is_audited for row in contradicted)
    audited = both + len(agreed)
    labels = counted(len(contradicted), "label")
    lines = [f"Of {counted(total, 'image')}, the network contradicts {labels}."]
    if not audited:
        return lines
    found, others = len(contradicted) - both, total - audited
    shares = [(both, audited), (found, others)]
    told = []
    for hits, whole in shares:
        low, high = wilson(hits, whole)
        share = percent(hits / max(whole, 1), 1)
        told.append(f"{hits} of {whole}, {share} ({percent(low, 1)} to {percent(high, 1)})")
    return [
        *lines,
        f"Labels that the audit calls wrong: it contradicts {told[0]}.",
        f"All others: it contradicts {told[1]}.",
    ]


def write(
    options: argparse.Namespace,
    contradicted: Sequence[Finding],
    agreed: Sequence[Finding],
    counts: Sequence[str],
) -> None:
    """Write the page, the table and the candidates into the folder --out."""
    out = options.out
    write_atomically(out / TABLE, lambda new: write_table(new, [*contradicted, *agreed]))
    rows = {
        "unlisted": [row for row in contradicted if not row.is_audited],
        "listed": [row for row in contradicted if row.is_audited],
        AGREED: agreed,
    }
    candidates = [
        LabelIssue(row.image, row.label, row.predicted, row.confidence) for row in rows["unlisted"]
    ]
    write_atomically(out / CANDIDATES, lambda new: write_label_issues(new, candidates))
    sections = [section(kind, found, options) for kind, found in rows.items() if found]
    write_page(out / PAGE, f"Labels of {options.data.resolve().name}", " ".join(counts), sections)
    print(f"Wrote {out / PAGE}, {TABLE} and {CANDIDATES}.")


def section(kind: str, rows: Sequence[Finding], options: argparse.Namespace) -> Section:
    """Return the section of the page on `rows`, with the images of the first --limit of them."""
    title, chosen, figures = TITLES[kind], rows[: options.limit], []
    for start in range(0, len(chosen), PER_FIGURE):
        some = {
            number: (row.image, row.label, row.predicted, row.confidence)
            for number, row in enumerate(chosen[start : start + PER_FIGURE], start + 1)
        }
        path = options.out / f"{kind}_{start // PER_FIGURE + 1}.png"
        heading = f"{title}: {start + 1} to {start + len(some)} of {len(rows)}"
        charts.save(charts.labels(options.data, some, heading), path)
        figures.append((path, heading))
    cells = [[str(number), *row.cells] for number, row in enumerate(chosen, 1)]
    return Section(title, figures=figures, head=("no.", *HEAD), rows=cells)


def write_table(path: Path, rows: Sequence[Finding]) -> None:
    """Write all `rows` to `path` as CSV."""
    with io.StringIO(newline="") as text:
        table = csv.writer(text)
        table.writerow([*HEAD, "network"])
        for row in rows:
            table.writerow([*row.cells, CONTRADICTED if row.is_contradicted else AGREED])
        path.write_text(text.getvalue(), encoding="utf-8")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.make_parser(__doc__, "python -m experiments.labels")
    add = parser.add_argument
    add("predictions", type=Path, nargs="+", help=".npz files, or folders of them")
    add("--audit", type=Path, metavar="FILE", help="images whose labels are known to be wrong")
    add("--data", type=Path, default=Path("flowers"), help="where the images are [flowers/]")
    limit = cli.positive(int)
    add("--limit", type=limit, default=LIMIT, help="images of each kind on the page [%(default)s]")
    add("--out", type=Path, default=OUT / "labels", help="where to write to [%(default)s/]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
