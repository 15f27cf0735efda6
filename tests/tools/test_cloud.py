"""tools.cloud: what it says, in front of a Docker and a stack that only pretend to be one."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tools import cloud, ministack
from tools.ministack import Cloud

DOCKER = """#!/bin/sh
echo "$*" >> calls.txt
case "$1" in
    version) [ ! -e no-daemon ] || { echo Cannot connect to the daemon. >&2; exit 1; };;
    network) echo '[{"Subnet": "127.0.0.0/24", "Gateway": "127.0.0.1"}]';;
    build) echo Step 1; echo "pull access denied for the base image."; exit 1;;
esac
"""
OUTPUTS = {
    "ApiUrl": "https://abc.execute-api.us-east-1.amazonaws.com/",
    "FunctionUrl": "https://def.lambda-url.us-east-1.on.aws/",
    "ImageBucket": "images",
    "StateMachine": "arn:aws:states:us-east-1:000000000000:stateMachine:flowers-label",
}
STACK = Cloud("http://127.0.0.1:1", OUTPUTS)
ROW = {"image": "s3://images/jobs/a/1.jpg", "label": "rose", "unknown": False, "error": None}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a model, in front of a Docker that cannot pull the base image."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(DOCKER)
    (tmp_path / "bin" / "docker").chmod(0o755)
    (tmp_path / "models" / "empty").mkdir(parents=True)
    (tmp_path / "models" / "xception_fin_15_0.966.tflite").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr("tools.container.ROOT", tmp_path)
    monkeypatch.setattr(cloud, "find_program", lambda name: None)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def call(capfd, *arguments):
    """Return the exit code, the output and the errors of the command."""
    code = cloud.main([*map(str, arguments)])
    return code, *capfd.readouterr()


def test_without_docker_it_says_so(project, capfd, monkeypatch):
    monkeypatch.setenv("PATH", str(project))
    code, printed, errors = call(capfd)
    assert (code, printed) == (1, "")
    assert errors.startswith("tools.cloud: Expected Docker. Received: no such program. Install it")


def test_without_a_daemon_it_says_so(project, capfd):
    (project / "no-daemon").touch()
    code, printed, errors = call(capfd)
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert "Expected a Docker daemon that answers. Received: Cannot connect to the" in errors


def test_without_a_model_it_says_so(project, capfd):
    code, printed, errors = call(capfd, "--models", "models/empty")
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert "Expected a model such as xception_fin_01_0.900.h5 in models/empty" in errors


def test_a_port_that_is_taken_is_refused_before_anything_is_built(project, capfd):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, printed, errors = call(capfd, "--port", port)
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert f"Expected port {port} of 127.0.0.1 to be free" in errors
    assert errors.endswith(f"make cloud PORT={port + 1}\n")


def test_a_base_image_that_cannot_be_had_is_a_sentence(project, capfd):
    code, printed, errors = call(capfd, "--runtime", "openvino")
    model = "models/xception_fin_15_0.966.tflite"
    assert (code, printed) == (1, f"[1/6] Container image: openvino with {model} ... failed\n")
    assert errors == (
        "tools.cloud: Expected docker build to make the image. Received: pull access denied for "
        "the base image. It needs a network for AWS's base image and the packages, unless "
        "Docker's cache has them; all that it printed is in .cache/cloud/build.log.\n"
    )
    assert (project / ".cache/cloud/build.log").read_text().startswith("Step 1\n")
    *_, build, remove = (project / "calls.txt").read_text().splitlines()
    name = re.search(r"-t (flowers-cloud-\d+) ", build)[1]
    named = "--build-arg MODELS=models --build-arg MODEL=xception_fin_15_0.966.tflite"
    assert f"{named} --build-arg RUNTIME=openvino" in build
    assert remove == f"image rm --force {name}"


@pytest.mark.parametrize("flag", ["--runtime=tflite", "--port=0", "--port=x", "extra"])
def test_flags_that_are_wrong_are_refused(project, capsys, flag):
    with pytest.raises(SystemExit):
        cloud.main([flag])
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer", ['{"daisy": 0.9, "rose": 0.1}', "status 500, {}", "[]", "{}", '{"error": {"a": "b"}}']
)
def test_an_answer_that_is_wrong_fails(answer):
    with pytest.raises(cloud.CloudError, match="to say that docs/rose.jpg is a rose. Received: "):
        cloud.require_rose("http://here/", answer)
    cloud.require_rose("http://here/", '{"daisy": 0.1, "rose": 0.9}')


def test_an_answer_with_another_status_fails(http_server, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(cloud.CloudError, match="Received: status 501"):  # it knows GET only
        cloud.classify(http_server({}))


def test_without_an_answer_the_reason_is_told(reserve_port, monkeypatch):
    monkeypatch.chdir(ROOT)
    url = f"http://127.0.0.1:{reserve_port()}/"
    with pytest.raises(cloud.CloudError, match=rf"Expected {url} to say .* Connection refused"):
        cloud.classify(url)


def test_rows_are_counted_and_errors_shown(capsys):
    rows = [ROW, ROW | {"label": "daisy", "unknown": True}, ROW | {"unknown": True}]
    error = {"type": "ImageError", "message": "Expected an image."}
    rows.append({"image": "s3://b/jobs/a/2.jpg", "label": None, "unknown": None, "error": error})
    cloud.print_rows(rows)
    assert capsys.readouterr().out == (
        "      4 rows: 1 daisy, 2 rose; 2 unknown\n      2.jpg: Expected an image.\n"
    )


def test_what_can_be_typed_is_for_this_stack(capsys):
    model = Path("models", "my own", "a_01_0.500.tflite")
    cloud.print_addresses(STACK)
    cloud.print_commands(STACK, model, "openvino")
    printed = capsys.readouterr().out
    assert "Page and API: http://127.0.0.1:1/_aws/execute-api/abc/$default/\n" in printed
    assert "Function URL: http://127.0.0.1:1/_aws/lambda-url/def/\n" in printed
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith("  ")]
    [export] = [words[1:] for words in lines if words[0] == "export"]
    assert dict(word.split("=", 1) for word in export) == ministack.variables(STACK.url)
    [curl] = [words for words in lines if words[0] == "curl"]
    assert curl[-1] == STACK.api
    [predict] = [words[1:] for words in lines if words[0].endswith("python")]
    assert predict[predict.index("--model") + 1] == str(model)  # that of the stack
    done = subprocess.run(
        [sys.executable, *predict, "--shard", "0/2"], cwd=ROOT, capture_output=True, text=True
    )
    assert "--list-only lists all images: leave out --shard" in done.stderr  # all else is right
    [started] = [words for words in lines if "start-execution" in words]
    assert json.loads(started[-1]) == {"job": "mine"}
    assert started[-3] == OUTPUTS["StateMachine"]
