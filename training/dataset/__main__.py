"""A folder of images, one sub-folder a class: checked, counted and split.

python -m training.dataset flowers/                        # what is wrong with the images
python -m training.dataset flowers/ --exclude doubtful.txt  # without those that it lists
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from training.dataset.scan import scan
from training.errors import DataError

LISTED = 10  # findings of each kind; --json has all


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong with the command line's folder and return the exit code."""
    from training.dataset.checks import check_dataset, format_checks

    options = parse_arguments(arguments)
    try:
        dataset = scan(options.folder, options.exclude)
        checks = check_dataset(dataset)
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
        print(json.dumps(asdict(checks), indent=1))
        return 0
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts.items())
    print(f"{len(dataset.images)} usable images in {options.folder}: {counts}.")
    print("\n".join(format_checks(checks, limit=LISTED)))
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
    add("--exclude", type=Path, metavar="FILE", help="images to leave out, a class/file a line")
    add("--json", action="store_true", help="all that was found, as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
