"""lambda_function, as Lambda imports it: in a process of its own, without TensorFlow."""

import base64
import json
import os
import re
import subprocess
import sys
from io import BytesIO

import pytest
from conftest import ROOT
from PIL import Image

from serving.classifier import RUNTIMES

# Answers each event of standard input, with some packages made unfindable.
ASK = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
import lambda_function
events = json.load(sys.stdin)
answers = [lambda_function.lambda_handler(event, None) for event in events]
print(json.dumps([answers, lambda_function.classifier.runtime, sorted(sys.modules)]))
"""
TRAINING_ONLY = "tensorflow,keras,training,h5py,scipy"


def ask(model, events, blocked=TRAINING_ONLY, **environment):
    process = subprocess.run(
        [sys.executable, "-c", ASK, blocked],
        cwd=ROOT,
        env=os.environ | {"MODEL_PATH": str(model)} | environment,
        input=json.dumps(events),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def picture(color, name="PNG"):
    buffer = BytesIO()
    Image.new("RGB", (60, 40), color).save(buffer, name)
    return buffer.getvalue()


@pytest.fixture
def events(http_server):
    url = http_server(
        {"/red.png": (200, {}, picture("red")), "/page": (200, {}, b"<html></html>")},
    )
    return {
        "url": {"url": f"{url}/red.png"},
        "image": {"image": base64.b64encode(picture("blue")).decode()},
        "missing": {},
        "file": {"url": "file:///etc/passwd"},
        "not found": {"url": f"{url}/none.png"},
        "page": {"url": f"{url}/page"},
        "silent": {"url": "http://127.0.0.1:9/a.png"},
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_events_are_answered_without_tensorflow(small_tflite, events, runtime):
    other = next(name for name in RUNTIMES if name != runtime)
    blocked = f"{TRAINING_ONLY},{other.replace('-', '_')}"
    answers, used, modules = ask(small_tflite, list(events.values()), blocked)
    answers = dict(zip(events, answers, strict=True))

    assert used == runtime
    assert max(answers["url"], key=answers["url"].get) == "red"
    assert max(answers["image"], key=answers["image"].get) == "blue"
    assert list(answers["url"]) == ["red", "green", "blue"]
    assert not [name for name in modules if name.split(".")[0] in TRAINING_ONLY.split(",")]

    errors = {name: answer["error"] for name, answer in answers.items() if "error" in answer}
    assert {name: error["type"] for name, error in errors.items()} == {
        "missing": "InvalidRequestError",
        "file": "InvalidRequestError",
        "not found": "FetchError",
        "page": "ImageError",
        "silent": "FetchError",
    }
    for error in errors.values():
        assert re.fullmatch(r"Expected .+ Received: .+", error["message"])
        assert not re.search(r"Traceback|\.py|/etc/passwd|127\.0\.0\.1", error["message"])


def test_a_defect_of_ours_is_logged_and_not_told(small_tflite, monkeypatch, caplog):
    monkeypatch.setenv("MODEL_PATH", str(small_tflite))
    import lambda_function

    monkeypatch.setattr(lambda_function, "open_picture", lambda data: 1 / 0)
    answer = lambda_function.lambda_handler({"image": "aGk="}, None)
    assert answer["error"]["type"] == "InternalError"
    assert "division" not in str(answer)
    assert "division by zero" in caplog.text


def test_without_a_model_it_says_what_to_run(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", "import lambda_function"],
        cwd=ROOT,
        env=os.environ | {"MODEL_PATH": str(tmp_path / "none.tflite")},
        capture_output=True,
        text=True,
    )
    assert process.returncode != 0
    assert "Run python convert_to_tflite.py first." in process.stderr.splitlines()[-1]
