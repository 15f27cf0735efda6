"""convert_to_tflite.py: every kind, compared with Keras by the runtime that will serve it."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

import convert_to_tflite
from convert_to_tflite import TOLERANCES, Tolerance
from serving.classifier import RUNTIMES
from serving.models import ModelError
from training.served import served_probabilities


@pytest.fixture
def checkpoint(small_checkpoint, tmp_path):
    return Path(shutil.copy(small_checkpoint, tmp_path))


def convert(checkpoint, *flags):
    return convert_to_tflite.main([str(checkpoint), *map(str, flags)])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("quantize", ["none", "float16", "int8"])
def test_each_kind_says_what_keras_says(checkpoint, drawn, quantize, runtime, capsys):
    flags = ["--quantize", quantize, "--data", drawn, "--runtime", runtime]
    assert convert(checkpoint, *flags) == 0
    out = capsys.readouterr().out
    assert "Compare: with Keras, on 50 pictures." in out
    path = checkpoint.with_suffix(".tflite")
    assert f"Wrote: {path}" in out
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"red\ngreen\nblue\n"
    assert sorted(p.name for p in path.parent.iterdir()) == [checkpoint.name, path.name]


def test_a_kind_that_the_runtime_cannot_load_is_refused(trained_like, capsys):
    """TensorFlow 2.21's dynamic-range models are too new for tflite-runtime 2.14."""
    flags = ["--quantize", "dynamic", "--data", "none"]
    assert convert(trained_like, *flags, "--runtime", "tflite-runtime") == 1
    error = capsys.readouterr().err
    assert "that tflite-runtime 2.14.0 can load" in error
    assert "--runtime ai-edge-litert" in error
    assert "--build-arg RUNTIME=ai-edge-litert" in error
    assert not trained_like.with_suffix(".tflite").exists()

    assert convert(trained_like, *flags, "--runtime", "ai-edge-litert") == 0
    assert trained_like.with_suffix(".tflite").exists()


@pytest.fixture
def trained_like(tmp_path):
    """A checkpoint with a layer large enough that the converter quantizes it."""
    from training.backend import keras
    from training.checkpoint import Metadata, save_checkpoint

    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(inputs))
    x = keras.layers.Dense(64, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    path = tmp_path / "xception_fin_01_0.500.h5"
    save_checkpoint(model, path, Metadata(("a", "b"), 1, 0.5))
    return path


def test_beyond_the_tolerance_nothing_is_written(checkpoint, drawn, monkeypatch, capsys):
    path = checkpoint.with_suffix(".tflite")
    path.write_bytes(b"an earlier one")
    monkeypatch.setitem(TOLERANCES, "float16", Tolerance(0.0, 1.0))
    assert convert(checkpoint, "--quantize", "float16", "--data", drawn) == 1
    assert "Nothing was written" in capsys.readouterr().err
    assert path.read_bytes() == b"an earlier one"
    assert len(list(path.parent.iterdir())) == 2


def test_int8_wants_pictures_to_calibrate_on(checkpoint, tmp_path, capsys):
    assert convert(checkpoint, "--quantize", "int8", "--data", tmp_path / "none") == 1
    assert "to calibrate int8 on. Received: none" in capsys.readouterr().err


def test_it_calibrates_on_training_and_compares_on_validation_pictures(checkpoint, drawn):
    from training.checkpoint import split_record
    from training.dataset import scan, split
    from training.generators import read_pixels

    parts = split(scan(drawn), 0.2, seed=3)
    parts.write(split_record(checkpoint))
    calibrating, compared = convert_to_tflite.choose_pictures(checkpoint, drawn, (32, 48))
    for readers, pictures in ((calibrating, parts.train), (compared, parts.validation)):
        expected = [read_pixels(drawn / p, (32, 48)) for p in pictures]
        assert np.array_equal(np.stack([read() for read in readers]), np.stack(expected))


def test_pictures_that_excite_a_layer_too_much_do_not_calibrate():
    from training.backend import keras

    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, activation="relu")(inputs))
    model.set_weights([np.ones((1, 1, 3, 2), "float32"), np.zeros(2, "float32")])
    strength = np.array([0.1, 5.0, 0.11, 0.09, 3.0, 0.1, 0.12, 7.0], dtype="float32")
    pictures = np.ones((8, 4, 4, 3), "float32") * strength[:, None, None, None]
    kept = convert_to_tflite.calm_half(model, pictures)
    assert sorted(kept[:, 0, 0, 0]) == sorted(strength[[0, 2, 3, 5]])


def test_without_an_argument_the_best_of_models(checkpoint, tmp_path, capsys):
    shutil.copy(checkpoint, tmp_path / "xception_fin_01_0.100.h5")
    flags = ["--models", str(tmp_path), "--data", "none"]
    assert convert_to_tflite.main(flags) == 0
    assert f"Read: {checkpoint}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["none.h5", "text.h5"])
def test_what_is_no_checkpoint(tmp_path, capsys, name):
    (tmp_path / "text.h5").write_text("hello")
    assert convert(tmp_path / name) == 1
    error = capsys.readouterr().err
    assert error.startswith("convert_to_tflite.py: Expected a checkpoint")
    assert error.count("\n") == 1


def test_the_same_checkpoint_gives_the_same_file(checkpoint):
    contents = []
    for _ in range(2):
        convert(checkpoint, "--data", "none")
        contents.append(checkpoint.with_suffix(".tflite").read_bytes())
    assert contents[0] == contents[1]


def test_a_model_that_its_runtime_cannot_load_is_told(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"hello")
    with pytest.raises(ModelError, match="class names inside"):
        served_probabilities(tmp_path / "a.tflite", np.zeros((1, 8, 8, 3), "float32"), None)
