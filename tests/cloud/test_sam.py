"""AWS's SAM CLI on this machine: it validates and builds the template, and serves its API."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.base_images import ensure_base_image
from tools.container import convert

ROOT = Path(__file__).parent.parent.parent
ROSE = (ROOT / "docs" / "rose.jpg").read_bytes()
SAM = (sys.executable, "-m", "tools.environments", "sam")
IMAGE = "classifyfunction"  # as sam build names it, by the first of the functions
BUILD_S, START_S, REQUEST_S = 300, 60, 60  # seconds


def environment() -> dict[str, str]:
    """Return the environment without an account, so that nothing leaves this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}


def sam(*words: str | Path, seconds: float = BUILD_S) -> str:
    """Return what `sam` prints for `words`."""
    done = subprocess.run(
        [*SAM, *map(str, words)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def docker(*words: str) -> list[str]:
    """Return the lines that Docker prints."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that sam build wrote, while the container image is there."""
    folder = tmp_path_factory.mktemp("sam")
    ensure_base_image("3.13")
    if not list((ROOT / "models").glob("[!.]*.tflite")):
        convert(Path("models"))
    sam("build", "--template-file", "deploy/sam_local.yaml", "--build-dir", folder)
    yield folder
    for image in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", IMAGE):
        for container in docker("ps", "-aq", "--filter", f"ancestor={image}"):
            docker("rm", "--force", container)
        docker("image", "rm", "--force", image)


@pytest.fixture(scope="module")
def api(built: Path) -> Iterator[str]:
    """The URL of sam local start-api."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    with (built / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(*SAM, "local", "start-api", "--template-file", str(built / "template.yaml")),
                *("--host", "127.0.0.1", "--port", port, "--warm-containers", "LAZY"),
            ],
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < end and not listens(int(port)):
            time.sleep(0.3)
        assert listens(int(port)), (built / "log").read_text()
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # ends its containers, too
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    """Return whether a program listens on `port` of this machine."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Return the status and body that answer a request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        answer: Any = urllib.request.urlopen(
            urllib.request.Request(url, body, named), timeout=REQUEST_S
        )
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status, answer.read()


@pytest.mark.parametrize("template", ["template.yaml", "sam_local.yaml"])
def test_sam_validates_the_templates(template: str) -> None:
    found = sam("validate", "--lint", "--template-file", f"deploy/{template}")
    assert f"deploy/{template} is a valid SAM Template" in found.replace("\n", "")


def test_sam_builds_one_image_for_all_functions(built: Path) -> None:
    text = (built / "Stack" / "template.yaml").read_text(encoding="utf-8")
    assert text.count(f"ImageUri: {IMAGE}:ai-edge-litert\n") == 3
    assert "DockerContext: " in text


def test_an_image_is_answered(api: str) -> None:
    status, body = ask(f"{api}/", ROSE, Content_Type="image/jpeg")
    scores = json.loads(body)
    assert (status, max(scores, key=scores.get)) == (200, "rose")


def test_a_form_is_answered(api: str) -> None:
    boundary = uuid.uuid4().hex
    head = 'Content-Disposition: form-data; name="image"; filename="rose.jpg"'
    form = f"--{boundary}\r\n{head}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    form += ROSE + f"\r\n--{boundary}--\r\n".encode()
    status, body = ask(f"{api}/", form, Content_Type=f"multipart/form-data; boundary={boundary}")
    scores = json.loads(body)
    assert (status, max(scores, key=scores.get)) == (200, "rose")


def test_the_page_and_other_paths_are_answered(api: str) -> None:
    status, body = ask(f"{api}/", Accept="text/html")
    assert status == 200
    assert body.startswith(b"<!doctype html>")
    assert json.loads(ask(f"{api}/health")[1])["runtime"] == "ai-edge-litert"
    status, body = ask(f"{api}/a/path")
    assert (status, json.loads(body)["error"]["type"]) == (404, "NotFoundError")
