"""Make a checkpoint small enough to ship, with the same predicted classes.

    python -m training.export.shrink models/xception_fin_28_0.900.h5 small/ --data flowers/

Writes small/xception_fin_28_0.900.h5, its split and its report. The weights stay float32 but lose
the last bits of their mantissas, so that HDF5's shuffle and gzip nearly halve them; the optimizer's
variables are omitted. Nothing is written if the predicted class of an evaluated image changes.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np

from serving.errors import ModelError
from training.backend import keras
from training.batches import Batches, predict
from training.checkpoint import load_checkpoint, read_split, split_record
from training.cli import make_parser, run_command
from training.dataset.scan import require, scan
from training.evaluation.model_card import CARD
from training.files import claim_folder, require_disk_space, require_outside, write_atomically
from training.images import ImageSource
from training.streams import counted

# Of float32's 23 bits of mantissa. With float16's 10, two of 691 images changed their label.
KEPT_BITS = 13
ONLY_FOR_TRAINING = "optimizer_weights"
BATCH_SIZE = 32
PHOTOGRAPHS = ("mistakes.png", "gradcam.png", "label_issues.png")  # figures of photographs
NOT_PUBLISHED = (
    "(This figure shows other people's photographs and is not published; training draws it.)"
)


def main(arguments: list[str] | None = None) -> int:
    """Shrink as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(
        lambda: shrink(options.checkpoint, options.folder, options.data),
        "shrink",
        paths=f"read {options.data} and write to {options.folder}",
    )


def shrink(checkpoint: Path, folder: Path, data: Path) -> None:
    """Write the small copy of `checkpoint` into `folder`.

    Raises:
        ModelError: `checkpoint` is something else, has no split beside it, or a predicted class
            changes.
        DataError: `data` does not hold its evaluated images, or holds `folder`, or a run writes
            there.
    """
    require_outside(folder, data)
    model, _ = load_checkpoint(checkpoint)
    split = read_split(checkpoint)
    dataset = scan(data)
    require(dataset, split.evaluated)
    size = model.input_shape[1:3]
    batches = Batches(ImageSource(dataset, size), split.evaluated, BATCH_SIZE)
    before = predict(model, batches).argmax(axis=1)

    def write_checked(temporary: Path) -> None:
        copy_rounded(checkpoint, temporary)
        small = keras.models.load_model(temporary, compile=False)
        after = predict(small, batches).argmax(axis=1)
        changed = int((before != after).sum())
        true_classes = dataset.labels(split.evaluated)
        print(
            f"Predicted class changed: {changed} of {counted(len(true_classes), 'image')}; "
            f"accuracy {(before == true_classes).mean():.4f} before, "
            f"{(after == true_classes).mean():.4f} after."
        )
        if changed:
            raise ModelError(
                f"Expected no predicted class to change. Received: {changed}. Nothing was written."
            )

    with claim_folder(folder):
        path = folder / checkpoint.name
        require_disk_space(path, checkpoint.stat().st_size)
        write_atomically(path, write_checked)
        write_atomically(split_record(path), split.write)
        report = checkpoint.with_suffix("")
        if report.is_dir() and report != path.with_suffix(""):
            copy_report(report, path.with_suffix(""))
    sizes = [f"{file.stat().st_size / 1e6:.1f} MB" for file in (checkpoint, path)]
    print(f"Wrote: {path}, {sizes[1]} (was {sizes[0]}).")


def copy_report(source: Path, target: Path) -> None:
    """Copy the report in the folder `source` to `target` without the figures that show images.

    Who may train on a photograph may not therefore publish it.
    """
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*PHOTOGRAPHS))
    card = target / CARD
    if card.exists():
        text = card.read_text(encoding="utf-8")
        for name in PHOTOGRAPHS:
            text = re.sub(rf"!\[.*\]\({re.escape(name)}\)", NOT_PUBLISHED, text)
        write_atomically(card, lambda new: new.write_text(text, encoding="utf-8"))


def copy_rounded(source: Path, target: Path) -> None:
    """Copy the checkpoint `source` to `target` with rounded, compressed weights."""
    with h5py.File(source) as original, h5py.File(target, "w") as copy:
        copy.attrs.update(original.attrs)

        def copy_item(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if name.split("/")[0] == ONLY_FOR_TRAINING:
                return
            if isinstance(item, h5py.Group):
                new = copy.require_group(name)
            elif item.shape:
                # One chunk each: in h5py's small ones gzip makes a tenth less of it.
                new = copy.create_dataset(
                    name,
                    data=rounded(item[()]),
                    chunks=item.shape,
                    shuffle=True,
                    compression="gzip",
                )
            else:
                new = copy.create_dataset(name, data=item[()])
            new.attrs.update(item.attrs)

        original.visititems(copy_item)
        # Without its optimizer the model is one to be used, not one to be trained on.
        copy.attrs.pop("training_config", None)


def rounded(values: np.ndarray) -> np.ndarray:
    """Return kernels rounded to the nearest with `KEPT_BITS` bits of mantissa.

    At most 2**-(KEPT_BITS + 1) of a value is lost. Vectors (biases, batch normalization) are
    returned as they are: a hundredth of the weights, each of which every pixel passes.
    """
    if values.dtype != np.float32 or values.ndim < 2:
        return values
    dropped = 23 - KEPT_BITS
    half = np.uint32(1 << (dropped - 1))
    kept = np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return ((values.view(np.uint32) + half) & kept).view(np.float32)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m training.export.shrink")
    parser.add_argument("checkpoint", type=Path, help="a .h5 file of train.py")
    parser.add_argument("folder", type=Path, help="where to write the smaller checkpoint")
    parser.add_argument(
        "--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
