"""Sets tags of an object in Amazon S3, beside those that it has.

obstore, which reads and writes objects (serving/stores.py), sets tags only while it writes one. To
write the image again would be another new image, whose event would come back to this function. So
these two requests are signed here, by AWS's Signature Version 4: boto3 would add 33 MB to the
container image, and half a second to its start.
"""

import hashlib
import hmac
import os
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import urllib3

from serving.errors import StoreError

MAX_TAGS = 10  # of an object
MAX_VALUE = 256  # characters
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # environment variables; usually unset
RETRIES = urllib3.Retry(
    3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504), allowed_methods=None, redirect=0
)
TIMEOUT = urllib3.Timeout(connect=3, read=5)  # seconds
_ALLOWED = " +-=._:/@"  # in a tag, besides letters and digits
_POOL = urllib3.PoolManager(retries=RETRIES, timeout=TIMEOUT)


def add_tags(bucket: str, key: str, tags: Mapping[str, str]) -> bool:
    """Give an object `tags`, and return whether it has them.

    Its other tags stay. If these leave no room for `tags`, nothing is changed.

    Raises:
        StoreError: S3 does not answer, or refuses.
    """
    body = _request("GET", bucket, key)
    found = {}
    for tag in ElementTree.fromstring(body).iter():  # noqa: S314 - S3 itself wrote it
        if tag.tag.rpartition("}")[2] == "Tag":
            parts = {part.tag.rpartition("}")[2]: part.text or "" for part in tag}
            found[parts["Key"]] = parts["Value"]
    merged = found | {name: tag_value(value) for name, value in tags.items()}
    if len(merged) > MAX_TAGS:
        return False
    if merged != found:
        _request("PUT", bucket, key, _to_xml(merged))
    return True


def close_connections() -> None:
    """Close the connections to S3, which later requests open again."""
    _POOL.clear()


def tag_value(text: str) -> str:
    """Return `text` with underscores in place of what S3 takes in no tag."""
    kept = (c if c.isalnum() or c in _ALLOWED else "_" for c in text)
    return "".join(kept)[:MAX_VALUE]


def sign(
    method: str, url: str, headers: Mapping[str, str], body: bytes, region: str, when: datetime
) -> dict[str, str]:
    """Return `headers` and those that sign the request, for the credentials in the environment.

    `url` is encoded as S3 wants it, its query sorted.
    """
    parts = urlsplit(url)
    digest, stamp = hashlib.sha256(body).hexdigest(), when.strftime("%Y%m%dT%H%M%SZ")
    signed = {"host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    signed |= {name.lower(): value for name, value in headers.items()}
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        signed["x-amz-security-token"] = token
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name].strip()}\n" for name in sorted(signed))
    request = "\n".join((method, parts.path, parts.query, lines, names, digest))
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    hashed = hashlib.sha256(request.encode()).hexdigest()
    secret = f"AWS4{os.environ['AWS_SECRET_ACCESS_KEY']}".encode()
    for word in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashed}"):
        secret = hmac.digest(secret, word.encode(), "sha256")
    return signed | {
        "authorization": "AWS4-HMAC-SHA256 "
        f"Credential={os.environ['AWS_ACCESS_KEY_ID']}/{scope},"
        f"SignedHeaders={names},Signature={secret.hex()}"
    }


def _request(method: str, bucket: str, key: str, body: bytes = b"") -> bytes:
    """Return the answer to a request for the tags of an object."""
    region = os.environ["AWS_REGION"]
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    endpoint = next(filter(None, map(os.environ.get, ENDPOINTS)), f"https://s3.{region}.{suffix}")
    url = f"{endpoint.rstrip('/')}/{bucket}/{quote(key, safe='/-_.~')}?tagging="
    # S3 wants MD5 of what changes tags, against errors on the way.
    md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    headers = {"content-md5": md5} if body else {}
    signed = sign(method, url, headers, body, region, datetime.now(UTC))
    try:
        response = _POOL.request(method, url, body=body or None, headers=signed)
    except urllib3.exceptions.HTTPError as error:
        raise _failed(bucket, key, type(error).__name__) from None
    if response.status not in (200, 204):
        raise _failed(bucket, key, f"status {response.status}")
    return response.data


def _to_xml(tags: Mapping[str, str]) -> bytes:
    root = ElementTree.Element("Tagging", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
    parent = ElementTree.SubElement(root, "TagSet")
    for name, value in tags.items():
        tag = ElementTree.SubElement(parent, "Tag")
        ElementTree.SubElement(tag, "Key").text = name
        ElementTree.SubElement(tag, "Value").text = value
    return ElementTree.tostring(root)


def _failed(bucket: str, key: str, received: str) -> StoreError:
    return StoreError(
        f"Expected to tag s3://{bucket}/{key}. Received: {received}. Let the function's role read "
        "and set tags (s3:GetObjectTagging, s3:PutObjectTagging)."
    )
