"""tools.function_url: HTTP in front of a function, as AWS puts it there."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

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


def test_of_requests_at_once_the_function_gets_one_after_another():
    asked, running = threading.Barrier(4), []

    def invoke(event):
        running.append(event)
        time.sleep(0.1)
        together = len(running)
        running.remove(event)
        return {"statusCode": 200, "body": str(together)}

    def ask_at_once(url):
        asked.wait()
        return ask(url)[2]

    with serving(invoke) as server, ThreadPoolExecutor(4) as pool:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert list(pool.map(ask_at_once, [url] * 4)) == [b"1"] * 4


ANSWERS = {
    "/bytes": ({"statusCode": 200, "body": "AP8=", "isBase64Encoded": True}, (200, "2", b"\0\xff")),
    "/text": ({"statusCode": 404, "body": "ä", "headers": None}, (404, "2", "ä".encode())),
    "/empty": ({"statusCode": 204}, (204, None, b"")),
    "/none": ({"statusCode": 200, "body": None}, (200, "0", b"")),
    "/no status": ({"body": "a"}, (502, "21", b"Internal Server Error")),
    "/no object": ([], (502, "21", b"Internal Server Error")),
}


@pytest.mark.parametrize("path", ANSWERS)
def test_answers_become_http(path):
    answer, expected = ANSWERS[path]
    with serving(lambda _: answer) as server:
        status, headers, body = ask(f"http://127.0.0.1:{server.server_address[1]}/")
    assert (status, headers.get("Content-Length"), body) == expected


def test_requests_become_events():
    """As AWS documents payload format 2.0, with its names in small letters."""
    event = to_event("PUT", "/a%20b?c=&d=%C3%A4", {"User-Agent": "me", "X-A": "B"}, b"", "10.0.0.9")
    context = event.pop("requestContext")
    assert event == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/a%20b",
        "rawQueryString": "c=&d=%C3%A4",
        "queryStringParameters": {"c": "", "d": "ä"},
        "headers": {"user-agent": "me", "x-a": "B"},
        "isBase64Encoded": False,
    }
    assert context["http"] == {
        "method": "PUT",
        "path": "/a%20b",
        "protocol": "HTTP/1.1",
        "sourceIp": "10.0.0.9",
        "userAgent": "me",
    }
    assert abs(context["timeEpoch"] / 1000 - time.time()) < 60
    assert context["requestId"] != to_event("GET", "/", {}, b"", "")["requestContext"]["requestId"]


def test_a_request_without_a_query_has_no_parameters():
    event = to_event("GET", "/", {}, b"", "")
    assert "queryStringParameters" not in event
    assert (event["rawPath"], event["rawQueryString"]) == ("/", "")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "ANYTHING"])
def test_the_function_is_asked_whatever_the_method_is(method):
    methods = []

    def invoke(event):
        methods.append(event["requestContext"]["http"]["method"])
        return {"statusCode": 204}

    with serving(invoke) as server:
        host, port = server.server_address
        assert host == "127.0.0.1", "a container's function is not for the network"
        assert ask(f"http://127.0.0.1:{port}/", method=method)[0] == 204
    assert methods == [method]


def test_an_endpoint_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr("tools.function_url.TIMEOUT", 0.1)
    ended = threading.Event()
    with serving(lambda _: ended.wait(10) or {}) as server:
        with pytest.raises(OSError, match="timed out"):
            invoker(f"http://127.0.0.1:{server.server_address[1]}/")({})
        ended.set()


def test_from_the_command_line_it_asks_that_endpoint_through_no_proxy_until_ctrl_c():
    port = free_port()
    inner = {"statusCode": 200, "body": json.dumps({"statusCode": 201, "body": "inner"})}
    with serving(lambda _: inner) as server:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}/"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tools.function_url",
                "--port",
                str(port),
                "--endpoint",
                endpoint,
            ],
            cwd=ROOT,
            env=os.environ | {"http_proxy": "http://127.0.0.1:9", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            line = process.stdout.readline()
            assert line == f"http://localhost:{port} in front of {endpoint}; Ctrl-C ends.\n"
            status, _, body = ask(f"http://127.0.0.1:{port}/")
            assert (status, body) == (201, b"inner")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
            process.communicate()


def test_an_event_may_have_as_many_bytes_as_lambda_takes(monkeypatch):
    """The limit is that of the event, in which a body takes a third more."""
    invoked = []
    event = to_event("POST", "/", {}, b"x" * 3000, "127.0.0.1")
    with serving(lambda event: invoked.append(event) or {"statusCode": 200}) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        for limit, status in ((len(json.dumps(event)) + 1000, 200), (4000, 413)):
            monkeypatch.setattr("tools.function_url.MAX_PAYLOAD", limit)
            assert ask(url, b"x" * 3000)[0] == status
    assert len(invoked) == 1


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
