"""What fixtures and tests of the stack on this machine have in common."""

import ipaddress
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
IMAGE = "flowers-test-cloud"
KEY, REGION = "test", "us-east-1"
SECONDS = 60
# What MiniStack 1.5 does not do as AWS: {in the template: instead}. tests/deploy has rules for it.
INSTEAD = {
    # The default is what an alias gets, not the value given, and the image is a local one.
    r"123456789012\.dkr\.ecr\S+": IMAGE,
    r'    AllowedPattern: "\[0-9\]\{12\}.*\n': "",
    # It compares the text of a parameter with a number.
    "MaximumConcurrency: !Ref LabelConcurrency": "MaximumConcurrency: 4",
    # Its S3 speaks HTTP, and the policy of the bucket, which it keeps, forbids that.
    r"(METRICS_NAMESPACE: !Ref AWS::StackName)": r'\1\n        AWS_ALLOW_HTTP: "true"',
    r"  ImageBucketPolicy:\n(    .*\n)+": "",
    # It has no metric math.
    r"  UnknownAlarm:\n(    .*\n)+": "",
    # Seconds instead of minutes until a poison image comes again.
    "VisibilityTimeout: 360": "VisibilityTimeout: 5",
}


class Cloud(NamedTuple):
    """Where MiniStack is, and what the template says of the stack."""

    url: str
    outputs: dict[str, str]

    def client(self, name: str) -> Any:
        """Return boto3's client of a service."""
        return client(self.url, name)

    @property
    def bucket(self) -> str:
        """The bucket of images."""
        return self.outputs["ImageBucket"]

    @property
    def api(self) -> str:
        """The API's address. By path: MiniStack itself answers GET /health by name."""
        number = self.outputs["ApiUrl"].split("//")[1].split(".")[0]
        return f"{self.url}/_aws/execute-api/{number}/$default"


def client(url: str, name: str) -> Any:
    """Return boto3's client of a service of MiniStack at `url`."""
    import boto3
    from botocore.config import Config

    config = Config(read_timeout=SECONDS, retries={"max_attempts": 0})
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": KEY}
    return boto3.client(name, endpoint_url=url, region_name=REGION, config=config, **keys)


def until(find: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Return what `find` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := find():
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s")


def bridge() -> str:
    """Return the address of Docker's bridge, which containers reach and no other machine."""
    command = ["docker", "network", "inspect", "bridge", "-f", "{{json .IPAM.Config}}"]
    [config] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    # Docker 20.10 names no gateway.
    return config.get("Gateway") or str(ipaddress.ip_network(config["Subnet"])[1])


def adapt(template: str) -> str:
    """Return `template` as MiniStack can run it."""
    for pattern, other in INSTEAD.items():
        template, count = re.subn(pattern, other, template)
        assert count, pattern
    return template


def answers(url: str) -> bool:
    """Return whether something answers at `url`."""
    try:
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False
