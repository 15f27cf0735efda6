"""predict.py, as a person runs it."""

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, stripes
from PIL import Image

import predict as script
from serving.classifier import Classifier
from serving.details import Details
from serving.events import Request, Source
from serving.runtimes import RUNTIMES, Prediction, find_runtime
from serving.service import Service


def environment(allow="127.0.0.1", **settings):
    return (
        os.environ
        | {"PYTHONPATH": str(ROOT), "FETCH_ALLOW": allow, "PYTHONUTF8": "1"}
        | {"PYTHONUNBUFFERED": ""}
        | settings
    )


def predict(*arguments, cwd=ROOT, allow="127.0.0.1", **settings):
    return subprocess.run(
        [sys.executable, ROOT / "predict.py", *map(os.fspath, arguments)],
        cwd=cwd,
        env=environment(allow, **settings),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (60, 40), (230, 20, 10)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_scores_best_first(small_tflite, red):
    answer = predict(red, "--model", small_tflite)
    assert answer.returncode == 0
    runtime = find_runtime()[0]
    about = f"Model: {small_tflite} ({runtime}), 3 classes: red, green, blue\n"
    assert answer.stderr == about  # without TFLite's own lines
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


def test_no_model(red, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "BESIDE", tmp_path)
    assert script.main([str(red)]) == 1
    assert capsys.readouterr().err.startswith("predict.py: Expected a model such as")


def test_models_beside_the_script_are_found_from_any_folder(
    small_tflite, tmp_path, monkeypatch, capsys
):
    beside, here = tmp_path / "beside", tmp_path / "here"
    (beside / "models").mkdir(parents=True)
    (here / "models").mkdir(parents=True)
    (beside / "models" / small_tflite.name).write_bytes(small_tflite.read_bytes())
    Image.new("RGB", (9, 9), "blue").save(here / "blue.png")
    monkeypatch.chdir(here)
    monkeypatch.setattr(script, "BESIDE", beside)
    assert script.main(["blue.png"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("blue.png: blue\n")
    assert err.startswith(f"Model: {beside / 'models' / small_tflite.name} (")
    (here / "models" / "xception_fin_02_0.500.tflite").write_bytes(small_tflite.read_bytes())
    assert script.main(["blue.png"]) == 0
    assert capsys.readouterr().err.startswith("Model: models/xception_fin_02_0.500.tflite (")


def test_a_folder_of_models_stands_for_the_best_of_them(small_tflite, red, tmp_path, capsys):
    for accuracy in ("0.812", "0.790"):
        (tmp_path / f"xception_fin_03_{accuracy}.tflite").write_bytes(small_tflite.read_bytes())
    assert script.main(["--model", str(tmp_path), str(red)]) == 0
    assert "Model: " + str(tmp_path / "xception_fin_03_0.812.tflite") in capsys.readouterr().err


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


@pytest.fixture
def strange(tmp_path):
    Image.fromarray(stripes()).save(tmp_path / "strange.png")
    return tmp_path / "strange.png"


@pytest.fixture
def usual(telling, tmp_path):
    Image.fromarray(telling.images[-1]).save(tmp_path / "usual.png")
    return tmp_path / "usual.png"


@pytest.mark.parametrize("kind", ["tflite", "int8"])
def test_an_image_unlike_those_of_training_is_unknown(telling, usual, strange, kind):
    answer = predict(usual, strange, "--model", getattr(telling, kind))
    known, unknown = (line for line in answer.stdout.splitlines() if line[0] != " ")
    label = known.removeprefix(f"{usual}: ")
    assert label in ("red", "green", "blue")
    assert unknown.startswith(f"{strange}: unknown (looks like ")
    plain = predict("--json", usual, "--model", getattr(telling, kind)).stdout
    assert list(json.loads(plain)) == ["image", "label", "scores"]
    everyone = predict(usual, strange, "--model", getattr(telling, kind), UNKNOWN_BELOW="0")
    assert "unknown" not in everyone.stdout
    wrong = predict(usual, "--model", getattr(telling, kind), UNKNOWN_BELOW="two")
    assert wrong.stderr.startswith("predict.py: Expected UNKNOWN_BELOW to be a number")


def test_details_are_what_the_service_answers(telling, strange, decoder, tmp_path):
    answer = predict("--details", strange, tmp_path / "no.jpg", "--model", telling.tflite)
    told, error = map(json.loads, answer.stdout.splitlines())
    service = Service(Classifier(telling.tflite), "telling", decoder)
    request = Request((Source(image=strange.read_bytes()),), details=True)
    assert told == {"image": str(strange)} | service.classify(request, math.inf).body
    assert told["unknown"] is True
    assert error["error"]["type"] == "ImageError"
    assert (
        predict("--json", "--details", strange, "--model", telling.tflite).stdout
        == (answer.stdout.splitlines(keepends=True)[0])
    )


def test_a_checkpoint_tells_where_it_looked(telling, usual, tmp_path):
    lite, keras = (
        json.loads(predict("--details", usual, "--model", model).stdout)
        for model in (telling.tflite, telling.checkpoint)
    )
    assert lite["scores"] == pytest.approx(keras["scores"], abs=2e-5)
    assert lite["heatmap"]["rows"] == keras["heatmap"]["rows"] == 8
    assert lite["heatmap"]["values"] == pytest.approx(keras["heatmap"]["values"], abs=2e-3)


def test_csv_has_details_behind_the_scores(telling, small_tflite, usual, strange):
    arguments = ("--csv", "--details", usual, strange, usual.parent / "no.png", "--model")
    header, *rows = csv.reader(io.StringIO(predict(*arguments, telling.tflite).stdout))
    columns = "image,label,score,error,red,green,blue,known,unknown"
    assert header == columns.split(",")
    assert [row[8] for row in rows] == ["false", "true", ""]
    assert rows[1][7] == "0.0079"
    _, *rows = csv.reader(io.StringIO(predict(*arguments, small_tflite).stdout))
    assert [row[7:] for row in rows] == [["", ""]] * 3


@pytest.mark.parametrize("kind", ["tflite", "checkpoint"])
def test_heat_maps_are_written_for_images_that_can_be_read(telling, usual, tmp_path, kind):
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "large.jpg")
    maps = tmp_path / "new" / "maps"
    images = (usual, tmp_path / "no.jpg", tmp_path / "large.jpg", usual)
    model = ("--model", getattr(telling, kind))
    answer = predict("--json", *images, "--heatmap", maps, *model)
    assert answer.returncode == 1
    written = {path.name: Image.open(path).size for path in maps.iterdir()}
    assert written == {
        "usual.heatmap.png": (48, 32),
        "large.heatmap.png": (1024, 683),
        "usual_2.heatmap.png": (48, 32),
    }
    assert f"Wrote: {maps / 'large.heatmap.png'}, where the model looked in" in answer.stderr
    assert answer.stdout == predict("--json", *images, *model).stdout


@pytest.mark.parametrize("maps", ["maps", ".", "link"])
def test_heat_maps_are_not_classified_with_the_folder_that_holds_them(
    telling, usual, tmp_path, monkeypatch, capsys, maps
):
    monkeypatch.chdir(tmp_path)
    Path("maps").mkdir()
    Path("link").symlink_to("maps")
    shutil.copy(usual, "z.heatmap.png")  # a photo, unless this is the folder of heat maps
    shutil.copy(usual, "maps/photo.png")
    expected = ["maps/photo.png", "usual.png", *(["z.heatmap.png"] if maps != "." else [])]

    def classified(image):
        words = ["--json", "--heatmap", maps, "--model", str(telling.tflite), image]
        assert script.main(words) == 0
        return [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]

    for _ in range(2):
        found = [os.path.normpath(image) for image in classified(".")]
        assert [image.replace("link", "maps") for image in found] == expected
    named = f"{maps}/usual.heatmap.png"
    assert classified(named) == [named]


def test_a_folder_of_nothing_but_heat_maps_has_no_images(telling, usual, tmp_path, capsys):
    words = ["--heatmap", str(tmp_path / "maps"), "--model", str(telling.tflite)]
    assert script.main([str(usual), *words]) == 0
    assert script.main([str(tmp_path / "maps"), *words]) == 1
    assert "maps, which holds no files to classify." in capsys.readouterr().err


def test_a_heat_map_that_cannot_be_written_ends_it_with_a_sentence(telling, usual, small_tflite):
    answer = predict(usual, "--heatmap", usual, "--model", telling.tflite)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.splitlines()[1].startswith("predict.py: Expected to write heat maps.")
    answer = predict(usual, "--heatmap", usual.parent / "maps", "--model", small_tflite)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.splitlines()[1].startswith(
        "predict.py: Expected a model that tells where it looks, for --heatmap"
    )
    assert not (usual.parent / "maps").exists()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_runtime_can_be_named(small_tflite, red, capfd, runtime):
    assert script.main([str(red), "--model", str(small_tflite), "--runtime", runtime]) == 0
    assert f"{small_tflite} ({runtime}), 3 classes" in capfd.readouterr().err


def test_a_checkpoint_has_no_runtime_to_name(small_checkpoint, red, capsys):
    words = ["--model", str(small_checkpoint), "--runtime", "openvino"]
    assert script.main([str(red), *words]) == 1
    expected = "predict.py: Expected a .tflite model for --runtime. Received: "
    assert capsys.readouterr().err.startswith(expected)


class Stub:
    """A classifier that reads no pixels."""

    labels = ("a, b", "error")
    input_size = (8, 8)
    details = Details()

    def predict(self, score):
        return Prediction(np.array([0.25, score]))


@pytest.fixture
def answers(monkeypatch):
    """Return a function that gives images the scores, or errors, of a dictionary."""

    def give(scores):
        def read(image, _):
            if isinstance(scores[image], Exception):
                raise scores[image]
            return [scores[image]]

        monkeypatch.setattr(script, "load_classifier", lambda *_: Stub())
        monkeypatch.setattr(script, "read_images", read)
        monkeypatch.setattr(script, "preprocess", lambda image, _: image)
        return ["--model", "stub.tflite", *scores]

    return give


def test_whatever_an_image_raises_the_others_are_answered(answers, capsys):
    images = {
        "huge.png": MemoryError(),
        "deep.png": RecursionError("maximum recursion depth exceeded"),
        "odd.png": TypeError("expected bytes\nnot str"),
        "nan.png": float("nan"),
        "good.png": 0.75,
    }
    assert script.main(answers(images)) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "good.png: error"
    assert err.splitlines()[1:] == [
        "huge.png: Memory ran out on this image. Make it smaller.",
        "deep.png: Unexpected error on this image (RecursionError: maximum recursion depth "
        "exceeded).",
        "odd.png: Unexpected error on this image (TypeError: expected bytes).",
        "nan.png: The model's scores are no numbers (NaN). Train it again.",
    ]


def test_the_label_is_the_first_score_also_where_rounding_makes_two_alike(answers, capsys):
    assert script.main(answers({"close.png": 0.250001})) == 0
    lines = ["close.png: error", "  error 0.25000", "  a, b  0.25000"]
    assert capsys.readouterr().out.splitlines() == lines


def test_csv_has_a_row_for_each_image_also_for_errors(answers, capsys):
    images = {'"x",y\n.png': 0.75, "bad.png": OSError('no, "never"'), "z.png": 0.125}
    assert script.main(["--csv", *answers(images)]) == 1
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    error = 'Unexpected error on this image (OSError: no, "never").'
    assert rows == [
        ["image", "label", "score", "error", "a, b", "error"],
        ['"x",y\n.png', "error", "0.75000", "", "0.25000", "0.75000"],
        ["bad.png", "", "", error, "", ""],
        ["z.png", "a, b", "0.25000", "", "0.25000", "0.12500"],
    ]


def test_csv_and_json_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        script.main(["--csv", "--json", "x.jpg"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("No model config\nat all"), RecursionError()])
def test_a_damaged_model_is_one_sentence(error, monkeypatch, capsys):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(script, "Classifier", load)
    assert script.main(["--model", "a.tflite", "x.jpg"]) == 1
    reason = "ValueError: No model config" if error.args else "RecursionError"
    assert capsys.readouterr().err == (
        f"predict.py: Expected a model that can be loaded. Received: a.tflite ({reason}). "
        "Name another with --model.\n"
    )


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_names_that_are_no_text_are_printed_with_escapes(small_tflite, tmp_path, encoding):
    names = [b"1-caf\xe9.png", "2-\x9b2J\n\x1b[31m.png".encode(), "3-ré.png".encode()]
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    for name in names:
        os.link(tmp_path / "red.png", os.path.join(os.fsencode(tmp_path), name))
    (tmp_path / "red.png").unlink()
    arguments = (tmp_path, "--model", small_tflite)
    answer = predict(*arguments, PYTHONIOENCODING=encoding)
    assert answer.returncode == 0
    accent = "é" if encoding.startswith("utf") else r"\xe9"
    assert [line for line in answer.stdout.splitlines() if line[0] != " "] == [
        rf"{tmp_path}/1-caf\udce9.png: red",
        rf"{tmp_path}/2-\x9b2J\n\x1b[31m.png: red",
        f"{tmp_path}/3-r{accent}.png: red",
    ]
    answer = predict("--json", *arguments, PYTHONIOENCODING=encoding)
    lines = answer.stdout.split("\n")[:-1]
    assert [os.fsencode(json.loads(line)["image"]) for line in lines] == [
        os.path.join(os.fsencode(tmp_path), name) for name in names
    ]
    assert ("é" in answer.stdout) == encoding.startswith("utf")
    assert "\x9b" not in answer.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_it_ends_without_a_word_when_its_reader_does(small_tflite, red, unbuffered):
    # More than a pipe holds, so that it cannot have ended before its reader.
    command = [
        sys.executable,
        ROOT / "predict.py",
        "--json",
        *[red] * 1500,
        "--model",
        small_tflite,
    ]
    with subprocess.Popen(
        command,
        env=environment(PYTHONUNBUFFERED=unbuffered),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert '"label": "red"' in process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert error.startswith("Model: ")
    assert error.count("\n") == 1
