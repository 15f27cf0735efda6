"""serving.service with a model that only averages: its answers, log lines and sentences, whole."""

import base64
import json
import math
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from serving import service as module
from serving.errors import FetchError
from serving.service import Service, cors, deadline, loggable, milliseconds, top_k

LABELS = ("red", "green", "blue")
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type",
    "Access-Control-Max-Age": "86400",
}
FAILED = "The service failed on this {}; its log says why."


class Averages:
    """Stands for a Classifier: scores are how much of each colour there is."""

    labels, input_size, runtime = LABELS, (4, 6), "none"

    def probabilities(self, inputs):
        assert inputs.shape == (1, 4, 6, 3)
        return inputs.mean(axis=(0, 1, 2)) / 2 + 0.5


def image(color, size=(8, 5), kind="PNG"):
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


RED, BLUE = image("red"), image("blue")
OF_RED = {"red": 1.0, "green": 0.0, "blue": 0.0}
OF_BLUE = {"red": 0.0, "green": 0.0, "blue": 1.0}


def http(method="POST", path="/", body=b"", kind="image/png"):
    return {
        "version": "2.0",
        "rawPath": path,
        "requestContext": {"http": {"method": method}},
        "headers": {"content-type": kind},
        "body": base64_of(body),
        "isBase64Encoded": True,
    }


def context(seconds):
    return SimpleNamespace(
        aws_request_id="id-1", get_remaining_time_in_millis=lambda: seconds * 1000
    )


@pytest.fixture
def service():
    return Service(Averages(), "small")


@pytest.fixture
def log(capsys):
    """The lines logged since the last call, as objects."""
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def clock(monkeypatch):
    """A time.monotonic that stands still, at 100 seconds, until `seconds` is added to."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.seconds)
    return clock


@pytest.fixture
def hosts(monkeypatch):
    """What is found at each url, in `found`, and until when it might be fetched, in `latest`."""
    hosts = SimpleNamespace(found={}, latest=[])

    def fetch_all(urls, latest):
        hosts.latest.append(latest)
        return [hosts.found[url] for url in urls]

    monkeypatch.setattr(module, "fetch_all", fetch_all)
    return hosts


# Direct invocations.


def test_an_image_is_answered_by_its_scores(service, hosts):
    hosts.found = {"http://a/blue": BLUE}
    assert service.handle({"image": base64_of(RED)}) == OF_RED
    assert service.handle({"url": "http://a/blue"}) == OF_BLUE
    assert service.handle({"image": base64_of(RED), "top": 1}) == {"red": 1.0}


def test_images_are_answered_in_order_whoever_fails_among_them(service, hosts):
    hosts.found = {"http://a/1": RED, "http://a/2": FetchError("Gone."), "http://a/3": BLUE}
    assert service.handle({"urls": list(hosts.found)}) == [
        OF_RED,
        {"error": {"type": "FetchError", "message": "Gone."}},
        OF_BLUE,
    ]
    refused, answered = service.handle({"images": ["?", base64_of(BLUE)], "top": 1})
    assert refused["error"]["type"] == "InvalidRequestError"
    assert answered == {"blue": 1.0}


def test_an_event_that_asks_for_nothing_is_told_what_may_be_asked(service):
    assert service.handle({}) == {
        "error": {
            "type": "InvalidRequestError",
            "message": f"{module.events.EXPECTED} Received: none of these.",
        }
    }


def test_an_image_is_opened_for_the_size_of_the_models_input(service, monkeypatch):
    sizes = []
    opened = module.open_image
    monkeypatch.setattr(
        module, "open_image", lambda data, size: sizes.append(size) or opened(data, size)
    )
    assert service.handle({"image": base64_of(RED)}) == OF_RED
    assert sizes == [(4, 6)]


def test_nothing_is_fetched_where_there_is_no_url(service, monkeypatch):
    monkeypatch.setattr(module, "fetch_all", lambda *_: pytest.fail("it fetched"))
    assert service.handle({"image": base64_of(RED)}) == OF_RED


def test_as_many_bytes_as_may_be_fetched_may_be_sent(service, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", len(RED))
    assert service.handle({"image": base64_of(RED)}) == OF_RED
    assert service.handle({"image": base64_of(RED + b"x")})["error"] == {
        "type": "TooLargeError",
        "message": "Expected at most 10 MB. Received: more. Send a smaller image.",
    }


# Time.


def test_a_second_is_kept_for_what_comes_after_fetching(service, hosts, clock):
    hosts.found = {"http://a/red": RED}
    service.handle({"url": "http://a/red"}, context(30))
    service.handle({"url": "http://a/red"})
    assert hosts.latest == [129.0, math.inf]


@pytest.mark.parametrize(("remaining", "in_time"), [(1.0, True), (0.999, False)])
def test_an_image_is_begun_while_that_second_is_left(service, clock, remaining, in_time):
    answer = service.handle({"image": base64_of(RED)}, context(remaining))
    if in_time:
        assert answer == OF_RED
    else:
        assert answer["error"] == {
            "type": "DeadlineError",
            "message": "Expected to be done within the invocation's time. Received: no time left "
            "for this image. Send fewer at once, or raise the function's timeout.",
        }


def test_over_http_the_time_runs_out_as_well(service, clock):
    assert service.handle(http(body=RED), context(1.0))["statusCode"] == 200
    response = service.handle(http(body=RED), context(0.999))
    assert response["statusCode"] == 504
    assert json.loads(response["body"])["error"]["type"] == "DeadlineError"


def test_the_end_is_what_lambda_leaves_and_never_without_it():
    assert deadline(context(2.5), 100.0) == 102.5
    assert deadline(None, 100.0) == math.inf
    assert deadline(SimpleNamespace(), 100.0) == math.inf


def test_milliseconds_have_one_decimal(clock):
    clock.seconds = 10.01234
    assert milliseconds(10) == 12.3


# The log.


@pytest.fixture
def stages(clock, monkeypatch):
    """Let each stage take its time: 1/8 s to fetch, 1/4 s to decode, 1/2 s to ask the model."""

    def slow(function, seconds):
        def slowed(*args):
            clock.seconds += seconds
            return function(*args)

        return slowed

    monkeypatch.setattr(module, "fetch_all", slow(lambda urls, _: [RED] * len(urls), 1 / 8))
    monkeypatch.setattr(module, "open_image", slow(module.open_image, 1 / 4))
    monkeypatch.setattr(Averages, "probabilities", slow(Averages.probabilities, 1 / 2))


LINE = {"level": "INFO", "message": "request"}
TOLD = {"bytes": len(RED), "format": "PNG", "width": 8, "height": 5}


def test_a_line_has_each_stage_with_its_time_and_all_images(service, log, stages):
    service.handle({"urls": ["http://u:p@a/1?b#c", "https://a/2"]}, context(30))
    took = {"decode_ms": 250.0, "infer_ms": 500.0}
    assert log() == [
        {
            **LINE,
            "request_id": "id-1",
            "cold_start": True,
            "event": "direct",
            "fetch_ms": 125.0,
            "images": [
                {"source": "url", "url": "http://a/1", **TOLD, **took},
                {"source": "url", "url": "https://a/2", **TOLD, **took},
            ],
            "errors": 0,
            "decode_ms": 500.0,
            "infer_ms": 1000.0,
            "ms": 1625.0,
        }
    ]


def test_sums_of_times_have_one_decimal_too(service, log, clock, monkeypatch):
    def open_image(data, size):
        clock.seconds += 0.1001
        return opened(data, size)

    opened = module.open_image
    monkeypatch.setattr(module, "open_image", open_image)
    service.handle({"images": [base64_of(RED)] * 3})
    [line] = log()
    assert line["decode_ms"] == 300.3  # and not 300.29999999999995


def test_a_line_of_http_has_its_method_and_status_too(service, log, stages):
    service.handle({})
    log()
    service.handle(http(body=RED))
    assert log() == [
        {
            **LINE,
            "request_id": None,
            "cold_start": False,
            "event": "http 2.0",
            "method": "POST",
            "fetch_ms": 0.0,
            "images": [{"source": "image", **TOLD, "decode_ms": 250.0, "infer_ms": 500.0}],
            "errors": 0,
            "decode_ms": 250.0,
            "infer_ms": 500.0,
            "status": 200,
            "ms": 750.0,
        }
    ]


def test_a_line_names_the_error_of_a_request_and_counts_those_of_a_list(service, log, clock):
    service.handle({})
    service.handle(http("X" * 20))
    service.handle({"images": ["?", base64_of(b"hi"), base64_of(RED)]})
    service.handle({"image": base64_of(b"hi")})
    direct, method, is_batch, single = log()
    assert direct == {
        **LINE,
        "request_id": None,
        "cold_start": True,
        "event": "direct",
        "errors": 1,
        "error": "InvalidRequestError",
        "ms": 0.0,
    }
    assert (method["method"], method["status"], method["error"]) == ("X" * 16, 405, "MethodError")
    assert method["errors"] == 1
    assert "error" not in is_batch
    assert is_batch["errors"] == 2
    assert is_batch["images"][:2] == [
        {"error": "InvalidRequestError"},
        {"source": "image", "bytes": 2, "error": "UnsupportedTypeError"},
    ]
    assert (is_batch["decode_ms"], is_batch["infer_ms"]) == (0.0, 0.0)
    assert (single["errors"], single["error"]) == (1, "UnsupportedTypeError")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@a.b:8080/c/d?e=f#g", "https://a.b:8080/c/d"),
        ("http://a@b@c/d", "http://c/d"),
        ("http://a/" + "b" * 300, "http://a/" + "b" * 191),
        ("http://a", "http://a"),
        ("http:///a", "unreadable"),
        ("ftp://a/b", "unreadable"),
        ("http://[a", "unreadable"),
        ("secret", "unreadable"),
    ],
)
def test_of_a_url_only_what_is_no_secret_is_logged(url, shown):
    assert loggable(url) == shown


# Defects of ours.


def fail(*_):
    raise KeyError("http://a/?secret")


def test_a_defect_costs_its_own_image_only(service, log, monkeypatch):
    opened = module.open_image
    monkeypatch.setattr(
        module, "open_image", lambda data, size: fail() if data == BLUE else opened(data, size)
    )
    answers = service.handle({"images": [base64_of(BLUE), base64_of(RED)]}, context(30))
    failed = {"error": {"type": "InternalError", "message": FAILED.format("image")}}
    assert answers == [failed, OF_RED]
    defect, request = log()
    assert (defect["level"], defect["message"], defect["request_id"]) == ("ERROR", "defect", "id-1")
    assert defect["exception"].endswith("KeyError: 'http://a/?...\n")
    assert request["images"][0]["error"] == "InternalError"
    assert "secret" not in json.dumps(request)


def test_a_defect_anywhere_else_is_answered_as_one_too(service, log, monkeypatch):
    monkeypatch.setattr(module, "ImageResult", fail)
    failed = {"error": {"type": "InternalError", "message": FAILED.format("request")}}
    assert service.handle({"image": base64_of(RED)}, context(30)) == failed
    defect, request = log()
    assert defect["request_id"] == "id-1"
    assert defect["exception"].endswith("KeyError: 'http://a/?...\n")
    assert (request["error"], request["errors"]) == ("InternalError", 1)
    response = service.handle(http(body=RED))
    assert response["statusCode"] == 500
    assert json.loads(response["body"]) == failed
    assert response["headers"].items() >= CORS.items()
    assert [line["level"] for line in log()] == ["ERROR", "INFO"]


# HTTP.


def test_an_image_may_be_sent_to_any_path_but_those_that_are_something_else(service):
    for path in ("", "/", "/prod", "/prod/flowers"):
        response = service.handle(http(path=path, body=RED))
        assert (response["statusCode"], json.loads(response["body"])) == (200, OF_RED)
    for path in ("/health", "/prod/openapi.json"):
        assert service.handle(http(path=path, body=RED))["statusCode"] == 405


@pytest.mark.parametrize(
    ("method", "path", "status", "allow", "message"),
    [
        (
            "GET",
            "/other",
            404,
            None,
            "Expected GET /health, GET /openapi.json or POST /. "
            "Received: another path. See /openapi.json.",
        ),
        (
            "HEAD",
            "/other",
            404,
            None,
            None,
        ),
        (
            "GET",
            "/",
            405,
            "POST, OPTIONS",
            "Expected POST at this path. Received: another method. See /openapi.json.",
        ),
        (
            "DELETE",
            "/other",
            405,
            "POST, OPTIONS",
            "Expected POST at this path. Received: another method. See /openapi.json.",
        ),
        (
            "POST",
            "/health",
            405,
            "GET, OPTIONS",
            "Expected GET at this path. Received: another method. See /openapi.json.",
        ),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(
    service, method, path, status, allow, message
):
    response = service.handle(http(method, path))
    assert response["statusCode"] == status
    assert response["headers"].get("Allow") == allow
    assert response["headers"].items() >= CORS.items()
    error = json.loads(response["body"])["error"]["message"] if response["body"] else None
    assert error == message


@pytest.mark.parametrize("path", ["/", "/health", "/other"])
def test_a_preflight_is_answered_everywhere(service, log, path):
    response = service.handle(http("OPTIONS", path))
    assert (response["statusCode"], response["body"]) == (204, "")
    assert response["headers"].items() >= CORS.items()
    [line] = log()
    assert (line["status"], line["errors"], "error" in line) == (204, 0, False)


def test_health_and_the_openapi_document_are_whole(service):
    response = service.handle(http("GET", "/health"))
    assert response["statusCode"] == 200
    assert json.loads(response["body"]) == {
        "status": "ready",
        "model": "small",
        "runtime": "none",
        "classes": ["red", "green", "blue"],
    }
    response = service.handle(http("GET", "/openapi.json"))
    assert response["statusCode"] == 200
    assert json.loads(response["body"]) == json.loads(module.OPENAPI.read_text(encoding="utf-8"))
    assert service.handle(http("HEAD", "/health"))["statusCode"] == 200


def test_the_status_is_that_of_the_only_image_and_200_for_a_list(service, log):
    response = service.handle(http(body=b"hello"))
    assert response["statusCode"] == 415
    assert json.loads(response["body"])["error"]["type"] == "UnsupportedTypeError"
    body = json.dumps({"images": [base64_of(b"hello")]}).encode()
    assert service.handle(http(body=body, kind="application/json"))["statusCode"] == 200
    assert [(line["status"], line["errors"]) for line in log()] == [(415, 1), (200, 1)]


def test_one_origin_may_be_named_and_none_means_all(monkeypatch):
    monkeypatch.setenv("CORS_ORIGIN", "")
    assert cors() == CORS
    monkeypatch.delenv("CORS_ORIGIN")
    assert cors() == CORS
    monkeypatch.setenv("CORS_ORIGIN", "https://a.b")
    assert cors() == CORS | {"Access-Control-Allow-Origin": "https://a.b", "Vary": "Origin"}


# Scores.


def test_all_scores_come_in_the_order_of_the_classes_and_the_best_by_score():
    scores = np.float32([0.2, 0.5, 0.3])
    assert list(top_k(LABELS, scores, None).items()) == [
        ("red", 0.2),
        ("green", 0.5),
        ("blue", 0.3),
    ]
    assert list(top_k(LABELS, scores, 2).items()) == [("green", 0.5), ("blue", 0.3)]
    assert list(top_k(LABELS, scores, 9)) == ["green", "blue", "red"]
