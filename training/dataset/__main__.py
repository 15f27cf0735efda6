"""Show what is wrong with a folder of images: unusable files, wrong suffixes, copies.

python -m training.dataset flowers/
python -m training.dataset flowers/ --exclude doubtful.txt
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from training.cli import make_parser, run_command
from training.dataset.checks import check_dataset, format_checks
from training.dataset.scan import TooFewImagesError, scan
from training.streams import printable

LISTED = 10  # findings of each kind; --json has all


def main(arguments: list[str] | None = None) -> int:
    """Print the checks of the folder on the command line and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(
        lambda: print_checks(options.folder, options.exclude, options.json),
        "dataset",
        paths=f"read {options.folder} and print what is in it",
    )


def print_checks(folder: Path, exclude: Path | None, as_json: bool) -> None:
    """Print what is wrong with the images in `folder`, also where it cannot be trained on.

    Raises:
        DataError: it cannot; the sentence says why.
    """
    refused = None
    try:
        dataset = scan(folder, exclude)
    except TooFewImagesError as error:
        dataset, refused = error.dataset, error
    checks = check_dataset(dataset)
    if as_json:
        print(json.dumps(asdict(checks), indent=1))
    else:
        usable, place = len(dataset.images), printable(folder)
        print(f"{usable} usable images in {place}: {dataset.describe_counts()}.")
        print("\n".join(format_checks(checks, limit=LISTED)), flush=True)
    if refused:
        raise refused


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m training.dataset")
    add = parser.add_argument
    add("folder", type=Path, help="one sub-folder a class")
    add("--exclude", type=Path, metavar="FILE", help="images to leave out, one class/file a line")
    add("--json", action="store_true", help="all findings, as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
