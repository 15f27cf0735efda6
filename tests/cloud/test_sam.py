"""AWS's SAM CLI on this machine: it validates, builds, serves and deploys the template."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.container.base_images import ensure_base_image
from tools import deploy, ministack
from tools.container import convert
from tools.ministack import MiniStack

ROOT = Path(__file__).parent.parent.parent
ROSE = (ROOT / "docs" / "rose.jpg").read_bytes()
SAM = (sys.executable, "-m", "tools.environments", "sam")
IMAGE = "classifyfunction"  # as sam build names it, by the first of the functions
STACK = "by-sam"
BUILD_S, START_S, REQUEST_S = 300, 60, 60  # seconds


def environment() -> dict[str, str]:
    """Return the environment without an account, so that nothing leaves this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": ministack.REGION}


def run_sam(
    *words: str | Path, account: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Return the finished process of `sam` with `words`, for an `account` if there is one."""
    return subprocess.run(
        [*SAM, *map(str, words)],
        cwd=ROOT,
        env=environment() | dict(account or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_S,
    )


def sam(*words: str | Path, account: Mapping[str, str] | None = None) -> str:
    """Return what `sam` prints for `words`; it has to succeed."""
    done = run_sam(*words, account=account)
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


@pytest.fixture
def by_sam(server: MiniStack) -> Iterator[dict[str, str]]:
    """The environment of a local account; the stack `STACK` is removed from it."""
    account = ministack.variables(server.url)
    yield account
    where = ("--stack-name", STACK, "--region", ministack.REGION)
    sam("delete", *where, "--no-prompts", account=account)


def deploy_words(
    template: Path, image: str, capsys: pytest.CaptureFixture, *more: str
) -> list[str]:
    """Return the words behind sam that make deploy prints, for another `template` and `image`."""
    where = ("--stack", STACK, "--region", ministack.REGION)
    assert deploy.main(["up", "--dry-run", *where, *more]) == 0
    printed = capsys.readouterr().out.splitlines()
    [words] = [shlex.split(line)[2:] for line in printed if line.startswith("$ sam deploy ")]
    words[words.index(deploy.TEMPLATE)] = str(template)
    return [f"ImageUri={image}" if word.startswith("ImageUri=") else word for word in words]


def test_the_command_of_make_deploy_deploys(
    image: str, server: MiniStack, by_sam: dict[str, str], tmp_path: Path, capsys
) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(ministack.adapt(ministack.TEMPLATE.read_text(encoding="utf-8"), image, {}))
    words = deploy_words(template, image, capsys)
    assert "Successfully created/updated stack" in sam(*words, account=by_sam)
    stacks = ministack.make_client(server.url, "cloudformation")
    [stack] = stacks.describe_stacks(StackName=STACK)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    status, body = ask(ministack.Cloud(server.url, outputs).api + "health")
    assert (status, json.loads(body)["status"]) == (200, "ready")
    # Functions that are kept started are of the same version, which AWS would refuse to publish.
    kept = deploy_words(template, image, capsys, "--set", "StartFrom=provisioned")
    changes = sam(*kept, account=by_sam).partition("CloudFormation events")[0]
    assert "ClassifyFunctionAlias" in changes
    assert "ClassifyFunctionVersi" not in changes
