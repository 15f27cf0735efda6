"""What a person does with the stack."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tools.ministack import KEY, PATIENCE, REGION, Cloud, variables

ROOT = Path(__file__).parent.parent.parent
ROSE = ROOT / "docs" / "rose.jpg"
JPEG = {"Content-Type": "image/jpeg"}


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Return the status and body of the answer at `url`, to a POST of `data` if there is some."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask_signed(service: str, url: str, data: bytes) -> tuple[int, bytes]:
    """Return the answer to a POST of a JPEG that is signed for `service` as AWS's SDKs do it."""
    request = AWSRequest("POST", url, data=data, headers=JPEG)
    SigV4Auth(Credentials(KEY, KEY), service, REGION).add_auth(request)
    return ask(url, data, **dict(request.headers))


def put(cloud: Cloud, files: Mapping[str, bytes]) -> None:
    """Put `files` by their keys into the bucket."""
    s3 = cloud.client("s3")
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda key: s3.put_object(Bucket=cloud.bucket, Key=key, Body=files[key]), files
            )
        )


def keys(cloud: Cloud, prefix: str) -> list[str]:
    """Return the sorted keys in the bucket that begin with `prefix`."""
    pages = cloud.client("s3").get_paginator("list_objects_v2")
    listed = pages.paginate(Bucket=cloud.bucket, Prefix=prefix)
    return [each["Key"] for page in listed for each in page.get("Contents", [])]


def read(cloud: Cloud, key: str) -> bytes:
    """Return the content of an object."""
    return cloud.client("s3").get_object(Bucket=cloud.bucket, Key=key)["Body"].read()


def tags(cloud: Cloud, key: str) -> dict[str, str]:
    """Return the tags of an object."""
    found = cloud.client("s3").get_object_tagging(Bucket=cloud.bucket, Key=key)["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in found}


def start_predict(cloud: Cloud, *arguments: str) -> subprocess.Popen:
    """Start predict.py as for the bucket of the stack."""
    import os

    return subprocess.Popen(
        [sys.executable, "predict.py", *arguments],
        cwd=ROOT,
        env=os.environ | variables(cloud.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def json_lines(body: bytes) -> list[dict]:
    """Return the objects of a file of results."""
    return [json.loads(line) for line in body.splitlines()]
