"""convert_to_tflite.py: every kind, compared with Keras by the runtime that will serve it."""

import json
import os
import re
import shlex
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import convert_to_tflite
import predict as script
from serving.card import read_card
from serving.details import read_details
from serving.errors import ModelError
from serving.model_files import tflite_path
from serving.preprocess import scale
from serving.runtimes import RUNTIMES
from training.checkpoint import split_record
from training.dataset.scan import Dataset, scan
from training.dataset.split import split_dataset
from training.errors import DataError
from training.export import compare as module
from training.export import tflite
from training.export.compare import DETAIL_TOLERANCES, TOLERANCES
from training.export.tflite_process import Told, tell_once


@pytest.fixture
def checkpoint(small_checkpoint, tmp_path):
    return Path(shutil.copy(small_checkpoint, tmp_path))


@pytest.fixture(autouse=True)
def _without_flowers(tmp_path, monkeypatch):
    """Work in a folder without flowers/, where drawn images are compared unless --data is given."""
    monkeypatch.chdir(tmp_path)


def convert(checkpoint, *flags):
    return convert_to_tflite.main([str(checkpoint), *map(str, flags)])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("quantize", ["none", "float16", "int8"])
def test_each_kind_says_what_keras_says(checkpoint, drawn, quantize, runtime, capsys):
    flags = ["--quantize", quantize, "--data", drawn, "--runtime", runtime]
    assert convert(checkpoint, *flags) == 0
    out = capsys.readouterr().out
    assert "Compare: with Keras, on 50 images." in out
    path = tflite_path(checkpoint, quantize)
    assert f"Wrote: {path}" in out
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"red\ngreen\nblue\n"
    assert set(path.parent.iterdir()) == {checkpoint, path}


def test_a_kind_that_the_runtime_cannot_load_is_refused(trained_like, capsys):
    """TensorFlow 2.21's dynamic-range models are too new for tflite-runtime 2.14."""
    flags = ["--quantize", "dynamic"]
    assert convert(trained_like, *flags, "--runtime", "tflite-runtime") == 1
    error = capsys.readouterr().err
    assert "that tflite-runtime 2.14.0 can load" in error
    assert "--runtime ai-edge-litert" in error
    assert "--build-arg RUNTIME=ai-edge-litert" in error
    assert not list(trained_like.parent.glob("*.tflite"))

    assert convert(trained_like, *flags, "--runtime", "ai-edge-litert") == 0
    assert trained_like.with_suffix(".dynamic.tflite").exists()


def test_the_command_that_uses_a_file_names_the_runtime_that_can_load_it(trained_like, capfd):
    Image.new("RGB", (9, 9), "red").save("red.png")
    flags = ["--quantize", "dynamic", "--runtime", "ai-edge-litert"]
    assert convert(trained_like, *flags) == 0
    [line] = re.findall(r"Use it: python predict\.py (.+) IMAGE\n", capfd.readouterr().out)
    assert script.main([*shlex.split(line), "red.png"]) == 0
    assert ".dynamic.tflite (ai-edge-litert), 2 classes: a, b" in capfd.readouterr().err
    assert script.main(["--model", str(trained_like.parent), "red.png"]) == 1
    assert re.search(
        r"Expected a model that tflite-runtime 2\.14\.0 can load\. .+ Use another runtime, "
        r"ai-edge-litert or openvino \(predict\.py --runtime",
        capfd.readouterr().err,
    )


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


@pytest.fixture(scope="module")
def colored(tmp_path_factory):
    """More than a batch of the small checkpoint's classes; one image is in a wrong folder."""
    folder = tmp_path_factory.mktemp("colored")
    for name, color in {
        "red": (220, 60, 40),
        "green": (50, 200, 70),
        "blue": (30, 40, 230),
    }.items():
        (folder / name).mkdir()
        for number in range(13):
            pixels = np.random.default_rng(number).normal(color, 20, (40, 50, 3)).clip(0, 255)
            Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{number:02}.png")
    (folder / "red" / "12.png").rename(folder / "blue" / "99.png")
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_evaluation_is_on_all_images_and_on_those_that_validate(
    checkpoint, small_tflite, colored, capsys, runtime
):
    shutil.copy(small_tflite, checkpoint.parent)
    split = split_dataset(scan(colored), 0, validation_fraction=0.2)
    split.write(split_record(checkpoint))
    assert convert(checkpoint, "--evaluate", "--data", colored, "--runtime", runtime) == 0
    out = capsys.readouterr().out
    assert f"on {runtime} " in out
    share = r"  (\d\.\d{3}) \(\d\.\d{3}–\d\.\d{3}\)"
    rows = re.findall(rf"^  (\w+) +(\d+){share * 3}$", out, re.M)
    assert rows[0] == ("all", "39", "0.974", "0.974", "1.000")
    assert rows[1][:2] == ("validation", str(len(split.evaluated)))
    assert rows[1][4] == "1.000"


@pytest.mark.filterwarnings("error:Mean of empty slice")
def test_evaluation_on_new_images_has_no_row_for_a_set_without_any(
    checkpoint, small_tflite, colored, capsys
):
    shutil.copy(small_tflite, checkpoint.parent)
    split_dataset(SMALL, 0, validation_fraction=0.2).write(split_record(checkpoint))
    assert convert(checkpoint, "--evaluate", "--data", colored) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  (\w+) +\d+  \d", out, re.M) == ["all"]
    assert "nan" not in out


def test_evaluation_fails_where_the_file_is_worse(checkpoint, colored, tmp_path, capsys):
    from training.checkpoint import Metadata, load_checkpoint, save_checkpoint

    model, _ = load_checkpoint(checkpoint)
    model.layers[-1].set_weights([np.eye(3)[[0, 2, 1]] * 4, np.zeros(3)])
    other = tmp_path / "other" / checkpoint.name
    other.parent.mkdir()
    save_checkpoint(model, other, Metadata(("red", "green", "blue"), 7, 0.75))
    assert convert(other) == 0
    before = other.with_suffix(".tflite").read_bytes()
    shutil.copy(checkpoint, other)
    assert convert(other, "--evaluate", "--data", colored) == 1
    captured = capsys.readouterr()
    assert re.search(r"Received: \d+\.\d % and \d+\.\d %. Convert it again", captured.err)
    assert other.with_suffix(".tflite").read_bytes() == before


def test_evaluation_wants_a_file_and_images_of_its_classes(checkpoint, small_tflite, drawn, capsys):
    assert convert(checkpoint, "--evaluate", "--data", drawn) == 1
    assert "which does not exist. Run python convert_to_tflite.py" in capsys.readouterr().err
    shutil.copy(small_tflite, checkpoint.parent)
    assert convert(checkpoint, "--evaluate", "--data", drawn) == 1
    expected = "Expected images of red, green, blue. Received: daisy, dandelion, rose"
    assert expected in capsys.readouterr().err


def test_each_kind_is_as_large_as_its_numbers(trained_like):
    from training.checkpoint import load_checkpoint

    model, _ = load_checkpoint(trained_like)
    images = [lambda seed=seed: noise(seed) for seed in range(4)]
    for quantize, size in {"none": 4, "float16": 2, "dynamic": 1, "int8": 1}.items():
        content = tflite.make_tflite(model, ("a", "b"), quantize, images)
        # A few kilobytes are not weights.
        assert size <= len(content) / model.count_params() < size + 0.8


def test_int8_leaves_nothing_but_the_softmax_in_floating_point(trained_like):
    from training.checkpoint import load_checkpoint

    model, _ = load_checkpoint(trained_like)
    images = [lambda seed=seed: noise(seed) for seed in range(4)]
    interpreter = tflite.tf.lite.Interpreter(
        model_content=tflite.make_tflite(model, ("a", "b"), "int8", images)
    )
    kinds = {each["index"]: each["dtype"] for each in interpreter.get_tensor_details()}
    results = {kind: set() for kind in kinds.values()}
    for operation in interpreter._get_ops_details():
        results[kinds[operation["outputs"][0]]].add(operation["op_name"])
    assert results[np.float32] == {"DEQUANTIZE", "SOFTMAX"}
    assert results[np.int8] > {"QUANTIZE", "FULLY_CONNECTED"}


def test_unlikely_classes_have_scores_in_int8_too():
    from training.backend import keras

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    rates = keras.initializers.RandomNormal(stddev=9, seed=0)
    model = keras.Model(inputs, keras.layers.Dense(50, "softmax", kernel_initializer=rates)(x))
    images = [lambda seed=seed: noise(seed, (8, 8, 3)) for seed in range(4)]
    interpreter = tflite.tf.lite.Interpreter(
        model_content=tflite.make_tflite(model, tuple(map(str, range(50))), "int8", images)
    )
    interpreter.allocate_tensors()
    image = np.full((1, 8, 8, 3), np.float32([0.9, -0.9, 0.9]))
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    [scores] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert scores.min() > 0
    assert scores.sum() == pytest.approx(1, abs=1e-5)
    [expected] = model.predict(image, verbose=0)
    assert len(np.unique(scores[expected < 1 / 256])) > 10


def noise(seed, shape=(32, 32, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


SCORES = np.tile(np.float32([0.6, 0.4]), (20, 1))


@pytest.fixture(autouse=True)
def stand_ins_have_no_layers(monkeypatch):
    """Let `SimpleNamespace` stand for a Keras model that returns scores alone."""
    with_activations, read_head = module.with_activations, module.read_head

    def is_stand_in(model):
        return isinstance(model, SimpleNamespace)

    monkeypatch.setattr(
        module, "with_activations", lambda m: m if is_stand_in(m) else with_activations(m)
    )
    monkeypatch.setattr(module, "read_head", lambda m: () if is_stand_in(m) else read_head(m))


def compare(monkeypatch, received, quantize="none", expected=SCORES):
    """Compare what the file answers, `received`, with what Keras does."""
    model = SimpleNamespace(predict=lambda inputs, **_: expected)
    told = Told(received, None, None)
    monkeypatch.setattr(module, "tell_of", lambda path, inputs, *_: told)
    readers = [lambda seed=seed: noise(seed, (4, 4, 3)) for seed in range(len(received))]
    module.compare(model, Path("a.tflite"), readers, quantize, None)


def test_one_score_of_one_image_beyond_the_tolerance_is_refused(monkeypatch, capsys):
    received = SCORES.copy()
    received[7] += np.float32([0.0009, -0.0009])
    compare(monkeypatch, received)
    assert "largest difference of a score: 0.000900 (allowed: 0.001)" in capsys.readouterr().out
    received[7, 0] = 0.6011
    with pytest.raises(ModelError, match=r"Received: 0\.0011\d\d and 100%\. Nothing was written"):
        compare(monkeypatch, received)


@pytest.fixture
def told(telling, tmp_path):
    """A checkpoint of `telling` with its details."""
    from training.checkpoint import Metadata, save_checkpoint

    path = tmp_path / "told_0.900.h5"
    details = replace(read_details(telling.tflite, 5, 3), head=())
    metadata = Metadata(("red", "green", "blue"), 5, 0.9, details=details)
    save_checkpoint(telling.model, path, metadata)
    return path, details


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_what_tells_more_than_scores_is_converted_and_compared(
    told, colored, quantize, runtime, capsys
):
    path, details = told
    flags = ["--quantize", quantize, "--data", colored, "--runtime", runtime]
    assert convert(path, *flags) == 0
    out = capsys.readouterr().out
    least = DETAIL_TOLERANCES[quantize]
    for name in ("p-values of familiarity", "cells of heat maps"):
        row = rf"  {name}: mean difference (\S+) \(allowed: (\S+)\), largest (\S+)\n"
        mean, allowed, largest = map(float, re.search(row, out).groups())
        assert mean <= largest
        assert least <= allowed < least + 0.1
    converted = read_details(tflite_path(path, quantize), 5, 3)
    assert np.array_equal(converted.nonconformity, details.nonconformity)
    assert np.array_equal(converted.familiarity.distances, details.familiarity.distances)
    assert len(converted.head) == 2

    assert convert(path, "--evaluate", "--data", colored, *flags[:2], *flags[4:]) == 0
    share = r"  (\d\.\d{3}) \(\d\.\d{3}–\d\.\d{3}\)"
    [_, unknown] = re.findall(rf"^  all +39{share * 3}$", capsys.readouterr().out, re.M)
    assert float(unknown[2]) >= (1 if quantize == "none" else 0.8)


def test_broken_details_are_refused(telling, told, monkeypatch):
    details, images = told[1], [lambda image=image: image for image in telling.images[:20]]
    module.compare(telling.model, telling.tflite, images, "none", None, details)
    farther = replace(details.familiarity, distances=details.familiarity.distances * 9)
    with pytest.raises(
        ModelError, match=r"Expected p-values of familiarity within 0\.0\d+ of Keras'"
    ):
        module.compare(
            *(telling.model, telling.tflite, images, "none", None),
            replace(details, familiarity=farther),
        )
    expected = module._tell_keras(telling.model, np.zeros((20, 32, 48, 3), "float32"), details)
    silent = Told(expected.probabilities, expected.known, None)
    monkeypatch.setattr(module, "tell_of", lambda *_: silent)
    monkeypatch.setattr(module, "_tell_keras", lambda *_: expected)
    with pytest.raises(ModelError, match="Expected cells of heat maps .* Received: nan"):
        module.compare(telling.model, telling.tflite, images, "none", None, details)


def test_both_predict_from_the_inputs_that_serving_would_make(monkeypatch):
    given = []

    def predict(inputs):
        given.append(inputs)
        return SCORES[: len(inputs)]

    monkeypatch.setattr(
        module, "tell_of", lambda path, inputs, *_: Told(predict(inputs), None, None)
    )
    model = SimpleNamespace(predict=lambda inputs, **_: predict(inputs))
    loaders = [lambda seed=seed: noise(seed) for seed in range(3)]
    module.compare(model, Path("a.tflite"), loaders, "none", None)
    expected = scale(np.stack([noise(seed) for seed in range(3)]))
    assert len(given) == 2
    assert all(np.array_equal(inputs, expected) for inputs in given)


def test_scores_that_are_no_numbers_are_refused(monkeypatch):
    received = SCORES.copy()
    received[7] = np.nan
    with pytest.raises(ModelError, match="Received: nan"):
        compare(monkeypatch, received)


def test_a_single_image_is_told_in_the_singular(monkeypatch, capsys):
    compare(monkeypatch, SCORES[:1], expected=SCORES[:1])
    assert capsys.readouterr().out.startswith("Compare: with Keras, on 1 image.\n")


def test_another_first_answer_is_refused_however_near_its_scores_are(monkeypatch):
    close = np.tile(np.float32([0.5001, 0.4999]), (20, 1))
    received = close.copy()
    received[7] = received[7, ::-1]
    with pytest.raises(ModelError, match=r"Received: 0\.000200 and 95%\. Nothing was written"):
        compare(monkeypatch, received, expected=close)
    compare(monkeypatch, close, expected=close)


@pytest.fixture
def thousand(checkpoint, small_tflite, monkeypatch):
    """Evaluate answers to 1,000 red images: a function of how many of them each has wrong."""
    shutil.copy(small_tflite, checkpoint.parent)
    images = tuple(f"red/{number:03}.png" for number in range(1000))
    monkeypatch.setattr(module, "scan", lambda data: Dataset(data, ("red",), images, ()))
    split_record(checkpoint).write_text(
        '{"seed": 1, "fraction": 0.1, "train": [], "validation": ["red/000.png", "red/999.png"]}'
    )

    def evaluate(expected, received):
        """Both are slices of the 1,000 that are answered with blue, of keras and of the file."""
        answers = np.zeros((2, 1000), dtype=int)
        answers[0, expected] = answers[1, received] = 2
        found = tuple(module.Answers(each, None) for each in answers)
        monkeypatch.setattr(module, "predict_all", lambda *_: found)
        return convert(checkpoint, "--evaluate", "--data", "thousand")

    return evaluate


@pytest.mark.parametrize(
    ("expected", "received", "said"),
    [
        (slice(0), slice(4), None),
        (slice(0), slice(6), "Received: 0.6 % and 99.4 %"),  # agree enough
        (slice(19), slice(979, 1000), None),
        (slice(20), slice(978, 1000), "Received: 0.2 % and 95.8 %"),  # as good
        (slice(15), slice(0), None),  # better than the checkpoint
    ],
)
def test_evaluation_fails_by_accuracy_and_by_agreement(thousand, capsys, expected, received, said):
    assert thousand(expected, received) == (1 if said else 0)
    error = capsys.readouterr().err
    assert said in error if said else error == ""


def test_evaluation_says_what_each_has_right_and_where_they_agree(thousand, capsys):
    thousand(slice(0, 10), slice(5, 12))
    out = capsys.readouterr().out
    head, everything, validation = out.splitlines()[-3:]
    assert re.split("  +", head.strip()) == [
        "images",
        "checkpoint",
        ".tflite",
        "top-1 agreement",
    ]
    assert re.findall(r"(\S+) \(", everything) == ["0.990", "0.993", "0.993"]
    assert everything.split()[:2] == ["all", "1000"]
    assert validation.split()[:2] == ["validation", "2"]
    assert re.findall(r"(\S+) \(", validation) == ["0.500", "1.000", "0.500"]


def test_beyond_the_tolerance_nothing_is_written(checkpoint, drawn, monkeypatch, capsys):
    path = checkpoint.with_suffix(".float16.tflite")
    path.write_bytes(b"an earlier one")
    monkeypatch.setitem(TOLERANCES, "float16", 0.0)
    assert convert(checkpoint, "--quantize", "float16", "--data", drawn) == 1
    assert "Nothing was written" in capsys.readouterr().err
    assert path.read_bytes() == b"an earlier one"
    assert len(list(path.parent.iterdir())) == 2


def test_int8_wants_images_to_calibrate_on(checkpoint, capsys):
    assert convert(checkpoint, "--quantize", "int8") == 1
    assert "in flowers to calibrate int8 on. Received: none" in capsys.readouterr().err


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_folder_that_was_named_has_to_hold_images(checkpoint, tmp_path, capsys, quantize):
    for name in ("rose", "tulip"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "1.jpg").write_text("hello")
    for data, sentence in (
        ("none", "Received: no such folder."),
        ("flowers", "Received: no such folder."),
        ("mine", "Received: 0 in mine/rose (1 × "),
    ):
        assert convert(checkpoint, "--quantize", quantize, "--data", data) == 1
        assert sentence in capsys.readouterr().err
    assert not list(checkpoint.parent.glob("*.tflite"))


def test_drawn_images_are_compared_only_where_flowers_is_empty(
    checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(module, "drawn_images", lambda size: [size])
    (tmp_path / "flowers").mkdir()
    (tmp_path / "flowers" / "README.md").touch()
    assert module.choose_images(checkpoint, None, (8, 8)) == ([], [(8, 8)])
    assert capsys.readouterr().out == (
        "  No --data, and no images in flowers: comparing on drawn images.\n"
    )
    for name in ("rose", "tulip"):
        (tmp_path / "flowers" / name).mkdir()
    with pytest.raises(DataError, match="Received: 0 in flowers/rose"):
        module.choose_images(checkpoint, None, (8, 8))


def test_it_calibrates_on_training_and_compares_on_validation_images(checkpoint, drawn):
    from training.images import read_pixels

    split = split_dataset(scan(drawn), 3, validation_fraction=0.2)
    split.write(split_record(checkpoint))
    calibrating, compared = module.choose_images(checkpoint, drawn, (32, 48))
    for readers, images in ((calibrating, split.train), (compared, split.evaluated)):
        expected = [read_pixels(drawn / p, (32, 48)) for p in images]
        assert np.array_equal(np.stack([read() for read in readers]), np.stack(expected))


def test_what_is_no_longer_there_is_left_out(checkpoint, drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "flowers")
    split = split_dataset(scan(folder), 3, validation_fraction=0.2)
    split.write(split_record(checkpoint))
    for part in (split.train, split.evaluated):
        (folder / part[0]).unlink()
    chosen = module.choose_images(checkpoint, folder, (32, 48))
    assert [len(readers) for readers in chosen] == [39, 9]


@pytest.fixture
def other_flowers(checkpoint, drawn, tmp_path):
    """The checkpoint of a run on images that are not in flowers/, which is full."""
    shutil.copytree(drawn, tmp_path / "flowers")
    split_dataset(SMALL, 0, validation_fraction=0.2).write(split_record(checkpoint))
    return checkpoint


def test_int8_is_not_calibrated_on_images_of_another_run_unless_they_are_named(
    other_flowers, capsys
):
    assert convert(other_flowers, "--quantize", "int8") == 1
    assert (
        "Expected training images in flowers to calibrate int8 on. Received: none. Name the "
        in (capsys.readouterr().err)
    )
    said = "  None of this run's training and validation images are in flowers: {} on others. Name"
    calibrating, compared = module.choose_images(other_flowers, None, (8, 8))
    assert (len(calibrating), len(compared)) == (0, 50)
    assert said.format("comparing") in capsys.readouterr().out
    calibrating, compared = module.choose_images(other_flowers, Path("flowers"), (8, 8))
    assert (len(calibrating), len(compared)) == (50, 50)
    assert said.format("calibrating and comparing") in capsys.readouterr().out


def test_without_a_split_any_images_calibrate(checkpoint, other_flowers, capsys):
    split_record(checkpoint).unlink()
    calibrating, compared = module.choose_images(checkpoint, None, (8, 8))
    assert (len(calibrating), len(compared)) == (50, 50)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("images", "count"), [(50, 10), (53, 10), (10, 10), (3, 10)])
def test_images_are_chosen_evenly_over_the_classes(images, count):
    chosen = module.take_evenly(list(range(images)), count)
    assert len(chosen) == min(count, images)
    assert chosen[0] == 0
    steps = np.diff(chosen)
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 1
    assert images - chosen[-1] <= steps.max()


def test_images_that_excite_a_layer_too_much_do_not_calibrate():
    from training.backend import keras

    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, activation="relu")(inputs))
    model.set_weights([np.ones((1, 1, 3, 2), "float32"), np.zeros(2, "float32")])
    strength = np.array([0.1, 5.0, 0.11, 0.09, 3.0, 0.1, 0.12, 7.0], dtype="float32")
    images = np.ones((8, 4, 4, 3), "float32") * strength[:, None, None, None]
    kept = tflite.drop_outliers(model, images)
    assert sorted(kept[:, 0, 0, 0]) == sorted(strength[[0, 2, 3, 5]])


def test_one_image_that_excites_a_layer_most_of_all_does_not_hide_the_others():
    from training.backend import keras

    inputs = keras.Input((4, 4, 3))
    layers = [keras.layers.Conv2D(1, 1, use_bias=False) for _ in range(2)]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    for layer, weights in zip(layers, np.eye(3, dtype="float32"), strict=False):
        layer.set_weights([weights.reshape(1, 1, 3, 1)])
    # How much each image excites the two; commonly 0.1 both.
    much = [(0.5, 0.1), (0.5, 0.1), (10, 0.1)]
    little = [(0.1, 0.1), (0.1, 0.1), (0.1, 0.1), (0.1, 0.2), (0.1, 0.2)]
    images = np.zeros((8, 4, 4, 3), "float32")
    images[..., :2] = np.array(much + little)[:, None, None]
    kept = tflite.drop_outliers(model, images)
    assert len(kept) == 4
    assert kept[..., 0].max() == pytest.approx(0.1)


def test_without_an_argument_the_best_of_models(checkpoint, tmp_path, capsys):
    shutil.copy(checkpoint, tmp_path / "xception_fin_01_0.100.h5")
    assert convert_to_tflite.main(["--models", str(tmp_path)]) == 0
    assert f"Read: {checkpoint}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "Stopped; nothing was written."),
        (OSError(28, "No space left"), 1, "Expected to read the images and write beside the"),
    ],
)
def test_a_conversion_that_is_cut_off_says_so_and_fails(monkeypatch, capsys, error, code, sentence):
    def cut_off(*_):
        raise error

    monkeypatch.setattr(convert_to_tflite, "convert", cut_off)
    assert convert("a.h5") == code
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none.h5", "text.h5"])
def test_what_is_no_checkpoint(tmp_path, capsys, name):
    (tmp_path / "text.h5").write_text("hello")
    assert convert(tmp_path / name) == 1
    error = capsys.readouterr().err
    assert error.startswith("convert_to_tflite.py: Expected a checkpoint")
    assert error.count("\n") == 1


def test_the_same_checkpoint_gives_the_same_file(checkpoint):
    report = checkpoint.with_suffix("") / "metrics.json"
    report.parent.mkdir()
    numbers = {"accuracy": 0.75, "accuracy_interval": [0.6, 0.9], "n": 40}
    report.write_text(json.dumps(numbers | {"set": "test", "run": {}}))
    contents = []
    for _ in range(2):
        convert(checkpoint)
        contents.append(checkpoint.with_suffix(".tflite").read_bytes())
    assert contents[0] == contents[1]
    assert read_card(checkpoint.with_suffix(".tflite")).images == 40


def test_a_model_that_its_runtime_cannot_load_is_told(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"hello")
    with pytest.raises(ModelError, match="class names inside"):
        tell_once(tmp_path / "a.tflite", np.zeros((1, 8, 8, 3), "float32"), None)


@pytest.fixture
def quick(monkeypatch, small_tflite, drawn):
    """Convert without converting or comparing: the file of the small checkpoint is written."""
    given = []

    def make_tflite(model, class_names, quantize, images, details, card):
        given.append((model, class_names, quantize))
        return small_tflite.read_bytes()

    monkeypatch.setattr(convert_to_tflite, "make_tflite", make_tflite)
    monkeypatch.setattr(convert_to_tflite, "compare", lambda *_: None)
    monkeypatch.setattr(convert_to_tflite, "choose_images", lambda *_: ([noise], []))
    return given


@pytest.mark.usefixtures("quick")
def test_every_kind_has_a_file_of_its_own(checkpoint):
    for kind in TOLERANCES:
        assert convert(checkpoint, "--quantize", kind) == 0
    assert {path.name for path in checkpoint.parent.glob("*.tflite")} == {
        "xception_fin_07_0.750.tflite",
        "xception_fin_07_0.750.float16.tflite",
        "xception_fin_07_0.750.dynamic.tflite",
        "xception_fin_07_0.750.int8.tflite",
    }


@pytest.fixture
def project(monkeypatch, tmp_path, small_checkpoint):
    """A folder that counts as the project's, with the small checkpoint in "models/my own"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convert_to_tflite, "ROOT", tmp_path)
    Path("models/my own").mkdir(parents=True)
    return Path(shutil.copy(small_checkpoint, "models/my own"))


def next_steps(capsys):
    return capsys.readouterr().out.splitlines()[-2:]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("flags", "suffix", "runtime"),
    [
        ((), "", ""),
        (("--runtime", "tflite-runtime"), "", ""),
        (("--quantize", "float16"), ".float16", ""),
        (("--runtime", "ai-edge-litert"), "", " RUNTIME=ai-edge-litert"),
        (("--quantize", "int8"), ".int8", " RUNTIME=openvino"),
        (("--quantize", "int8", "--runtime", "ai-edge-litert"), ".int8", " RUNTIME=ai-edge-litert"),
    ],
)
def test_the_next_commands_are_for_this_model_and_the_runtime_that_suits_it(
    project, capsys, flags, suffix, runtime
):
    assert convert(project, *flags) == 0
    path = f"'models/my own/{project.stem}{suffix}.tflite'"
    other = " --runtime ai-edge-litert" if "ai-edge-litert" in flags else ""
    assert next_steps(capsys) == [
        f"Use it: python predict.py --model {path}{other} IMAGE",
        f"Build the container image: make build 'MODELS=models/my own'{runtime}",
    ]


@pytest.mark.usefixtures("quick")
def test_a_model_that_is_not_the_best_of_its_folder_is_copied_before_it_is_built(project, capsys):
    (project.parent / "xception_fin_01_0.900.tflite").touch()
    assert convert(project) == 0
    copy = "'models/my own/only_xception_fin_07_0.750/'"
    assert next_steps(capsys)[1] == (
        f"Build the container image: mkdir -p {copy} && cp "
        f"'models/my own/xception_fin_07_0.750.tflite' {copy} && "
        "make build 'MODELS=models/my own/only_xception_fin_07_0.750'"
    )


@pytest.mark.usefixtures("quick")
def test_docker_does_not_see_a_model_outside_of_the_project(checkpoint, capsys):
    assert convert(checkpoint) == 0
    assert next_steps(capsys) == [
        "To build a container image, copy it into a folder in models/, and then:",
        "  make build MODELS=models/FOLDER",
    ]


@pytest.mark.usefixtures("quick")
def test_what_a_stopped_run_lacks_is_told(checkpoint, capsys):
    lacks = "It is not calibrated and has no report: its training was stopped."
    split_dataset(SMALL, 0, validation_fraction=0.2).write(split_record(checkpoint))
    assert convert(checkpoint, "--data", "my images") == 0
    out = capsys.readouterr().out
    assert lacks in out
    folder = checkpoint.parent
    assert (f"  python -m training.evaluation {checkpoint} {folder} --data 'my images'\n") in out
    for data in ("FOLDER", "flowers"):
        assert convert(checkpoint) == 0
        assert f"{checkpoint} {folder} --data {data}\n" in capsys.readouterr().out
        for image in SMALL.images[:10]:
            Path("flowers", image).parent.mkdir(parents=True, exist_ok=True)
            Path("flowers", image).touch()
    checkpoint.with_suffix("").mkdir()
    assert convert(checkpoint) == 0
    assert lacks not in capsys.readouterr().out


SMALL = Dataset(Path(), ("a", "b"), tuple(f"{c}/{i}" for c in "ab" for i in range(10)), ())


@pytest.mark.usefixtures("quick")
def test_a_folder_may_stand_for_its_best_checkpoint(checkpoint, tmp_path, capsys):
    shutil.copy(checkpoint, tmp_path / "xception_fin_09_0_700.h5")
    assert convert(tmp_path) == 0
    assert f"Read: {checkpoint}\n" in capsys.readouterr().out
    assert convert_to_tflite.main(["--models", str(checkpoint)]) == 1
    assert capsys.readouterr().err == (
        f"convert_to_tflite.py: Expected a folder for --models. Received: {checkpoint}, which is "
        f"a file. Name it alone: python convert_to_tflite.py {checkpoint}\n"
    )


def test_without_a_kind_the_newest_file_is_evaluated(checkpoint):
    assert convert_to_tflite.find_tflite(checkpoint, None) == tflite_path(checkpoint)
    for age, kind in enumerate(("int8", "none", "float16")):
        tflite_path(checkpoint, kind).touch()
        os.utime(tflite_path(checkpoint, kind), (1000 - age, 1000 - age))
    assert convert_to_tflite.find_tflite(checkpoint, None) == tflite_path(checkpoint, "int8")
    assert convert_to_tflite.find_tflite(checkpoint, "none") == tflite_path(checkpoint)


def test_a_plain_file_of_keras_is_converted_with_what_the_flags_say(
    quick, tmp_path, monkeypatch, capsys
):
    from training import checkpoint as checkpoints
    from training.backend import keras

    inputs = keras.Input((32, 48, 3))
    network = SimpleNamespace(outputs=2, build=lambda: keras.Model(inputs, inputs))
    monkeypatch.setattr(checkpoints, "read_network", lambda path: network)
    folded = []
    monkeypatch.setattr(checkpoints, "fold_input_scaling", lambda model, *s: folded.append(s))
    path = tmp_path / "xception_fin_23_0.880.h5"
    keras.Model(inputs, inputs).save(path)
    for name in ("daisy", "rose"):  # of another data set than the file's
        (tmp_path / "flowers" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for flags in ((), ("--data", "none")):
        assert convert(path, *flags) == 1
        assert "Received: none. Give them with --classes" in capsys.readouterr().err
    assert convert(path, "--classes", "rose, tulip", "--input-scaling", "1./255") == 0
    assert folded == [(0.5, 0.5)]
    assert quick[0][1:] == (("rose", "tulip"), "none")
    said = "  Another program made it: rose, tulip; its scores are not calibrated.\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("classes", ["rose", "rose,", "rose,rose", ""])
def test_class_names_are_two_or_more_and_differ(classes, capsys):
    with pytest.raises(SystemExit):
        convert("a.h5", "--classes", classes)
    assert "expected two or more different names" in capsys.readouterr().err
