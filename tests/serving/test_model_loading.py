"""serving.model_files and serving.classifier: what runtimes are given, and what people are told."""

import os
import zipfile
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from serving.classifier import Classifier, named_scores, read_labels
from serving.errors import ModelError
from serving.model_files import best_model, thread_count
from serving.preprocess import preprocess
from serving.runtimes import RUNTIMES, find_runtime


def refusal(function, *arguments):
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    return str(caught.value)


# Which file, how many threads.


def test_models_without_an_accuracy_in_their_names_are_named(tmp_path):
    for name in ("b.h5", "a.h5", "c.tflite"):
        (tmp_path / name).touch()
    assert refusal(best_model, tmp_path, ".h5", ".tflite") == (
        f"Expected a model such as xception_fin_01_0.900.h5 in {tmp_path}. "
        "Received: a.h5, b.h5, c.tflite. Run python train.py first, or name a model."
    )
    assert refusal(best_model, str(tmp_path / "none"), ".tflite") == (
        f"Expected a model such as xception_fin_01_0.900.tflite in {tmp_path / 'none'}. "
        "Received: none. Run python convert_to_tflite.py first, or name a model."
    )


def test_without_lambdas_memory_the_processors_count_that_may_be_used(monkeypatch):
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert thread_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
    assert thread_count() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert thread_count() == 1


# What runtimes are given.


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


def test_openvino_computes_in_float32_on_as_many_threads_as_said(small_tflite, monkeypatch):
    openvino = import_module("openvino")
    compile_model = openvino.Core.compile_model
    made = []

    def note(core, *arguments):
        made.append(compile_model(core, *arguments))
        return made[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", note)
    classifier = Classifier(small_tflite, threads=2, runtime="openvino")
    [compiled] = made
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
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


# Scores.


def test_scores_are_rounded_to_five_decimals_and_one_for_each_label():
    scores = named_scores(("a", "b"), np.float32([0.123456789, 1e-6]))
    assert scores == {"a": 0.12346, "b": 0.0}
    for labels in (("a",), ("a", "b", "c")):
        with pytest.raises(ValueError, match="zip"):
            named_scores(labels, np.float32([0.5, 0.5]))


# What people are told.


def with_labels(path, content, labels):
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", labels)
    return path


def test_a_file_that_is_no_model_is_told_with_what_else_might_load_it(tmp_path):
    path = with_labels(tmp_path / "a.tflite", b"no model at all", "red\n")
    for runtime, others in {
        "tflite-runtime": "ai-edge-litert or openvino",
        "openvino": "tflite-runtime or ai-edge-litert",
    }.items():
        sentence = refusal(Classifier, path, 1, runtime)
        assert "\n" not in sentence
        assert sentence.startswith(
            f"Expected a model that {runtime} {version(runtime)} can load. Received: a.tflite ("
        )
        assert sentence.endswith(f"). Use {others}, or convert it with another --quantize.")


def test_of_a_runtimes_reason_the_line_that_says_something_is_told(tmp_path, monkeypatch):
    path = with_labels(tmp_path / "a.tflite", b"", "red\n")

    def reading(reason):
        def read_model(*_):
            raise RuntimeError(reason)

        return SimpleNamespace(Core=lambda: SimpleNamespace(read_model=read_model))

    monkeypatch.setattr(
        "serving.classifier.import_module", lambda _: reading("at a.cpp:7\nat b.cpp\nodd file\n")
    )
    assert "Received: a.tflite (odd file). " in refusal(Classifier, path, 1, "openvino")

    def interpreter(**_):
        raise ValueError("\nodd file\nand more of it")

    monkeypatch.setattr(
        "serving.classifier.import_module", lambda _: SimpleNamespace(Interpreter=interpreter)
    )
    assert "Received: a.tflite (odd file). " in refusal(Classifier, path, 1, "tflite-runtime")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_labels_that_do_not_fit_are_told(small_tflite, tmp_path):
    path = with_labels(tmp_path / "a.tflite", small_tflite.read_bytes(), "red\ngreen\n")
    for runtime in ("tflite-runtime", "openvino"):
        assert refusal(Classifier, path, 1, runtime) == (
            "Expected one class name for each of the 3 outputs of a.tflite. Received: 2. "
            "Convert it again with convert_to_tflite.py."
        )


def test_a_file_without_labels_and_no_file_are_told(tmp_path):
    path = tmp_path / "a.tflite"
    assert refusal(read_labels, path) == (
        f"Expected a .tflite file. Received: {path}, which does not exist. "
        "Run python convert_to_tflite.py first."
    )
    without = (
        "Expected a .tflite file with its class names inside (labels.txt). "
        "Received: a.tflite without them. Make it with python convert_to_tflite.py."
    )
    path.write_bytes(b"TFL3")
    assert refusal(read_labels, path) == without
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "red\n")
    assert refusal(read_labels, path) == without
    assert refusal(read_labels, tmp_path) == without.replace("a.tflite", tmp_path.name)
