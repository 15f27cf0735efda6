"""serving.runtimes: which package runs a model, what it is given, and what it computes."""

from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from serving.classifier import Classifier
from serving.errors import ModelError
from serving.preprocess import preprocess
from serving.runtimes import RUNTIMES, find_runtime


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
    scores = classifier.classify(image)
    assert list(scores.values()) == [round(float(score), 5) for score in probabilities]


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
