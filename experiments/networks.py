"""The networks that are compared: the original's small ones, and frozen bases with a new head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ModelError
from training.backend import keras
from training.batches import image_indices
from training.dataset.split import Split
from training.features import CachedFeatures
from training.images import ImageSource
from training.inference import dtype_policy
from training.model import BASE_LAYER, add_head
from training.pretrained import load_base_weights

Size = tuple[int, int]  # height and width, in pixels

# ImageDataGenerator's settings, optimizer and head of the original; train.py's recipe has the same.
AUGMENTATION = {
    "rotation_range": 40,
    "width_shift_range": 0.4,
    "height_shift_range": 0.4,
    "shear_range": 0.2,
    "zoom_range": 0.3,
    "horizontal_flip": True,
    "fill_mode": "nearest",
}
LEARNING_RATE, MOMENTUM = 0.01, 0.75
SMALL_LEARNING_RATE, SMALL_MOMENTUM = 0.002, 0.8  # of its small networks
BATCH_SIZE = 32
HEAD = (512, 128, 32)
XCEPTION = keras.applications.Xception


@dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        name: in tables and figures.
        what: it is, in a few words.
        batch_size: of training.
        learning_rate: of SGD.
        momentum: of SGD, 0 to 1.
        augmented: whether its training images are.
        layers: returns its softmax on the tensor of images and the number of classes; None
            where there is an `application`.
        application: of `keras.applications`, whose base stays frozen; None: all of it learns.
        size: of its images in pixels, None for the one that is asked for.
    """

    name: str
    what: str
    batch_size: int = BATCH_SIZE
    learning_rate: float = SMALL_LEARNING_RATE
    momentum: float = SMALL_MOMENTUM
    augmented: bool = True
    layers: Callable | None = None
    application: Callable | None = None
    size: int | None = None


def shallow_layers(x, class_count: int):
    """Return a softmax on one hidden layer on two convolutions with max pooling, on images `x`.

    That is all that is known of the original's; the numbers of filters and units are ours.
    """
    return _dense(_convolve(x, (32, 64)), (64,), class_count)


def deep_layers(x, class_count: int):
    """Return a softmax on two hidden layers with dropout on four convolutions, on images `x`."""
    return _dense(_convolve(x, (32, 64, 128, 128)), (128, 64), class_count, dropout=0.3)


def _convolve(x, filters: Sequence[int]):
    for count in filters:
        x = keras.layers.Conv2D(count, 3, activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    return keras.layers.Flatten()(x)


def _dense(x, units: Sequence[int], class_count: int, dropout: float = 0.0):
    for count in units:
        x = keras.layers.Dense(count, activation="relu")(x)
        if dropout:
            x = keras.layers.Dropout(dropout)(x)
    return keras.layers.Dense(class_count, activation="softmax")(x)


def _frozen(name: str, application: Callable, size: int) -> Network:
    what = "frozen base, dense layers 512, 128, 32"
    return Network(
        name,
        what,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        application=application,
        size=size,
    )


NETWORKS = (
    Network(
        "baseline",
        "2 convolutions, 1 hidden layer, batch 10",
        batch_size=10,
        augmented=False,
        layers=shallow_layers,
    ),
    Network("augmented", "the same, augmented", batch_size=10, layers=shallow_layers),
    Network("batch-32", "the same, batch 32", layers=shallow_layers),
    Network("deeper", "4 convolutions, 2 hidden layers, dropout", layers=deep_layers),
    _frozen("xception", XCEPTION, 299),
    _frozen("mobilenet-v3", keras.applications.MobileNetV3Large, 224),
    _frozen("efficientnet-v2-b0", keras.applications.EfficientNetV2B0, 224),
    _frozen("convnext-tiny", keras.applications.ConvNeXtTiny, 224),
)


def build_small(network: Network, size: Size, class_count: int) -> keras.Model:
    """Return a network that learns as a whole.

    Input: float32 (n, height, width, 3), -1 to 1. Output: float32 (n, class_count), 0 to 1.
    """
    inputs = keras.Input((*size, 3))
    return keras.Model(inputs, network.layers(inputs, class_count))


def build_base(application: Callable, size: Size, weights: str) -> keras.Model:
    """Return a frozen base: images, float32 (n, height, width, 3), -1 to 1, to features (n, f).

    `weights` is "imagenet" (Keras' download), "none", or a file of Xception's weights as
    `load_base_weights` takes it; other bases then ask Keras for theirs.

    Raises:
        ModelError: the weights cannot be had, or do not fit.
    """
    inputs = keras.Input((*size, 3))
    x = inputs
    base = application(weights=None, include_top=False, input_shape=(*size, 3))
    base.name = BASE_LAYER  # where load_base_weights looks for it
    if application is not XCEPTION:  # the others scale pixels from 0 to 255 themselves
        x = keras.layers.Rescaling(127.5, 127.5)(x)
    base.trainable = False
    frozen = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(base(x, training=False)))
    if weights == "imagenet" or (weights != "none" and application is not XCEPTION):
        _load_imagenet(base, application, size)
    else:
        load_base_weights(frozen, weights, Path())
    return frozen


def _load_imagenet(base: keras.Model, application: Callable, size: Size) -> None:
    """Give `base` Keras' own weights, and no other: a checkpoint may have seen these images."""
    try:
        source = application(weights="imagenet", include_top=False, input_shape=(*size, 3))
    except Exception as error:  # what Keras raises when its download fails is a bare Exception
        reason = str(error).rsplit(" -- ", 1)[-1]  # the front names the file
        raise ModelError(
            f"Expected Keras' ImageNet weights of {application.__name__}. Received: none "
            f"({reason}). Run it where Keras can download them"
            + ("." if application is not XCEPTION else ", or give a file with --weights.")
        ) from error
    base.set_weights(source.get_weights())


def build_head(
    feature_count: int, head: tuple[int, ...], class_count: int, dropout: float = 0.0
) -> keras.Model:
    """Return what learns above a frozen base: features (n, f) to probabilities (n, classes)."""
    inputs = keras.Input((feature_count,))
    return keras.Model(inputs, add_head(inputs, head, class_count, dropout))


def cached_features(
    images: ImageSource, frozen: keras.Model, split: Split, views: int, cache: Path
) -> tuple[CachedFeatures, CachedFeatures]:
    """Return (features to learn from, features to judge on) of `frozen`, kept in `cache`.

    Those to learn from are of the training images in `views` views; those to judge on are of the
    selection and validation images as they are, in float32, as the .tflite file computes them.

    Raises:
        CacheError: the disk has no room for them.
    """
    learned = CachedFeatures(images, frozen, dtype_policy(), cache)
    judged = CachedFeatures(images, frozen, "float32", cache)
    train = image_indices(images.dataset, split.train)
    judging = image_indices(images.dataset, (*split.validation, *split.test))
    learned.compute([(i, view + 1) for view in range(views) for i in train])
    judged.compute([(i, 0) for i in judging])
    return learned, judged
