"""The stack of deploy/template.yaml on this machine: MiniStack, with IAM on, and the real image.

Run by `TEST_CLOUD=1 python -m pytest tests/cloud`, not by `make test`: it needs Docker, packages
that are not in the lock (PACKAGES below) and AWS's base image or its stand-in. Everything listens
on the address of Docker's bridge only and is stopped by its process id.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.cloud.stack import IMAGE, ROOT, Cloud, adapt, answers, bridge, client, until

PACKAGES = ("ministack==1.5.33", "aws-sam-translator==1.115.0", "docker==7.2.0", "boto3")
collect_ignore_glob = [] if os.environ.get("TEST_CLOUD") else ["test_*.py"]


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL, while it runs."""
    if find_spec("ministack") is None:
        pytest.fail(f"Expected {' '.join(PACKAGES)}. Install them beside the locked packages.")
    folder, host = tmp_path_factory.mktemp("ministack"), bridge()
    with socket.socket() as listener:
        listener.bind((host, 0))
        port = listener.getsockname()[1]
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and "proxy" not in name.lower()
    }
    environment = kept | {
        "BIND_HOST": host,
        "GATEWAY_PORT": str(port),
        "TMPDIR": str(folder),
        "AUTH": "true",
        "LAMBDA_STRICT": "1",
        "MINISTACK_DOCKER_TIMEOUT": "60",
        "LAMBDA_DOCKER_FLAGS": "--read-only --tmpfs /tmp:size=512m -m 1769m",
    }
    url = f"http://{host}:{port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, stdout=log, stderr=log
        )
    try:
        until(lambda: process.poll() is not None or answers(f"{url}/_ministack/health"), 30)
        assert process.poll() is None, (folder / "log").read_text()
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # A queue that tries again may have started one while MiniStack ended.
        label = f"label=ministack.instance={socket.gethostname()}:{port}"
        left = subprocess.run(["docker", "ps", "-aq", "--filter", label], capture_output=True)
        if numbers := left.stdout.decode().split():
            subprocess.run(["docker", "rm", "--force", *numbers], capture_output=True)


@pytest.fixture(scope="session")
def cloud(ministack: str) -> Iterator[Cloud]:
    """The stack, deployed."""
    build = ("docker", "build", "-q", "--build-arg", "RUNTIME=ai-edge-litert", "-t", IMAGE, ".")
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    body = adapt((ROOT / "deploy" / "template.yaml").read_text(encoding="utf-8"))
    stacks = client(ministack, "cloudformation")
    able = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
    stacks.create_stack(StackName="flowers", TemplateBody=body, Capabilities=able)

    def finished() -> dict | None:
        [stack] = stacks.describe_stacks(StackName="flowers")["Stacks"]
        return None if stack["StackStatus"].endswith("_IN_PROGRESS") else stack

    stack = until(finished)
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack.get("StackStatusReason")
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    yield Cloud(ministack, outputs)
    subprocess.run(["docker", "image", "rm", "--force", IMAGE], capture_output=True)
