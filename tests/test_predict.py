"""predict.py, as a person runs it."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image


def predict(*arguments, cwd=ROOT, allow="127.0.0.1"):
    return subprocess.run(
        [sys.executable, ROOT / "predict.py", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "FETCH_ALLOW": allow},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (60, 40), (230, 20, 10)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_scores_best_first(small_tflite, red):
    answer = predict(red, "--model", small_tflite)
    assert answer.returncode == 0
    lines = answer.stdout.splitlines()
    assert lines[0] == f"{red}: red"
    assert [line.split()[0] for line in lines[1:]] in (
        ["red", "green", "blue"],
        ["red", "blue", "green"],
    )
    assert [len(line.split()[1]) for line in lines[1:]] == [7, 7, 7]


def test_tflite_and_h5_say_the_same(small_tflite, small_checkpoint, red):
    lite, keras = (
        json.loads(predict("--json", red, "--model", model).stdout)
        for model in (small_tflite, small_checkpoint)
    )
    assert lite["label"] == keras["label"] == "red"
    assert lite["scores"] == pytest.approx(keras["scores"], abs=2e-5)


def test_the_handler_says_the_same(small_tflite, red, monkeypatch):
    import base64

    from test_lambda_function import ask

    [scores], _, _ = ask(small_tflite, [{"image": base64.b64encode(red.read_bytes()).decode()}])
    line = json.loads(predict("--json", red, "--model", small_tflite).stdout)
    assert line["scores"] == scores


def test_by_default_the_best_of_models(small_tflite, red, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / small_tflite.name).write_bytes(small_tflite.read_bytes())
    answer = predict(red, cwd=tmp_path)
    assert (answer.returncode, answer.stdout.splitlines()[0]) == (0, f"{red}: red")


def test_no_model(red, tmp_path):
    answer = predict(red, cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("predict.py: Expected a model such as")
    assert "Traceback" not in answer.stderr


def test_one_bad_picture_costs_the_others_nothing(small_tflite, red, tmp_path, http_server):
    (tmp_path / "text.jpg").write_text("hello")
    url = http_server({"/red.png": (200, {}, red.read_bytes())})
    images = [tmp_path / "text.jpg", tmp_path / "none.jpg", red, f"{url}/red.png", f"{url}/no"]
    answer = predict(*images, "--model", small_tflite)
    assert answer.returncode == 1
    assert answer.stdout.count(": red\n") == 2
    errors = [line for line in answer.stderr.splitlines() if "Expected" in line]
    assert len(errors) == 3
    assert errors[0].startswith(f"{tmp_path / 'text.jpg'}: Expected a picture")
    assert "No such file" in errors[1]
    assert "Received: 404" in errors[2]


def test_addresses_of_this_machine_want_to_be_allowed(small_tflite):
    answer = predict("http://127.0.0.1:9/a.jpg", "--model", small_tflite, allow="")
    assert "Expected a url at port 80 or 443" in answer.stderr
    answer = predict("http://127.0.0.1:9/a.jpg", "--model", small_tflite, allow="http://a")
    assert answer.returncode == 1
    [line] = [line for line in answer.stderr.splitlines() if line.startswith("predict.py: ")]
    assert "Expected host names and networks" in line


def test_json_has_one_object_a_line_also_for_errors(small_tflite, red, tmp_path):
    answer = predict("--json", red, tmp_path / "none.jpg", "--model", small_tflite)
    good, bad = map(json.loads, answer.stdout.splitlines())
    assert (good["image"], good["label"]) == (str(red), "red")
    assert set(good) == {"image", "label", "scores"}
    assert bad["error"]["type"] == "ImageError"
    assert answer.returncode == 1


def test_a_folder_stands_for_its_pictures(small_tflite, red, tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "sub" / "blue.png")
    answer = predict("--json", tmp_path, "--model", small_tflite)
    labels = [json.loads(line)["label"] for line in answer.stdout.splitlines()]
    assert sorted(labels) == ["blue", "red"]
