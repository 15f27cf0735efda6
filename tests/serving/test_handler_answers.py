"""serving.handler with a model that only averages: answers, log lines and sentences, whole."""

import base64
import gzip
import json
import math
import time
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from serving import events, http_events
from serving import service as module
from serving.decoder import Decoded
from serving.details import Details
from serving.errors import FetchError, SettingError
from serving.handler import Handler, deadline
from serving.runtimes import Prediction
from serving.service import Service

LABELS = ("red", "green", "blue")
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Content-Encoding, Authorization, X-Api-Key, "
    "X-Amz-Date, X-Amz-Security-Token, X-Amz-Content-Sha256",
    "Access-Control-Max-Age": "86400",
}
FAILED = "The service failed on this {}; its log says why."


class Averages:
    """Stands for a Classifier: scores are how much of each colour there is."""

    labels, input_size, runtime, details, card = LABELS, (4, 6), "none", Details(), None

    def predict(self, inputs):
        assert inputs.shape == (1, 4, 6, 3)
        return Prediction(inputs.mean(axis=(0, 1, 2)) / 2 + 0.5)


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
def handler(decoder):
    return Handler(Service(Averages(), "small", decoder))


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


def test_an_image_is_answered_by_its_scores(handler, hosts):
    hosts.found = {"http://a/blue": BLUE}
    assert handler.handle({"image": base64_of(RED)}) == OF_RED
    assert handler.handle({"url": "http://a/blue"}) == OF_BLUE
    assert handler.handle({"image": base64_of(RED), "top": 1}) == {"red": 1.0}


def test_images_are_answered_in_order_whoever_fails_among_them(handler, hosts):
    hosts.found = {"http://a/1": RED, "http://a/2": FetchError("Gone."), "http://a/3": BLUE}
    assert handler.handle({"urls": list(hosts.found)}) == [
        OF_RED,
        {"error": {"type": "FetchError", "message": "Gone."}},
        OF_BLUE,
    ]
    refused, answered = handler.handle({"images": ["?", base64_of(BLUE)], "top": 1})
    assert refused["error"]["type"] == "InvalidRequestError"
    assert answered == {"blue": 1.0}


def test_an_empty_event_is_refused_with_what_is_expected(handler):
    assert handler.handle({}) == {
        "error": {
            "type": "InvalidRequestError",
            "message": f"{events.EXPECTED} Received: none of these.",
        }
    }


def test_an_image_is_opened_for_the_size_of_the_models_input(handler, monkeypatch):
    sizes = []
    decode = handler.service.decoder.decode

    def noted(data, size, **limits):
        sizes.append(size)
        return decode(data, size, **limits)

    monkeypatch.setattr(handler.service.decoder, "decode", noted)
    assert handler.handle({"image": base64_of(RED)}) == OF_RED
    assert sizes == [(4, 6)]


def test_nothing_is_fetched_where_there_is_no_url(handler, monkeypatch):
    monkeypatch.setattr(module, "fetch_all", lambda *_: pytest.fail("it fetched"))
    assert handler.handle({"image": base64_of(RED)}) == OF_RED


def test_as_many_bytes_as_may_be_fetched_may_be_sent(handler, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", len(RED))
    assert handler.handle({"image": base64_of(RED)}) == OF_RED
    assert handler.handle({"image": base64_of(RED + b"x")})["error"] == {
        "type": "TooLargeError",
        "message": "Expected at most 10 MB. Received: more. Use a smaller image.",
    }


# Time.


def test_time_is_kept_for_what_comes_after_fetching(handler, hosts, clock):
    hosts.found = {"http://a/red": RED}
    handler.handle({"url": "http://a/red"}, context(30))
    handler.handle({"url": "http://a/red"})
    assert hosts.latest == [pytest.approx(128.7), math.inf]


@pytest.mark.parametrize(("remaining", "in_time"), [(0.001, True), (0, False)])
def test_an_image_is_begun_while_time_is_left(handler, monkeypatch, clock, remaining, in_time):
    decoded = Decoded(np.full((4, 6, 3), (255, 0, 0), np.uint8), "PNG", (8, 5), 0.0)
    monkeypatch.setattr(handler.service.decoder, "decode", lambda *_, **__: decoded)
    answer = handler.handle({"image": base64_of(RED)}, context(remaining))
    if in_time:
        assert answer == OF_RED
    else:
        assert answer["error"] == {
            "type": "DeadlineError",
            "message": "Expected to be done within the invocation's time. Received: no time left "
            "for this image. Send fewer at once, or raise the function's timeout.",
        }


def test_over_http_the_time_runs_out_as_well(handler, clock):
    assert handler.handle(http(body=RED), context(1.0))["statusCode"] == 200
    response = handler.handle(http(body=RED), context(0))
    assert response["statusCode"] == 504
    assert json.loads(response["body"])["error"]["type"] == "DeadlineError"


def test_api_gateway_is_answered_before_it_gives_up(handler, hosts, clock, monkeypatch):
    """Lambda may have time left, but an answer after 30 seconds reaches nobody."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    hosts.found = {"http://a/red": RED}
    event = http(body=b'{"urls": ["http://a/red"]}', kind="application/json")
    for domain in ("id.execute-api.us-east-1.amazonaws.com", "id.lambda-url.us-east-1.on.aws"):
        event["requestContext"] |= {"domainName": domain, "timeEpoch": 1_699_999_995_000}
        for seconds in (15, 60):
            assert handler.handle(event, context(seconds))["statusCode"] == 200
    assert hosts.latest == pytest.approx([113.7, 121.7, 113.7, 158.7])


def test_the_end_is_what_lambda_leaves_and_never_without_it():
    assert deadline(context(2.5), 100.0) == 102.5
    assert deadline(None, 100.0) == math.inf
    assert deadline(SimpleNamespace(), 100.0) == math.inf


# The log.


@pytest.fixture
def stages(handler, clock, monkeypatch):
    """Let each stage take its time: 1/8 s to fetch, 1/4 s to decode, 1/2 s to ask the model."""

    def slow(function, seconds):
        def slowed(*args, **options):
            clock.seconds += seconds
            return function(*args, **options)

        return slowed

    monkeypatch.setattr(module, "fetch_all", slow(lambda urls, _: [RED] * len(urls), 1 / 8))
    decoder = handler.service.decoder
    monkeypatch.setattr(decoder, "decode", slow(decoder.decode, 1 / 4))
    monkeypatch.setattr(Averages, "predict", slow(Averages.predict, 1 / 2))


LINE = {"level": "INFO", "message": "request"}
STORED = {"bytes": len(RED), "format": "PNG", "width": 8, "height": 5}


def test_a_line_has_each_stage_with_its_time_and_all_images(handler, log, stages):
    handler.handle({"urls": ["http://a/1?b#c", "https://a/2"]}, context(30))
    took = {"decode_ms": 250.0, "infer_ms": 500.0}
    assert log() == [
        {
            **LINE,
            "request_id": "id-1",
            "cold_start": True,
            "event": "direct",
            "fetch_ms": 125.0,
            "images": [
                {"source": "url", "url": "http://a/1", **STORED, **took},
                {"source": "url", "url": "https://a/2", **STORED, **took},
            ],
            "errors": 0,
            "decode_ms": 500.0,
            "infer_ms": 1000.0,
            "ms": 1625.0,
        }
    ]


def test_sums_of_times_have_one_decimal_too(handler, log, clock, monkeypatch):
    def decode(*args, **limits):
        clock.seconds += 0.1001
        return decoded(*args, **limits)

    decoded = handler.service.decoder.decode
    monkeypatch.setattr(handler.service.decoder, "decode", decode)
    handler.handle({"images": [base64_of(RED)] * 3})
    [line] = log()
    assert line["decode_ms"] == 300.3  # and not 300.29999999999995


def test_a_line_of_http_has_its_method_and_status_too(handler, log, stages):
    handler.handle({})
    log()
    handler.handle(http(body=RED))
    assert log() == [
        {
            **LINE,
            "request_id": None,
            "cold_start": False,
            "event": "http 2.0",
            "method": "POST",
            "fetch_ms": 0.0,
            "images": [{"source": "image", **STORED, "decode_ms": 250.0, "infer_ms": 500.0}],
            "errors": 0,
            "decode_ms": 250.0,
            "infer_ms": 500.0,
            "status": 200,
            "ms": 750.0,
        }
    ]


def test_a_line_names_the_error_of_a_request_and_counts_those_of_a_list(handler, log, clock):
    handler.handle({})
    handler.handle(http("X" * 20))
    handler.handle({"images": ["?", base64_of(b"hi"), base64_of(RED)]})
    handler.handle({"image": base64_of(b"hi")})
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


# Defects of ours.


def fail(*_):
    raise KeyError("http://a/?secret")


def test_a_defect_costs_its_own_image_only(handler, log, monkeypatch):
    decode = handler.service.decoder.decode
    monkeypatch.setattr(
        handler.service.decoder,
        "decode",
        lambda data, *args, **limits: fail() if data == BLUE else decode(data, *args, **limits),
    )
    answers = handler.handle({"images": [base64_of(BLUE), base64_of(RED)]}, context(30))
    failed = {"error": {"type": "InternalError", "message": FAILED.format("image")}}
    assert answers == [failed, OF_RED]
    defect, request = log()
    assert (defect["level"], defect["message"], defect["request_id"]) == ("ERROR", "defect", "id-1")
    assert defect["exception"].endswith("KeyError: 'http://a/?...\n")
    assert request["images"][0]["error"] == "InternalError"
    assert "secret" not in json.dumps(request)


def test_a_defect_anywhere_else_is_answered_as_one_too(handler, log, monkeypatch):
    monkeypatch.setattr(module, "ImageResult", fail)
    failed = {"error": {"type": "InternalError", "message": FAILED.format("request")}}
    assert handler.handle({"image": base64_of(RED)}, context(30)) == failed
    defect, request = log()
    assert defect["request_id"] == "id-1"
    assert defect["exception"].endswith("KeyError: 'http://a/?...\n")
    assert (request["error"], request["errors"]) == ("InternalError", 1)
    response = handler.handle(http(body=RED))
    assert response["statusCode"] == 500
    assert json.loads(response["body"]) == failed
    assert response["headers"].items() >= CORS.items()
    assert [line["level"] for line in log()] == ["ERROR", "INFO"]


# HTTP.


def test_an_image_may_be_sent_to_any_path_but_those_that_are_something_else(handler):
    for path in ("", "/", "/prod", "/prod/flowers"):
        response = handler.handle(http(path=path, body=RED))
        assert (response["statusCode"], json.loads(response["body"])) == (200, OF_RED)
    for path in ("/health", "/prod/openapi.json"):
        assert handler.handle(http(path=path, body=RED))["statusCode"] == 405


@pytest.mark.parametrize(
    ("method", "path", "status", "allow", "message"),
    [
        (
            "GET",
            "/other",
            404,
            None,
            "Expected GET /, GET /health, GET /openapi.json or POST /. "
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
            "DELETE",
            "/",
            405,
            "GET, HEAD, POST, OPTIONS",
            "Expected GET or POST at this path. Received: another method. See /openapi.json.",
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
            "GET, HEAD, OPTIONS",
            "Expected GET at this path. Received: another method. See /openapi.json.",
        ),
    ],
)
def test_other_paths_and_methods_are_refused_with_those_that_exist(
    handler, method, path, status, allow, message
):
    response = handler.handle(http(method, path))
    assert response["statusCode"] == status
    assert response["headers"].get("Allow") == allow
    assert response["headers"].items() >= CORS.items()
    error = json.loads(response["body"])["error"]["message"] if response["body"] else None
    assert error == message


@pytest.mark.parametrize("path", ["/", "/health", "/other"])
def test_a_preflight_is_answered_everywhere(handler, log, path):
    response = handler.handle(http("OPTIONS", path))
    assert (response["statusCode"], response["body"]) == (204, "")
    assert response["headers"].items() >= CORS.items()
    [line] = log()
    assert (line["status"], line["errors"], "error" in line) == (204, 0, False)


def test_health_and_the_openapi_document_are_whole(handler):
    response = handler.handle(http("GET", "/health"))
    assert response["statusCode"] == 200
    assert json.loads(response["body"]) == {
        "status": "ready",
        "model": "small",
        "runtime": "none",
        "classes": ["red", "green", "blue"],
        "input_size": [4, 6],
        "details": False,
        "unknown_below": 0.02,
        "card": None,
    }
    response = handler.handle(http("GET", "/openapi.json"))
    assert response["statusCode"] == 200
    assert json.loads(response["body"]) == json.loads(
        http_events.OPENAPI.read_text(encoding="utf-8")
    )
    assert handler.handle(http("HEAD", "/health"))["statusCode"] == 200


def test_the_status_is_that_of_the_only_image_and_200_for_a_list(handler, log):
    response = handler.handle(http(body=b"hello"))
    assert response["statusCode"] == 415
    assert json.loads(response["body"])["error"]["type"] == "UnsupportedTypeError"
    body = json.dumps({"images": [base64_of(b"hello")]}).encode()
    assert handler.handle(http(body=body, kind="application/json"))["statusCode"] == 200
    assert [(line["status"], line["errors"]) for line in log()] == [(415, 1), (200, 1)]


def test_a_url_in_the_query_changes_nothing_where_no_image_goes(handler):
    for path in ("/health", "/openapi.json"):
        for method, status in (("GET", 200), ("HEAD", 200), ("POST", 405)):
            event = http(method, path)
            plain = handler.handle(event)
            event["queryStringParameters"] = {"url": "https://a.b/c.jpg"}
            assert handler.handle(event)["statusCode"] == status
            assert handler.handle(event)["body"] == plain["body"]
    event = http("GET", "/other") | {"queryStringParameters": {"url": "https://a.b/c.jpg"}}
    response = handler.handle(event)
    assert (response["statusCode"], response["headers"]["Allow"]) == (405, "POST, OPTIONS")
    assert "Expected POST with" in response["body"]


def test_a_wrong_setting_shows_at_the_start(handler, monkeypatch):
    monkeypatch.setenv("CORS_ORIGIN", "https://a.example/")
    with pytest.raises(SettingError, match="CORS_ORIGIN to be one origin"):
        Handler(handler.service)
    monkeypatch.delenv("CORS_ORIGIN")
    monkeypatch.setenv("CORS_HEADERS", "X Y")
    with pytest.raises(SettingError, match="Received: 'X Y'. Correct it, or unset CORS_HEADERS"):
        Handler(handler.service)


def test_a_form_is_answered_like_its_images(handler, log):
    part = b'--B\r\nContent-Disposition: form-data; name="x"; filename="a.png"\r\n\r\n%s\r\n'
    kind = "multipart/form-data; boundary=B"
    for images, answer in (([RED], OF_RED), ([RED, BLUE], [OF_RED, OF_BLUE])):
        body = b"".join(part % data for data in images) + b"--B--\r\n"
        response = handler.handle(http(body=body, kind=kind))
        assert (response["statusCode"], json.loads(response["body"])) == (200, answer)
        assert [image["source"] for image in log()[0]["images"]] == ["image"] * len(images)
    assert handler.handle(http(body=body[:-9], kind=kind))["statusCode"] == 400


@pytest.mark.parametrize("kind", ["", "application/x-www-form-urlencoded"])
def test_an_image_needs_no_type(handler, kind):
    response = handler.handle(http(body=RED, kind=kind))
    assert (response["statusCode"], json.loads(response["body"])) == (200, OF_RED)


def test_a_packed_image_is_unpacked_and_a_bomb_is_413(handler):
    for data, status in ((RED, 200), (bytes(10_000_000), 413)):
        event = http(body=gzip.compress(data))
        event["headers"]["content-encoding"] = "gzip"
        assert handler.handle(event)["statusCode"] == status
    event["headers"]["content-encoding"] = "br"
    assert handler.handle(event)["statusCode"] == 415


def test_a_data_url_is_no_url_to_fetch(handler, log):
    for text in (f"data:image/png;base64,{base64_of(RED)}", f"DATA:;base64,{base64_of(RED)}"):
        assert handler.handle({"urls": [text], "top": 1}) == [{"red": 1.0}]
        [line] = log()
        assert line["images"][0]["source"] == "image"


def test_each_answer_to_post_says_how_long_it_took(handler):
    timings = {}
    for name, body, kind in (
        ("image", RED, "image/png"),
        ("no image", b"hello", "image/png"),
        ("no json", b"{", "application/json"),
        ("url", b'{"url": "http://127.0.0.2/"}', "application/json"),
    ):
        header = handler.handle(http(body=body, kind=kind))["headers"]["Server-Timing"]
        parts = [part.partition(";dur=") for part in header.split(", ")]
        assert all(float(ms) >= 0 for _, _, ms in parts)
        timings[name] = [step for step, _, _ in parts]
    assert timings == {
        "image": ["decode", "infer", "total"],
        "no image": ["total"],
        "no json": ["total"],
        "url": ["fetch", "total"],
    }
    assert "Server-Timing" not in handler.handle(http("GET"))["headers"]
    assert "Server-Timing" in handler.handle(http("POST", "/health"))["headers"]
