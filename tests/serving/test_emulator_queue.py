"""The queue in front of AWS's emulator: one request at a time, whatever clients do, and HTTP."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from serving import emulator_queue
from serving.emulator_queue import MAX_BODY, QueueServer, main

QUEUE = ROOT / "serving" / "emulator_queue.py"
PATH = "/2015-03-31/functions/function/invocations"


class Emulator(ThreadingHTTPServer):
    """Answers with what it was sent, or `answer`, after `seconds`; notes the most at once."""

    daemon_threads = True

    def __init__(self, seconds=0.0):
        self.requests, self.inside, self.most, self.seconds = [], 0, 0, seconds
        self.answer = None
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        server.inside += 1
        server.most = max(server.most, server.inside)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        time.sleep(server.seconds)
        server.requests.append((self.command, self.path, dict(self.headers), body))
        if server.answer is not None:
            body = server.answer
        self.send_response(202)
        self.send_header("X-Of", "emulator")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        server.inside -= 1
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_POST()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def emulator():
    with running(Emulator()) as server:
        yield server


@pytest.fixture
def port(emulator):
    with running(QueueServer(0, emulator.server_address[1])) as server:
        yield server.server_address[1]


def post(port, body, timeout=20, path=PATH, **headers):
    """Return status, headers and body of the answer to `body` on `port`."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def send(port, data):
    """Return all that comes back for the bytes `data`."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def wait_for_requests(emulator, count):
    """Return the emulator's requests once they are `count`; those that wait have no order."""
    until = time.monotonic() + 20
    while len(emulator.requests) < count and time.monotonic() < until:
        time.sleep(0.01)
    return emulator.requests


def test_requests_and_answers_pass_as_they_are(emulator, port):
    status, headers, body = post(port, b'{"url": "a"}', **{"X-Amz-Client-Context": "e30="})
    assert (status, headers["X-Of"], body) == (202, "emulator", b'{"url": "a"}')
    assert headers["Connection"] == "close"
    method, path, sent, body = emulator.requests[0]
    assert (method, path, body) == ("POST", PATH, b'{"url": "a"}')
    assert sent["X-Amz-Client-Context"] == "e30="
    assert sent["Content-Length"] == "12"


def test_one_request_at_a_time_reaches_the_emulator(emulator, port):
    emulator.seconds = 0.01
    bodies = [str(number).encode() for number in range(40)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda body: post(port, body)[2], bodies))
    assert (answers, emulator.most) == (bodies, 1)


def test_the_request_of_a_client_that_gave_up_is_finished_first(emulator, port, capfd):
    emulator.seconds = 0.2
    for _ in range(3):
        with pytest.raises(OSError, match="timed out"):
            post(port, b"given up", timeout=0.02)
    assert post(port, b"again")[2] == b"again"
    bodies = [body for *_, body in wait_for_requests(emulator, 4)]
    assert sorted(bodies) == [b"again"] + [b"given up"] * 3
    assert emulator.most == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_is_slow_to_send_keeps_nobody_waiting(port):
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf".encode()
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(head)
        assert post(port, b"quick", timeout=5)[2] == b"quick"
    assert post(port, b"and after", timeout=5)[2] == b"and after"


def test_only_so_many_connections_are_read_at_once(port, monkeypatch):
    monkeypatch.setattr(emulator_queue._Handler, "timeout", 0.3)
    started = time.monotonic()  # before the first connection, whose time ends the wait
    with contextlib.ExitStack() as silent:
        for _ in range(emulator_queue.MAX_CONNECTIONS):
            silent.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert post(port, b"waits its turn", timeout=10)[2] == b"waits its turn"
        assert time.monotonic() - started > 0.2


def test_chunked_bodies_are_read(emulator, port):
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"3;name=value\r\n{}\n\r\n00000A\r\n0123456789\r\n0\r\nTrailer: a\r\n\r\n"
    answer = send(port, head + chunks)
    assert answer.endswith(b"\r\n\r\n{}\n0123456789")
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert "Transfer-Encoding" not in emulator.requests[0][2]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Length: x", ""),
        ("Content-Length: -1", ""),
        ("Content-Length: +1", "a"),
        ("Content-Length: 1_0", ""),
        ("Content-Length: ", ""),
        ("Content-Length: 1\r\nContent-Length: 2", "ab"),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "-1\r\n\r\n"),
        ("Transfer-Encoding: chunked", "0x1\r\na\r\n"),
        ("Transfer-Encoding: chunked", "\r\n"),
        ("Transfer-Encoding: chunked", "1" * 2000 + "\r\n"),
    ],
)
def test_malformed_bodies_are_refused(emulator, port, headers, body):
    answer = send(port, f"POST {PATH} HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n{body}".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["errorMessage"].startswith("Expected ")
    assert emulator.requests == []


def test_more_than_lambda_takes_is_refused(emulator, port):
    assert post(port, b"x" * MAX_BODY)[0] == 202
    status, _, body = post(port, b"x" * (MAX_BODY + 1))
    assert (status, json.loads(body)["errorType"]) == (413, "RequestTooLargeException")
    assert len(emulator.requests) == 1


def test_head_names_the_length_without_a_body(port):
    answer = send(port, f"HEAD {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab".encode())
    assert b"\r\nContent-Length: 2\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_many_headers_are_passed_on(emulator, port):
    status, _, _ = post(port, b"{}", **{f"X-{number}": "a" for number in range(150)})
    assert status == 202
    assert emulator.requests[0][2]["X-149"] == "a"


def test_without_an_emulator_the_answer_says_so(reserve_port):
    with running(QueueServer(0, reserve_port())) as server:
        status, _, body = post(server.server_address[1], b"{}")
    assert status == 502
    assert "The Lambda emulator did not answer: " in json.loads(body)["errorMessage"]


def test_a_port_that_is_taken(emulator, capsys):
    # Sets handlers of signals, so the tests' own come back.
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        assert main(emulator.server_address[1], ["/bin/false"]) == 1
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    assert f"Expected port {emulator.server_address[1]} to be free." in capsys.readouterr().err


# HTTP requests.


def answer_of(**fields):
    """Return the bytes of a function's answer."""
    return json.dumps({"statusCode": 200} | fields).encode()


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/?top=2", "/prod/", "/2015-03-31", "/20150331/functions", "/1999-12-31/a"],
)
def test_a_path_of_no_protocol_is_a_request_of_http(emulator, port, path):
    emulator.answer = answer_of(
        statusCode=422, headers={"X-Of": "function", "Content-Type": "a/b"}, body="é"
    )
    status, headers, body = post(port, b"\0\xff", path=path, **{"X-Sent": "by me"})
    assert (status, headers["X-Of"], headers["Content-Type"]) == (422, "function", "a/b")
    assert (body.decode(), headers["Content-Length"], headers["Connection"]) == ("é", "2", "close")
    method, asked, _, sent = emulator.requests[0]
    assert (method, asked) == ("POST", PATH)
    event = json.loads(sent)
    assert (event["version"], event["body"], event["isBase64Encoded"]) == ("2.0", "AP8=", True)
    assert f"{event['rawPath']}?{event['rawQueryString']}".rstrip("?") == path
    assert event["headers"]["x-sent"] == "by me"
    assert event["requestContext"]["http"]["method"] == "POST"
    assert event["requestContext"]["http"]["sourceIp"] == "127.0.0.1"


@pytest.mark.parametrize(
    "path", [PATH, "/2021-11-15/functions/a/response-streaming-invocations", "/2014-11-13/x"]
)
def test_paths_of_lambdas_protocol_are_not_touched(emulator, port, path):
    assert post(port, b"{}", path=path)[::2] == (202, b"{}")
    assert emulator.requests[0][1] == path


def test_an_answer_in_base64_is_bytes(emulator, port):
    emulator.answer = answer_of(body="AP8=", isBase64Encoded=True)
    assert post(port, None, path="/")[2] == b"\0\xff"


@pytest.mark.parametrize("target", ["http://a.example/x?y=1", "HTTP://a.example:80/x?y=1"])
def test_a_target_with_its_host_is_its_path(emulator, port, target):
    emulator.answer = answer_of()
    send(port, f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    event = json.loads(emulator.requests[0][3])
    assert (event["rawPath"], event["rawQueryString"]) == ("/x", "y=1")


def test_headers_that_come_twice_are_one(emulator, port):
    emulator.answer = answer_of()
    send(port, b"GET / HTTP/1.1\r\nHost: a\r\nAccept: b/c\r\naccept: d/e;q=0.5\r\n\r\n")
    assert json.loads(emulator.requests[0][3])["headers"]["accept"] == "b/c, d/e;q=0.5"


def test_head_over_http_names_the_length_without_a_body(emulator, port):
    emulator.answer = answer_of(headers={"Content-Length": "17"}, body="")
    answer = send(port, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"\r\nContent-Length: 17\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")
    assert json.loads(emulator.requests[0][3])["requestContext"]["http"]["method"] == "HEAD"


@pytest.mark.parametrize("status", [204, 304])
def test_without_content_there_is_no_length(emulator, port, status):
    emulator.answer = answer_of(statusCode=status, headers={"ETag": '"a"'}, body="")
    answer = send(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b'\r\nETag: "a"\r\n' in answer
    assert b"Content-Length" not in answer


def test_requests_of_http_and_of_lambda_wait_for_each_other(emulator, port):
    emulator.seconds, emulator.answer = 0.01, answer_of(body="x")
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda path: post(port, b"{}", path=path), ["/", PATH] * 20))
    assert (len(emulator.requests), emulator.most) == (40, 1)


def test_the_request_of_a_browser_that_left_is_finished_first(emulator, port, capfd):
    emulator.seconds, emulator.answer = 0.2, answer_of(body="x")
    for _ in range(3):
        with pytest.raises(OSError, match="timed out"):
            post(port, b"given up", timeout=0.02, path="/")
    assert post(port, b"again", path="/")[2] == b"x"
    assert (len(wait_for_requests(emulator, 4)), emulator.most) == (4, 1)
    assert capfd.readouterr().err == ""


def test_an_event_of_more_than_lambda_takes_is_refused_as_its_function_url_does(emulator, port):
    emulator.answer = answer_of()
    most = MAX_BODY * 3 // 4 - 1500  # bytes: in base64, with the rest of an event, Lambda's limit
    assert post(port, bytes(most), path="/")[0] == 200
    for size in (MAX_BODY * 3 // 4, MAX_BODY + 1):
        status, _, body = post(port, bytes(size), path="/")
        assert (status, json.loads(body)) == (413, {"message": "Request Too Long"})
    assert len(emulator.requests) == 1


@pytest.mark.parametrize("header", ["Content-Length: x", "Transfer-Encoding: gzip"])
def test_a_malformed_body_over_http_is_refused(emulator, port, header):
    answer = send(port, f"POST / HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["message"].startswith("Expected ")
    assert emulator.requests == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"Task timed out after 3.00 seconds", "Expected an answer in JSON from the function."),
        (b'{"errorMessage": "crashed"}', "crashed"),
        (answer_of(headers={"X-A": "b\r\nX-C: d"}), "a line break in the header 'X-A'"),
        (answer_of(headers={"X-A": "\u2603"}), "Expected headers and a body as text."),
    ],
)
def test_a_function_that_fails_is_a_502_and_its_reason_is_printed(
    emulator, port, capfd, answer, reason
):
    emulator.answer = answer
    status, headers, body = post(port, None, path="/")
    assert (status, body) == (502, b"Internal Server Error")
    assert "X-C" not in headers
    printed = capfd.readouterr().err
    assert printed.startswith("emulator_queue: ")
    assert reason in printed
    assert printed.count("\n") == 1


def test_without_an_emulator_http_says_so(reserve_port):
    with running(QueueServer(0, reserve_port())) as server:
        status, _, body = post(server.server_address[1], None, path="/")
    assert status == 502
    assert "The Lambda emulator did not answer: " in json.loads(body)["message"]


@contextlib.contextmanager
def queue_in_front_of(folder, code):
    """The queue's process in front of a program, on any free port."""
    program = folder / "emulator"
    program.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{code}\n")
    program.chmod(0o755)
    process = subprocess.Popen([sys.executable, "-I", QUEUE, "0", program, "bootstrap"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)], ids=str
)
def test_it_ends_with_the_emulator(tmp_path, ending, code):
    with queue_in_front_of(tmp_path, ending) as process:
        assert process.wait(20) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["docker stop", "Ctrl-C"])
def test_a_signal_ends_it_and_an_emulator_that_does_not_want_to(tmp_path, number):
    note = tmp_path / "started"
    stubborn = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(note)!r} + '.new', 'w').write(f'{{os.getpid()}} {{sys.argv[1:]}}')\n"
        f"os.rename({str(note)!r} + '.new', {str(note)!r})\ntime.sleep(60)"
    )
    with queue_in_front_of(tmp_path, stubborn) as process:
        deadline = time.monotonic() + 20
        while not note.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process_id, arguments = note.read_text().split(" ", 1)
        assert arguments.startswith("['--runtime-interface-emulator-address', '127.0.0.1:")
        assert arguments.endswith(", 'bootstrap']")
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert time.monotonic() - started < 5
    with pytest.raises(ProcessLookupError):
        os.kill(int(process_id), 0)
