"""The service against its own OpenAPI document, and against events that nobody meant to send."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from serving.classifier import Classifier
from serving.handler import Handler
from serving.service import Service
from tests.fuzz import events
from tools.function_url import serving

SCHEMATHESIS = (
    *(Path(sys.executable).with_name("schemathesis"), "--config-file"),
    Path(__file__).with_name("schemathesis.toml"),
)
EXAMPLES = 400  # events; `make fuzz` asks many more


@pytest.fixture(scope="module", params=["tells more than scores", "tells scores"])
def handler(request, telling, small_tflite, decoder):
    model = small_tflite if request.param == "tells scores" else telling.tflite
    return Handler(Service(Classifier(model), "small", decoder))


@pytest.fixture(scope="module")
def address(handler):
    with serving(handler.handle) as port:
        yield f"http://127.0.0.1:{port}"


def test_every_answer_is_as_the_openapi_document_says(address, tmp_path):
    options = ("--checks", "all", "--max-examples", "40", "--no-color")
    process = subprocess.run(
        [*SCHEMATHESIS, "run", f"{address}/openapi.json", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "Tested: 3" in process.stdout, process.stdout


def test_every_event_is_answered(handler):
    events.run(handler, EXAMPLES)


def test_the_check_of_events_can_fail(handler, monkeypatch):
    monkeypatch.setattr(handler.service, "health", lambda: {"secret": 1})
    with pytest.raises(AssertionError, match="secret"):
        events.check(
            handler,
            {
                "version": "2.0",
                "rawPath": "/health",
                "requestContext": {"http": {"method": "GET"}},
            },
        )


@pytest.mark.parametrize(("accept", "kind"), [("text/html", "text/html"), ("*/*", "application")])
def test_the_root_answers_in_both_types_of_the_document(address, accept, kind):
    request = urllib.request.Request(f"{address}/", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as response:
        headers = {name.lower() for name in response.headers}
        assert response.headers["Content-Type"].startswith(kind)
    with urllib.request.urlopen(f"{address}/openapi.json", timeout=30) as response:
        described = json.load(response)["paths"]["/"]["get"]["responses"]
    assert set(described) == {"200", "304"}
    named = {name.lower() for name in described["200"]["headers"]}
    assert (named <= headers) == (kind == "text/html")


def test_a_browser_may_ask(address):
    request = urllib.request.Request(f"{address}/health", headers={"Origin": "https://a.example"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert json.load(response)["status"] == "ready"
