"""serving.classifier, on every runtime, each in a process without TensorFlow."""

import json
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT
from PIL import Image

from serving.classifier import RUNTIMES, Classifier, find_runtime, read_labels
from serving.models import ModelError

SCORES_OF_A_FILE = """
import json, sys
from pathlib import Path

def watch(event, arguments):
    connects = event.startswith("socket.") and event != "socket.gethostname"
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if connects or writes:
        print(event, arguments, file=sys.stderr)

sys.addaudithook(watch)
from serving.classifier import Classifier
from serving.image import open_picture
classifier = Classifier(sys.argv[1], threads=2, runtime=sys.argv[2])
scores = classifier.classify(open_picture(sys.argv[3]))
print(json.dumps([classifier.input_size, classifier.runtime, scores]))
"""


@pytest.fixture
def ask(small_tflite, tmp_path):
    """Return what a process says that shows a picture to a runtime, and what it is caught at."""

    def show(runtime, color):
        Image.new("RGB", (100, 80), color).save(tmp_path / "picture.png")
        command = [sys.executable, "-c", SCORES_OF_A_FILE, small_tflite, runtime]
        command += [tmp_path / "picture.png"]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(process.stdout), process.stderr

    return show


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_names_what_it_sees(ask, runtime):
    (size, used, scores), _ = ask(runtime, (20, 240, 30))
    assert (size, used) == ([32, 48], runtime)
    assert list(scores) == ["red", "green", "blue"]
    assert scores["green"] > 0.9
    assert sum(scores.values()) == pytest.approx(1, abs=3e-5)
    assert all(score == round(score, 5) for score in scores.values())


def test_every_runtime_answers_the_same(ask):
    """Processors that compute in bfloat16 too: the third decimal would differ."""
    answers = [ask(runtime, (121, 140, 130))[0][2] for runtime in RUNTIMES]
    assert 0.4 < answers[0]["green"] < 0.6
    for answer in answers[1:]:
        assert answer == pytest.approx(answers[0], abs=2e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_runtime_writes_a_file_or_asks_the_network(ask, runtime):
    assert "socket." not in ask(runtime, "red")[1]
    assert "open" not in ask(runtime, "red")[1]


def test_scores_do_not_stick_to_the_picture_before(small_tflite):
    classifier = Classifier(small_tflite)
    red, blue = (Image.new("RGB", (9, 9), color) for color in ("red", "blue"))
    first = classifier.classify(red)
    assert classifier.classify(blue) != first
    assert classifier.classify(red) == first


def test_labels_are_read_from_the_file(small_tflite):
    assert read_labels(small_tflite) == ("red", "green", "blue")


def test_a_missing_file():
    with pytest.raises(ModelError, match="which does not exist. Run python convert_to_tflite"):
        Classifier("none.tflite")


def test_a_file_without_labels(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"TFL3")
    with pytest.raises(ModelError, match=r"class names inside \(labels.txt\). Received: a.tflite"):
        Classifier(tmp_path / "a.tflite")


def with_labels(path, content, labels):
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", labels)
    return path


@pytest.mark.parametrize("runtime", ["tflite-runtime", "openvino"])
def test_a_file_that_is_no_model(tmp_path, runtime):
    path = with_labels(tmp_path / "a.tflite", b"no model at all", "red\n")
    expected = rf"^Expected a model that {runtime} [\d.]+ can load. Received: a.tflite \(\w+ .+\)"
    with pytest.raises(ModelError, match=expected) as raised:
        Classifier(path, runtime=runtime)
    assert ".cpp" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_labels_that_do_not_fit_the_outputs(small_tflite, tmp_path):
    path = with_labels(tmp_path / "a.tflite", small_tflite.read_bytes(), "red\ngreen\n")
    with pytest.raises(ModelError, match="each of the 3 outputs of a.tflite. Received: 2"):
        Classifier(path)


def test_a_runtime_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "other-runtime", "no_such_module.interpreter")
    with pytest.raises(ModelError, match="^Expected other-runtime to be installed"):
        find_runtime("other-runtime")
