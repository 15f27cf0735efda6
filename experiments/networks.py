"""The networks to compare: small ones, and heads on frozen bases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.backend import keras
from training.batches import image_indices
from training.dataset.split import Split
from training.features import CachedFeatures
from training.images import ImageSource
from training.inference import dtype_policy
from training.model import BASE_LAYER, add_head
from training.pretrained import download_imagenet, load_pretrained
from training.recipes import ORIGINAL

Size = tuple[int, int]  # height and width, in pixels

SMALL_LEARNING_RATE, SMALL_MOMENTUM = 0.002, 0.8  # of the original's small networks
XCEPTION = keras.applications.Xception


@dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        name: in tables and figures.
        description: a few words for a person.
        batch_size: of training.
        learning_rate: of stochastic gradient descent.
        momentum: of stochastic gradient descent, 0 to 1.
        augmented: whether its training images are augmented.
        layers: returns the softmax for a tensor of images and a number of classes; None for a
            network with a frozen base.
        application: of `keras.applications`, the frozen base where there are no `layers`.
        size: height and width of its images in pixels; None for --size.
    """

    name: str
    description: str
    batch_size: int = ORIGINAL.batch_size
    learning_rate: float = SMALL_LEARNING_RATE
    momentum: float = SMALL_MOMENTUM
    augmented: bool = True
    layers: Callable | None = None
    application: Callable = XCEPTION
    size: int | None = None


def shallow_layers(x, class_count: int):
    """Return a softmax above two convolutions and a hidden layer.

    Input: images `x`. Nothing more is known of the original's; the numbers of filters and units
    are ours.
    """
    return _dense(_convolve(x, (32, 64)), (64,), class_count)


def deep_layers(x, class_count: int):
    """Return a softmax above four convolutions and two hidden layers with dropout.

    Input: images `x`.
    """
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
    return Network(
        name,
        f"frozen base, dense layers {', '.join(map(str, ORIGINAL.head))}",
        learning_rate=ORIGINAL.learning_rate,
        momentum=ORIGINAL.momentum,
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
    Network("augmented", "the same with augmentation", batch_size=10, layers=shallow_layers),
    Network("batch-32", "the same with batch 32", layers=shallow_layers),
    Network("deeper", "4 convolutions, 2 hidden layers, dropout", layers=deep_layers),
    _frozen("xception", XCEPTION, 299),
    _frozen("mobilenet-v3", keras.applications.MobileNetV3Large, 224),
    _frozen("efficientnet-v2-b0", keras.applications.EfficientNetV2B0, 224),
    _frozen("convnext-tiny", keras.applications.ConvNeXtTiny, 224),
)


def build_small(layers: Callable, size: Size, class_count: int) -> keras.Model:
    """Return a network of `layers`, all of which are trained.

    Input: float32 (n, height, width, 3), -1 to 1. Output: float32 (n, class_count), 0 to 1.
    """
    inputs = keras.Input((*size, 3))
    return keras.Model(inputs, layers(inputs, class_count))


def build_base(application: Callable, size: Size, weights: str) -> keras.Model:
    """Return a frozen, pooled base of `application`.

    Input: float32 (n, height, width, 3), -1 to 1. Output: float32 (n, features).

    `weights` is "imagenet" (Keras' download), "none", or a file of Xception's weights for
    `load_pretrained`; bases other than Xception are downloaded by Keras in that case, too.

    Raises:
        ModelError: the weights cannot be downloaded, or do not fit.
    """
    inputs = keras.Input((*size, 3))
    x = inputs
    base = application(weights=None, include_top=False, input_shape=(*size, 3))
    base.name = BASE_LAYER  # where load_pretrained looks for it
    if application is not XCEPTION:  # the others scale pixels from 0 to 255 themselves
        x = keras.layers.Rescaling(127.5, 127.5)(x)
    base.trainable = False
    frozen = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(base(x, training=False)))
    # No checkpoint of ours takes their place: it may have been trained on the test images.
    if weights == "imagenet" or (weights != "none" and application is not XCEPTION):
        download_imagenet(base, application)
    else:
        load_pretrained(frozen, weights, Path())
    return frozen


def build_head(
    feature_count: int, head: tuple[int, ...], class_count: int, dropout: float = 0.0
) -> keras.Model:
    """Return a head: features (n, f) to probabilities (n, classes)."""
    inputs = keras.Input((feature_count,))
    return keras.Model(inputs, add_head(inputs, head, class_count, dropout))


def cached_features(
    images: ImageSource, frozen: keras.Model, split: Split, cache: Path, views: int
) -> tuple[CachedFeatures, CachedFeatures]:
    """Return the features of `frozen` for training and for evaluation.

    Training images have that many augmented `views`. Validation and test images are
    plain, and their features float32, as the .tflite file computes them.

    Raises:
        CacheError: the disk has no room for them.
    """
    training = CachedFeatures(images, frozen, dtype_policy(), cache)
    evaluation = CachedFeatures(images, frozen, "float32", cache)
    train = image_indices(images.dataset, split.train)
    plain = image_indices(images.dataset, (*split.validation, *split.test))
    training.compute([(i, view + 1) for view in range(views) for i in train])
    evaluation.compute([(i, 0) for i in plain])
    return training, evaluation
