"""training.model: the original's network, and where its weights come from."""

import numpy as np
import pytest

from serving.errors import ModelError
from training.backend import keras
from training.checkpoint import Metadata, save_checkpoint
from training.fit import SHIPPED
from training.model import (
    BASE_LAYER,
    add_head,
    build_model,
    split_at_block,
    unfreeze,
    weights_digest,
    with_input_size,
    with_policy,
)
from training.pretrained import load_pretrained

SIZE = (71, 71)


@pytest.fixture(scope="module")
def model():
    return build_model(SIZE, (512, 128, 32), 5)


@pytest.fixture
def no_download(monkeypatch):
    """Keras without the internet: its download fails as it does on such a machine."""
    xception = keras.applications.Xception

    def offline(weights=None, **options):
        if weights == "imagenet":
            raise Exception("URL fetch failure on https://...: None -- [Errno -2] Unknown host")
        return xception(weights=weights, **options)

    monkeypatch.setattr(keras.applications, "Xception", offline)


def test_it_is_the_originals_network(model):
    assert [layer.name for layer in model.layers][1] == BASE_LAYER
    assert [type(layer).__name__ for layer in model.layers[2:]] == [
        "GlobalAveragePooling2D",
        *["Dense"] * 4,
    ]
    dense = model.layers[3:]
    assert [layer.units for layer in dense] == [512, 128, 32, 5]
    assert [layer.activation.__name__ for layer in dense] == ["relu"] * 3 + ["softmax"]
    trainable = sum(np.prod(variable.shape) for variable in model.trainable_variables)
    assert trainable == 1_119_045  # 2048·512 + 512·128 + 128·32 + 32·5 and biases: a frozen base
    assert model.count_params() == 20_861_480 + trainable  # Keras' figure for Xception, no top


def test_dropout_is_before_the_softmax_alone():
    inputs = keras.Input((6,))
    for dropout, names in ((0.0, ["Dense"] * 3), (0.3, ["Dense", "Dense", "Dropout", "Dense"])):
        head = keras.Model(inputs, add_head(inputs, (5, 4), 3, dropout)).layers[1:]
        assert [type(layer).__name__ for layer in head] == names
        assert [layer.rate for layer in head if hasattr(layer, "rate")] == [dropout][
            : len(head) - 3
        ]


def test_the_frozen_base_stays_in_inference_mode(model):
    x = np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype("float32")
    assert np.array_equal(model(x, training=True), model(x, training=False))


@pytest.mark.parametrize(
    ("block", "shape"),
    [(None, (2048,)), (1, (*SIZE, 3)), (2, (33, 33, 64)), (5, (5, 5, 728)), (14, (3, 3, 1024))],
)
def test_a_cut_network_answers_as_the_whole(block, shape):
    model = build_model(SIZE, (8,), 5)
    x = np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype("float32")
    if block:
        unfreeze(model, block)
    frozen, trainable_part = split_at_block(model, block)
    assert frozen.output_shape[1:] == shape
    assert np.allclose(trainable_part(frozen(x)), model(x), atol=1e-6)
    # All that learns is above the cut, and what is learned there the whole network knows.
    assert not frozen.trainable_variables
    learning = {id(variable) for variable in model.trainable_variables}
    assert {id(variable) for variable in trainable_part.trainable_variables} == learning
    assert not any("gamma" in variable.name for variable in model.trainable_variables)
    kernel = trainable_part.layers[-1].kernel
    kernel.assign(kernel + 1)
    assert np.allclose(trainable_part(frozen(x)), model(x), atol=1e-6)


def test_unfrozen_batch_normalization_stays_in_inference_mode():
    model = build_model(SIZE, (), 3)
    unfreeze(model, 9)
    _, trainable_part = split_at_block(model, 9)
    trainable_part.compile(keras.optimizers.SGD(0.1), loss="categorical_crossentropy")
    norms = [
        layer
        for layer in model.get_layer(BASE_LAYER).layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    before = [norm.get_weights() for norm in norms]
    convolution = model.get_layer(BASE_LAYER).get_layer("block9_sepconv1")
    kernel = convolution.get_weights()[0].copy()
    x = np.random.default_rng(0).normal(size=(4, *trainable_part.input_shape[1:]))
    trainable_part.train_on_batch(x, np.eye(3)[[0, 1, 2, 0]])
    for norm, weights in zip(norms, before, strict=True):
        for one, other in zip(norm.get_weights(), weights, strict=True):
            assert np.array_equal(one, other)
    assert not np.array_equal(convolution.get_weights()[0], kernel)


def test_mixed_precision_is_a_copy_with_the_same_weights():
    model = build_model(SIZE, (8,), 5)
    unfreeze(model, 5)
    _, trainable_part = split_at_block(model, 5)
    mixed = with_policy(trainable_part, "mixed_bfloat16")
    x = np.random.default_rng(0).normal(size=(2, *trainable_part.input_shape[1:])).astype("float32")
    expected = np.asarray(trainable_part(x))
    assert np.allclose(mixed(x), expected, atol=0.02)
    assert not np.array_equal(mixed(x), expected)
    assert [v.shape for v in mixed.trainable_variables] == [
        v.shape for v in trainable_part.trainable_variables
    ]
    assert {v.dtype for v in mixed.variables} == {"float32"}
    computing = [layer for layer in mixed.get_layer("upper").layers if layer.weights]
    assert {layer.compute_dtype for layer in computing} == {"bfloat16"}
    assert {layer.compute_dtype for layer in mixed.layers[2:]} == {"float32"}
    assert mixed.output.dtype == "float32"
    for one, other in zip(mixed.get_weights(), trainable_part.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert not np.shares_memory(mixed.get_weights()[0], trainable_part.get_weights()[0])


def test_another_input_size_is_a_copy_with_the_same_weights():
    model = build_model(SIZE, (8,), 5)
    unfreeze(model, 13)
    assert with_input_size(model, SIZE) is model
    larger = with_input_size(model, (90, 80))
    assert larger.input_shape == (None, 90, 80, 3)
    assert weights_digest(larger) == weights_digest(model)
    back = with_input_size(larger, SIZE)
    x = np.random.default_rng(0).uniform(-1, 1, (2, *SIZE, 3)).astype("float32")
    assert np.allclose(back(x), model(x), atol=1e-6)


def test_the_digest_is_of_the_weights(model):
    before = weights_digest(model)
    assert weights_digest(model) == before
    bias = model.layers[-1].bias
    bias.assign_add([0, 0, 1e-6, 0, 0])
    assert weights_digest(model) != before
    bias.assign_add([0, 0, -1e-6, 0, 0])
    assert weights_digest(model) == before


def test_weights_none_leaves_them_random(model):
    before = model.get_layer(BASE_LAYER).get_weights()[0].copy()
    assert load_pretrained(model, "none", SHIPPED) == "random weights"
    assert np.array_equal(model.get_layer(BASE_LAYER).get_weights()[0], before)


def test_a_checkpoint_gives_its_base(model, tmp_path):
    source = build_model(SIZE, (8,), 3)
    save_checkpoint(source, tmp_path / "a.h5", Metadata(("a", "b", "c"), 1, 0.5))
    given = load_pretrained(model, str(tmp_path / "a.h5"), SHIPPED)
    assert given == f"the base of {tmp_path / 'a.h5'}"
    for one, other in zip(
        model.get_layer(BASE_LAYER).get_weights(),
        source.get_layer(BASE_LAYER).get_weights(),
        strict=True,
    ):
        assert np.array_equal(one, other)


def test_keras_own_weights_file_fits(model, tmp_path):
    source = keras.applications.Xception(weights=None, include_top=False)
    source.save_weights(tmp_path / "notop.weights.h5")
    given = load_pretrained(model, str(tmp_path / "notop.weights.h5"), SHIPPED)
    assert given == f"the weights of {tmp_path / 'notop.weights.h5'}"
    assert np.array_equal(model.get_layer(BASE_LAYER).get_weights()[0], source.get_weights()[0])


def test_imagenet_is_what_keras_downloads(model, monkeypatch):
    downloaded = keras.applications.Xception(weights=None, include_top=False)
    asked = []

    def download(**options):
        asked.append(options)
        return downloaded

    monkeypatch.setattr(keras.applications, "Xception", download)
    assert load_pretrained(model, "imagenet", SHIPPED) == "ImageNet weights"
    assert asked == [{"weights": "imagenet", "include_top": False}]
    assert weights_digest(model.get_layer(BASE_LAYER)) == weights_digest(downloaded)


@pytest.mark.usefixtures("no_download")
def test_without_internet_the_shipped_checkpoints_base_is_taken(model, capsys):
    assert load_pretrained(model, "imagenet", SHIPPED) == f"the base of {SHIPPED}"
    assert (
        capsys.readouterr().out
        == "  Keras' download cannot be reached ([Errno -2] Unknown host).\n"
    )


@pytest.mark.usefixtures("no_download")
def test_with_neither_it_says_so(model, tmp_path):
    with pytest.raises(ModelError, match="Received: neither .*Unknown host.*--weights none"):
        load_pretrained(model, "imagenet", tmp_path / "shipped.h5")


def test_a_file_that_does_not_fit(model, tmp_path):
    with pytest.raises(ModelError, match="none.h5, which does not exist"):
        load_pretrained(model, str(tmp_path / "none.h5"), tmp_path)
    (tmp_path / "a.h5").write_text("hello")
    with pytest.raises(ModelError, match="^Expected a weights file of Xception"):
        load_pretrained(model, str(tmp_path / "a.h5"), tmp_path)
