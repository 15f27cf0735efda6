"""What a training run does: the original's recipe, fine-tuning, and the flags that change them."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from training.cli import fraction, positive


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; the defaults are the original's, flags override some."""

    # data
    input_size: int = 299  # pixels, height and width
    inference_size: int | None = None  # of the finished network; None: input_size
    batch_size: int = 32
    test_fraction: float = 0.0  # of all images; 0: the report is about the validation images
    validation_fraction: float = 0.2  # of the others; they pick the epoch
    split_seed: int = 69420  # of which images are in which set
    seed: int = 69420  # of new weights, the order of images, and mixup
    # augmentation of the training images only, most of it ImageDataGenerator's
    rotation_range: int = 40  # degrees
    width_shift_range: float = 0.4  # of the width
    height_shift_range: float = 0.4
    shear_range: float = 0.2  # degrees
    zoom_range: float | tuple[float, float] = 0.3  # 1 ± it, or from and to; below 1: closer
    horizontal_flip: bool = True
    fill_mode: str = "nearest"
    brightness_range: float | tuple[float, float] = 0.0  # factors of brightness, as zoom_range
    channel_shift_range: float = 0.0  # of 0 to 255, added to or taken from all channels alike
    erasing: float = 0.0  # share of the views in which a rectangle is noise
    views: int = 4  # of each image in the cache, at most; without the cache always new ones
    mixup_alpha: float = 0.0  # parameter of the beta distribution that images are mixed by; 0: not
    # network: Xception, global average pooling, dense layers (ReLU), softmax
    fine_tune_at: int | None = None  # block, 1 to 14, from which the base learns; None: frozen
    head: tuple[int, ...] = (512, 128, 32)
    head_epochs: int = 0  # for which the head is trained alone, before
    # optimizer: stochastic gradient descent
    learning_rate: float = 0.01
    momentum: float = 0.75
    nesterov: bool = False
    label_smoothing: float = 0.0
    ema_momentum: float = 0.0  # of the moving average of weights that is kept; 0: none
    # schedule
    epochs: int = 30
    steps_per_epoch: int | None = 100  # None: each training image once
    warmup_epochs: float | None = None  # before a cosine decay; None: a constant learning rate
    monitor: str = "val_accuracy"  # the epoch that is best by it is kept
    refit: bool = False  # train once more, on training and validation images together
    refit_epochs: int | None = None  # of that; None: as many as the best epoch's number
    final_head_epochs: int = 0  # for which the head is trained in the end, at the final size

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the training images."""
        return (self.input_size, self.input_size)

    @property
    def final_size(self) -> int:
        """Height and width in pixels of the finished network's input."""
        return self.inference_size or self.input_size

    def steps(self, count: int) -> int:
        """Return how many batches an epoch of `count` training images has."""
        return self.steps_per_epoch or max(1, count // self.batch_size)

    def rows(self, count: int) -> int:
        """Return how many rows all batches of a run on `count` training images have."""
        return self.epochs * self.steps(count) * self.batch_size

    def shown_views(self, count: int) -> int:
        """Return how many views of each of `count` training images a run shows, of those cached.

        All images come in one view before any comes in the next, so a short run shows fewer.
        """
        return min(self.views, math.ceil(self.rows(count) / count))

    @property
    def augmentation(self) -> dict:
        """Settings of `training.images.ImageSource`; what is off is not among them."""
        added = {
            "brightness_range": self._brightness_bounds,
            "channel_shift_range": self.channel_shift_range,
            "erasing": self.erasing,
        }
        return {
            "rotation_range": self.rotation_range,
            "width_shift_range": self.width_shift_range,
            "height_shift_range": self.height_shift_range,
            "shear_range": self.shear_range,
            "zoom_range": self.zoom_range,
            "horizontal_flip": self.horizontal_flip,
            "fill_mode": self.fill_mode,
            **{name: value for name, value in added.items() if value},
        }

    @property
    def _brightness_bounds(self) -> tuple[float, float] | None:
        change = self.brightness_range
        if isinstance(change, tuple):
            return change
        return (1 - change, 1 + change) if change else None


ORIGINAL = Recipe()
FINE_TUNE = Recipe(
    # Close crops show flowers larger than whole images do; larger images make up for some of
    # it (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    inference_size=363,
    test_fraction=0.2,
    validation_fraction=0.125,
    rotation_range=25,
    width_shift_range=0.1,
    height_shift_range=0.1,
    shear_range=0.1,
    zoom_range=(0.5, 1.0),
    views=9,
    mixup_alpha=0.2,
    fine_tune_at=5,
    head=(),
    head_epochs=15,
    learning_rate=8e-3,
    momentum=0.9,
    nesterov=True,
    label_smoothing=0.1,
    epochs=18,
    steps_per_epoch=None,
    warmup_epochs=0.5,
    monitor="val_loss",  # few images validate, so their accuracies differ by chance
)
RECIPES = {"original": ORIGINAL, "fine-tune": FINE_TUNE}

CACHE = Path(".cache", "activations")
CACHE_DAYS = 30  # after which features that no run used are removed
INPUT_SIZES = (71, 1024)  # pixels: the least that Xception takes, and what fits into memory
MAX_BATCH_SIZE = 4096
MAX_SEED = 2**32 - 1  # NumPy's
MAX_UNITS, MAX_LAYERS = 16_384, 16  # of a head


@dataclass(frozen=True)
class RunOptions:
    """What a run works on and where it writes; none of it changes what is learned.

    Attributes:
        data: folder of images, one sub-folder a class.
        exclude: file that lists images to leave out, or None.
        audit: file that lists images whose labels are wrong, or None.
        weights: "imagenet", "none" or a weights file.
        models: where checkpoints and reports are written.
        cache: where features are kept; None to compute everything anew in each epoch.
        cache_days: after which those that no run used are removed from there.
        resume: whether to continue the run in `models`.
        tensorboard: whether to write logs for TensorBoard.
        command: the command line, quoted for a shell, to be shown.
    """

    data: Path = Path("flowers")
    exclude: Path | None = None
    audit: Path | None = None
    weights: str = "imagenet"
    models: Path = Path("models")
    cache: Path | None = CACHE
    cache_days: int = CACHE_DAYS
    resume: bool = False
    tensorboard: bool = False
    command: str = "python train.py"

    @classmethod
    def read(cls, options: argparse.Namespace) -> "RunOptions":
        """Return the parsed command line's."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in vars(options).items() if name in names})


def read_recipe(options: argparse.Namespace) -> Recipe:
    """Return the recipe that the parsed command line names, with its flags applied."""
    names = {field.name for field in fields(Recipe)}
    flags = {n: v for n, v in vars(options).items() if n in names and v is not None}
    return replace(RECIPES[options.recipe], **flags)


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add --recipe, and a flag for each of the settings that people change."""
    parser.add_argument(
        "--recipe", choices=RECIPES, default="original", help="which settings [%(default)s]"
    )
    group = parser.add_argument_group("settings of the recipe", "[original / fine-tune]")

    def add(name: str, kind: Callable[[str], object], text: str = "", *old_names: str) -> None:
        values = " / ".join(str(getattr(recipe, name)) for recipe in RECIPES.values())
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"{text} [{values}]".lstrip()
        )
        for old in old_names:
            group.add_argument(old, dest=name, type=kind, help=argparse.SUPPRESS)

    add("head", layers, "dense layers below the softmax, such as 512,128,32, or none")
    sizes = within(*INPUT_SIZES)
    add("input_size", sizes, "pixels, height and width of the training images")
    add("inference_size", sizes, "pixels, of the finished network; None: as trained")
    add("epochs", up_to(100_000))
    add("batch_size", up_to(MAX_BATCH_SIZE))
    add("learning_rate", positive(float))
    add("momentum", fraction, "0 to 1")
    add("label_smoothing", fraction, "0 to 1")
    add("ema_momentum", fraction, "of averaged weights, 0 to 1, such as 0.98; 0 averages none")
    add("mixup_alpha", fraction, "0 to 1; 0 mixes no images", "--mixup")
    add("steps_per_epoch", up_to(1_000_000), "batches an epoch; None: all training images")
    group.add_argument(
        "--refit",
        action=argparse.BooleanOptionalAction,
        help="train once more, on training and validation images together "
        f"[{' / '.join(str(recipe.refit) for recipe in RECIPES.values())}]",
    )
    add("refit_epochs", up_to(100_000), "of that training; None: the number of the best epoch")
    add("final_head_epochs", within(0, 100_000), "of the head again in the end, on plain images")
    add("views", up_to(1000), "augmented views of each image in the cache")
    add("zoom_range", factors, "0.3: from 0.7 to 1.3; 0.5,1: from and to; below 1 is closer")
    add("brightness_range", factors, "0.3: from 0.7 to 1.3; 0.5,1: from and to; below 1 is darker")
    add("channel_shift_range", intensity, "of 0 to 255, by which all channels are shifted alike")
    add("erasing", fraction, "share of the views with a rectangle of noise, 0 to 1")
    add("fine_tune_at", block, "block, 1 to 14, from which the base learns", "--first-block")
    add("split_seed", within(0, MAX_SEED), "of the split into training, validation and test images")
    add("seed", within(0, MAX_SEED), "of new weights, order and mixup, on the same split")


def layers(text: str) -> tuple[int, ...]:
    """Return `text`, numbers of units separated by commas, as the dense layers of a head."""
    units = [] if text == "none" else text.split(",")
    if not all(unit.strip().isdecimal() and int(unit) for unit in units):
        raise argparse.ArgumentTypeError(f"expected numbers above 0, or none. Received: {text}")
    if len(units) > MAX_LAYERS or any(int(unit) > MAX_UNITS for unit in units):
        raise argparse.ArgumentTypeError(
            f"expected at most {MAX_LAYERS} layers of {MAX_UNITS} units. Received: {text}"
        )
    return tuple(map(int, units))


def up_to(most: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from 1 to `most`."""

    def parse(text: str) -> int:
        value = int(positive(int)(text))
        if value > most:
            raise argparse.ArgumentTypeError(f"expected at most {most}. Received: {text}")
        return value

    parse.__name__ = "int"  # argparse names it in its own messages
    return parse


def within(least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            bound = f"{least} or more" if value < least else f"at most {most}"
            raise argparse.ArgumentTypeError(f"expected {bound}. Received: {text}")
        return value

    parse.__name__ = "int"
    return parse


def factors(text: str) -> float | tuple[float, ...]:
    """Return `text` as a range of factors around 1: how far it goes, or its bounds."""
    if "," not in text:
        return fraction(text)
    bounds = tuple(map(positive(float), text.split(",")))
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(
            f"expected one number, or a lower and an upper one. Received: {text}"
        )
    return bounds


def intensity(text: str) -> float:
    """Return `text` as a number of intensity levels, 0 to 255."""
    value = float(text)
    if not 0 <= value <= 255:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 255. Received: {text}")
    return value


def block(text: str) -> int:
    """Return `text` as the number of a block of Xception, 1 to 14."""
    value = int(text)
    if not 1 <= value <= 14:
        raise argparse.ArgumentTypeError(f"expected a block from 1 to 14. Received: {text}")
    return value
