"""serving.service: events answered by a real model, over direct invocation and HTTP."""

import base64
import json
import re
from io import BytesIO
from types import SimpleNamespace

import pytest
from PIL import Image

from serving import service as module
from serving.classifier import Classifier
from serving.service import Service
from tools.emulator import EmulatorError, sample_event

COLORS = ("red", "green", "blue")


def encoded(color, name="PNG"):
    buffer = BytesIO()
    Image.new("RGB", (60, 40), color).save(buffer, name)
    return buffer.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


def best(scores):
    return max(scores, key=scores.get)


@pytest.fixture(scope="module")
def service(small_tflite):
    return Service(Classifier(small_tflite), "small")


@pytest.fixture
def url(http_server, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")
    pages = {f"/{color}.png": (200, {}, encoded(color)) for color in COLORS}
    pages["/red.png?token=secret"] = pages["/red.png"]
    return http_server(pages | {"/page": (200, {}, b"<html>")})


@pytest.fixture
def log(capfd):
    """The lines logged since the last call, as objects."""
    return lambda: [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def http(method="GET", path="", body=b"", kind="application/json", **more):
    """Return a Function URL's or HTTP API's event."""
    try:
        event = sample_event("apigateway/HttpApi", method=method, path=path, stage="$default")
    except EmulatorError as error:
        pytest.skip(str(error))
    event |= {"body": base64_of(body), "headers": {"content-type": kind}}
    return event | {"queryStringParameters": None} | more


def test_one_picture(service, url):
    for event in ({"url": f"{url}/red.png"}, {"image": base64_of(encoded("red"))}):
        answer = service.handle(event)
        assert list(answer) == ["red", "green", "blue"]
        assert best(answer) == "red"


def test_several_in_order_and_a_bad_one_costs_the_others_nothing(service, url):
    names = ["blue.png", "none.png", "page", "red.png"]
    answers = service.handle({"urls": [f"{url}/{name}" for name in names]})
    assert [best(answers[0]), best(answers[3])] == ["blue", "red"]
    assert [answer["error"]["type"] for answer in answers[1:3]] == [
        "FetchError",
        "UnsupportedTypeError",
    ]
    images = [base64_of(encoded("green")), "?", base64_of(encoded("red")[:50])]
    answers = service.handle({"images": images})
    assert best(answers[0]) == "green"
    assert [answer["error"]["type"] for answer in answers[1:]] == [
        "InvalidRequestError",
        "ImageError",
    ]


def test_top_answers_the_best_first(service):
    event = {"image": base64_of(encoded("blue"))}
    everything = service.handle(event)
    answer = service.handle(event | {"top": 2})
    assert list(answer.items()) == sorted(everything.items(), key=lambda item: -item[1])[:2]
    assert len(service.handle(event | {"top": 99})) == 3


def test_a_picture_over_http(service):
    event = http("POST", body=encoded("green", "JPEG"), kind="image/jpeg")
    response = service.handle(event)
    assert response["statusCode"] == 200
    assert best(json.loads(response["body"])) == "green"
    response = service.handle(event | {"queryStringParameters": {"top": "1"}})
    assert list(json.loads(response["body"])) == ["green"]


@pytest.mark.parametrize(
    ("event", "status", "kind"),
    [
        ({"body": b"{}"}, 400, "InvalidRequestError"),
        ({"body": b'{"url": "http://127.0.0.2/"}'}, 400, "AddressError"),
        ({"body": b"<a/>", "kind": "text/xml"}, 415, "UnsupportedTypeError"),
        ({"body": b"hello", "kind": "image/png"}, 415, "UnsupportedTypeError"),
        ({"body": encoded("red")[:60], "kind": "image/png"}, 422, "ImageError"),
        ({"body": b"0" * 10_000_001, "kind": "image/png"}, 413, "TooLargeError"),
        ({"body": b'{"url": "http://no-such-host.invalid/"}'}, 502, "FetchError"),
        ({"method": "GET", "path": "none"}, 404, "NotFoundError"),
        ({"method": "GET"}, 405, "MethodError"),
        ({"method": "PUT", "path": "health"}, 405, "MethodError"),
    ],
)
def test_errors_over_http_have_their_status(service, event, status, kind):
    response = service.handle(http(**{"method": "POST", **event}))
    error = json.loads(response["body"])["error"]
    assert (response["statusCode"], error["type"]) == (status, kind)
    assert re.fullmatch(r"Expected .+ Received: .+", error["message"])
    assert ("Allow" in response["headers"]) == (status == 405)


def test_several_over_http(service, url):
    body = json.dumps({"urls": [f"{url}/red.png", f"{url}/none"]}).encode()
    response = service.handle(http("POST", body=body))
    assert response["statusCode"] == 200
    red, none = json.loads(response["body"])
    assert (best(red), none["error"]["type"]) == ("red", "FetchError")


def test_health_says_which_model_is_ready(service):
    response = service.handle(http("GET", "prod/health"))
    assert response["statusCode"] == 200
    assert json.loads(response["body"]) == {
        "status": "ready",
        "model": "small",
        "runtime": service.classifier.runtime,
        "classes": ["red", "green", "blue"],
    }


def test_the_openapi_document_names_every_error_and_limit(service):
    response = service.handle(http("GET", "openapi.json"))
    document = json.loads(response["body"])
    schemas = document["components"]["schemas"]
    from serving import errors
    from serving.events import MAX_PICTURES

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    names = {kind.__name__ for kind in kinds} - {"ServingError"}
    assert set(schemas["Error"]["properties"]["error"]["properties"]["type"]["enum"]) == names
    assert schemas["Results"]["maxItems"] == MAX_PICTURES
    told = set(document["paths"]["/"]["post"]["responses"])
    assert told == {"200"} | {str(kind.status) for kind in kinds} - {"404", "405"}


def test_pages_of_other_origins_may_ask(service, monkeypatch):
    response = service.handle(http("OPTIONS"))
    assert (response["statusCode"], response["body"]) == (204, "")
    assert response["headers"]["Access-Control-Allow-Origin"] == "*"
    assert "POST" in response["headers"]["Access-Control-Allow-Methods"]
    monkeypatch.setenv("CORS_ORIGIN", "https://example.com")
    for event in (http("GET", "health"), http("GET", "none")):
        headers = service.handle(event)["headers"]
        assert headers["Access-Control-Allow-Origin"] == "https://example.com"
        assert headers["Vary"] == "Origin"


def context(seconds):
    return SimpleNamespace(
        aws_request_id="id-1", get_remaining_time_in_millis=lambda: seconds * 1000
    )


def test_without_time_left_the_answer_says_so(service, url):
    event = {"image": base64_of(encoded("red"))}
    assert service.handle(event, context(0.5))["error"]["type"] == "DeadlineError"
    assert best(service.handle(event, context(30))) == "red"
    answer = service.handle({"url": f"{url}/red.png"}, context(0.5))
    assert answer["error"]["type"] in ("FetchTimeoutError", "DeadlineError")


def test_what_is_done_when_time_runs_out_is_answered(service, monkeypatch):
    now = iter([0.0, *[1.0] * 6, *[9.0] * 100])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    image = base64_of(encoded("red"))
    answers = service.handle({"images": [image] * 3}, context(5))
    assert best(answers[0]) == "red"
    assert [answer["error"]["type"] for answer in answers[1:]] == ["DeadlineError"] * 2


def test_one_line_is_logged_of_each_request(service, url, log):
    fresh = Service(service.classifier, "small")
    log()
    fresh.handle({"url": f"{url}/red.png?token=secret#part"}, context(30))
    fresh.handle(http("POST", body=encoded("blue"), kind="image/png"), context(30))
    fresh.handle({"urls": ["http://user:secret@127.0.0.1/a?secret", f"{url}/blue.png"]})
    first, second, third = log()

    assert (first["request_id"], first["cold_start"], first["event"]) == ("id-1", True, "direct")
    [picture] = first["pictures"]
    assert picture["url"] == f"{url}/red.png"
    assert (picture["source"], picture["bytes"]) == ("url", len(encoded("red")))
    assert (picture["format"], picture["width"], picture["height"]) == ("PNG", 60, 40)
    assert all(first[name] >= 0 for name in ("ms", "fetch_ms", "decode_ms", "infer_ms"))
    assert first["ms"] >= first["fetch_ms"] + first["decode_ms"] + first["infer_ms"] - 0.3

    assert (second["cold_start"], second["event"], second["status"]) == (False, "http 2.0", 200)
    assert second["pictures"][0]["source"] == "image"
    assert third["errors"] == 1
    assert third["pictures"][0]["error"] == "AddressError"
    assert "secret" not in json.dumps([first, second, third])


def test_metrics_are_told_where_they_are_wanted(service, log, monkeypatch):
    event = {"image": base64_of(encoded("red"))}
    log()
    service.handle(event)
    assert "_aws" not in log()[0]
    monkeypatch.setenv("METRICS_NAMESPACE", "flowers")
    service.handle(event)
    [line] = log()
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "flowers"
    assert {metric["Name"] for metric in directive["Metrics"]} == set(module.log.METRICS)
    assert all(line[metric["Name"]] >= 0 for metric in directive["Metrics"])
    service.handle({})
    [line] = log()
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert [metric["Name"] for metric in directive["Metrics"]] == ["ms", "errors"]
    assert line["errors"] == 1


def test_a_defect_of_ours_is_logged_and_not_told(service, log, monkeypatch):
    def fail(*_):
        raise KeyError("https://example.com/a?secret=1")

    log()
    monkeypatch.setattr(module, "preprocess", fail)
    events = [{"image": base64_of(encoded("red"))}]
    events.append(http("POST", body=encoded("red"), kind="image/png"))
    for event in events:
        answer = service.handle(event, context(30))
        assert "InternalError" in json.dumps(answer)
        assert "example.com" not in json.dumps(answer)
        defect, request = log()
        assert (defect["level"], defect["request_id"]) == ("ERROR", "id-1")
        assert "KeyError" in defect["exception"]
        assert "in _ask" in defect["exception"]
        assert "secret" not in json.dumps([defect, request])
    monkeypatch.setattr(module.gateway, "parse_body", fail)
    response = service.handle(http("POST"))
    assert response["statusCode"] == 500
    assert json.loads(response["body"])["error"]["type"] == "InternalError"
