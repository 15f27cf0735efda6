"""Average the weights of several checkpoints of one split: a uniform soup.

    python -m experiments.soup one/xception_fin_15_0.954.h5 two/xception_fin_14_0.948.h5 --out soup/

Networks that were trained from the same pretrained weights, with other seeds or settings, often lie
in one basin of the loss: the mean of their weights is then as accurate as the mean of their
predictions, at the cost of one network (Wortsman et al. 2022, "Model soups"). Batch normalization
is frozen, so nothing has to be computed again. The temperature of each member is undone first, the
soup is calibrated anew on the validation images, and its checkpoint, split and report are written
into --out. On the validation images it is compared with each member; take the member if it is
better there.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.members import Member, read_members
from training import cli
from training.backend import keras
from training.checkpoint import Metadata
from training.dataset.scan import Dataset
from training.dataset.split import Split
from training.errors import DataError
from training.evaluation.calibration import apply_temperature, bake_temperature, fit_temperature
from training.evaluation.evaluate import (
    CalibratedModel,
    ReportSources,
    calibrate,
    describe_validation,
    earlier_info,
    predict_images,
    remaining,
    report,
    save,
    scan_classes,
)
from training.evaluation.metrics import summarize, with_interval
from training.evaluation.run import RunInfo
from training.files import claim_folder, require_outside
from training.images import ImageSource
from training.markdown import markdown_table
from training.model import with_input_size
from training.recipes import INPUT_SIZES, within
from training.streams import counted

HEAD = ("on the validation images", "loss", "accuracy", "temperature")
SOUP = "soup"


def main(arguments: list[str] | None = None) -> int:
    """Make a soup as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return cli.run_command(
        lambda: make_soup(options),
        "experiments.soup",
        paths=f"read {options.data} and the checkpoints, and write to {options.out}",
    )


def make_soup(options: argparse.Namespace) -> None:
    """Average, calibrate, compare, save and report.

    Raises:
        ModelError: a file is not a checkpoint, or has no split beside it.
        DataError: the checkpoints do not belong together, --out holds one of them, or images of
            their split are missing.
    """
    members = read_members(
        options.checkpoints, lambda *pair: mismatch(*pair, options.inference_size)
    )
    require_other_folder(options.checkpoints, options.out)
    require_outside(options.out, options.data, "--out")
    first = members[0]
    dataset = scan_classes(options.data, first.metadata.class_names, options.exclude, options.audit)
    whole_split = first.split.spelled_as([*dataset.images, *dataset.excluded])
    split = remaining(whole_split, dataset, options.exclude)
    height = options.inference_size or first.model.input_shape[1]
    source = ImageSource(dataset, (height, options.inference_size or first.model.input_shape[2]))
    with claim_folder(options.out):
        rows = [validate(member, dataset, split, source) for member in members]
        soup = average([(member.model, member.metadata.temperature) for member in members])
        epoch = max(member.metadata.epoch for member in members)
        metadata = Metadata(first.metadata.class_names, epoch, math.nan)
        result = calibrate(soup, metadata, dataset, split, source)
        path = save(result, options.out, split, None)
        sources = ReportSources(describe_soup(members, split, options.command))
        report(result, path, dataset, split, sources)
    print_comparison(members, [*rows, validation_row(result, dataset, split)], path)


def require_other_folder(checkpoints: Sequence[Path], out: Path) -> None:
    """Raise `DataError` if one of `checkpoints` is in the folder `out`: it could be replaced."""
    for path in checkpoints:
        if path.resolve().parent == out.resolve():
            raise DataError(
                f"Expected --out to be another folder than those of the checkpoints. Received: "
                f"{out}, which holds {path.name}. Name another."
            )


def mismatch(first: Member, other: Member, inference_size: int | None) -> tuple[str, str] | None:
    """Return what `first` is of and what `other` is of, where weights cannot be averaged."""
    sides = [member.model.input_shape[1] for member in (first, other)]
    if shapes(first.model) != shapes(other.model):
        return "one architecture", "another: its weights have other shapes"
    if sides[0] != sides[1] and not inference_size:
        return f"{sides[0]} pixels", f"{sides[1]}. Give the soup's size with --inference-size"
    return None


def shapes(model: keras.Model) -> list[tuple[int, ...]]:
    """Return the shapes of all weights of `model`."""
    return [weights.shape for weights in model.get_weights()]


def average(members: Sequence[tuple[keras.Model, float]]) -> keras.Model:
    """Return a network with the mean weights of `members`, and change these.

    Each comes with its temperature, which is undone: the soup is not calibrated.
    """
    weights = []
    for model, temperature in members:
        bake_temperature(model, 1 / temperature)
        weights.append(model.get_weights())
    means = [np.mean(each, axis=0, dtype=np.float64) for each in zip(*weights, strict=True)]
    soup = members[0][0]
    soup.set_weights([values.astype(np.float32) for values in means])
    return soup


def validate(member: Member, dataset: Dataset, split: Split, source: ImageSource) -> dict:
    """Return the numbers of `member` on the validation images, calibrated on them (JSON)."""
    model = with_input_size(member.model, source.size)
    print(
        f"{member.path}: running it on {counted(len(split.validation), 'validation image')}.",
        flush=True,
    )
    found = predict_images(model, member.metadata.temperature, source, split.validation)
    labels = dataset.labels(split.validation)
    temperature = fit_temperature(found.probabilities, labels)
    calibrated = apply_temperature(found.probabilities, temperature)
    return summarize(calibrated, labels) | {"temperature": temperature}


def validation_row(result: CalibratedModel, dataset: Dataset, split: Split) -> dict:
    """Return the numbers of the soup, as `validate` does."""
    found = summarize(result.val_probabilities, dataset.labels(split.validation))
    return found | {"temperature": result.metadata.temperature}


def describe_soup(members: Sequence[Member], split: Split, command: str) -> RunInfo:
    """Return what the report says about how the soup was made."""
    infos = [earlier_info(member.path) for member in members]
    names = ", ".join(str(member.path) for member in members)
    weights = list(dict.fromkeys(info.weights for info in infos if info.weights))
    recipes = [{n: v for n, v in info.recipe.items() if n != "seed"} for info in infos]
    return RunInfo(
        command=command,
        recipe=recipes[0] if all(recipe == recipes[0] for recipe in recipes) else {},
        weights="; ".join(weights) or None,
        split=split.sizes,
        picked_on=f"This is the mean of the weights of {names}. The best epoch of each was picked "
        f"on {describe_validation(split)}",
    )


def print_comparison(members: Sequence[Member], rows: Sequence[dict], path: Path) -> None:
    """Print the `rows` of the members and, last, of the soup in `path`, side by side."""
    names = [*(str(member.path) for member in members), SOUP]
    cells = [
        [
            name,
            f"{row['log_loss']:.4f}",
            with_interval(row["accuracy"], row["accuracy_interval"]),
            f"{row['temperature']:.3f}",
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    print(f"\n{markdown_table(HEAD, cells)}\n")
    *losses, soup = (row["log_loss"] for row in rows)
    best = int(np.argmin(losses))
    if soup > losses[best]:
        print(
            f"The soup is worse than {names[best]} on the validation images: loss {soup:.4f} "
            f"against {losses[best]:.4f}. Use that one instead, or a soup of fewer."
        )
    else:
        print(
            f"The soup is no worse than its best member on the validation images: loss {soup:.4f} "
            f"against {losses[best]:.4f} of {names[best]}. Use {path}."
        )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.make_parser(__doc__, "python -m experiments.soup")
    cli.add_data_flags(parser)
    cli.add_audit_flag(parser)
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=".h5 files of train.py")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where to write to")
    add(
        "--inference-size",
        type=within(*INPUT_SIZES),
        metavar="PIXELS",
        help="input size [the checkpoints']",
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if len({path.resolve() for path in options.checkpoints}) < max(2, len(options.checkpoints)):
        parser.error("expected two or more checkpoints that differ")
    options.command = shlex.join(["python", "-m", "experiments.soup", *arguments])
    return options


if __name__ == "__main__":
    sys.exit(main())
