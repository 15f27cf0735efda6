"""tools.function_url: HTTP in front of a function, as AWS puts it there."""

import base64
import contextlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

from tools.emulator import EmulatorError, local_service, sample_event
from tools.function_url import MAX_PAYLOAD, UnreachableError, invoker, main, serving, to_event

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
def address(tmp_path, reserve_port):
    """HTTP in front of AWS's emulator, in front of a function that answers its event."""
    (tmp_path / "echo.py").write_text(ECHO)
    service = local_service(
        reserve_port(), folder=tmp_path, handler="echo.handle", log=tmp_path / "log"
    )
    try:
        with service as endpoint, serving(invoker(endpoint)) as port:
            yield f"http://127.0.0.1:{port}"
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


@contextlib.contextmanager
def served(function):
    """HTTP in front of `function`, without an emulator between them."""
    with serving(function) as port:
        yield f"http://127.0.0.1:{port}"


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


def test_requests_become_events():
    """As AWS documents payload format 2.0, with header names in lower case."""
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


def test_absent_bodies_and_queries_are_not_in_the_event():
    with served(lambda event: {"statusCode": 200, "body": json.dumps(event)}) as url:
        event = json.loads(ask(url)[2])
        assert not {"body", "queryStringParameters"} & set(event)
        assert event["isBase64Encoded"] is False
        assert (event["rawPath"], event["rawQueryString"]) == ("/", "")
        event = json.loads(ask(f"{url}/?a=&b")[2])
        assert event["queryStringParameters"] == {"a": "", "b": ""}


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "ANYTHING"])
def test_the_function_is_called_for_every_method(method):
    methods = []

    def invoke(event):
        methods.append(event["requestContext"]["http"]["method"])
        return {"statusCode": 204}

    with served(invoke) as url:
        assert ask(url, method=method)[0] == 204
    assert methods == [method]


def test_events_have_the_client_the_time_and_the_method():
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


def echo_body(event):
    """A function that answers with the request's path and its body, as it was sent."""
    body = base64.b64decode(event.get("body", "")) or event["rawPath"].encode()
    return {
        "statusCode": 200,
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def send(url, data):
    """Return all that comes back for the bytes `data`, which ask to close the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def test_a_chunked_body_is_one_request():
    with served(echo_body) as url:
        answer = send(
            url,
            b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\n\x00\xffa\r\n2;x=y\r\nbc\r\n0\r\n\r\n" + LAST,
        )
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 OK") == 2
    first, _, second = answer.partition(b"\x00\xffabc")
    assert first.startswith(b"HTTP/1.1 200 OK")
    assert second.endswith(b"\r\n\r\n/last")


def test_requests_in_one_packet_are_answered_in_order():
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(5))
    with served(echo_body) as url:
        answer = send(url, requests + LAST)
    assert re.findall(rb"\r\n\r\n(/last|/\d)", answer) == [
        b"/0",
        b"/1",
        b"/2",
        b"/3",
        b"/4",
        b"/last",
    ]


@pytest.mark.parametrize(
    "header",
    ["Content-Length: x", "Content-Length: -1", "Content-Length: 1_0", "Content-Length: +1"],
)
def test_a_malformed_length_is_refused(header, capfd):
    with served(lambda _: pytest.fail("asked")) as url:
        answer = send(url, f"POST / HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\nabc".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_gives_up_leaves_no_traceback(capfd):
    asked, answered = threading.Event(), threading.Event()

    def slow(event):
        asked.set()
        answered.wait(10)
        return echo_body(event) | {"body": base64.b64encode(bytes(10**6)).decode()}

    with served(slow) as url:
        host, port = url.removeprefix("http://").split(":")
        for unfinished in (b"", b"Content-Length: 9\r\n\r\nhalf", b"\r\n"):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + unfinished)
                if unfinished == b"\r\n":
                    assert asked.wait(10)
        answered.set()
        assert len(ask(url)[2]) == 10**6
    assert capfd.readouterr().err == ""


def test_many_headers_reach_the_function():
    with served(lambda event: {"statusCode": 200, "body": json.dumps(event["headers"])}) as url:
        headers = json.loads(ask(url, headers={f"X-{n}": str(n) for n in range(150)})[2])
    assert all(headers[f"x-{n}"] == str(n) for n in range(150))


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        ({"body": "äö"}, "4"),
        ({"body": "AAEC", "isBase64Encoded": True}, "3"),
        ({"body": "", "headers": {"content-length": "17"}}, "17"),
        ({}, "0"),
    ],
)
def test_head_names_the_length_of_the_body_that_get_would_have(answer, length, capfd):
    with served(lambda _: answer | {"statusCode": 200}) as url:
        head = send(url, LAST.replace(b"GET", b"HEAD"))
    assert f"\r\nContent-Length: {length}\r\n".encode() in head
    assert head.endswith(b"\r\n\r\n")
    assert capfd.readouterr().err == ""


def test_headers_of_the_function_are_sent_as_it_means_them():
    answer = {
        "statusCode": 200,
        "headers": {"X-Number": 5, "Connection": "keep-alive", "Content-Length": "99"},
        "cookies": ["a=1", "b=2"],
        "body": "abc",
    }
    with served(lambda _: answer) as url:
        sent = send(url, LAST)
    assert b"\r\nX-Number: 5\r\n" in sent
    assert b"\r\nContent-Length: 3\r\n" in sent
    assert sent.count(b"Set-Cookie: ") == 2
    assert b"keep-alive" not in sent


def test_without_a_container_the_answer_says_what_to_start(capfd, reserve_port):
    endpoint = f"http://127.0.0.1:{reserve_port()}/2015-03-31/functions/function/invocations"
    with serving(invoker(endpoint)) as port:
        status, _, body = ask(f"http://127.0.0.1:{port}")
    sentence = (
        f"Expected the container's answer from {endpoint}. Received: Connection refused. "
        "Start it with `make run`, or pass its address with --endpoint."
    )
    assert (status, body.decode()) == (502, sentence)
    assert capfd.readouterr().err == f"tools.function_url: {sentence}\n"


@pytest.mark.parametrize(
    ("emulator", "reason"),
    [
        ({"statusCode": 200, "body": "Task timed out"}, "Expected an answer in JSON from"),
        ({"statusCode": 404, "body": "none"}, "Received: Not Found."),
        ({"statusCode": 200, "body": '{"errorMessage": "crashed"}'}, "crashed"),
    ],
)
def test_the_reason_of_a_502_is_printed(emulator, reason, capfd):
    with served(lambda _: emulator) as inner, serving(invoker(inner)) as port:
        assert ask(f"http://127.0.0.1:{port}")[0] == 502
    assert reason in capfd.readouterr().err


FAILED = (502, b"Internal Server Error")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"statusCode": 200, "body": "/9g=", "isBase64Encoded": True}, (200, b"\xff\xd8")),
        ({"statusCode": 404, "body": "/9g=", "isBase64Encoded": False}, (404, b"/9g=")),
        ({"statusCode": 404, "body": "ä", "headers": None}, (404, "ä".encode())),
        ({"statusCode": 200, "headers": None, "body": None}, (200, b"")),
        ({"statusCode": 200}, (200, b"")),
        ({"statusCode": "200", "body": "a"}, FAILED),
        ({"body": "a"}, FAILED),
        ({"statusCode": 99, "body": "a"}, FAILED),
        ({"statusCode": 200, "body": {"a": 1}}, FAILED),
        ({"statusCode": 200, "body": "a", "isBase64Encoded": True}, FAILED),
        ({"statusCode": 200, "headers": [1]}, FAILED),
        ([], FAILED),
        (None, FAILED),
    ],
)
def test_answers_become_http(answer, expected):
    with served(lambda _: answer) as url:
        status, headers, body = ask(url)
    assert (status, body) == expected
    assert headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("body", [{"body": ""}, {}])
def test_no_content_has_no_length(body):
    with served(lambda _: {"statusCode": 204, "headers": {"Allow": "GET"}} | body) as url:
        status, headers, body = ask(url, method="OPTIONS")
    assert (status, headers["Allow"], body) == (204, "GET", b"")
    assert "Content-Length" not in headers


def test_one_request_at_a_time_reaches_the_function():
    """Two at once end the emulator."""
    together, inside, most = threading.Barrier(4), 0, 0

    def answer(_):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.1)
        inside -= 1
        return {"statusCode": 200, "body": ""}

    def ask_at_once(url):
        together.wait(20)
        return ask(url)[0]

    with served(answer) as url, ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(ask_at_once, [url] * 4))
    assert (statuses, most) == ([200] * 4, 1)


def test_waiting_for_a_silent_endpoint_ends(monkeypatch):
    monkeypatch.setattr("tools.function_url.TIMEOUT", 0.1)
    ended = threading.Event()
    with served(lambda _: ended.wait(10) or {}) as url:
        with pytest.raises(UnreachableError, match=r"Received: none within 0\.1 seconds\."):
            invoker(f"{url}/")({})
        ended.set()


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    fresh = runpy.run_path(sys.modules[invoker.__module__].__file__)
    with served(lambda event: event | {"statusCode": 200}) as url:
        assert fresh["invoker"](url)({"a": 1}) == {"a": 1}


def test_by_default_it_is_in_front_of_make_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "[http://localhost:8080/2015-03-31/functions/function/invocations]" in shown
    assert "[9000]" in shown


@contextlib.contextmanager
def command(*flags, **environment):
    """The process of `python -m tools.function_url` with `flags`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.function_url", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_it(reserve_port):
    with command("--port", str(reserve_port())) as process:
        assert "in front of http://localhost:8080/2015-03-31/" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_the_command_invokes_its_endpoint_through_no_proxy_until_ctrl_c(reserve_port):
    port = str(reserve_port())
    inner = {"statusCode": 200, "body": json.dumps({"statusCode": 201, "body": "inner"})}
    with served(lambda _: inner) as url:
        flags = ("--port", port, "--endpoint", f"{url}/")
        with command(*flags, http_proxy="http://127.0.0.1:9") as process:
            line = process.stdout.readline()
            assert line == (f"http://localhost:{port} in front of {url}/; press Ctrl-C to stop.\n")
            status, _, body = ask(f"http://127.0.0.1:{port}/")
            assert (status, body) == (201, b"inner")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130


@pytest.mark.parametrize("path", ["crash", "text"])
def test_a_function_that_fails_or_answers_no_http_is_a_502(address, path):
    assert ask(f"{address}/{path}")[0] == 502
    assert ask(f"{address}/again")[0] == 201


def test_more_than_lambda_takes_is_refused(address):
    most = 4_718_592 - 1500  # bytes: 6 MiB in base64 together with the rest of an event
    assert ask(address, bytes(4_718_592))[0] == 413
    assert ask(address, b"x" * MAX_PAYLOAD)[0] == 413
    status, _, body = ask(address, bytes(20_000_000))
    assert (status, json.loads(body)) == (413, {"message": "Request Too Long"})
    with served(lambda event: {"statusCode": 200, "body": event["body"][:4]}) as url:
        assert ask(url, bytes(most))[::2] == (200, b"AAAA")


def test_an_event_may_have_as_many_bytes_as_lambda_takes(monkeypatch):
    """The limit is that of the event, in which a body takes a third more."""
    invoked = []
    event = to_event("POST", "/", {}, b"x" * 3000, "127.0.0.1")
    with served(lambda event: invoked.append(event) or {"statusCode": 200}) as url:
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
    with serving(lambda _: {}) as port:
        done = subprocess.run(
            [sys.executable, "-m", "tools.function_url", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"tools.function_url: Expected to listen on port {port}. Received: "
    )
    assert done.stderr.count("\n") == 1
