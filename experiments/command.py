"""Flags, data, split and errors that all experiments share."""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from training import cli
from training.dataset.checks import load_dataset
from training.dataset.scan import Dataset
from training.dataset.split import Split, split_dataset
from training.files import claim_folder, require_outside
from training.recipes import CACHE, FINE_TUNE, MAX_SEED, ORIGINAL, within

OUT = Path(".cache", "experiments")


def make_parser(description: str | None, name: str, epochs: int) -> argparse.ArgumentParser:
    """Return a parser with the common flags; `epochs` is a default."""
    parser = cli.make_parser(description, f"python -m experiments.{name}")
    cli.add_data_flags(parser)
    add = parser.add_argument
    add("--epochs", type=cli.positive(int), default=epochs, help="[%(default)s]")
    seed = within(0, MAX_SEED)
    add("--split-seed", type=seed, default=ORIGINAL.split_seed, help="of the split [%(default)s]")
    add("--seed", type=seed, default=ORIGINAL.seed, help="of order and weights [%(default)s]")
    add("--out", type=Path, default=OUT / name, help="where to write to [%(default)s/]")
    return parser


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Add --weights, for commands that use a pretrained base."""
    weights = "imagenet, none, or a file of Xception's [imagenet]"
    parser.add_argument("--weights", default="imagenet", help=weights)


def add_base_flags(parser: argparse.ArgumentParser) -> None:
    """Add --weights and --cache, for commands that use a pretrained base and keep its features."""
    add_weights_flag(parser)
    add = parser.add_argument
    add("--cache", type=Path, default=CACHE, help="where features are kept [%(default)s/]")


def run(
    command: Callable[[argparse.Namespace], None],
    name: str,
    options: argparse.Namespace,
    *,
    claim: bool = False,
) -> int:
    """Run `command`, which may write to `options.out`, and return the exit code.

    With `claim`, no other process with `claim` may write there meanwhile. Neither that folder nor a
    cache may be among the images.
    """

    def make_folder_and_run() -> None:
        for name in ("out", "cache"):
            if folder := getattr(options, name, None):
                require_outside(folder, options.data, f"--{name}")
        options.out.mkdir(parents=True, exist_ok=True)
        with claim_folder(options.out) if claim else nullcontext():
            command(options)

    return cli.run_command(
        make_folder_and_run,
        f"experiments.{name}",
        paths=f"read {options.data} and write to {options.out}",
        advice="Free disk space or fix the permissions, then rerun to continue.",
        stopped=f"Stopped. Rerun to continue; finished results are in {options.out}.",
    )


def load_data(options: argparse.Namespace) -> tuple[Dataset, Split]:
    """Return the usable images of `options.data` and their split; print the counts."""
    dataset = load_dataset(options.data, options.exclude)
    split = split_images(dataset, options.split_seed)
    print(f"  {split.describe()}.")
    return dataset, split


def split_images(dataset: Dataset, split_seed: int) -> Split:
    """Split `dataset` as `train.py --recipe fine-tune` does."""
    return split_dataset(
        dataset,
        split_seed,
        validation_fraction=FINE_TUNE.validation_fraction,
        test_fraction=FINE_TUNE.test_fraction,
    )
