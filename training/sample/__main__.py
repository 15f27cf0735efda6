"""Draw a small data set of five flowers, for where real images cannot be had.

python -m training.sample
python -m training.sample --out drawn/ --per-class 100 --seed 1
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from training.cli import at_least, make_parser, run_command
from training.sample import LABELS, PER_CLASS, SEED, write_sample
from training.streams import counted

OUT = Path("flowers")


def main(arguments: list[str] | None = None) -> int:
    """Draw what the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(
        lambda: draw_sample(options.out, options.per_class, options.seed),
        "sample",
        paths=f"write to {options.out}",
        advice="Free disk space, fix the permissions, or name another folder with --out.",
        stopped="Stopped; nothing was written.",
    )


def draw_sample(out: Path, per_class: int, seed: int) -> None:
    """Draw into `out`, and print what was drawn and what to do next."""
    write_sample(out, per_class, seed)
    names, data = ", ".join(LABELS), "" if out == OUT else f" --data {shlex.quote(str(out))}"
    images = counted(per_class, "image")
    print(f"Drawn: {images} each of {names}, in {out}. Next: python train.py{data}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m training.sample")
    add = parser.add_argument
    add("--out", type=Path, default=OUT, help=f"folder to fill [{OUT}]")
    add("--per-class", type=at_least(1), default=PER_CLASS, help=f"images of each [{PER_CLASS}]")
    add("--seed", type=at_least(0), default=SEED, help=f"the same seed draws the same [{SEED}]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
