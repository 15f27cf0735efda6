"""The whole stack, executed: requests, new images, dead letters, a job, and each permission."""

import hashlib
import json
import urllib.error
import urllib.request

import pytest

from tests.cloud.stack import ROOT, until

ROSE = (ROOT / "docs" / "rose.jpg").read_bytes()
MODEL = ROOT / "models" / "xception_fin_15_0.966.tflite"


def http(url, data=None, **headers):
    request = urllib.request.Request(url, data, headers)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status, answer.read()


def tags(cloud, key):
    found = cloud.client("s3").get_object_tagging(Bucket=cloud.bucket, Key=key)["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in found}


def put(cloud, key, body=ROSE, **more):
    cloud.client("s3").put_object(Bucket=cloud.bucket, Key=key, Body=body, **more)


def keys(cloud, prefix):
    listed = cloud.client("s3").list_objects_v2(Bucket=cloud.bucket, Prefix=prefix)
    return [found["Key"] for found in listed.get("Contents", [])]


def test_the_api_answers_an_image(cloud):
    status, body = http(f"{cloud.api}/", ROSE, **{"Content-Type": "image/jpeg"})
    scores = json.loads(body)
    assert (status, max(scores, key=scores.get)) == (200, "rose")


def test_the_api_has_the_page_and_the_health(cloud):
    assert b"<!doctype html>" in http(f"{cloud.api}/", Accept="text/html")[1]
    assert json.loads(http(f"{cloud.api}/health")[1])["status"] == "ready"


def test_wrong_requests_are_answered_by_the_service(cloud):
    assert http(f"{cloud.api}/", b"hello", **{"Content-Type": "text/plain"})[0] in (400, 415)
    status, body = http(f"{cloud.api}/a/path")
    assert (status, json.loads(body)["error"]["type"]) == (404, "NotFoundError")


def test_a_new_image_is_labelled(cloud):
    key = "new/a b+ü.jpg"
    put(cloud, key, Tagging="owner=me")
    until(lambda: "label" in tags(cloud, key))
    found = tags(cloud, key)
    assert (found["owner"], found["label"], found["unknown"]) == ("me", "rose", "false")
    beside = cloud.client("s3").get_object(Bucket=cloud.bucket, Key=f"{key}.json")
    row = json.loads(beside["Body"].read())
    assert (row["label"], row["image"]) == ("rose", f"s3://{cloud.bucket}/{key}")
    assert keys(cloud, "new/") == [key, f"{key}.json"]


def test_a_poison_image_is_set_aside_and_costs_the_others_nothing(cloud):
    put(cloud, "poison.jpg", b"no image")
    put(cloud, "good.jpg")
    until(lambda: "label" in tags(cloud, "good.jpg"))
    queue, messages = cloud.client("sqs"), []

    def dead():
        url = cloud.outputs["DeadLetterQueue"]
        messages.extend(queue.receive_message(QueueUrl=url, WaitTimeSeconds=1).get("Messages", []))
        return messages

    until(dead)
    assert [json.loads(m["Body"])["detail"]["object"]["key"] for m in messages] == ["poison.jpg"]
    assert keys(cloud, "poison") == ["poison.jpg"]


def run_job(cloud, name):
    machine = cloud.client("stepfunctions")
    started = machine.start_execution(
        stateMachineArn=cloud.outputs["StateMachine"], input=json.dumps({"job": name})
    )

    def ended():
        found = machine.describe_execution(executionArn=started["executionArn"])
        return None if found["status"] == "RUNNING" else found["status"]

    return until(ended)


def write_job(cloud, name, images, shard_size):
    """Write what predict.py --out writes."""
    shards = [images[start : start + shard_size] for start in range(0, len(images), shard_size)]
    for number, shard in enumerate(shards):
        lines = "".join(f"{json.dumps(image)}\n" for image in shard)
        put(cloud, f"jobs/{name}/lists/0123/{number:05d}.jsonl", lines.encode())
    digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()[:16]
    facts = {"inputs": [], "inputs_digest": "", "images": len(images), "shards": len(shards)}
    facts |= {"shard_size": shard_size, "lists": "lists/0123", "model": MODEL.name}
    facts |= {"model_digest": digest, "unknown_below": 0.02, "made": ""}
    put(cloud, f"jobs/{name}/manifest.json", json.dumps(facts).encode())


def test_a_job_is_done_once(cloud):
    images = []
    for number in range(40):
        put(cloud, f"jobs/a/images/{number}.jpg", ROSE if number % 20 else b"no image")
        images.append(f"s3://{cloud.bucket}/jobs/a/images/{number}.jpg")
    write_job(cloud, "a", images, shard_size=10)
    s3 = cloud.client("s3")
    contents = []
    for _ in range(2):
        assert run_job(cloud, "a") == "SUCCEEDED"
        results = keys(cloud, "jobs/a/results/")
        found = [s3.get_object(Bucket=cloud.bucket, Key=key) for key in results]
        contents.append([(f["LastModified"], f["Body"].read()) for f in found])
    assert contents[0] == contents[1]
    rows = [json.loads(line) for _, body in contents[0] for line in body.splitlines()]
    assert [row["image"] for row in rows] == images
    assert [row["label"] for row in rows].count("rose") == 38
    assert not keys(cloud, "jobs/a/images/0.jpg.")  # the queue leaves jobs alone


def test_a_job_of_which_no_image_can_be_read_fails(cloud):
    missing = [f"s3://{cloud.bucket}/missing/{number}.jpg" for number in range(4)]
    write_job(cloud, "b", missing, shard_size=2)
    assert run_job(cloud, "b") == "FAILED"
    assert keys(cloud, "jobs/b/results/") == []


@pytest.mark.parametrize(
    "action", ["s3:GetObject", "s3:PutObject", "s3:GetObjectTagging", "s3:PutObjectTagging"]
)
def test_without_one_permission_an_image_is_not_labelled(cloud, action):
    """So the role has none to spare."""
    functions, roles = cloud.client("lambda"), cloud.client("iam")
    [function] = [
        f for f in functions.list_functions()["Functions"] if "LabelFunction" in f["FunctionName"]
    ]
    name = function["Role"].rpartition("/")[2]
    policy = {"RoleName": name, "PolicyName": "label"}
    document = roles.get_role_policy(**policy)["PolicyDocument"]

    def as_list(value):
        return value if isinstance(value, list) else [value]

    less = [
        statement | {"Action": [a for a in as_list(statement["Action"]) if a != action]}
        for statement in document["Statement"]
    ]
    less = [statement for statement in less if statement["Action"]]
    put(cloud, "jobs/permission.jpg")  # which the rule leaves out
    detail = {"bucket": {"name": cloud.bucket}, "object": {"key": "permission.jpg"}}
    body = {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}
    record = {"messageId": "1", "eventSource": "aws:sqs", "body": json.dumps(body)}
    event = json.dumps({"Records": [record]}).encode()

    def failed():
        answer = functions.invoke(FunctionName=function["FunctionName"], Payload=event)
        return json.loads(answer["Payload"].read())["batchItemFailures"]

    put(cloud, "permission.jpg")
    until(lambda: "label" in tags(cloud, "permission.jpg"))
    assert failed() == []
    cloud.client("s3").delete_object_tagging(Bucket=cloud.bucket, Key="permission.jpg")
    try:
        changed = json.dumps(document | {"Statement": less})
        roles.put_role_policy(**policy, PolicyDocument=changed)
        assert failed() == [{"itemIdentifier": "1"}]
    finally:
        roles.put_role_policy(**policy, PolicyDocument=json.dumps(document))
