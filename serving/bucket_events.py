"""Labels images of one bucket: those that a queue names as new, and the shards of a large job.

Only where LABEL_BUCKET names that bucket, as deploy/template.yaml does; any other function refuses
these events, as it does those of all other services. Each new image gets tags and, beside it, the
same with .json added to its name: a row as serving/shards.py writes it.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

from serving import events, log
from serving.errors import (
    DeadlineError,
    InvalidRequestError,
    ServingError,
    SettingError,
    StoreError,
)
from serving.events import Request, Source
from serving.fetch import MAX_BYTES, too_large
from serving.log import ImageLog, RequestLog
from serving.service import Service

VARIABLE = "LABEL_BUCKET"
QUEUE, MAP = "Amazon SQS", "AWS Step Functions"
LABELS = ".json"  # ends the names of what is written
JOBS = "jobs/"  # begins the names of what belongs to large jobs
LEAST_S = 2.0  # seconds; with less, an image is left for the next time
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LIST = re.compile(rf"({JOBS}.+)/(lists/[^/]+)/(\d{{5,}})\.jsonl")


class NewImage(NamedTuple):
    """An object of a bucket.

    Attributes:
        bucket: its bucket's name.
        key: its own.
        size: bytes that it has, or None if that is not known.
    """

    bucket: str
    key: str
    size: object

    @property
    def address(self) -> str:
        """Its address."""
        return f"s3://{self.bucket}/{self.key}"


def read_bucket() -> str:
    """Return the bucket whose images are labelled; "" for none.

    Raises:
        SettingError: LABEL_BUCKET is not the name of a bucket.
    """
    bucket = os.environ.get(VARIABLE, "").strip()
    if bucket and not _BUCKET.fullmatch(bucket):
        raise SettingError(
            f"Expected {VARIABLE} to be the name of a bucket. Received: {bucket!r}. "
            "Correct or unset it."
        )
    return bucket


def find_sender(event: object) -> str | None:
    """Return which service sent `event` to be labelled: `QUEUE`, `MAP`, or None for neither."""
    if not isinstance(event, dict) or events.named_keys(event):
        return None
    if isinstance(event.get("list"), str) and _LIST.fullmatch(event["list"]):
        return MAP
    records = event.get("Records")
    if not isinstance(records, list) or not records:
        return None
    ours = (isinstance(r, dict) and r.get("eventSource") == "aws:sqs" for r in records)
    return QUEUE if all(ours) else None


def answer(event: Any, service: Service, bucket: str, deadline: float, line: RequestLog) -> dict:
    """Label what `event` names in `bucket`, until `deadline` (of time.monotonic), and note it.

    Of a queue's messages, returns those that failed, which come again and end among the dead
    letters; the others are done.

    Raises:
        StoreError: a shard cannot be labelled.
    """
    if line.event == MAP:
        return label_list(event["list"], service, bucket, deadline)
    failed = [
        {"itemIdentifier": record.get("messageId")}
        for record in event["Records"]
        if not _label_message(record, service, bucket, deadline, line)
    ]
    return {"batchItemFailures": failed}


def label_list(key: str, service: Service, bucket: str, deadline: float) -> dict:
    """Label the shard of a large job that the object `key` lists, unless it is labelled.

    Raises:
        StoreError: there is no such job, it is for another model or runtime, its bucket fails, or
            it cannot be done before `deadline` (of time.monotonic).
    """
    from serving import stores  # as in `_label`
    from serving.shards import Labeler, Manifest, label_shard, read_shard

    found = _LIST.fullmatch(key)
    job, lists, number = found.groups() if found else ("", "", "0")
    store = stores.open_store(f"s3://{bucket}/{job}")
    manifest = Manifest.read(store)
    if manifest is None or manifest.lists != lists:
        raise StoreError(
            f"Expected {key} to belong to the job s3://{bucket}/{job}. Received: a list that its "
            "manifest does not name. Remove what an unfinished start left there."
        )
    if manifest.model_digest != service.classifier.digest:
        raise StoreError(
            f"Expected a job of the model {service.name}, which is deployed. Received: one of "
            f"{manifest.model}, another file. Deploy that, or start a new job."
        )
    runtime = service.classifier.runtime
    if manifest.runtime != runtime:  # a job's rows would differ by who wrote them
        raise StoreError(
            f"Expected a job for the runtime {runtime}, which is deployed. Received: one for "
            f"{manifest.runtime}, which rounds differently. Start a new job with python predict.py "
            f"--list-only --runtime {runtime}, or run make deploy RUNTIME={manifest.runtime}"
        )
    labeler = Labeler(service.classifier, service.decoder, manifest.unknown_below)
    shard = read_shard(store, manifest, int(number))
    counts = label_shard(labeler, shard, deadline=deadline)
    return {"labelled": counts is not None} | (counts._asdict() if counts else {})


def _label_message(
    record: dict, service: Service, bucket: str, deadline: float, line: RequestLog
) -> bool:
    """Return whether all images of a queue's message are labelled; note them in `line`."""
    try:
        images = list(_new_images(record.get("body")))
    except InvalidRequestError as error:
        noted = [ImageLog(source="s3", error=type(error).__name__)]
    else:
        noted = [
            _label_or_note(image, service, bucket, deadline, line.request_id)
            for image in images
            if not _is_ignored(image)
        ]
    line.images = [*(line.images or []), *noted]
    return all(image.error is None for image in noted)


def _is_ignored(image: NewImage) -> bool:
    """Return whether `image` is what this function wrote, what a job needs, or a folder's mark."""
    is_folder = image.key.endswith("/") and not image.size
    return image.key.endswith(LABELS) or image.key.startswith(JOBS) or is_folder


def _label_or_note(
    image: NewImage, service: Service, bucket: str, deadline: float, request_id: str | None
) -> ImageLog:
    """Label `image` if it is in `bucket`, and return what the log says about it."""
    noted = ImageLog(source="s3", url=image.address[: log.MAX_SHOWN])
    try:
        if image.bucket != bucket:
            raise InvalidRequestError(
                f"Expected images of the bucket {bucket}. Received: {image.address}."
            )
        return _label(image, service, deadline, request_id) or noted
    except ServingError as error:
        noted.error = type(error).__name__
    except Exception as defect:  # the other messages are still labelled
        log.log_exception(request_id, defect)
        noted.error = type(defect).__name__
    return noted


def _new_images(body: object) -> Iterator[NewImage]:
    """Yield the objects that a message names: of EventBridge, or of the bucket itself.

    Raises:
        InvalidRequestError: it is another message.
    """
    try:
        message = json.loads(body)  # ty: ignore[invalid-argument-type]
        if message.get("Event") == "s3:TestEvent":
            return
        if message.get("source") == "aws.s3" and message["detail-type"] == "Object Created":
            name, new = message["detail"]["bucket"]["name"], message["detail"]["object"]
            yield NewImage(name + "", new["key"] + "", new.get("size"))
            return
        for record in message["Records"]:
            name, new = record["s3"]["bucket"]["name"], record["s3"]["object"]
            yield NewImage(name + "", unquote_plus(new["key"]), new.get("size"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidRequestError(
            "Expected a message of Amazon S3 about a new object. Received: another one. "
            "Let only the bucket's rule send to the queue."
        ) from None


def _label(
    image: NewImage, service: Service, deadline: float, request_id: str | None
) -> ImageLog | None:
    """Label `image` and return what the log says about it; None if it was deleted meanwhile.

    Raises:
        ServingError: there is no time left, its key cannot be read, or it is too large.
        StoreError: the bucket fails.
    """
    from serving import stores  # other events do without these and their packages
    from serving.object_tags import add_tags
    from serving.shards import ANSWERED

    if time.monotonic() > deadline - LEAST_S:
        raise DeadlineError("The function's time ran out before this image's turn.")
    root = f"s3://{image.bucket}"
    try:
        found = stores.get_object(root, image.key)
    except FileNotFoundError:
        return None
    if found.meta["size"] > MAX_BYTES:
        raise too_large()
    request = Request((Source(image=found.bytes().to_bytes()),), details=True)
    result = service.classify(request, deadline, request_id)
    [one] = result.images or []
    one.log.source, one.log.url = "s3", image.address[: log.MAX_SHOWN]
    if result.error is not None:
        return one.log
    row: dict[str, Any] = {
        "image": image.address,
        "etag": found.meta["e_tag"],
        "model": service.name,
    }
    body: Any = result.body
    row |= {name: body[name] for name in ANSWERED} | {"error": None}
    attributes = {"Content-Type": "application/json"}
    content = (json.dumps(row) + "\n").encode()
    obstore, store = stores.load_obstore(), stores.connect(root)
    obstore.put(store, image.key + LABELS, content, attributes=attributes, use_multipart=False)
    tags = {"label": row["label"], "score": f"{row['scores'][row['label']]:.5f}"}
    if row["unknown"] is not None:
        tags["unknown"] = str(row["unknown"]).lower()
    if not add_tags(image.bucket, image.key, tags):
        log.write("WARNING", "no room for tags", request_id=request_id, url=one.log.url)
    return one.log
