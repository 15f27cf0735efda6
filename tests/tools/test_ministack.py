"""tools.ministack, in front of programs that only pretend to be MiniStack and Docker."""

import json
import os
import signal
import socket
import sys
import time

import pytest

from tools import ministack
from tools.ministack import TEMPLATE, Cloud, MiniStackError
from tools.signals import undisturbed

SERVER = f"""#!{sys.executable}
import http.server, json, os, pathlib, sys
pathlib.Path(os.environ["TMPDIR"], "environment.json").write_text(json.dumps(dict(os.environ)))
if os.path.exists("ends"):
    sys.exit("no reason")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
address = os.environ["BIND_HOST"], int(os.environ["GATEWAY_PORT"])
http.server.HTTPServer(address, Handler).serve_forever()
"""
# Its containers are the lines of containers.txt; a late one comes while the others are removed.
DOCKER = """#!/bin/sh
echo "$*" >> calls.txt
case "$1" in
    network) cat bridge.json;;
    ps) cat containers.txt;;
    rm) [ -e stuck ] || { : > containers.txt; [ ! -e late.txt ] || mv late.txt containers.txt; };;
esac
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder with a MiniStack, and a Docker whose bridge has the address 127.0.0.1."""
    (tmp_path / "bin").mkdir()
    for name, text in (("docker", DOCKER), ("ministack", SERVER)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bridge.json").write_text('[{"Subnet": "127.0.0.0/24", "Gateway": "127.0.0.1"}]')
    (tmp_path / "containers.txt").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(ministack, "find_program", lambda name: tmp_path / "bin" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(machine, do=lambda server: None):
    """Run MiniStack while `do` does something with it, and return it."""
    with ministack.running(machine / "log") as server:
        do(server)
    return server


def listens(server):
    """Return whether something listens at the URL of `server`."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def test_it_listens_on_the_bridge_only_and_knows_no_account_and_no_proxy(machine, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "real")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "localhost")
    server = run(machine, lambda server: listens(server) or pytest.fail("it does not listen"))
    known = json.loads((machine / "environment.json").read_text())
    assert server.url == f"http://127.0.0.1:{known['GATEWAY_PORT']}"
    assert (known["BIND_HOST"], known["AUTH"]) == ("127.0.0.1", "true")
    assert not [name for name in known if name.startswith("AWS_") or "proxy" in name.lower()]
    assert server.process.returncode is not None
    assert not listens(server)


def test_its_containers_are_removed_also_one_that_comes_late(machine):
    (machine / "containers.txt").write_text("one\ntwo\n")
    (machine / "late.txt").write_text("three\n")
    server = run(machine)
    calls = (machine / "calls.txt").read_text().splitlines()
    label = f"label=ministack.instance={ministack.INSTANCE}:{server.url.rpartition(':')[2]}"
    assert [call for call in calls if call.startswith("rm")] == [
        "rm --force --volumes one two",
        "rm --force --volumes three",
    ]
    assert calls[-1] == f"ps --all --quiet --no-trunc --filter {label}"


def test_containers_that_stay_are_named(machine, monkeypatch):
    (machine / "containers.txt").write_text("one\n")
    (machine / "stuck").touch()
    monkeypatch.setattr(ministack, "REMOVE_SECONDS", 1.0)
    with pytest.raises(MiniStackError, match="by hand: docker rm --force one$"):
        run(machine)


def test_it_ends_whatever_happens_meanwhile(machine):
    servers = []

    def interrupt(server):
        servers.append(server)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(machine, interrupt)
    assert not listens(servers[0])


def test_where_it_was_killed_that_is_the_reason(machine):
    def kill(server):
        os.kill(server.process.pid, signal.SIGKILL)
        raise ConnectionResetError  # before it has ended

    with pytest.raises(MiniStackError, match=r"Received: it ended \(SIGKILL\). Its output is in"):
        run(machine, kill)


def test_where_it_does_not_start_that_is_said(machine):
    (machine / "ends").touch()
    with pytest.raises(MiniStackError, match=r"Received: it ended \(exit code 1\). Its output"):
        run(machine)
    assert (machine / "log").read_text() == "no reason\n"


def test_what_it_refuses_is_a_sentence(machine):
    def refuse(server):
        ministack.make_client(server.url, "sqs").list_queues()  # answered by no XML and no JSON

    with pytest.raises(MiniStackError, match="Expected MiniStack to do as AWS. Received: "):
        run(machine, refuse)


def test_a_port_that_is_taken_is_refused(machine):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(MiniStackError, match=f"port: make cloud PORT={port + 1}$"):
            run_on(machine, port)


def run_on(machine, port):
    with ministack.running(machine / "log", port):
        pytest.fail("it started")


@pytest.mark.parametrize(
    ("bridge", "sentence"),
    [
        ('[{"Subnet": "203.0.113.0/24"}]', "Expected Docker's bridge, 203.0.113.1, to be an addr"),
        ("[]", "Expected Docker's network bridge. Received: none."),
        ("", "Expected Docker's network bridge. Received: none."),
    ],
)
def test_without_a_bridge_of_this_machine_it_does_not_start(machine, bridge, sentence):
    (machine / "bridge.json").write_text(bridge)
    with pytest.raises(MiniStackError, match=sentence):
        run(machine)


def test_ctrl_c_does_not_disturb_what_has_to_be_done():
    former = signal.getsignal(signal.SIGINT)
    with undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is former


def test_waiting_ends():
    started = time.monotonic()
    with pytest.raises(MiniStackError, match="Expected a dog within 1 second. Received: nothing"):
        ministack.wait_until(lambda: None, "a dog", 1)
    assert time.monotonic() - started < 5
    assert ministack.wait_until(lambda: 3, "a dog", 1) == 3


def test_the_template_is_adapted_with_its_own_numbers():
    template = TEMPLATE.read_text(encoding="utf-8")
    own = ministack.adapt(template, "mine", {})
    assert "    Default: mine\n" in own
    assert "\n            MaxConcurrency: 4\n" in own
    assert "\n            ToleratedFailurePercentage: 5\n" in own
    other = ministack.adapt(template, "mine", {"ToleratedFailurePercent": "50"})
    assert "\n            ToleratedFailurePercentage: 50\n" in other
    same = {line for line in template.splitlines() if line not in own.splitlines()}
    assert len(template.splitlines()) - len(own.splitlines()) < 50 > len(same)


def test_a_template_that_cannot_be_adapted_is_refused():
    with pytest.raises(MiniStackError, match="in deploy/template.yaml. Received: none. Adapt what"):
        ministack.adapt("Resources: {}", "mine", {})


def test_addresses_are_paths_of_ministack():
    outputs = {
        "ApiUrl": "https://abc.execute-api.us-east-1.amazonaws.com/",
        "FunctionUrl": "https://def.lambda-url.us-east-1.on.aws/",
    }
    cloud = Cloud("http://127.0.0.1:1", outputs)
    assert cloud.api == "http://127.0.0.1:1/_aws/execute-api/abc/$default/"
    assert cloud.function_url == "http://127.0.0.1:1/_aws/lambda-url/def/"
