"""Draw a small data set of five flowers, for where real images cannot be had.

python -m training.sample
python -m training.sample --out drawn/ --per-class 100 --seed 1
"""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from training.errors import DataError
from training.sample import LABELS, PER_CLASS, SEED, write_sample

OUT = Path("flowers")


def main(arguments: list[str] | None = None) -> int:
    """Draw what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=OUT, help=f"folder to fill [{OUT}]")
    add("--per-class", type=at_least(1), default=PER_CLASS, help=f"images of each [{PER_CLASS}]")
    add("--seed", type=at_least(0), default=SEED, help=f"the same seed draws the same [{SEED}]")
    options = parser.parse_args(arguments)
    out, count = options.out, options.per_class
    try:
        write_sample(out, count, options.seed)
    except DataError as error:
        print(f"sample: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        sentence = f"Expected a folder that can be written. Received: {out} ({error.strerror})."
        print(f"sample: {sentence} Name another with --out.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsample: Stopped; nothing was written.", file=sys.stderr)
        return 130
    names, data = ", ".join(LABELS), "" if out == OUT else f" --data {out}"
    print(f"Drawn: {count} images each of {names}, in {out}. Next: python train.py{data}")
    return 0


def at_least(smallest: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `smallest` up, for argparse."""

    def parse(text: str) -> int:
        if text.isdecimal() and int(text) >= smallest:
            return int(text)
        sentence = f"Expected a whole number from {smallest} up. Received: {text}."
        raise argparse.ArgumentTypeError(sentence)

    return parse


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
