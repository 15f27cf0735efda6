"""tools.function_url: HTTP in front of a function, as AWS puts it there."""

import contextlib
import importlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

from tools.emulator import EmulatorError, free_port, local_service, sample_event
from tools.function_url import MAX_PAYLOAD, invoker, main, serving, to_event

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


def test_what_there_is_not_is_not_in_the_event():
    with served(lambda event: {"statusCode": 200, "body": json.dumps(event)}) as url:
        event = json.loads(ask(url)[2])
        assert not {"body", "queryStringParameters"} & set(event)
        assert event["isBase64Encoded"] is False
        event = json.loads(ask(f"{url}/?a=&b")[2])
        assert event["queryStringParameters"] == {"a": "", "b": ""}


def test_the_event_says_who_asks_when_and_how():
    with served(lambda event: {"statusCode": 200, "body": json.dumps(event)}) as url:
        for method in ("GET", "PATCH", "PROPFIND"):
            headers = {"User-Agent": "a browser", "X-Some": "Value"}
            event = json.loads(ask(f"{url}/a", method=method, headers=headers)[2])
            context = event["requestContext"]
            assert context["http"] == {
                "method": method,
                "path": "/a",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "a browser",
            }
            assert abs(context["timeEpoch"] - time.time() * 1000) < 60_000
            assert event["headers"]["x-some"] == "Value"


@contextlib.contextmanager
def served(function):
    """HTTP in front of `function`, without an emulator between them."""
    with serving(function) as server:
        assert server.server_address[0] == "127.0.0.1"  # nobody else is to come here
        yield f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        ({"statusCode": 200, "body": "/9g=", "isBase64Encoded": True}, 200, b"\xff\xd8"),
        ({"statusCode": 404, "body": "/9g=", "isBase64Encoded": False}, 404, b"/9g="),
        ({"statusCode": 200, "headers": None, "body": None}, 200, b""),
        ({"statusCode": "200", "body": "a"}, 502, b"Internal Server Error"),
        ([], 502, b"Internal Server Error"),
        (None, 502, b"Internal Server Error"),
    ],
)
def test_answers_become_http(answer, status, body):
    with served(lambda _: answer) as url:
        got, headers, data = ask(url)
    assert (got, data, headers["Content-Length"]) == (status, body, str(len(body)))


def test_no_content_has_no_length():
    with served(lambda _: {"statusCode": 204, "headers": {"Allow": "GET"}, "body": ""}) as url:
        status, headers, body = ask(url, method="OPTIONS")
    assert (status, headers["Allow"], body) == (204, "GET", b"")
    assert "Content-Length" not in headers


def test_one_request_at_a_time_reaches_the_function():
    """Two at once end the emulator."""
    inside, most = 0, 0

    def answer(_):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.1)
        inside -= 1
        return {"statusCode": 200, "body": ""}

    with served(answer) as url, ThreadPoolExecutor(4) as pool:
        statuses = [status for status, *_ in pool.map(ask, [url] * 4)]
    assert (statuses, most) == ([200] * 4, 1)


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    fresh = importlib.reload(sys.modules[invoker.__module__])
    with served(lambda event: event | {"statusCode": 200}) as url:
        assert fresh.invoker(url)({"a": 1}) == {"a": 1}


def test_by_default_it_is_in_front_of_make_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "[http://localhost:8080/2015-03-31/functions/function/invocations]" in told
    assert "[9000]" in told


def test_ctrl_c_ends_it():
    command = [sys.executable, "-u", "-m", "tools.function_url", "--port", str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert "in front of http://localhost:8080/2015-03-31/" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize("path", ["crash", "text"])
def test_a_function_that_fails_or_answers_no_http_is_a_502(address, path):
    assert ask(f"{address}/{path}")[0] == 502
    assert ask(f"{address}/again")[0] == 201


def test_more_than_lambda_takes_is_refused(address):
    most = 4_718_592 - 1500  # bytes, that are 6 MiB in base64 beside the rest of an event
    assert ask(address, bytes(4_718_592))[0] == 413
    assert ask(address, b"x" * MAX_PAYLOAD)[0] == 413
    with served(lambda event: {"statusCode": 200, "body": event["body"][:4]}) as url:
        assert ask(url, bytes(most))[::2] == (200, b"AAAA")


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
