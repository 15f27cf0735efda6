"""serving.runtimes: which package runs a model, what it is given, and what it computes."""

import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from serving.classifier import Classifier
from serving.errors import ModelError
from serving.preprocess import preprocess
from serving.runtimes import (
    RUNTIMES,
    Tensor,
    find_outputs,
    find_runtime,
    require_image_classifier,
)


def refusal(function, *arguments):
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("runtime", ["tflite-runtime", "ai-edge-litert"])
def test_tflite_is_given_the_file_and_the_threads(small_tflite, monkeypatch, runtime):
    module = import_module(RUNTIMES[runtime])
    interpreter = module.Interpreter
    given = []

    def note(**options):
        given.append(options)
        return interpreter(**options)

    monkeypatch.setattr(module, "Interpreter", note)
    Classifier(small_tflite, threads=3, runtime=runtime)
    Classifier(str(small_tflite), runtime=runtime)
    assert given == [{"model_path": str(small_tflite), "num_threads": n} for n in (3, 1)]


FREED = """
import os, signal, sys, threading
from serving.classifier import Classifier

first, second = ([Classifier(sys.argv[1], runtime="openvino")] for _ in range(2))
freeing = threading.Thread(target=first.clear)
freeing.start()
freeing.join()
second.clear()
blocks = [bytearray(20_000) for _ in range(2000)]  # where the first model's memory was
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals_arrive_after_models_of_openvino_are_freed(small_tflite):
    command = [sys.executable, "-c", FREED, small_tflite]
    assert subprocess.run(command, cwd=ROOT).returncode == 7


@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_computes_in_float32_on_as_many_threads_as_said(
    small_tflite, monkeypatch, threads
):
    openvino = import_module("openvino")
    compile_model = openvino.Core.compile_model
    made = []

    def note(core, *arguments):
        made.append(compile_model(core, *arguments))
        return made[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", note)
    classifier = Classifier(small_tflite, threads=threads, runtime="openvino")
    [compiled] = made
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("PERFORMANCE_HINT") == "LATENCY"
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert compiled.get_property("EXECUTION_DEVICES") == ["CPU"]
    assert tuple(compiled.input().shape) == (1, 32, 48, 3)
    assert (classifier.runtime, classifier.input_size) == ("openvino", (32, 48))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_says_what_the_weights_do(small_tflite, runtime):
    # small_checkpoint averages the pixels, -1 to 1, multiplies them by 4 and takes the softmax.
    image = Image.new("RGB", (50, 40), (121, 140, 130))
    logits = preprocess(image, (32, 48)).mean(axis=(0, 1, 2)) * 4
    expected = np.exp(logits) / np.exp(logits).sum()
    classifier = Classifier(small_tflite, runtime=runtime)
    assert classifier.labels == ("red", "green", "blue")
    probabilities = classifier.probabilities(preprocess(image, (32, 48)))
    assert (probabilities.shape, probabilities.dtype) == ((3,), np.float32)
    assert probabilities == pytest.approx(expected, abs=1e-5)


def test_the_first_runtime_that_is_installed_is_taken(monkeypatch):
    assert find_runtime() == ("tflite-runtime", import_module("tflite_runtime.interpreter"))
    assert find_runtime("openvino") == ("openvino", import_module("openvino"))
    monkeypatch.setitem(RUNTIMES, "tflite-runtime", "no_such_module")
    assert find_runtime()[0] == "ai-edge-litert"
    for name in RUNTIMES:
        monkeypatch.setitem(RUNTIMES, name, "no_such_module")
    end = "to be installed. Received: no such package. Run `make setup`, or use another runtime."
    assert refusal(find_runtime) == (f"Expected tflite-runtime or ai-edge-litert or openvino {end}")
    assert refusal(find_runtime, "openvino") == f"Expected openvino {end}"


def test_a_runtime_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "other-runtime", "no_such_module.interpreter")
    with pytest.raises(ModelError, match="^Expected other-runtime to be installed"):
        find_runtime("other-runtime")


IMAGE, SCORES = Tensor("float32", (1, 32, 48, 3)), Tensor("float32", (1, 5))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([Tensor("uint8", (1, 32, 48, 3))], [SCORES]),
        ([Tensor("float32", (1, 32, 48, 1))], [SCORES]),
        ([Tensor("float32", (1, 3, 32, 48))], [SCORES]),
        ([Tensor("float32", (8, 32, 48, 3))], [SCORES]),
        ([Tensor("float32", (-1, -1, -1, 3))], [SCORES]),
        ([Tensor("float32", (32, 48, 3))], [SCORES]),
        ([Tensor("float32", ())], [SCORES]),
        ([IMAGE, IMAGE], [SCORES]),
        ([], [SCORES]),
        ([IMAGE], [SCORES, SCORES]),
        ([IMAGE], []),
        ([IMAGE], [Tensor("int8", (1, 5))]),
        ([IMAGE], [Tensor("float32", (1, -1))]),
        ([IMAGE], [Tensor("float32", (5,))]),
        ([IMAGE], [Tensor("float32", (1, 1, 1, 5))]),
        ([IMAGE], [Tensor("float32", (4, 5))]),
    ],
)
def test_what_is_no_image_classifier_is_refused(inputs, outputs):
    said = refusal(require_image_classifier, Path("a.tflite"), inputs, outputs)
    assert f"Received: a.tflite, from {' and '.join(map(str, inputs))} to " in said


ACTIVATIONS = Tensor("float32", (1, 8, 12, 5), "activations")


@pytest.mark.parametrize(
    ("outputs", "places"),
    [
        ([SCORES], [0]),
        ([SCORES, ACTIVATIONS], [0, 1]),
        ([ACTIVATIONS, SCORES], [1, 0]),
        ([Tensor("float32", (-1, -1, -1, 5), "activations"), SCORES], [1, 0]),
        ([Tensor("float32", (1, 5), "activations")], [0]),
    ],
)
def test_activations_are_found_by_their_name_and_shape(outputs, places):
    assert find_outputs(Path("a.tflite"), [IMAGE], outputs) == places


@pytest.mark.parametrize(
    "other",
    [
        Tensor("int8", (1, 8, 12, 5), "activations"),
        Tensor("float32", (1, 96, 5), "activations"),
        Tensor("float32", (1, 8, 12, 5), "features"),
    ],
)
def test_another_second_output_is_refused(other):
    said = refusal(find_outputs, Path("a.tflite"), [IMAGE], [SCORES, other])
    assert f"to float32 (1, 5) and {other}." in said
    both = [SCORES, ACTIVATIONS, ACTIVATIONS]
    assert refusal(find_outputs, Path("a.tflite"), [IMAGE], both)


def test_the_number_of_images_may_vary():
    varying = (Tensor("float32", (-1, *IMAGE.shape[1:])), Tensor("float32", (-1, 5)))
    for image, scores in ((IMAGE, SCORES), varying):
        require_image_classifier(Path("a.tflite"), [image], [scores])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Other people's .tflite files: uint8, of one channel, of any size, with two outputs."""
    from training.backend import keras, tf

    def network(*shape, outputs=1):
        inputs = keras.Input(shape)
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
        scores = [keras.layers.Dense(3, "softmax")(pooled) for _ in range(outputs)]
        return tf.lite.TFLiteConverter.from_keras_model(keras.Model(inputs, scores))

    uint8 = network(32, 32, 3)
    uint8.optimizations = [tf.lite.Optimize.DEFAULT]
    uint8.representative_dataset = lambda: ([np.zeros((1, 32, 32, 3), "float32")] for _ in range(2))
    uint8.inference_input_type = uint8.inference_output_type = tf.uint8
    made = {
        "uint8 (?, 32, 32, 3) to uint8 (?, 3)": uint8,
        "float32 (?, 28, 28, 1) to float32 (?, 3)": network(28, 28, 1),
        "float32 (?, ?, ?, 3) to float32 (?, 3)": network(None, None, 3),
        "float32 (?, 8, 8, 3) to float32 (?, 3) and float32 (?, 3)": network(8, 8, 3, outputs=2),
    }
    folder = tmp_path_factory.mktemp("others")
    for number, (described, converter) in enumerate(made.items()):
        path = made[described] = folder / f"{number}.tflite"
        path.write_bytes(converter.convert())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("labels.txt", "a\nb\nc\n")
    return made


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_model_is_refused_when_it_is_loaded(others, runtime):
    for described, path in others.items():
        assert f"Received: {path.name}, from {described}." in refusal(Classifier, path, 1, runtime)
