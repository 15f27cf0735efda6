"""tools.function_url: HTTP in front of a function, as AWS puts it there."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import ROOT

from tools.emulator import EmulatorError, free_port, local_service, sample_event
from tools.function_url import MAX_PAYLOAD, invoker, serving, to_event

ECHO = """
import json
def handle(event, context):
    if event["rawPath"] == "/crash":
        raise ValueError("crashed")
    if event["rawPath"] == "/text":
        return {"text": 1}
    return {"statusCode": 201, "headers": {"X-Of": "echo"}, "body": json.dumps(event)}
"""


@pytest.fixture
def address(tmp_path):
    """HTTP in front of AWS's emulator, in front of a function that answers its event."""
    (tmp_path / "echo.py").write_text(ECHO)
    service = local_service(
        free_port(), folder=tmp_path, handler="echo.handle", log=tmp_path / "log"
    )
    try:
        with service as endpoint, serving(invoker(endpoint)) as server:
            yield f"http://127.0.0.1:{server.server_address[1]}"
    except EmulatorError as error:
        pytest.skip(str(error))


def ask(url, data=None, **options):
    request = urllib.request.Request(url, data, **options)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_http_becomes_an_event_and_an_answer_http(address):
    status, headers, body = ask(
        f"{address}/a/b?top=1&top=2", b"\0\xff", headers={"Content-Type": "image/png"}
    )
    assert (status, headers["X-Of"]) == (201, "echo")
    event = json.loads(body)
    assert event["requestContext"]["http"]["method"] == "POST"
    assert (event["rawPath"], event["rawQueryString"]) == ("/a/b", "top=1&top=2")
    assert event["queryStringParameters"] == {"top": "1,2"}
    assert event["headers"]["content-type"] == "image/png"
    assert (event["body"], event["isBase64Encoded"]) == ("AP8=", True)


@pytest.mark.parametrize("path", ["crash", "text"])
def test_a_function_that_fails_or_answers_no_http_is_a_502(address, path):
    assert ask(f"{address}/{path}")[0] == 502
    assert ask(f"{address}/again")[0] == 201


def test_more_than_lambda_takes_is_refused(address):
    assert ask(address, b"x" * MAX_PAYLOAD)[0] == 413


def test_events_have_the_fields_of_awss_own():
    try:
        sample = sample_event("apigateway/HttpApi", method="GET", path="a", stage="$default")
    except EmulatorError as error:
        pytest.skip(str(error))
    event = to_event("GET", "/a?b=1", {"User-Agent": "x"}, b"c", "127.0.0.1")
    assert set(event) <= set(sample)
    assert set(event["requestContext"]) <= set(sample["requestContext"])
    assert set(event["requestContext"]["http"]) == set(sample["requestContext"]["http"])


def test_a_port_that_is_taken():
    with serving(lambda _: {}) as server:
        port = server.server_address[1]
        done = subprocess.run(
            [sys.executable, "-m", "tools.function_url", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"tools.function_url: Expected port {port} to be free.")
    assert done.stderr.count("\n") == 1
