"""What a checkpoint of another program does not say of itself, and the flags that say it."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from serving.preprocess import INPUT_SCALING

# {name: (factor, offset)} from our inputs, -1 to 1, to what the network was trained on.
INPUT_SCALINGS = {
    INPUT_SCALING: (1.0, 0.0),  # pixels / 127.5 - 1
    "1/255": (0.5, 0.5),  # pixels / 255
    "none": (127.5, 127.5),  # pixels, 0 to 255
}


@dataclass(frozen=True)
class ModelFacts:
    """What a person says about a checkpoint without metadata.

    Attributes:
        class_names: in the order of the outputs; empty to take the folders of `data`.
        input_scaling: a key of `INPUT_SCALINGS`, None if unknown.
        data: a folder with one sub-folder a class, or None.
    """

    class_names: tuple[str, ...] = ()
    input_scaling: str | None = None
    data: Path | None = None

    @classmethod
    def read(cls, flags: argparse.Namespace, data: Path | None = None) -> "ModelFacts":
        """Return what the flags of `add_model_flags` say."""
        return cls(flags.classes, flags.input_scaling, data)

    def names(self) -> tuple[str, ...]:
        """Return the class names that are given, or those of the folders in `data`, sorted."""
        if self.class_names or self.data is None or not self.data.is_dir():
            return self.class_names
        folders = (path.name for path in self.data.iterdir() if path.is_dir())
        return tuple(sorted(name for name in folders if not name.startswith(".")))


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add --classes and --input-scaling to `parser`."""
    parser.add_argument(
        "--classes",
        type=_class_names,
        default=(),
        metavar="A,B,…",
        help="class names of a checkpoint without them, in the order of its outputs",
    )
    parser.add_argument(
        "--input-scaling",
        type=lambda text: text.replace("1./", "1/").replace("255.", "255"),
        choices=INPUT_SCALINGS,
        help="how a checkpoint without metadata had its pixels scaled in training: 1/255, xception "
        "(pixels / 127.5 - 1) or none",
    )


def _class_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names) or len(names) < 2:
        raise argparse.ArgumentTypeError(
            f"expected two or more different names with commas between them. Received: {text}"
        )
    return names
