"""SnapStart: AWS's own runtime client calls the hooks, against a runtime API that notes its calls.

What only AWS has is the snapshot itself. Here, a copy of the service is a fork of it, or the
service after a pause in which its decoder was killed.
"""

import base64
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from serving import object_tags, snapshot, stores
from serving.classifier import Classifier
from serving.decoder import Decoder
from serving.handler import Handler
from serving.service import Service

SERVING = Path(snapshot.__file__).parent
API = "/2018-06-01/runtime"
# Imports the entry point, and what AWS's runtime calls around a snapshot.
HOOKS = """
import json, sys
import lambda_function
from awslambdaric import lambda_runtime_hooks_runner as hooks
hooks.run_before_snapshot()
hooks.run_after_restore()
"""


def image(color="red"):
    buffer = BytesIO()
    Image.new("RGB", (60, 40), color).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


class RuntimeApi:
    """Lambda's runtime API for one execution environment, which gets `events` after a restore."""

    def __init__(self, events, restore):
        self.calls, self.answers, self.done = [], [], threading.Event()
        owner, waiting = self, list(enumerate(events))

        class Api(BaseHTTPRequestHandler):
            def do_GET(self):
                owner.calls.append(self.path.removeprefix(API))
                headers, body = {}, b""
                if self.path == f"{API}/restore/next":
                    restore()
                elif waiting:
                    number, event = waiting.pop(0)
                    due = str(int(time.time() * 1000) + 20_000)
                    found = {"Aws-Request-Id": f"id-{number}", "Deadline-Ms": due}
                    found |= {"Trace-Id": "a", "Invoked-Function-Arn": "arn:aws:lambda:a"}
                    headers = {f"Lambda-Runtime-{name}": value for name, value in found.items()}
                    headers["Content-Type"] = "application/json"
                    body = json.dumps(event).encode()
                else:
                    owner.done.set()
                    time.sleep(60)
                self.answer(200, headers, body)

            def do_POST(self):
                owner.calls.append(self.path.removeprefix(API))
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.answers.append(json.loads(body))
                self.answer(202)

            def answer(self, status, headers=None, body=b""):
                with contextlib.suppress(ConnectionError):
                    self.send_response(status)
                    for name, value in (headers or {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def on_lambda(model, kind="snap-start"):
    """Return the environment of a function whose execution environments begin as `kind`."""
    return os.environ | {"MODEL_PATH": str(model), "AWS_LAMBDA_INITIALIZATION_TYPE": kind}


def children(number):
    """Return the numbers of the processes that the process `number` has started."""
    listed = Path(f"/proc/{number}/task/{number}/children").read_text(encoding="ascii")
    return [int(word) for word in listed.split()]


def invoke(model, events, restore=lambda number: None):
    """Return the calls of AWS's runtime client, its answers to `events`, and the log.

    `restore` is called between snapshot and restore, with the number of the client's process.
    """
    with RuntimeApi(events, lambda: restore(process.pid)) as api:
        process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", "lambda_function.lambda_handler"],
            cwd=ROOT,
            env=on_lambda(model) | {"AWS_LAMBDA_RUNTIME_API": api.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end and not api.done.wait(0.05):
                pass
            assert api.done.is_set(), api.calls
        finally:
            process.kill()
            log, _ = process.communicate()
    return api.calls, api.answers, [json.loads(line) for line in log.splitlines()]


def test_aws_s_runtime_calls_the_hooks_and_the_first_request_is_the_first(small_tflite):
    calls, answers, log = invoke(small_tflite, [{"image": image()}, {"image": image("blue")}])
    assert calls == [
        "/restore/next",
        *("/invocation/next", "/invocation/id-0/response"),
        *("/invocation/next", "/invocation/id-1/response"),
        "/invocation/next",
    ]
    assert [max(answer, key=answer.get) for answer in answers] == ["red", "blue"]
    seen = [(line["request_id"], line["cold_start"]) for line in log]
    assert seen == [("id-0", True), ("id-1", False)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
def test_a_decoder_that_did_not_survive_costs_no_request(small_tflite):
    killed = []

    def kill_decoder(number):
        [server] = children(number)
        killed.extend(children(server))
        os.kill(killed[0], signal.SIGKILL)

    _, [answer], _ = invoke(small_tflite, [{"image": image()}], kill_decoder)
    assert len(killed) == 1
    assert max(answer, key=answer.get) == "red"


def run(model, code, kind="snap-start", **environment):
    """Return what `code` prints, as JSON."""
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=on_lambda(model, kind) | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_the_first_request_of_each_kind_imports_nothing(small_tflite, http_server):
    url = http_server({"/a.jpg": (200, {}, base64.b64decode(image()))})
    form = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n%b\r\n--x--'
    )
    form %= base64.b64decode(image())

    def http(path="/", method="GET", body=None, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        context = {"http": {"method": method, "path": path}}
        event = {"version": "2.0", "rawPath": path, "headers": named, "requestContext": context}
        return event | ({"body": body, "isBase64Encoded": True} if body else {})

    events = [
        *({"image": image()}, {"url": f"{url}/a.jpg"}, {"images": [image()] * 2}),
        *({"image": image(), "details": True}, {"image": "wrong"}),
        http(method="POST", body=image(), content_type="image/jpeg"),
        http(
            method="POST",
            body=base64.b64encode(form).decode(),
            content_type="multipart/form-data; boundary=x",
        ),
        *(http(accept="text/html"), http(), http("/health"), http("/openapi.json"), http("/none")),
    ]
    imported, page, statuses = run(
        small_tflite,
        f"""{HOOKS}
before, answers = set(sys.modules), []
page = sys.modules["serving.page"].read_page.cache_info().currsize
for event in json.loads({json.dumps(events)!r}):
    answers.append(lambda_function.lambda_handler(event, None))
answers = [a.get("statusCode", "error" in a) if type(a) is dict else len(a) for a in answers]
print(json.dumps([sorted(set(sys.modules) - before), page, answers]))
""",
        FETCH_ALLOW="127.0.0.1",
    )
    assert statuses == [False, False, 2, False, True, 200, 200, 200, 200, 200, 200, 404]
    assert (imported, page) == ([], 1)


@pytest.mark.parametrize("kind", ["on-demand", "provisioned-concurrency", ""])
def test_without_a_snapshot_nothing_is_imported_for_it(small_tflite, kind):
    names = ("snapshot_restore_py", "serving.page", "python_multipart")
    code = f"""
import json, sys, lambda_function
print(json.dumps([name for name in {names} if name in sys.modules]))
"""
    assert run(small_tflite, code, kind) == []


def test_another_runtime_than_aws_s_starts_without_hooks(small_tflite):
    code = """
import json, sys
sys.modules["snapshot_restore_py"] = None  # not to be found
import lambda_function
print(json.dumps(lambda_function.handler.service.name))
"""
    assert run(small_tflite, code) == small_tflite.stem


# The hooks themselves


@pytest.fixture(scope="module")
def service(small_tflite, decoder):
    return Service(Classifier(small_tflite), "small", decoder)


def test_the_model_runs_once_before_the_snapshot_and_not_in_a_restore(service, monkeypatch):
    runs, run_model = [], service.classifier.predict
    monkeypatch.setattr(service.classifier, "predict", lambda x: runs.append(1) or run_model(x))
    snapshot.prepare(service)
    assert len(runs) == 1
    snapshot.renew(service)
    assert len(runs) == 1


def test_a_model_that_cannot_run_fails_the_version(service, monkeypatch):
    def fail(inputs):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(service.classifier, "predict", fail)
    with pytest.raises(RuntimeError, match="no such operation"):
        snapshot.prepare(service)


def test_two_copies_of_a_snapshot_draw_other_random_numbers(service):
    snapshot.prepare(service)
    memory = random.getstate(), np.random.get_state()

    def copy(restore):
        random.setstate(memory[0])
        np.random.set_state(memory[1])
        restore(service)
        return [random.random(), np.random.random()]  # noqa: S311 - what others may draw

    assert copy(lambda _: None) == copy(lambda _: None)
    drawn = copy(snapshot.renew) + copy(snapshot.renew)
    assert len(set(drawn)) == 4


def test_the_service_draws_no_random_numbers_of_its_own():
    """Secrets and sockets ask the system each time; a generator of ours would be copied."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in SERVING.glob("*.py")}
    drawing = re.compile(r"^\s*(import|from) random\b|\brandom\.|default_rng", re.MULTILINE)
    assert [name for name, source in sources.items() if drawing.search(source)] == ["snapshot.py"]


def test_no_connection_is_in_the_snapshot(service, http_server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    tags = (200, {}, b"<Tagging><TagSet/></Tagging>")
    monkeypatch.setenv("AWS_ENDPOINT_URL", http_server({"/images-1/a?tagging=": tags}))
    object_tags.close_connections()  # those of other tests
    assert object_tags.add_tags("images-1", "a", {})
    old = stores.connect("s3://images-1")
    assert len(object_tags._POOL.pools) == 1
    snapshot.prepare(service)
    assert len(object_tags._POOL.pools) == 0
    assert stores.connect("s3://images-1") is not old
    assert object_tags.add_tags("images-1", "a", {})
    stores.connect.cache_clear()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
def test_a_decoder_that_hangs_is_replaced(small_tflite, monkeypatch):
    decoder = Decoder()
    service = Service(Classifier(small_tflite), "small", decoder)
    snapshot.prepare(service)
    monkeypatch.setattr(snapshot, "CHECK_S", 0.5)  # not before: the decoder has to answer
    [worker] = children(decoder._server)
    os.kill(worker, signal.SIGSTOP)
    snapshot.renew(service)
    assert children(decoder._server) != [worker]
    decoder.close()


@pytest.mark.parametrize("seconds", [1e6, -1e6])
def test_deadlines_are_those_of_the_restored_clock(service, monkeypatch, seconds):
    handler, clock = Handler(service), time.monotonic
    snapshot.prepare(service)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + seconds)
    snapshot.renew(service)
    context = SimpleNamespace(aws_request_id="", get_remaining_time_in_millis=lambda: 20_000)
    answer = handler.handle({"image": image()}, context)
    assert max(answer, key=answer.get) == "red"
    late = SimpleNamespace(aws_request_id="", get_remaining_time_in_millis=lambda: 0)
    assert handler.handle({"image": image()}, late)["error"]["type"] == "DeadlineError"
