"""lambda_function, as Lambda imports it: in a process of its own, without TensorFlow."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from serving.runtimes import RUNTIMES
from tools.emulator import free_port, local_service

# Answers each event of standard input, with some packages made unfindable.
ASK = """
import contextlib, io, json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
import lambda_function
events = json.load(sys.stdin)
with contextlib.redirect_stdout(io.StringIO()):  # the log
    answers = [lambda_function.lambda_handler(event, None) for event in events]
print(json.dumps([answers, lambda_function.classifier.runtime, sorted(sys.modules)]))
"""
TRAINING_ONLY = "tensorflow,keras,training,h5py,scipy"


def ask(model, events, blocked=TRAINING_ONLY, **environment):
    process = subprocess.run(
        [sys.executable, "-c", ASK, blocked],
        cwd=ROOT,
        env=os.environ | {"MODEL_PATH": str(model), "FETCH_ALLOW": "127.0.0.1"} | environment,
        input=json.dumps(events),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def image(color, name="PNG"):
    buffer = BytesIO()
    Image.new("RGB", (60, 40), color).save(buffer, name)
    return buffer.getvalue()


@pytest.fixture
def events(http_server):
    url = http_server(
        {"/red.png": (200, {}, image("red")), "/page": (200, {}, b"<html></html>")},
    )
    return {
        "url": {"url": f"{url}/red.png"},
        "image": {"image": base64.b64encode(image("blue")).decode()},
        "missing": {},
        "file": {"url": "file:///etc/passwd"},
        "not found": {"url": f"{url}/none.png"},
        "page": {"url": f"{url}/page"},
        "silent": {"url": "http://127.0.0.1:9/a.png"},
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_events_are_answered_without_tensorflow(small_tflite, events, runtime):
    others = [name.replace("-", "_") for name in RUNTIMES if name != runtime]
    blocked = ",".join((TRAINING_ONLY, *others))
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
        "page": "UnsupportedTypeError",
        "silent": "FetchError",
    }
    for error in errors.values():
        assert re.fullmatch(r"Expected .+ Received: .+", error["message"])
        assert not re.search(r"Traceback|\.py|/etc/passwd|127\.0\.0\.1", error["message"])


# What a cold start does without, by the request that it answers.
FOR_FETCHING = {"requests", "urllib3", "charset_normalizer", "idna"}
FOR_OTHERS = {"obstore", "python_multipart", "importlib.metadata"}


def test_packages_are_imported_by_the_first_request_that_needs_them(small_tflite, events):
    _, _, without = ask(small_tflite, [events["image"]])
    assert not (FOR_FETCHING | FOR_OTHERS) & set(without)
    _, _, modules = ask(small_tflite, [events["url"]])
    assert set(modules) >= FOR_FETCHING
    assert not FOR_OTHERS - {"importlib.metadata"} & set(modules)
    started = {"AWS_LAMBDA_INITIALIZATION_TYPE": "provisioned-concurrency"}
    _, _, modules = ask(small_tflite, [], **started)
    assert set(modules) >= FOR_FETCHING


def test_addresses_of_this_machine_are_refused_unless_allowed(small_tflite, events):
    asked = [events["url"], events["silent"]]
    answers, _, _ = ask(small_tflite, asked, FETCH_ALLOW="")
    assert [answer["error"]["type"] for answer in answers] == ["AddressError"] * 2


def start(code, cwd=ROOT, **environment):
    """Return what Python prints that runs `code`, as JSON."""
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.parametrize(("memory", "more"), [(1769, 0), (5307, 2)])
def test_the_model_runs_on_as_many_threads_as_the_memory_stands_for(small_tflite, memory, more):
    code = """
import os
from serving.decoder import Decoder
Decoder()  # forking ends NumPy's threads
before = len(os.listdir("/proc/self/task"))
import lambda_function
print(len(os.listdir("/proc/self/task")) - before)
"""
    size = {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory)}
    assert start(code, MODEL_PATH=str(small_tflite), **size) == more


def test_the_time_and_the_id_of_the_invocation_are_used(small_tflite):
    code = """
import json, lambda_function
class Context:
    aws_request_id = "id-1"
    get_remaining_time_in_millis = lambda self: 0
health = {"requestContext": {}, "httpMethod": "GET", "path": "/health"}
name = json.loads(lambda_function.lambda_handler(health, Context())["body"])["model"]
answer = lambda_function.lambda_handler({"image": "aGk="}, Context())
print(json.dumps([name, answer["error"]["type"]]))
"""
    assert start(code, MODEL_PATH=str(small_tflite)) == [small_tflite.stem, "DeadlineError"]


def test_without_a_name_the_best_tflite_beside_it_is_served(small_tflite, tmp_path):
    """Wherever it is started from, and whatever lies there."""
    function, elsewhere = tmp_path / "function", tmp_path / "elsewhere"
    names = ("xception_fin_01_0.500.tflite", "xception_fin_02_0.875.tflite")
    for folder, names_there in ((function, names), (elsewhere, ["xception_fin_03_1.000.tflite"])):
        (folder / "models").mkdir(parents=True)
        for name in names_there:
            (folder / "models" / name).write_bytes(small_tflite.read_bytes())
    (function / "models" / "xception_fin_04_0.990.h5").write_bytes(b"for training")
    (function / "lambda_function.py").write_bytes((ROOT / "lambda_function.py").read_bytes())
    code = f"""
import json, sys
sys.path.insert(0, {str(function)!r})
import lambda_function
print(json.dumps([lambda_function.__file__, lambda_function.handler.service.name]))
"""
    file, name = start(code, elsewhere, MODEL_PATH="")
    assert (file, name) == (str(function / "lambda_function.py"), "xception_fin_02_0.875")


def test_killed_in_a_request_it_answers_the_next(small_tflite, http_server, tmp_path):
    started = threading.Event()
    images = http_server(
        {
            "/red.png": (200, {}, image("red")),
            "/slow": lambda _: started.set() or time.sleep(5) or (200, {}, image("red")),
        }
    )
    environment = {"MODEL_PATH": str(small_tflite), "FETCH_ALLOW": "127.0.0.1"}
    log = tmp_path / "service.log"
    with (
        local_service(free_port(), environment, log=log) as url,
        ThreadPoolExecutor(1) as pool,
    ):
        lost = pool.submit(post, url, {"url": f"{images}/slow"})
        assert started.wait(30)
        found = {
            int(path.name): parent_of(path)
            for path in Path("/proc").glob("[0-9]*")
            if f"MODEL_PATH={small_tflite}".encode() in environment_of(path)
            and b"awslambdaric" in command_of(path)
            and b"aws-lambda-rie" not in command_of(path)
        }
        # The others are its forks; their numbers may be lower, as these begin anew in time.
        [handler] = [number for number, parent in found.items() if parent not in found]
        os.kill(handler, signal.SIGKILL)
        assert "errorType" in lost.result(30)
        answer = post(url, {"url": f"{images}/red.png"})
        assert max(answer, key=answer.get) == "red"


def post(url, event):
    try:
        with urllib.request.urlopen(url, json.dumps(event).encode(), timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def environment_of(process):
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def command_of(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def parent_of(process):
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def test_a_wrong_allowance_shows_at_the_start(small_tflite):
    process = subprocess.run(
        [sys.executable, "-c", "import lambda_function"],
        cwd=ROOT,
        env=os.environ | {"MODEL_PATH": str(small_tflite), "FETCH_ALLOW": "10.0.0.0/8;a"},
        capture_output=True,
        text=True,
    )
    assert process.returncode != 0
    assert "Expected host names and networks" in process.stderr.splitlines()[-1]


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
