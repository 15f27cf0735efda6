"""What a person does with the stack."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tools.cloud import list_command
from tools.deploy import RUNTIME
from tools.ministack import KEY, PATIENCE, REGION, Cloud, variables

ROOT = Path(__file__).parent.parent.parent
ROSE = (ROOT / "docs" / "rose.jpg").read_bytes()
JPEG = {"Content-Type": "image/jpeg"}
REWRITTEN = {"by": "test"}


def ask(
    url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Return the status and body of the answer at `url`; it is a POST if there is `data`."""
    request = urllib.request.Request(url, data, dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def post_image(url: str) -> tuple[int, bytes]:
    """Return the answer to a rose."""
    return ask(url, ROSE, JPEG)


def post_signed(url: str, service: str) -> tuple[int, bytes]:
    """Return the answer to a rose in a request that is signed for `service`, as by AWS's SDKs."""
    request = AWSRequest("POST", url, data=ROSE, headers=JPEG)
    SigV4Auth(Credentials(KEY, KEY), service, REGION).add_auth(request)
    return ask(url, ROSE, request.headers)


def best(answer: tuple[int, bytes]) -> str:
    """Return the label with the highest score in an answer."""
    status, body = answer
    assert status == 200, body
    scores = json.loads(body)
    return max(scores, key=scores.get)


def put(cloud: Cloud, files: Mapping[str, bytes]) -> None:
    """Put `files` by their keys into the bucket."""
    s3 = cloud.client("s3")

    def write(key: str) -> None:
        s3.put_object(Bucket=cloud.bucket, Key=key, Body=files[key])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, files))


def delete(cloud: Cloud, keys: Iterable[str]) -> None:
    """Remove objects from the bucket."""
    s3 = cloud.client("s3")
    for key in keys:
        s3.delete_object(Bucket=cloud.bucket, Key=key)


def list_keys(cloud: Cloud, prefix: str) -> list[str]:
    """Return the sorted keys in the bucket that begin with `prefix`."""
    pages = cloud.client("s3").get_paginator("list_objects_v2")
    listed = pages.paginate(Bucket=cloud.bucket, Prefix=prefix)
    return [each["Key"] for page in listed for each in page.get("Contents", [])]


def read(cloud: Cloud, key: str) -> bytes:
    """Return the content of an object."""
    return cloud.client("s3").get_object(Bucket=cloud.bucket, Key=key)["Body"].read()


def read_tags(cloud: Cloud, key: str) -> dict[str, str]:
    """Return the tags of an object."""
    found = cloud.client("s3").get_object_tagging(Bucket=cloud.bucket, Key=key)["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in found}


def start_predict(cloud: Cloud, *arguments: object) -> subprocess.Popen:
    """Start predict.py with the stack's bucket, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | variables(cloud.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def write_job(cloud: Cloud, job: str, files: Mapping[str, bytes], shard_size: int) -> list[str]:
    """Put `files` by their names into a new job, list them with predict.py, return their keys."""
    images = {f"jobs/{job}/images/{name}": content for name, content in files.items()}
    put(cloud, images)
    command = list_command(cloud, job, RUNTIME, "--shard-size", str(shard_size))
    process = start_predict(cloud, *command)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    return sorted(images)


def list_results(cloud: Cloud, job: str) -> list[str]:
    """Return the keys of a job's files of results."""
    return list_keys(cloud, f"jobs/{job}/results/")


def rewrite_results(cloud: Cloud, job: str) -> list[str]:
    """Write each file of results again as it is, noting who did, and return their keys."""
    s3, found = cloud.client("s3"), list_results(cloud, job)
    for key in found:
        body = read(cloud, key)
        s3.put_object(Bucket=cloud.bucket, Key=key, Body=body, Metadata=REWRITTEN)
    return found


def were_rewritten(cloud: Cloud, keys: Iterable[str]) -> bool:
    """Return whether nothing has touched the files of `keys` since `rewrite_results`."""
    s3 = cloud.client("s3")
    heads = [s3.head_object(Bucket=cloud.bucket, Key=key) for key in keys]
    return all(head["Metadata"] == REWRITTEN for head in heads)


def check_rows(cloud: Cloud, rows: Iterable[dict], keys: Iterable[str]) -> None:
    """Fail unless there is one row for each image of a job, in order, which names its flower."""
    found = [(row["image"], row["label"], row["error"]) for row in rows]
    labels = {key: key.rpartition("/")[2].partition("-")[0] for key in keys}
    assert found == [(f"s3://{cloud.bucket}/{k}", labels[k], None) for k in sorted(labels)]
