"""Evaluate a checkpoint again, without training: calibrate it and write its report anew.

    python -m training.evaluation models/xception_fin_15_0.966.h5 again/ --exclude wrong_labels.txt

Useful where labels turned out to be wrong or for another input size (--inference-size). --exclude
leaves images out; --audit keeps them, and tells the accuracy with and without them. The checkpoint,
its split and its report are written into the second folder.
"""

import argparse
import shlex
import sys
from pathlib import Path

from training.cli import add_audit_flag, add_data_flags, make_parser, run_command
from training.evaluation.evaluate import Reevaluation, reevaluate
from training.recipes import INPUT_SIZES, within


def main(arguments: list[str] | None = None) -> int:
    """Evaluate as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(
        lambda: reevaluate(
            options.checkpoint,
            options.folder,
            Reevaluation(
                options.data,
                options.exclude,
                options.audit,
                options.inference_size,
                shlex.join(["python", "-m", "training.evaluation", *sys.argv[1:]]),
            ),
        ),
        "evaluation",
        paths=f"read {options.data} and write to {options.folder}",
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m training.evaluation")
    add = parser.add_argument
    add("checkpoint", type=Path, help="a .h5 file of train.py")
    add("folder", type=Path, help="where to write the calibrated checkpoint and its report")
    add_data_flags(parser)
    add_audit_flag(parser)
    add(
        "--inference-size",
        type=within(*INPUT_SIZES),
        metavar="PIXELS",
        help="input size [the checkpoint's]",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
