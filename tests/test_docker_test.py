"""docker_test.py, run as a person runs it, against services good, bad, late and missing."""

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

PATH = "/2015-03-31/functions/function/invocations"
SCORES = {"daisy": 0.00012, "rose": 0.9, "tulip": 0.09988}
SHOWN = "  rose  0.90000\n  tulip 0.09988\n  daisy 0.00012\n"


class Service:
    """Stands for the container: answers every event with `status` and `body`, and keeps it.

    The first answer is `slow` seconds late, and the first `cut` break off. Its port is its own from
    the start, and refuses connections until the context is entered.
    """

    def __init__(self, body, status=200, slow=0, cut=0):
        self.events, self.types = [], []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                received = self.rfile.read(int(self.headers["Content-Length"]))
                service.events.append((self.path, json.loads(received)))
                service.types.append(self.headers["Content-Type"])
                time.sleep(slow if len(service.events) == 1 else 0)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                breaks_off = len(service.events) <= cut
                self.send_header("Content-Length", str(len(data) + 100 * breaks_off))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server.server_bind()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}{PATH}"

    def __enter__(self):
        self.server.server_activate()
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def run(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "docker_test.py", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def ask(body, *arguments, status=200):
    """Return docker_test.py's finished process and the events that its service got."""
    with Service(body, status) as service:
        return run("--endpoint", service.endpoint, *arguments), service.events


def sentence(process):
    """Return the one line on standard error of a run that must have failed with exit code 1."""
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert line.startswith("docker_test.py: Expected ")
    return line


def test_scores_are_printed_the_highest_first():
    url = "https://example.com/a.jpg"
    process, events = ask(SCORES, "--url", url)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == f"{url}: rose\n{SHOWN}"
    assert events == [(PATH, {"url": url})]


def test_a_file_is_sent_along(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 bytes")
    process, events = ask(SCORES, "--file", tmp_path / "a.jpg", "--expect", "rose")
    assert process.returncode == 0
    assert process.stdout == f"{tmp_path / 'a.jpg'}: rose\n{SHOWN}"
    [(_, event)] = events
    assert list(event) == ["image"]
    process, _ = ask({"daisy": 0.8, "rose": 0.2}, "--file", tmp_path / "a.jpg")
    assert process.returncode == 0, "any label will do"
    assert base64.b64decode(event["image"]) == b"\xff\xd8 bytes"


def test_the_default_image_is_wikimedias_rose():
    process, events = ask(SCORES)
    assert process.returncode == 0
    address = "https://upload.wikimedia.org/wikipedia/commons/5/51/Small_Red_Rose.JPG"
    assert events == [(PATH, {"url": address})]
    process, _ = ask({"daisy": 0.8, "rose": 0.2})
    assert "Expected the label rose. Received: daisy." in sentence(process)


def test_of_another_image_any_label_will_do():
    process, events = ask({"daisy": 0.8, "rose": 0.2}, "--url", "HTTPS://example.com/Rose.jpg")
    assert (process.returncode, process.stderr) == (0, "")
    assert events == [(PATH, {"url": "HTTPS://example.com/Rose.jpg"})]


DETAILS = {
    "label": "rose",
    "scores": SCORES,
    "known": 0.0015,
    "unknown": True,
    "prediction_set": ["rose", "tulip"],
    "heatmap": {"rows": 2, "columns": 3, "values": [0, 0.5, 1.0, 0.0, 0.13, 0.9]},
}


def test_details_are_asked_for_and_printed():
    process, events = ask(DETAILS, "--details", "--url", "https://example.com/a.jpg")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == (
        f"https://example.com/a.jpg: rose\n{SHOWN}"
        "  known: 0.0015\n"
        "  unknown: yes\n"
        "  prediction set: rose, tulip\n"
        "  heat map: from . to @\n"
        "    . + @\n"
        "    . : %\n"
    )
    assert events == [(PATH, {"url": "https://example.com/a.jpg", "details": True})]


def test_what_a_model_does_not_tell_is_said():
    nothing = dict.fromkeys(("known", "unknown", "prediction_set", "heatmap"))
    process, _ = ask(DETAILS | nothing, "--details")
    assert process.returncode == 0
    assert process.stdout.endswith(
        "".join(
            f"  {name}: the model does not tell\n"
            for name in ("known", "unknown", "prediction set", "heat map")
        )
    )


def test_the_label_counts_even_if_the_image_is_unknown():
    process, _ = ask(DETAILS, "--details", "--expect", "tulip")
    assert "Expected the label tulip. Received: rose." in sentence(process)


def test_a_service_without_details_is_told_from_others():
    process, _ = ask(SCORES, "--details")
    assert "Received: scores only, as before there were details." in sentence(process)


@pytest.mark.parametrize(
    "changed",
    [
        {"scores": None},
        {"scores": {}},
        {"prediction_set": [1]},
        {"prediction_set": 7},
        {"heatmap": {"rows": 1}},
        {"heatmap": [1]},
        {"heatmap": {"rows": 1, "columns": 1, "values": [7]}},
        {"heatmap": {"rows": 1, "columns": 1, "values": ["hot"]}},
        {"heatmap": {"rows": 1, "columns": 1, "values": [float("inf")]}},
        {"heatmap": {"rows": "1", "columns": 1, "values": []}},
    ],
    ids=lambda changed: re.sub(r"[^\w]+", " ", str(changed)).strip(),
)
def test_anything_but_details_fails(changed):
    process, _ = ask(DETAILS | changed, "--details")
    assert sentence(process).endswith("Check --endpoint.")
    process, _ = ask([DETAILS], "--details")
    sentence(process)


@pytest.mark.parametrize("scores", [{"rose": 1, "tulip": 0}, {"error": 0.75, "rose": 0.25}])
def test_whole_numbers_are_scores_and_error_is_a_label_like_others(scores):
    process, _ = ask(scores, "--url", "https://example.com/a.jpg")
    assert process.returncode == 0
    assert process.stdout.startswith(f"https://example.com/a.jpg: {next(iter(scores))}\n")


def test_events_are_sent_as_json():
    with Service(SCORES) as service:
        assert run("--endpoint", service.endpoint).returncode == 0
    assert service.types == ["application/json"]


def test_by_default_it_asks_where_make_run_serves():
    command = [sys.executable, ROOT / "docker_test.py", "--help"]
    wide = os.environ | {"COLUMNS": "200"}
    shown = subprocess.run(command, env=wide, capture_output=True, text=True, check=True).stdout
    assert f"[http://localhost:8080{PATH}]" in shown


def test_another_label_than_expected_fails():
    process, _ = ask(SCORES, "--url", "https://example.com/a.jpg", "--expect", "daisy")
    assert process.stdout.endswith(SHOWN)
    assert sentence(process).endswith("Expected the label daisy. Received: rose.")
    process, _ = ask(SCORES, "--expect", "dasiy")
    assert sentence(process).endswith("rose, and the classes are daisy, rose, tulip.")


@pytest.mark.parametrize(
    ("body", "received"),
    [
        (
            {"error": {"type": "FetchError", "message": "Expected a host. Received: none."}},
            "Received: FetchError: Expected a host. Received: none.",
        ),
        (
            {"errorMessage": "bad luck", "errorType": "Runtime.Exit", "stackTrace": ["line 1"]},
            "Received: Runtime.Exit: bad luck. See the container's log.",
        ),
        (b"Task timed out after 3.00 seconds", "Received: Task timed out after 3.00 seconds."),
        (b"", "Received: nothing."),
        (b"\xff\xfe", "Received: "),
        ([0.1, 0.9], "Received: [0.1, 0.9]."),
        ({}, "Received: {}."),
        ({"rose": "high"}, 'Received: {"rose": "high"}.'),
        ({"rose": float("nan")}, 'Received: {"rose": NaN}.'),
        ({"rose": True}, 'Received: {"rose": true}.'),
        ({"rose": None}, 'Received: {"rose": null}.'),
        ({"error": {"code": 5}}, 'Received: {"error": {"code": 5}}. Check --endpoint.'),
        ({"error": "bad luck"}, 'Received: {"error": "bad luck"}. Check --endpoint.'),
        (b"x" * 1000, f"Received: {'x' * 200}. Check --endpoint."),
    ],
)
def test_anything_but_scores_fails(body, received):
    process, _ = ask(body)
    assert received in sentence(process)
    assert "line 1" not in process.stderr
    assert process.stdout == ""


def test_the_body_of_an_error_status_is_shown():
    process, _ = ask(b"no such page", status=404)
    assert "Received: no such page." in sentence(process)


def test_it_waits_for_a_service_that_comes_up_late():
    service = Service(SCORES)
    with subprocess.Popen(
        [sys.executable, ROOT / "docker_test.py", "--endpoint", service.endpoint],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr.readline() == f"Waiting for {service.endpoint} ...\n"
        with service:
            _, error = process.communicate()
    assert (process.returncode, error) == (0, "")


def test_it_waits_while_connections_are_dropped():
    # What Docker's proxy does until something listens in the container.
    with Service(SCORES) as service:
        answers = iter([False, False, False])
        service.server.verify_request = lambda *_: next(answers, True)
        process = run("--endpoint", service.endpoint)
    assert (process.returncode, process.stderr) == (0, f"Waiting for {service.endpoint} ...\n")
    assert len(service.events) == 1


def test_it_waits_while_answers_break_off():
    with Service(SCORES, cut=2) as service:
        process = run("--endpoint", service.endpoint)
    assert (process.returncode, process.stderr) == (0, f"Waiting for {service.endpoint} ...\n")
    assert len(service.events) == 3


def test_a_service_that_never_answers_is_given_up():
    code = "import docker_test, sys; docker_test.ANSWER_TIMEOUT = 0.3; "
    code += "sys.exit(docker_test.main(sys.argv[1:]))"
    with Service(SCORES, slow=3) as service:
        command = [sys.executable, "-c", code, "--endpoint", service.endpoint]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    line = sentence(process)
    assert f"Expected an answer from {service.endpoint}. Received: none within 0.3 seconds." in line


def test_a_second_is_told_in_the_singular():
    service = Service(SCORES)
    service.server.server_close()
    process = run("--endpoint", service.endpoint, "--wait", 1)
    assert f"Expected a service at {service.endpoint} within 1 second. " in process.stderr


@pytest.mark.parametrize("wait", ["nan", "inf", "-1", "soon"])
def test_a_time_that_is_none_is_refused(wait):
    process = run("--wait", wait)
    assert process.returncode == 2
    assert "argument --wait: " in process.stderr
    assert wait in process.stderr.splitlines()[-1]


def test_a_tilde_is_ones_home(tmp_path):
    (tmp_path / "rose.jpg").write_bytes(b"image")
    with Service(SCORES) as service:
        command = [sys.executable, ROOT / "docker_test.py", "--endpoint", service.endpoint]
        process = subprocess.run(
            [*command, "--file=~/rose.jpg"],
            env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
    assert process.returncode == 0, process.stderr


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(path)).write_bytes(b"image")
    with Service({"ros\u00e9": 0.75, "tulip": 0.25}) as service:
        command = [sys.executable, ROOT / "docker_test.py", "--endpoint", service.endpoint]
        process = subprocess.run(
            [*command, "--file", path, "--expect", "tulip"],
            env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
            capture_output=True,
            text=True,
        )
    assert process.stdout.splitlines()[0].endswith("caf\\udce9.jpg: ros\\xe9")
    assert process.stderr == ("docker_test.py: Expected the label tulip. Received: ros\\xe9.\n")


def test_an_answer_nested_deeply_is_no_score():
    process, _ = ask(b'{"a":' * 100_000)
    assert "Received: " in sentence(process)


def test_nobody_there():
    service = Service(SCORES)
    start, endpoint = time.monotonic(), service.endpoint
    process = run("--endpoint", endpoint, "--wait", 0)
    service.server.server_close()
    assert f"Expected a service at {endpoint} within 0 seconds" in sentence(process)
    assert "Received: Connection refused. Start it with `make run`" in process.stderr
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("then", ["drops on", "ends"])
def test_a_dropped_connection_is_told_with_its_probable_reason(then):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"

        def drop():
            for _ in range(1 if then == "ends" else 99):
                with contextlib.suppress(OSError):
                    listener.accept()[0].close()
            listener.close()

        thread = threading.Thread(target=drop, daemon=True)
        thread.start()
        process = run("--endpoint", endpoint, "--wait", 0.5)
    line = process.stderr.splitlines()[-1]
    assert process.returncode == 1
    assert "or the emulator in it has ended" in line
    assert line.endswith("restart it with `make run`.")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>secret", b"\n <html>", b"<?xml a?>"])
def test_the_page_of_another_server_is_not_printed(page):
    process, _ = ask(page, status=404)
    line = sentence(process)
    assert "Received: a web page, so another server listens there. Check --endpoint" in line
    assert "html" not in line


REFUSED = "Received: one that is private. FETCH_ALLOW, set where this runs, allows others."


@pytest.mark.parametrize(
    ("url", "kind", "advice"),
    [
        ("http://localhost:8000/a.jpg", "AddressError", "-e FETCH_ALLOW=host.docker.internal"),
        ("http://127.0.0.1/a.jpg", "FetchError", "--add-host host.docker.internal:host-gateway"),
        ("http://192.168.0.5/a.jpg", "AddressError", 'make run ARGS="-e FETCH_ALLOW=192.168.0.5"'),
        ("https://example.com/a.jpg", "FetchError", None),
        ("http://localhost/a.jpg", "ImageError", None),
        ("http://[localhost/a.jpg", "InvalidRequestError", None),
    ],
)
def test_hosts_that_are_not_public_are_told_with_the_way_to_them(url, kind, advice):
    process, _ = ask({"error": {"type": kind, "message": REFUSED}}, "--url", url)
    line = sentence(process)
    assert (advice in line) if advice else line.endswith(f"{kind}: {REFUSED}")
    assert "--network" not in line, "Docker ignores -p 127.0.0.1 then, so others reach the service"


@pytest.mark.parametrize("host", ["localhost", "192.168.0.5", "example.com"])
def test_what_is_never_allowed_is_told_without_a_way(host):
    """As serving.fetch refuses it."""
    message = "Received: one with a user name or a password. Leave them out."
    error = {"type": "AddressError", "message": message}
    process, _ = ask({"error": error}, "--url", f"http://rose:thorn@{host}/")
    assert sentence(process).endswith(f"AddressError: {message}")


@pytest.mark.parametrize("host", ["a..b", "localhost:port", "local host"])
def test_an_address_that_leads_nowhere_is_not_waited_for(host):
    line = sentence(run("--endpoint", f"http://{host}{PATH}"))
    assert f"Expected an answer from http://{host}{PATH}. Received: " in line
    assert line.endswith("Check --endpoint, and the container's log.")


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    process, _ = ask(SCORES)
    assert process.returncode == 0


def test_a_file_that_is_not_there(tmp_path):
    process = run("--file", tmp_path / "none.jpg", "--wait", 0)
    assert f"Received: {tmp_path / 'none.jpg'} (No such file or directory)." in sentence(process)
    assert "(Is a directory)" in sentence(run("--file", tmp_path, "--wait", 0))


def test_a_file_that_is_too_large_for_lambda(tmp_path):
    fits, too_large = 4_718_000, 4_719_000  # bytes; four thirds of them are about 6 MiB
    (tmp_path / "a.jpg").write_bytes(bytes(fits))
    process, events = ask(SCORES, "--file", tmp_path / "a.jpg")
    assert process.returncode == 0
    assert len(json.dumps(events[0][1])) <= 6 * 1024**2

    (tmp_path / "a.jpg").write_bytes(bytes(too_large))
    line = sentence(run("--file", tmp_path / "a.jpg", "--wait", 0))
    assert re.search(r"Expected at most 4\.7 MB.* Received: \S+a\.jpg with 4\.7 MB\.", line)


@pytest.mark.parametrize(
    "arguments", [("--url", "file:///etc/passwd"), ("--endpoint", "localhost:8080")]
)
def test_addresses_are_http(arguments):
    process = run(*arguments)
    assert process.returncode == 2
    assert "begins with http:// or https://, received: " + arguments[1] in process.stderr


def test_it_imports_no_project_code():
    source = (ROOT / "docker_test.py").read_text()
    modules = {
        name.split(".")[0] for name in re.findall(r"^(?:import|from) (\S+)", source, re.MULTILINE)
    }
    assert modules <= sys.stdlib_module_names
