"""New images in the bucket: labels, dead letters, and what the function's role has to allow."""

import json
import re

import pytest

from tests.cloud.roles import containers_of, find_function, without
from tests.cloud.steps import ROSE, delete, list_keys, put, read, read_tags
from tools.container import docker
from tools.ministack import wait_until

LABELS = {"label": "rose", "score": "0.99610", "unknown": "false"}


def label_of(cloud, key):
    """Wait for the label of an image and return it."""
    return wait_until(lambda: read_tags(cloud, key).get("label"), f"a label of {key}")


def send(cloud, *keys):
    """Send the function a batch of the queue's messages about `keys`; return those that failed."""
    records = []
    for key in keys:
        detail = {"bucket": {"name": cloud.bucket}, "object": {"key": key}}
        body = {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}
        record = {"messageId": key, "eventSource": "aws:sqs", "body": json.dumps(body)}
        records.append(record)
    answer = cloud.client("lambda").invoke(
        FunctionName=find_function(cloud, "LabelFunction"),
        Payload=json.dumps({"Records": records}).encode(),
    )
    failures = json.loads(answer["Payload"].read())["batchItemFailures"]
    return [failure["itemIdentifier"] for failure in failures]


def logged_error(cloud, server, key):
    """Return the error that the function's log names for an image."""
    pattern = re.compile(rf'"url": "s3://{cloud.bucket}/{key}", "error": "(\w+)"')

    def find():
        names = containers_of(server, find_function(cloud, "LabelFunction"))
        return pattern.search("".join(docker("logs", name).stdout for name in names))

    return wait_until(find, f"the error of {key} in the log")[1]


@pytest.fixture(scope="module")
def poison(cloud):
    """The key of a new file that is no image."""
    put(cloud, {"poison.jpg": b"no image"})
    return "poison.jpg"


def test_a_poison_image_costs_the_others_of_its_batch_nothing(cloud, poison):
    put(cloud, {"jobs/1.jpg": ROSE, "good.jpg": ROSE})
    assert send(cloud, poison, "good.jpg", "jobs/1.jpg") == [poison]
    assert read_tags(cloud, "good.jpg") == LABELS


def test_a_new_image_gets_tags_and_json_beside_it(cloud):
    key = "new/a b+ü.jpg"
    cloud.client("s3").put_object(Bucket=cloud.bucket, Key=key, Body=ROSE, Tagging="owner=me")
    label_of(cloud, key)
    assert read_tags(cloud, key) == LABELS | {"owner": "me"}
    row = json.loads(read(cloud, f"{key}.json"))
    assert (row["image"], row["label"]) == (f"s3://{cloud.bucket}/{key}", "rose")
    assert row["etag"] == cloud.client("s3").head_object(Bucket=cloud.bucket, Key=key)["ETag"]
    assert list_keys(cloud, "new/") == [key, f"{key}.json"]


def test_an_image_that_is_replaced_is_labelled_again(cloud, drawn):
    put(cloud, {"replaced.jpg": ROSE})
    assert label_of(cloud, "replaced.jpg") == "rose"
    put(cloud, {"replaced.jpg": drawn["daisy-0.jpg"]})
    wait_until(lambda: label_of(cloud, "replaced.jpg") == "daisy", "another label")
    assert json.loads(read(cloud, "replaced.jpg.json"))["label"] == "daisy"


def test_images_of_jobs_are_left_to_the_state_machine(cloud):
    put(cloud, {"jobs/left.jpg": ROSE, "not-left.jpg": ROSE})
    label_of(cloud, "not-left.jpg")
    assert read_tags(cloud, "jobs/left.jpg") == {}
    assert list_keys(cloud, "jobs/left") == ["jobs/left.jpg"]


def test_an_image_that_was_deleted_meanwhile_is_no_failure(cloud):
    assert send(cloud, "deleted.jpg") == []


@pytest.mark.parametrize(
    "action", ["s3:GetObject", "s3:PutObject", "s3:GetObjectTagging", "s3:PutObjectTagging"]
)
def test_without_one_permission_an_image_is_not_labelled(cloud, server, action):
    """So the role has what it needs, and this much of it nothing to spare."""
    key = f"permission-{action[3:]}.jpg"
    put(cloud, {key: ROSE})
    label_of(cloud, key)
    cloud.client("s3").delete_object_tagging(Bucket=cloud.bucket, Key=key)
    delete(cloud, [f"{key}.json"])
    with without(cloud, "LabelFunction", action):
        assert send(cloud, key) == [key]
    assert logged_error(cloud, server, key) in {"PermissionDeniedError", "StoreError"}
    assert "label" not in read_tags(cloud, key)
    assert send(cloud, key) == []
    assert read_tags(cloud, key) == LABELS


def test_only_a_poison_image_is_among_the_dead_letters(cloud, poison):
    """It comes after all others, since it is tried again."""
    queue = cloud.client("sqs")
    [waiting] = [url for url in queue.list_queues()["QueueUrls"] if "-ImageQueue-" in url]
    wait_until(lambda: not count_messages(queue, waiting), "the queue to be empty")
    dead = cloud.outputs["DeadLetterQueue"]
    assert count_messages(queue, dead) == 1
    [message] = queue.receive_message(QueueUrl=dead)["Messages"]
    assert json.loads(message["Body"])["detail"]["object"]["key"] == poison
    assert list_keys(cloud, poison) == [poison]


def count_messages(queue, url):
    """Return how many messages a queue has, those that are being read included."""
    found = queue.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    return sum(int(found[name]) for name in names)
