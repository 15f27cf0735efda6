"""MiniStack, a local AWS, and the stack of deploy/template.yaml on it.

MiniStack (pypi.org/project/ministack) has an environment of its own (tools/environments.py), keeps
everything in memory and runs functions as containers of the real image. It listens on the address
of Docker's bridge only, which is what containers reach.
"""

import contextlib
import errno
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from serving.errors import UserError
from tools.container import docker
from tools.environments import find_program
from tools.signals import undisturbed
from training.streams import counted

TEMPLATE = Path(__file__).resolve().parent.parent / "deploy" / "template.yaml"
STACK = "flowers"
REGION = "us-east-1"
KEY = "test"  # and secret, of MiniStack's administrator
INSTANCE = "flower-classifier"  # with the port, what its containers are found by
PATIENCE = 120.0  # seconds to wait for anything
STOP_SECONDS = 10.0  # for MiniStack itself
END_SECONDS = 2.0  # from a connection that breaks to the end of the program
REMOVE_SECONDS = 30.0  # for its containers
# As on Lambda: read-only but for /tmp, no further rights, and the template's memory.
LIKE_LAMBDA = "--read-only --tmpfs /tmp:size=512m -m 1769m --security-opt no-new-privileges"
Found = TypeVar("Found")


class MiniStackError(UserError):
    """MiniStack does not run, or the stack does not work."""


class MiniStack(NamedTuple):
    """A program that runs.

    Attributes:
        url: where it listens.
        process: the program.
        log: file of its output.
    """

    url: str
    process: subprocess.Popen
    log: Path

    def containers(self) -> list[str]:
        """Return the ids of its containers, stopped ones included."""
        label = f"label=ministack.instance={INSTANCE}:{self.url.rpartition(':')[2]}"
        return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", label).stdout.split()

    def require_running(self) -> None:
        """Raise `MiniStackError` if it has ended."""
        code = self.process.poll()
        if code is not None:
            ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise MiniStackError(
                f"Expected MiniStack to go on. Received: it ended ({ended}). Its output is in "
                f"{self.log}."
            )


class Cloud(NamedTuple):
    """The stack.

    Attributes:
        url: where MiniStack listens.
        outputs: of the template, by name.
    """

    url: str
    outputs: dict[str, str]

    def client(self, service: str) -> Any:
        """Return boto3's client of a service."""
        return make_client(self.url, service)

    @property
    def bucket(self) -> str:
        """The bucket of images."""
        return self.outputs["ImageBucket"]

    @property
    def api(self) -> str:
        """The API's address, by path: by name, MiniStack itself answers GET /health."""
        return f"{self.url}/_aws/execute-api/{_first_name(self.outputs['ApiUrl'])}/$default/"

    @property
    def function_url(self) -> str:
        """The Function URL, by path."""
        return f"{self.url}/_aws/lambda-url/{_first_name(self.outputs['FunctionUrl'])}/"


def _first_name(url: str) -> str:
    return url.split("//")[1].partition(".")[0]


@contextlib.contextmanager
def running(log: Path, port: int = 0) -> Generator[MiniStack]:
    """Run MiniStack on `port` of Docker's bridge, 0 for a free one, while the context lasts.

    In the end it is gone, and so are its containers. Its output is in the file `log`.

    Raises:
        MiniStackError: it does not start, or the port is taken.
        EnvironmentsError: it cannot be installed.
    """
    program, host = find_program("ministack"), bridge()
    port = require_port(host, port)
    # In a session of its own: Ctrl-C in a terminal must reach only this process, which ends it.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program],
            env=_settings(host, port, log.parent),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ministack = MiniStack(f"http://{host}:{port}", process, log)

    def started() -> bool:
        ministack.require_running()
        return _answers(f"{ministack.url}/_ministack/health")

    try:
        wait_until(started, "MiniStack to answer")
        yield ministack
    except Exception as error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        ministack.require_running()
        if type(error).__module__.startswith("botocore."):
            raise MiniStackError(
                f"Expected MiniStack to do as AWS. Received: {error} Its output is in {log}."
            ) from error
        raise
    finally:
        with undisturbed():
            _stop(ministack)


def _settings(host: str, port: int, folder: Path) -> dict[str, str]:
    """Return the environment of MiniStack: nothing of a real AWS account, and no proxy."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and "proxy" not in name.lower()
    }
    return own | {
        "BIND_HOST": host,
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOSTNAME": INSTANCE,
        "TMPDIR": str(folder),
        "AUTH": "true",
        "LAMBDA_STRICT": "1",
        "LAMBDA_DOCKER_FLAGS": LIKE_LAMBDA,
        "MINISTACK_DOCKER_TIMEOUT": "60",
    }


def _stop(ministack: MiniStack) -> None:
    """End MiniStack, then remove its containers."""
    ministack.process.terminate()
    try:
        ministack.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        ministack.process.kill()
        ministack.process.wait()
    # Docker may still be making one that was asked for before.
    end = time.monotonic() + REMOVE_SECONDS
    while (left := ministack.containers()) and time.monotonic() < end:
        docker("rm", "--force", "--volumes", *left)
        time.sleep(0.5)
    if left:
        raise MiniStackError(
            f"Expected Docker to remove the containers of MiniStack. Received: {len(left)} are "
            f"left. Remove them by hand: docker rm --force {' '.join(left)}"
        )


def bridge() -> str:
    """Return the address of Docker's bridge on this machine.

    Raises:
        MiniStackError: there is none, as where Docker runs in a virtual machine.
    """
    done = docker("network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}")
    configs = json.loads(done.stdout or "[]")
    if not configs:
        raise MiniStackError(
            "Expected Docker's network bridge. Received: none. Remove bridge from the daemon's "
            "settings, so that it makes its own."
        )
    # Docker 20.10 names no gateway.
    gateway = configs[0].get("Gateway")
    return gateway or str(ipaddress.ip_network(configs[0]["Subnet"])[1])


def require_port(host: str, port: int) -> int:
    """Return `port`, or a free one if it is 0.

    Raises:
        MiniStackError: it is taken, or `host` is no address of this machine.
    """
    try:
        with socket.create_server((host, port)) as listener:
            return listener.getsockname()[1]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MiniStackError(
                f"Expected port {port} of {host} to be free. Received: a program listens on it. "
                f"Stop that, or choose another port: make cloud PORT={port + 1}"
            ) from None
        raise MiniStackError(
            f"Expected Docker's bridge, {host}, to be an address of this machine. Received: "
            f"{error.strerror}. Use Docker on Linux, as root's daemon: no virtual machine, not "
            "rootless."
        ) from None


def make_client(url: str, service: str) -> Any:
    """Return boto3's client of a `service` of MiniStack at `url`."""
    # Imported only here: it takes half a second.
    import boto3
    from botocore.config import Config

    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=KEY,
        aws_secret_access_key=KEY,
        config=Config(read_timeout=PATIENCE, retries={"max_attempts": 0}),
    )


def variables(url: str) -> dict[str, str]:
    """Return the environment in which AWS's programs, and ours, find MiniStack at `url`."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",  # for obstore
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
    }


def deploy(url: str, image: str, parameters: Mapping[str, str] | None = None) -> Cloud:
    """Deploy the template to MiniStack at `url`, with the container image `image`.

    `parameters` are the template's own. A stack that is there already is updated.

    Raises:
        MiniStackError: it was not made.
    """
    stacks, values = make_client(url, "cloudformation"), dict(parameters or {})
    template = adapt(TEMPLATE.read_text(encoding="utf-8"), image, values)
    exists = any(each["StackName"] == STACK for each in stacks.describe_stacks()["Stacks"])
    (stacks.update_stack if exists else stacks.create_stack)(
        StackName=STACK,
        TemplateBody=template,
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in values.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )

    def finished() -> dict | None:
        [stack] = stacks.describe_stacks(StackName=STACK)["Stacks"]
        return None if stack["StackStatus"].endswith("IN_PROGRESS") else stack

    stack = wait_until(finished, "the stack to be deployed")
    if stack["StackStatus"] not in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
        raise MiniStackError(
            f"Expected the stack to be deployed. Received: {stack['StackStatus']}, "
            f"{stack.get('StackStatusReason', 'without a reason')}"
        )
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    return Cloud(url, outputs)


def adapt(template: str, image: str, parameters: Mapping[str, str]) -> str:
    """Return `template` without what MiniStack 1.5 does not do as AWS; tests/deploy has it.

    Raises:
        MiniStackError: `template` has something else in the place of one.
    """

    def number(name: str) -> str:
        default = re.search(rf"^  {name}:\n(?:    .*\n)*?    Default: (\d+)$", template, re.M)
        return parameters.get(name) or (default[1] if default else "")

    changes = {
        # An alias gets the default, not the value given, and the image is a local one.
        r"123456789012\.dkr\.ecr\S+": image,
        r'    AllowedPattern: "\[0-9\]\{12\}.*\n': "",
        # It compares text with a number, and knows no paths to these two.
        "(MaximumConcurrency:) !Ref LabelConcurrency": rf"\1 {number('LabelConcurrency')}",
        r"MaxConcurrencyPath: \$\.concurrency": f"MaxConcurrency: {number('LabelConcurrency')}",
        r"(ToleratedFailurePercentage)Path: \$\.tolerated": (
            rf"\1: {number('ToleratedFailurePercent')}"
        ),
        # Its S3 speaks HTTP, and the policy of the bucket, which it keeps, forbids that.
        r"(METRICS_NAMESPACE: !Ref AWS::StackName)": r'\1\n        AWS_ALLOW_HTTP: "true"',
        r"  ImageBucketPolicy:\n(    .*\n)+": "",
        # It has no metric math.
        r"  UnknownAlarm:\n(    .*\n)+": "",
        # An image that failed comes again after seconds instead of minutes, and only once.
        r"VisibilityTimeout: 360\b": "VisibilityTimeout: 20",
        r"maxReceiveCount: \d+": "maxReceiveCount: 2",
    }
    for pattern, other in changes.items():
        template, count = re.subn(pattern, other, template)
        if not count:
            raise MiniStackError(
                f"Expected {pattern} in deploy/template.yaml. Received: none. Adapt what "
                "tools/ministack.py changes there."
            )
    return template


def start_map(cloud: Cloud, job: str) -> str:
    """Let the state machine label the shards of `job`; return the ARN of the execution."""
    machine = cloud.client("stepfunctions")
    started = machine.start_execution(
        stateMachineArn=cloud.outputs["StateMachine"], input=json.dumps({"job": job})
    )
    return started["executionArn"]


def wait_for_map(cloud: Cloud, execution: str, seconds: float = PATIENCE) -> str:
    """Return how an execution ended, such as SUCCEEDED.

    Raises:
        MiniStackError: it took more than `seconds`.
    """
    machine = cloud.client("stepfunctions")

    def ended() -> str | None:
        status = machine.describe_execution(executionArn=execution)["status"]
        return None if status == "RUNNING" else status

    return wait_until(ended, "the state machine to end", seconds)


def read_rows(cloud: Cloud, job: str) -> list[dict]:
    """Return all rows of results of `job`, in the order of its list."""
    s3, folder = cloud.client("s3"), f"jobs/{job}/results/"
    listed = s3.list_objects_v2(Bucket=cloud.bucket, Prefix=folder).get("Contents", [])
    bodies = [s3.get_object(Bucket=cloud.bucket, Key=each["Key"])["Body"] for each in listed]
    return [json.loads(line) for body in bodies for line in body.read().splitlines()]


def wait_until(find: Callable[[], Found | None], what: str, seconds: float = PATIENCE) -> Found:
    """Return what `find` returns as soon as that is true.

    Raises:
        MiniStackError: that took more than `seconds`.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := find():
            return found
        time.sleep(0.3)
    raise MiniStackError(
        f"Expected {what} within {counted(round(seconds), 'second')}. Received: nothing yet."
    )


def _answers(url: str) -> bool:
    """Return whether something answers at `url`."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return response.status == 200
    except OSError:
        return False
