"""predict.py, as a person runs it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image


def environment(allow="127.0.0.1"):
    return os.environ | {"PYTHONPATH": str(ROOT), "FETCH_ALLOW": allow, "PYTHONUTF8": "1"}


def predict(*arguments, cwd=ROOT, allow="127.0.0.1"):
    return subprocess.run(
        [sys.executable, ROOT / "predict.py", *map(str, arguments)],
        cwd=cwd,
        env=environment(allow),
        capture_output=True,
        encoding="utf-8",
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
    scores = json.loads(predict("--json", red, "--model", small_tflite).stdout)["scores"]
    assert {line.split()[0]: float(line.split()[1]) for line in lines[1:]} == scores


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
    (tmp_path / "models" / small_tflite.with_suffix(".h5").name).write_bytes(b"as good, but slower")
    answer = predict(red, cwd=tmp_path)
    assert (answer.returncode, answer.stdout.splitlines()[0]) == (0, f"{red}: red")


def test_no_model(red, tmp_path):
    answer = predict(red, cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("predict.py: Expected a model such as")
    assert "Traceback" not in answer.stderr


def test_one_bad_image_costs_the_others_nothing(small_tflite, red, tmp_path, http_server):
    (tmp_path / "text.jpg").write_text("hello")
    url = http_server({"/red.png": (200, {}, red.read_bytes())})
    images = [tmp_path / "text.jpg", tmp_path / "none.jpg", red, f"{url}/red.png", f"{url}/no"]
    answer = predict(*images, "--model", small_tflite)
    assert answer.returncode == 1
    assert answer.stdout.count(": red\n") == 2
    errors = [line for line in answer.stderr.splitlines() if "Expected" in line]
    assert len(errors) == 3
    assert errors[0].startswith(f"{tmp_path / 'text.jpg'}: Expected an image")
    assert "No such file" in errors[1]
    assert "Received: 404" in errors[2]


def test_addresses_of_this_machine_want_to_be_allowed(small_tflite):
    answer = predict("http://127.0.0.1:9/a.jpg", "--model", small_tflite, allow="")
    assert "Expected a url at port 80 or 443" in answer.stderr
    answer = predict("http://127.0.0.1:9/a.jpg", "--model", small_tflite, allow="http://a")
    assert answer.returncode == 1
    [line] = [line for line in answer.stderr.splitlines() if line.startswith("predict.py: ")]
    assert "Expected host names and networks" in line


def test_where_nothing_is_fetched_nobody_asks_what_may_be(small_tflite, red):
    answer = predict(red, "--model", small_tflite, allow="http://a")
    assert (answer.returncode, answer.stdout.splitlines()[0]) == (0, f"{red}: red")


def test_ctrl_c_ends_it_without_a_word(small_tflite, http_server):
    asked, ended = threading.Event(), threading.Event()
    url = http_server({"/slow": lambda _: asked.set() or (ended.wait(30) and (200, {}, b""))})
    command = [sys.executable, ROOT / "predict.py", f"{url}/slow", "--model", small_tflite]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
        ended.set()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in error


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_the_model_runs_on_as_many_threads_as_there_are_processors(small_tflite):
    code = """
import os, sys
from pathlib import Path
import predict
before = len(os.listdir("/proc/self/task"))
loaded = predict.load_classifier(Path(sys.argv[1]))
print(len(os.listdir("/proc/self/task")) - before)
"""
    lambdas = {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "5307"}  # MB, of three processors
    command = [sys.executable, "-c", code, small_tflite]
    process = subprocess.run(
        command, cwd=ROOT, env=environment() | lambdas, capture_output=True, text=True, check=True
    )
    assert int(process.stdout) == 3 - 1


def test_json_has_one_object_a_line_also_for_errors(small_tflite, red, tmp_path):
    answer = predict("--json", red, tmp_path / "none.jpg", "--model", small_tflite)
    good, bad = map(json.loads, answer.stdout.splitlines())
    assert (good["image"], good["label"]) == (str(red), "red")
    assert set(good) == {"image", "label", "scores"}
    assert bad["error"]["type"] == "ImageError"
    assert answer.returncode == 1


def test_a_folder_stands_for_its_images(small_tflite, red, tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "sub" / "blue.png")
    answer = predict("--json", tmp_path, "--model", small_tflite)
    labels = [json.loads(line)["label"] for line in answer.stdout.splitlines()]
    assert sorted(labels) == ["blue", "red"]


def test_a_folders_images_come_in_order_and_without_what_is_hidden(small_tflite, tmp_path):
    names = ["rosé.png", "b.png", "c.d/2.png", "c.d/1.png", "a.png", "e.png", "c.d.png"]
    for name in (*names, ".hidden.png", "c.d/._1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), "red").save(tmp_path / name)
    answer = predict("--json", tmp_path, "--model", small_tflite)
    assert answer.returncode == 0
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    in_order = ["a.png", "b.png", "c.d/1.png", "c.d/2.png", "c.d.png", "e.png", "rosé.png"]
    assert [line["image"] for line in lines] == [str(tmp_path / name) for name in in_order]
    assert "rosé.png" in answer.stdout  # not in escapes
