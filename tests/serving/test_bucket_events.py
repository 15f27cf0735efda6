"""Images of a bucket: messages of a queue and shards of a large job, in direct invocations only."""

import base64
import json
import os
import subprocess
import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from serving import bucket_events, object_tags, stores
from serving.bucket_events import find_sender, read_bucket
from serving.classifier import Classifier
from serving.errors import EventSourceError, SettingError, StoreError
from serving.handler import Handler
from serving.runtimes import Prediction
from serving.service import Service
from serving.shards import Manifest

BUCKET = "images-1"


def png(color="red"):
    buffer = BytesIO()
    Image.new("RGB", (60, 40), color).save(buffer, "PNG")
    return buffer.getvalue()


def created(key, bucket=BUCKET, size=9):
    """Return EventBridge's event of a new object, as the queue hands it on."""
    detail = {"bucket": {"name": bucket}, "object": {"key": key, "size": size, "etag": "a"}}
    return json.dumps({"source": "aws.s3", "detail-type": "Object Created", "detail": detail})


def batch(*bodies):
    """Return the event of a queue with messages of these bodies, called 0, 1, 2 and so on."""
    records = [
        {"messageId": str(number), "eventSource": "aws:sqs", "body": body}
        for number, body in enumerate(bodies)
    ]
    return {"Records": records}


def failed(answer):
    return [int(item["itemIdentifier"]) for item in answer["batchItemFailures"]]


@pytest.fixture(scope="module")
def service(small_tflite, decoder):
    return Service(Classifier(small_tflite), "small", decoder)


@pytest.fixture
def handler(service, monkeypatch):
    monkeypatch.setenv("LABEL_BUCKET", BUCKET)
    return Handler(service)


@pytest.fixture
def store(monkeypatch):
    """A bucket in memory."""
    from obstore.store import MemoryStore

    store = MemoryStore()
    monkeypatch.setattr(stores, "connect", lambda root: store)
    return store


@pytest.fixture(autouse=True)
def tags(monkeypatch):
    """The tags that were set: {(bucket, key): tags}."""
    found = {}

    def add(bucket, key, tags):
        found[bucket, key] = dict(tags)
        return key != "full.png"

    monkeypatch.setattr(object_tags, "add_tags", add)
    return found


@pytest.fixture
def log(capfd):
    return lambda: [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def rows(store):
    """Return {key: what was written beside it}."""
    found = [item["path"] for page in store.list() for item in page]
    written = [key for key in found if key.endswith(".json") and "jobs/" not in key]
    return {
        key.removesuffix(".json"): json.loads(store.get(key).bytes().to_bytes()) for key in written
    }


def test_a_new_image_gets_json_beside_it_and_tags(handler, store, tags, log):
    key = "new/a b+ü.png"
    store.put(key, png())
    assert handler.handle(batch(created(key)), SimpleNamespace(aws_request_id="id-1")) == {
        "batchItemFailures": []
    }
    row = rows(store)[key]
    scores = handler.handle({"image": base64.b64encode(png()).decode()})
    assert row["scores"] == scores
    assert row["label"] == max(scores, key=scores.get)
    assert (row["image"], row["model"], row["error"]) == (f"s3://{BUCKET}/{key}", "small", None)
    assert row["etag"] == store.head(key)["e_tag"]
    assert set(row) >= {"known", "unknown", "prediction_set"}
    assert tags == {(BUCKET, key): {"label": row["label"], "score": f"{scores[row['label']]:.5f}"}}
    line = log()[0]
    assert (line["event"], line["errors"], line["request_id"]) == ("Amazon SQS", 0, "id-1")
    [image] = line["images"]
    assert (image["source"], image["url"], image["format"]) == ("s3", row["image"], "PNG")
    assert image["infer_ms"] >= 0  # the small model may take less than 0.05 ms


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_whose_scores_are_no_numbers_labels_nothing(
    handler, store, tags, log, monkeypatch, number
):
    store.put("a.png", png())
    broken = Prediction(np.full(3, number, np.float32))
    monkeypatch.setattr(handler.service.classifier, "predict", lambda _: broken)
    assert failed(handler.handle(batch(created("a.png")))) == [0]
    assert (rows(store), tags) == ({}, {})
    defect, line = log()
    assert "The model's scores are no numbers (NaN)" in defect["exception"]
    assert [image["error"] for image in line["images"]] == ["InternalError"]


def test_what_is_written_is_json_for_browsers(handler, store):
    store.put("a.png", png())
    handler.handle(batch(created("a.png")))
    assert store.get("a.png.json").attributes["Content-Type"] == "application/json"


def test_a_poison_image_costs_the_others_nothing(handler, store, tags, log):
    store.put("poison.png", b"no image")
    bodies = [created("0.png"), created("poison.png"), created("2.png")]
    for key in ("0.png", "2.png"):
        store.put(key, png())
    assert failed(handler.handle(batch(*bodies))) == [1]
    assert sorted(rows(store)) == ["0.png", "2.png"]
    assert sorted(key for _, key in tags) == ["0.png", "2.png"]
    [line] = log()
    errors = [image.get("error") for image in line["images"]]
    assert errors == [None, "UnsupportedTypeError", None]
    assert line["errors"] == 1


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "[]", "null", "{}", "[" * 100_000, None, 7, {"source": "aws.s3"}),
        json.dumps({"url": "https://example.com/a.png"}),
        json.dumps({"source": "aws.s3", "detail-type": "Object Deleted", "detail": {}}),
        json.dumps({"source": "aws.s3", "detail-type": "Object Created", "detail": {"bucket": 1}}),
        json.dumps({"Records": [{"s3": {"bucket": {"name": BUCKET}, "object": {"key": 7}}}]}),
        json.dumps({"Records": [7]}),
        created(7),
        created("other.png", bucket="another"),
    ],
    ids=range(16),
)
def test_any_other_message_fails_and_no_other(handler, store, body, log):
    store.put("a.png", png())
    assert failed(handler.handle(batch(created("a.png"), body))) == [1]
    assert list(rows(store)) == ["a.png"]
    [line] = log()
    assert line["images"][1]["error"] == "InvalidRequestError"


def test_messages_of_the_bucket_itself_are_read(handler, store):
    store.put("new/a b+ü.png", png())
    named = [
        {"s3": {"bucket": {"name": BUCKET}, "object": {"key": "new/a+b%2B%C3%BC.png"}}},
        {"s3": {"bucket": {"name": BUCKET}, "object": {"key": "missing.png"}}},
    ]
    test = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": BUCKET}
    answer = handler.handle(batch(json.dumps({"Records": named}), json.dumps(test)))
    assert failed(answer) == []
    assert list(rows(store)) == ["new/a b+ü.png"]


@pytest.mark.parametrize("key", ["a.png.json", "jobs/a/results/00000.jsonl", "jobs/a.png"])
def test_its_own_objects_are_left_alone(handler, store, key, log):
    store.put(key, png())
    assert failed(handler.handle(batch(created(key)))) == []
    assert len(list(store.list().collect())) == 1
    [line] = log()
    assert line["images"] == []


def test_an_image_that_was_deleted_meanwhile_is_done(handler, store, log):
    assert failed(handler.handle(batch(created("gone.png")))) == []
    assert rows(store) == {}
    [line] = log()
    assert line["images"] == [{"source": "s3", "url": f"s3://{BUCKET}/gone.png"}]


@pytest.mark.parametrize(
    "key", ["/rose.jpg", "rose.jpg/", "//rose.jpg", "a//rose.jpg", "a/../rose.jpg", "rose.jpg\n"]
)
def test_a_key_that_cannot_be_read_is_an_error_and_no_other_object(handler, store, tags, key, log):
    store.put("rose.jpg", png())
    assert failed(handler.handle(batch(created(key), created("rose.jpg")))) == [0]
    assert [row["image"] for row in rows(store).values()] == [f"s3://{BUCKET}/rose.jpg"]
    assert list(tags) == [(BUCKET, "rose.jpg")]
    [line] = log()
    assert line["images"][0]["error"] == "FetchError"


def test_the_mark_of_a_folder_is_left_alone(handler, store, tags, log):
    store.put("photos", png())
    of_bucket = {"s3": {"bucket": {"name": BUCKET}, "object": {"key": "photos/", "size": 0}}}
    bodies = (created("photos/", size=0), json.dumps({"Records": [of_bucket]}))
    assert failed(handler.handle(batch(*bodies))) == []
    assert (rows(store), tags, log()[0]["images"]) == ({}, {}, [])


def test_an_image_that_is_too_large_is_not_read(handler, store, monkeypatch, log):
    monkeypatch.setattr(bucket_events, "MAX_BYTES", 10)
    store.put("a.png", png())
    assert failed(handler.handle(batch(created("a.png")))) == [0]
    assert log()[0]["images"][0]["error"] == "TooLargeError"


def test_images_for_which_no_time_is_left_come_again(handler, store, log):
    store.put("a.png", png())
    context = SimpleNamespace(aws_request_id=None, get_remaining_time_in_millis=lambda: 900)
    assert failed(handler.handle(batch(created("a.png")), context)) == [0]
    assert rows(store) == {}
    assert log()[0]["images"][0]["error"] == "DeadlineError"


def test_a_bucket_that_fails_fails_its_messages_and_nothing_else(handler, store, monkeypatch, log):
    def refuse(bucket, key, tags):
        raise StoreError("Expected to tag.")

    monkeypatch.setattr(object_tags, "add_tags", refuse)
    store.put("a.png", png())
    assert failed(handler.handle(batch(created("a.png"), created("gone.png")))) == [0]
    assert log()[-1]["images"][0]["error"] == "StoreError"


def test_no_room_for_tags_is_no_error_but_told(handler, store, log):
    store.put("full.png", png())
    assert failed(handler.handle(batch(created("full.png")))) == []
    assert "full.png" in rows(store)
    assert [line["message"] for line in log()] == ["no room for tags", "request"]


def test_a_second_delivery_changes_nothing(handler, store, tags):
    store.put("a.png", png())
    handler.handle(batch(created("a.png")))
    first = rows(store)
    handler.handle(batch(created("a.png")))
    assert rows(store) == first


# Large jobs


@pytest.fixture
def job(store, service):
    """A job of three images, of which one is broken."""
    for key, content in {"0.png": png(), "1.png": b"no image", "2.png": png("blue")}.items():
        store.put(f"photos/{key}", content)
    listed = [f"s3://{BUCKET}/photos/{number}.png" for number in range(3)]
    store.put("jobs/a/lists/0123/00000.jsonl", "".join(f'"{a}"\n' for a in listed).encode())
    facts = {"inputs": [], "inputs_digest": "", "images": 3, "shards": 1, "shard_size": 1000}
    facts |= {"lists": "lists/0123", "model": "small.tflite", "unknown_below": 0.02, "made": ""}
    found = {"model_digest": service.classifier.digest, "runtime": service.classifier.runtime}
    manifest = Manifest(**facts, **found)
    store.put("jobs/a/manifest.json", manifest.to_bytes())
    return {"list": "jobs/a/lists/0123/00000.jsonl"}


def test_a_shard_is_labelled_once(handler, store, job, log):
    assert handler.handle(job) == {"labelled": True, "images": 3, "errors": 1}
    content = store.get("jobs/a/results/00000.jsonl").bytes().to_bytes()
    labels = [json.loads(line)["label"] for line in content.splitlines()]
    assert labels[1] is None
    assert None not in (labels[0], labels[2])
    assert handler.handle(job) == {"labelled": False}
    assert store.get("jobs/a/results/00000.jsonl").bytes().to_bytes() == content
    assert [line["event"] for line in log()] == ["AWS Step Functions"] * 2


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model_digest": "0"}, r"Expected a job of the model small, .* small.tflite, another"),
        (
            {"runtime": "openvino"},
            r"Expected a job for the runtime \S+, .* Received: one for openvino, .* "
            r"--list-only --runtime (?!openvino)\S+, or run make deploy RUNTIME=openvino",
        ),
    ],
    ids=("model", "runtime"),
)
def test_a_job_of_another_model_or_runtime_fails(handler, store, job, log, other, said):
    manifest = json.loads(store.get("jobs/a/manifest.json").bytes().to_bytes())
    store.put("jobs/a/manifest.json", json.dumps(manifest | other).encode())
    with pytest.raises(StoreError, match=said):
        handler.handle(job)
    [line] = log()
    assert (line["error"], line["errors"]) == ("StoreError", 1)
    assert not [key for key in store.list().collect() if "results" in key["path"]]


def test_a_shard_for_which_no_time_is_left_fails_and_says_what_to_do(handler, store, job, log):
    context = SimpleNamespace(aws_request_id=None, get_remaining_time_in_millis=lambda: 1)
    with pytest.raises(StoreError, match=r"start a new job with --shard-size 1, or run"):
        handler.handle(job, context)
    assert not [item for page in store.list() for item in page if "results" in item["path"]]
    context.get_remaining_time_in_millis = lambda: 900_000
    assert handler.handle(job, context)["labelled"]


@pytest.mark.parametrize("key", ["jobs/b/lists/0123/00000.jsonl", "jobs/a/lists/9/00000.jsonl"])
def test_a_list_without_a_job_fails(handler, job, key):
    with pytest.raises(StoreError, match="does not name"):
        handler.handle({"list": key})


# Who may send such events


def test_without_the_setting_they_are_refused(service, store, job, monkeypatch):
    monkeypatch.delenv("LABEL_BUCKET", raising=False)
    handler = Handler(service)
    store.put("a.png", png())
    for event, name in ((batch(created("a.png")), "Amazon SQS"), (job, "AWS Step Functions")):
        with pytest.raises(EventSourceError, match=f"an event of {name}"):
            handler.handle(event)
    assert rows(store) == {}


def test_over_http_they_are_wrong_bodies(handler, store, job, tags):
    store.put("a.png", png())
    for event in (batch(created("a.png")), job):
        body = json.dumps(event)
        http = {"requestContext": {}, "httpMethod": "POST", "path": "/", "body": body}
        assert handler.handle(http)["statusCode"] == 400
        assert "error" in handler.handle({"body": body})  # of the console
    assert (rows(store), tags) == ({}, {})


@pytest.mark.parametrize(
    "event",
    [
        {"Records": [{"eventSource": "aws:s3", "s3": {}}]},
        {"Records": [{"EventSource": "aws:sns", "Sns": {}}]},
        json.loads(created("a.png")),
        {"Records": [{"eventSource": "aws:sqs"}, {"eventSource": "aws:s3"}]},
    ],
    ids=range(4),
)
def test_other_services_are_refused_as_ever(handler, event):
    with pytest.raises(EventSourceError):
        handler.handle(event)


def test_requests_are_answered_as_ever(handler):
    scores = handler.handle({"image": base64.b64encode(png()).decode(), **batch(created("a"))})
    assert sum(scores.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "event",
    [
        *(None, [], "a", {"Records": []}, {"Records": [7]}, {"Records": {}}, {"list": 7}),
        *({"list": "a.jsonl"}, {"list": "jobs/a/lists/1/0.jsonl"}, {"list": ["jobs"]}),
    ],
    ids=range(10),
)
def test_other_events_are_not_theirs(event):
    assert find_sender(event) is None


@pytest.mark.parametrize("name", ["a", "Upper-Case", "s3://images", "a" * 64, "b/c"])
def test_a_setting_that_is_no_bucket_stops_the_start(service, monkeypatch, name):
    monkeypatch.setenv("LABEL_BUCKET", name)
    with pytest.raises(SettingError, match="LABEL_BUCKET to be the name of a bucket. Received"):
        Handler(service)


def test_no_bucket_is_no_setting(monkeypatch):
    monkeypatch.setenv("LABEL_BUCKET", " ")
    assert read_bucket() == ""


def test_what_large_jobs_need_is_imported_with_the_first_such_event(small_tflite):
    names = "{'obstore', 'serving.object_tags', 'serving.shards', 'serving.stores'}"
    program = f"import sys, lambda_function; sys.exit(bool({names} & set(sys.modules)))"
    environment = os.environ | {"MODEL_PATH": str(small_tflite)}
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
