"""training.plain_keras: networks that Keras 2 and Keras 3 saved elsewhere."""

import json
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image

import predict
from serving.errors import ModelError
from serving.preprocess import scale
from training.backend import keras
from training.checkpoint import load_checkpoint
from training.model import BASE_LAYER, build_model, weights_digest
from training.model_facts import INPUT_SCALINGS, ModelFacts
from training.plain_keras import FIRST, LAST, fold_input_scaling, load_base
from training.pretrained import load_pretrained

NAMES = ("daisy", "rose", "tulip")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 71, 71, 3)).astype("float32")
TRAINED_ON = {"1/255": PIXELS / 255, "none": PIXELS, "xception": PIXELS / 127.5 - 1}
GLOROT = {"class_name": "GlorotUniform", "config": {"seed": None}}


@pytest.fixture(scope="module")
def networks():
    """The original's network with random weights, nested, sequential and flattened.

    All have the same base, whose layers have different weights also in their batch normalization.
    """
    keras.utils.set_random_seed(1)
    base = keras.applications.Xception(
        weights=None, include_top=False, input_shape=(71, 71, 3), name=BASE_LAYER
    )
    normalize(base, PIXELS / 255)
    base.trainable = False
    pooled = keras.layers.GlobalAveragePooling2D()
    dense = [keras.layers.Dense(units, "relu") for units in (16, 8)]
    dense.append(keras.layers.Dense(3, "softmax"))
    dropout = keras.layers.Dropout(0.2)
    inputs = keras.Input((71, 71, 3))
    return {
        "nested": keras.Model(inputs, chain(base(inputs, training=False), pooled, *dense)),
        "sequential": keras.Sequential([base, pooled, dropout, *dense]),
        "flat": keras.Model(base.input, chain(base.output, pooled, *dense)),
    }


def normalize(base, images):
    """Give batch normalization the statistics of `images`, so that these get different features."""
    layers = [each for each in base.layers if isinstance(each, keras.layers.BatchNormalization)]
    for each in layers:
        each.momentum = 0.0
    base(images, training=True)
    for each in layers:
        each.momentum = 0.99


def chain(x, *layers):
    for layer in layers:
        x = layer(x)
    return x


def as_keras_2(config):
    """Change the `config` of Keras 3 to what Keras 2.15 writes."""
    for layer in config["config"]["layers"]:
        settings = layer["config"]
        settings["dtype"] = "float32"
        for name in ("module", "registered_name", "build_config"):
            layer.pop(name, None)
        if layer["class_name"] == "InputLayer":
            settings["batch_input_shape"] = settings.pop("batch_shape")
            settings.pop("optional", None)
        if layer["class_name"] == "SeparableConv2D":
            settings |= {"groups": 1, "kernel_initializer": GLOROT, "kernel_regularizer": None}
        if "layers" in settings:
            as_keras_2(layer)
    return config


def write_keras_2(model, path):
    """Write `model` as Keras 2.15 does: names with ":0", and what is trained first."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps(as_keras_2(json.loads(model.to_json())))
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = weights.create_group(layer.name)
            names = []
            for variable in layer.trainable_weights + layer.non_trainable_weights:
                names.append(f"{variable.path}:0")
                group.create_dataset(names[-1], data=variable.numpy())
            group.attrs["weight_names"] = [name.encode() for name in names]


@pytest.mark.parametrize(
    ("shape", "form", "scaling", "partly_frozen"),
    [
        ("nested", "keras 2 .h5", "1/255", True),
        ("sequential", ".h5", "xception", False),
        ("flat", ".keras", "1/255", False),
    ],
)
def test_a_plain_file_predicts_what_keras_does(
    networks, tmp_path, shape, form, scaling, partly_frozen
):
    network = networks[shape]
    for each in networks["flat"].layers:
        each.trainable = partly_frozen and each.name > "block5"
    path = tmp_path / f"xception_fin_23_0.880.{form.rsplit('.', 1)[1]}"
    write_keras_2(network, path) if form.startswith("keras 2") else network.save(path)
    model, metadata = load_checkpoint(path, ModelFacts(NAMES, scaling))
    expected = np.asarray(network(TRAINED_ON[scaling], training=False))
    assert np.asarray(model(scale(PIXELS))) == pytest.approx(expected, abs=1e-5)
    assert (metadata.class_names, metadata.epoch, metadata.temperature) == (NAMES, 0, 1.0)
    assert np.abs(expected[0] - expected[1]).max() > 0.001  # the images make a difference


@pytest.mark.parametrize("scaling", TRAINED_ON)
def test_every_input_scaling_is_folded_into_the_first_layers(scaling):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((71, 71, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name=FIRST)(inputs)
    normalization = keras.layers.BatchNormalization(name=f"{FIRST}_bn")
    base = keras.Model(inputs, normalization(x), name=BASE_LAYER)
    normalize(base, TRAINED_ON[scaling])
    model = keras.Model(inputs, base(inputs))
    expected = np.asarray(model(TRAINED_ON[scaling]))
    fold_input_scaling(model, *INPUT_SCALINGS[scaling])
    assert np.asarray(model(scale(PIXELS))) == pytest.approx(expected, abs=1e-4)
    assert expected.std() == pytest.approx(1, abs=0.1)


def test_the_base_is_taken_without_its_scaling(networks, tmp_path):
    write_keras_2(networks["flat"], tmp_path / "a.h5")
    model = build_model((71, 71), (), 2)
    given = load_pretrained(model, str(tmp_path / "a.h5"), tmp_path)
    assert given == f"the base of {tmp_path / 'a.h5'}"
    base, expected = (each.get_layer(BASE_LAYER) for each in (model, networks["nested"]))
    assert weights_digest(base) == weights_digest(expected)


def layer(kind, name, **config):
    return {"class_name": kind, "name": name, "config": {"name": name, **config}}


def write_config(path, *layers, size=71):
    """Write a .h5 file with a network and no weights."""
    first = layer("InputLayer", "input", batch_shape=[None, size, size, 3])
    base = [layer("Conv2D", FIRST), layer("Activation", LAST)]
    with h5py.File(path, "w") as file:
        config = {"layers": [first, *(each for each in (*base, *layers))]}
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        file.create_group("model_weights")


POOLING = layer("GlobalAveragePooling2D", "pool")
SOFTMAX = layer("Dense", "out", units=3, activation="softmax")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([POOLING], "Xception without a classifier behind it"),
        ([SOFTMAX], "Xception without a classifier behind it"),
        ([POOLING, layer("Flatten", "flat"), SOFTMAX], "another kind, Flatten (flat)"),
        (
            [POOLING, layer("Dense", "fc", units=4, activation="tanh"), SOFTMAX],
            "whose layer fc has the activation tanh",
        ),
        (
            [POOLING, layer("Dense", "fc", units=4, activation="linear"), SOFTMAX],
            "whose layer fc has the activation linear",
        ),
        ([POOLING, layer("Dense", "out", units=1, activation="softmax")], "has one output"),
        ([POOLING, SOFTMAX], "whose weights do not fit ("),
    ],
)
def test_a_head_that_cannot_be_rebuilt_is_named(tmp_path, layers, said):
    write_config(tmp_path / "a.h5", *layers)
    assert said in refusal(load_checkpoint, tmp_path / "a.h5", ModelFacts(NAMES, "1/255"))


def test_an_input_that_xception_does_not_take_is_named(tmp_path):
    write_config(tmp_path / "a.h5", POOLING, SOFTMAX, size=64)
    said = refusal(load_checkpoint, tmp_path / "a.h5", ModelFacts(NAMES, "1/255"))
    assert "for inputs of the shape (None, 64, 64, 3)" in said


def refusal(function, *arguments):
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    sentence = str(caught.value)
    assert sentence.startswith("Expected ")
    assert "Received: " in sentence
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def other(tmp_path):
    """Write a file or folder that is no classifier; returns its path."""

    def write(what):
        path = tmp_path / "a.h5"
        small = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
        if isinstance(what, bytes):
            path.write_bytes(what)
        elif what == "another network":
            small.save(path)
        elif what == "weights":
            path = tmp_path / "a.weights.h5"
            small.save_weights(path)
        elif what == "half a file":
            small.save(path)
            path.write_bytes(path.read_bytes()[:5000])
        elif what == "half a .keras":
            path = tmp_path / "a.keras"
            small.save(path)
            path.write_bytes(path.read_bytes()[:5000])
        elif what == "a zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.txt", "a")
        else:
            path = tmp_path / "saved"
            path.mkdir()
            (path / "saved_model.pb").touch()
        return path

    return write


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("another network", "another network of 1 layer with weights, the first one dense"),
        ("weights", "weights only, without the network. Save both where it was made: model.save("),
        ("half a file", "which is damaged or no file of Keras ("),
        ("half a .keras", "which is damaged or no file of Keras ("),
        ("a zip", "which is damaged or no file of Keras ("),
        ("a SavedModel", "a SavedModel folder. Save the network as one file: "),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer in place of the file"),
        (b"<!DOCTYPE html><html>", "an HTML page. Download the file itself."),
        (b"\x1c\0\0\0TFL3\0\0", "a .tflite file. Use it with python predict.py --model"),
        (b"hello", "no model file."),
        (b"", "an empty file."),
    ],
)
def test_another_file_is_named_with_what_to_do(other, what, said):
    path = other(what)
    sentence = refusal(load_checkpoint, path, ModelFacts(NAMES, "1/255"))
    assert f"Received: {path}, {said}" in sentence or said in sentence
    target = build_tiny_base()
    for_weights = refusal(load_pretrained, target, str(path), path.parent)
    assert str(path) in for_weights


def build_tiny_base():
    inputs = keras.Input((8, 8, 3))
    base = keras.Model(inputs, keras.layers.Conv2D(2, 1, name=FIRST)(inputs), name=BASE_LAYER)
    return keras.Model(inputs, base(inputs))


def test_what_a_plain_file_does_not_say_has_to_be_given(networks, tmp_path):
    path = tmp_path / "a.h5"
    write_keras_2(networks["nested"], path)
    said = refusal(load_checkpoint, path, ModelFacts(input_scaling="1/255"))
    assert "Expected 3 class names" in said
    assert "Received: none. Give them with --classes" in said
    said = refusal(load_checkpoint, path, ModelFacts(("a", "b"), "1/255"))
    assert "Received: 2: a, b." in said
    assert "--input-scaling 1/255" in refusal(load_checkpoint, path, ModelFacts(NAMES))
    for name in (*NAMES, ".cache"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
    _, metadata = load_checkpoint(path, ModelFacts((), "1/255", tmp_path / "flowers"))
    assert metadata.class_names == NAMES


def test_predict_takes_a_plain_file(networks, tmp_path, capsys):
    path, image = tmp_path / "a.h5", tmp_path / "a.png"
    write_keras_2(networks["nested"], path)
    Image.fromarray(PIXELS[0].astype("uint8")).save(image)
    flags = ["--input-scaling", "1/255", "--classes", ",".join(NAMES)]
    assert predict.main(["--json", "--model", str(path), str(image), *flags]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    expected = np.asarray(networks["nested"](TRAINED_ON["1/255"][:1], training=False))[0]
    assert list(scores) == list(NAMES)
    assert list(scores.values()) == pytest.approx(expected, abs=1e-4)
    assert predict.main(["--model", str(path), str(image)]) == 1
    assert "--classes" in capsys.readouterr().err


def test_what_a_checkpoint_says_itself_is_not_given(small_checkpoint):
    assert load_checkpoint(small_checkpoint, ModelFacts(input_scaling="xception"))
    for facts in (ModelFacts(("a", "b", "c")), ModelFacts(input_scaling="1/255")):
        said = refusal(load_checkpoint, small_checkpoint, facts)
        assert "which has the classes red, green, blue inside. Leave both out." in said


def test_a_base_of_other_sizes_does_not_fit(networks, tmp_path):
    write_keras_2(networks["nested"], tmp_path / "a.h5")
    base = build_tiny_base().get_layer(BASE_LAYER)
    assert "whose weights do not fit" in refusal(load_base, tmp_path / "a.h5", base)
