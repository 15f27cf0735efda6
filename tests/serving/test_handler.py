"""serving.handler: events answered by a real model, over direct invocation and HTTP."""

import base64
import gc
import json
import re
import sys
import time
import tracemalloc
from io import BytesIO, TextIOWrapper
from types import SimpleNamespace

import pytest
from PIL import Image

from serving import errors, http_events
from serving import service as module
from serving.classifier import Classifier
from serving.handler import Handler
from serving.service import Service
from tools.emulator import EmulatorError, sample_event

COLORS = ("red", "green", "blue")
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Content-Encoding, Authorization, X-Api-Key, "
    "X-Amz-Date, X-Amz-Security-Token, X-Amz-Content-Sha256",
    "Access-Control-Max-Age": "86400",
}


def encoded(color, name="PNG"):
    buffer = BytesIO()
    Image.new("RGB", (60, 40), color).save(buffer, name)
    return buffer.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


def best_label(scores):
    return max(scores, key=scores.get)


@pytest.fixture(scope="module")
def handler(small_tflite, decoder):
    return Handler(Service(Classifier(small_tflite), "small", decoder))


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


DEFECTIVE = Handler(SimpleNamespace())  # so every request fails


def http(method="GET", path="", body=b"", kind="application/json", **more):
    """Return a Function URL's or HTTP API's event."""
    try:
        event = sample_event("apigateway/HttpApi", method=method, path=path, stage="$default")
    except EmulatorError as error:
        pytest.skip(str(error))
    event |= {"body": base64_of(body), "headers": {"content-type": kind}}
    return event | {"queryStringParameters": None} | more


def in_form(payload_format, method, path, body=b"", kind="image/png", top=None):
    """Return the event of a request as one of AWS's gateways passes it on."""
    top = top and {"top": top}
    if payload_format == "2.0":
        return http(method, path, body, kind, queryStringParameters=top)
    event = {
        "httpMethod": method,
        "path": f"/{path}",
        "queryStringParameters": top,
        "headers": {"Content-Type": kind},
        "body": base64_of(body),
        "isBase64Encoded": True,
        "requestContext": {"elb": {"targetGroupArn": "arn"}}
        if payload_format.startswith("alb")
        else {},
    }
    if payload_format == "alb lists":
        lists = {"headers": "multiValueHeaders", "queryStringParameters": "multiValue"}
        lists["queryStringParameters"] += "QueryStringParameters"
        for name, multiple in lists.items():
            event[multiple] = {n: ["0", value] for n, value in (event.pop(name) or {}).items()}
    return event


@pytest.mark.parametrize("payload_format", ["1.0", "2.0", "alb", "alb lists"])
def test_each_form_of_http_is_answered_in_its_own(handler, log, payload_format):
    log()
    requests = {
        200: ("POST", "prod/", encoded("red"), "image/png", "1"),
        400: ("POST", "", b'{"url": "ftp://a"}', "application/json"),
        404: ("GET", "none"),
        405: ("DELETE", "health"),
        500: ("GET", "health"),
    }
    for status, request in requests.items():
        handler = DEFECTIVE if status == 500 else handler
        response = handler.handle(in_form(payload_format, *request), context(30))
        keys = {"statusCode", "body", "isBase64Encoded"}
        keys |= {"multiValueHeaders" if payload_format == "alb lists" else "headers"}
        keys |= {"statusDescription"} if payload_format.startswith("alb") else set()
        assert set(response) == keys
        assert (response["statusCode"], response["isBase64Encoded"]) == (status, False)
        expected = CORS | {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        expected |= {"Content-Type": "application/json"}
        expected |= {"Allow": "GET, HEAD, OPTIONS"} if status == 405 else {}
        if request[0] == "POST":
            expected |= {"Access-Control-Expose-Headers": "Server-Timing"}
            expected |= {"Timing-Allow-Origin": "*"}
        headers = response.get("headers", response.get("multiValueHeaders"))
        if payload_format == "alb lists":
            assert all(len(values) == 1 for values in headers.values())
            headers = {name: values[0] for name, values in headers.items()}
        timing = headers.pop("Server-Timing", "")
        assert ("total;dur=" in timing) == (request[0] == "POST")
        assert headers == expected
        answer = json.loads(response["body"])
        assert list(answer) == (["red"] if status == 200 else ["error"])
        *_, line = log()
        assert line["event"] == f"http {payload_format.split()[0]}"
        assert (line["method"], line["request_id"]) == (request[0], "id-1")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (("OPTIONS", "health", b"{", "text/xml", "0"), 204),
        (("POST", "health", b"{", "text/xml", "0"), 405),
        (("GET", "none", b"{", "text/xml", "0"), 404),
        (("POST", "", b"{", "text/xml", "0"), 400),
        (("POST", "", b"{", "text/xml", "1"), 415),
        (("POST", "", encoded("red"), "image/png", "0"), 400),
        (("POST", "", b"{", "application/json", "1"), 400),
    ],
)
def test_of_several_mistakes_always_the_same_one_is_reported(handler, request_, status):
    assert handler.handle(in_form("2.0", *request_))["statusCode"] == status


def test_one_image(handler, url):
    for event in ({"url": f"{url}/red.png"}, {"image": base64_of(encoded("red"))}):
        answer = handler.handle(event)
        assert list(answer) == ["red", "green", "blue"]
        assert best_label(answer) == "red"


def test_several_in_order_and_a_bad_one_costs_the_others_nothing(handler, url):
    names = ["blue.png", "none.png", "page", "red.png"]
    answers = handler.handle({"urls": [f"{url}/{name}" for name in names]})
    assert [best_label(answers[0]), best_label(answers[3])] == ["blue", "red"]
    assert [answer["error"]["type"] for answer in answers[1:3]] == [
        "FetchError",
        "UnsupportedTypeError",
    ]
    images = [base64_of(encoded("green")), "?", base64_of(encoded("red")[:50])]
    answers = handler.handle({"images": images})
    assert best_label(answers[0]) == "green"
    assert [answer["error"]["type"] for answer in answers[1:]] == [
        "InvalidRequestError",
        "ImageError",
    ]


def test_top_answers_the_best_first(handler):
    event = {"image": base64_of(encoded("blue"))}
    everything = handler.handle(event)
    answer = handler.handle(event | {"top": 2})
    assert list(answer.items()) == sorted(everything.items(), key=lambda item: -item[1])[:2]
    assert len(handler.handle(event | {"top": 99})) == 3
    both = handler.handle({"images": [event["image"]] * 2, "top": 1})
    assert [list(scores) for scores in both] == [["blue"], ["blue"]]


def test_a_list_of_one_is_answered_as_a_list(handler):
    [scores] = handler.handle({"images": [base64_of(encoded("blue"))]})
    assert best_label(scores) == "blue"
    [wrong] = handler.handle({"images": ["?"]})
    assert wrong["error"]["type"] == "InvalidRequestError"


def test_an_image_over_http(handler):
    event = http("POST", body=encoded("green", "JPEG"), kind="image/jpeg")
    response = handler.handle(event)
    assert response["statusCode"] == 200
    assert best_label(json.loads(response["body"])) == "green"
    response = handler.handle(event | {"queryStringParameters": {"top": "1"}})
    assert list(json.loads(response["body"])) == ["green"]


@pytest.mark.parametrize("path", ["", "prod", "prod/", "flowers/classify"])
def test_an_image_may_be_sent_to_any_path(handler, path):
    response = handler.handle(http("POST", path, encoded("green"), "image/png"))
    assert (response["statusCode"], best_label(json.loads(response["body"]))) == (200, "green")


def test_top_in_the_query_holds_for_json_too(handler):
    body = {"images": [base64_of(encoded("green"))] * 2, "top": 3}
    event = http("POST", body=json.dumps(body).encode(), queryStringParameters={"top": "1"})
    answers = json.loads(handler.handle(event)["body"])
    assert [list(scores) for scores in answers] == [["green"], ["green"]]


@pytest.mark.parametrize(
    ("event", "status", "kind"),
    [
        ({"body": b"{}"}, 400, "InvalidRequestError"),
        ({"body": b'{"url": "http://127.0.0.2/"}'}, 400, "AddressError"),
        ({"body": b"<a/>", "kind": "text/xml"}, 415, "UnsupportedTypeError"),
        ({"body": b"hello", "kind": "image/png"}, 415, "UnsupportedTypeError"),
        ({"body": encoded("red")[:60], "kind": "image/png"}, 422, "ImageError"),
        ({"body": b"0" * 10_000_001, "kind": "image/png"}, 413, "TooLargeError"),
        ({"body": b"0" * 10_000_000, "kind": "image/png"}, 415, "UnsupportedTypeError"),
        ({"body": b'{"url": "http://no-such-host.invalid/"}'}, 502, "FetchError"),
        ({"method": "GET", "path": "none"}, 404, "NotFoundError"),
        ({"method": "PATCH"}, 405, "MethodError"),
        ({"method": "PUT", "path": "health"}, 405, "MethodError"),
    ],
)
@pytest.mark.usefixtures("no_such_host")
def test_errors_over_http_have_their_status(handler, event, status, kind):
    response = handler.handle(http(**{"method": "POST", **event}))
    error = json.loads(response["body"])["error"]
    assert (response["statusCode"], error["type"]) == (status, kind)
    assert re.fullmatch(r"Expected .+ Received: .+", error["message"])
    assert ("Allow" in response["headers"]) == (status == 405)


@pytest.mark.parametrize("seconds", [0, 0.9, 1.2])
def test_too_little_time_is_a_504(handler, http_server, monkeypatch, seconds):
    """Whether none is left for the image, or its host takes all of it."""
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")
    url = http_server({"/slow": lambda _: time.sleep(3) or (200, {}, b"")})
    events = [{"body": json.dumps({"url": f"{url}/slow"}).encode()}]
    if not seconds:
        events.append({"body": encoded("red"), "kind": "image/png"})
    kinds = ("FetchTimeoutError", "DeadlineError")
    for event, kind in zip(events, kinds, strict=False):
        request = http("POST", **event)
        started = time.monotonic()
        response = handler.handle(request, context(seconds))
        assert time.monotonic() - started < 3, "it waited for the host"
        assert response["statusCode"] == 504
        assert json.loads(response["body"])["error"]["type"] == kind


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "", "GET, HEAD, POST, OPTIONS"),
        ("PUT", "flowers", "POST, OPTIONS"),
        ("POST", "health", "GET, HEAD, OPTIONS"),
        ("DELETE", "prod/openapi.json/", "GET, HEAD, OPTIONS"),
        ("", "health", "GET, HEAD, OPTIONS"),
    ],
)
def test_other_methods_get_the_allowed_ones(handler, method, path, allow):
    response = handler.handle(http(method, path))
    assert (response["statusCode"], response["headers"]["Allow"]) == (405, allow)


def test_head_answers_as_get_does_but_for_the_body(handler):
    for path in ("", "health", "openapi.json", "none"):
        got, head = (handler.handle(http(method, path)) for method in ("GET", "HEAD"))
        assert int(head["headers"].pop("Content-Length")) == len(got["body"]) > 0
        assert head == got | {"body": ""}


def test_several_over_http(handler, url):
    body = json.dumps({"urls": [f"{url}/red.png", f"{url}/none"]}).encode()
    response = handler.handle(http("POST", body=body))
    assert response["statusCode"] == 200
    red, none = json.loads(response["body"])
    assert (best_label(red), none["error"]["type"]) == ("red", "FetchError")


def test_health_says_which_model_is_ready(handler):
    response = handler.handle(http("GET", "prod/health"))
    assert response["statusCode"] == 200
    assert json.loads(response["body"]) == {
        "status": "ready",
        "model": "small",
        "runtime": handler.service.classifier.runtime,
        "classes": ["red", "green", "blue"],
        "input_size": [32, 48],
        "details": False,
        "unknown_below": 0.02,
        "card": None,
    }


def test_the_openapi_document_names_every_error_and_limit(handler):
    response = handler.handle(http("GET", "openapi.json"))
    document = json.loads(response["body"])
    schemas = document["components"]["schemas"]
    from serving.events import MAX_IMAGES

    types = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in types if issubclass(kind, errors.ServingError)]
    names = {kind.__name__ for kind in kinds} - {"ServingError"}
    assert set(schemas["Error"]["properties"]["error"]["properties"]["type"]["enum"]) == names
    assert schemas["Results"]["maxItems"] == MAX_IMAGES
    statuses = set(document["paths"]["/"]["post"]["responses"])
    assert statuses == {"200"} | {str(kind.status) for kind in kinds} - {"404", "405"}


def test_pages_of_other_origins_may_ask(handler, monkeypatch):
    everything = CORS | {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    for path in ("", "health", "none"):
        response = handler.handle(http("OPTIONS", path))
        assert (response["statusCode"], response["body"]) == (204, "")
        assert response["headers"] == everything
    events = {
        200: http("GET", "health"),
        400: http("POST"),
        404: http("GET", "none"),
        405: http("PUT", "health"),
        422: http("POST", body=encoded("red")[:60], kind="image/png"),
        500: http("GET", "health"),
    }
    wanted = {"": CORS, "https://a.example": {"Access-Control-Allow-Origin": "https://a.example"}}
    for origin, expected in wanted.items():  # an empty one is none
        monkeypatch.setenv("CORS_ORIGIN", origin)
        for status, event in events.items():
            response = (DEFECTIVE if status == 500 else handler).handle(event)
            assert response["statusCode"] == status
            assert response["headers"].items() >= (CORS | expected).items()
            assert response["headers"].get("Vary") == ("Origin" if origin else None)


def context(seconds):
    return SimpleNamespace(
        aws_request_id="id-1", get_remaining_time_in_millis=lambda: seconds * 1000
    )


def test_without_time_left_the_answer_says_so(handler, url):
    event = {"image": base64_of(encoded("red"))}
    assert handler.handle(event, context(0))["error"]["type"] == "DeadlineError"
    assert best_label(handler.handle(event, context(30))) == "red"
    answer = handler.handle({"url": f"{url}/red.png"}, context(0))
    assert answer["error"]["type"] in ("FetchTimeoutError", "DeadlineError")


class Clock:
    """Stands for time.monotonic; advances only where a step `takes` time."""

    now = 100.0

    def __call__(self):
        return self.now

    def takes(self, seconds, function):
        """Return `function`, which takes so many `seconds`."""

        def slow(*arguments, **options):
            self.now += seconds
            return function(*arguments, **options)

        return slow


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def one_processor(handler, monkeypatch):
    """A handler of a function with one processor: nothing is decoded while the model runs."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1769")
    return Handler(Service(handler.service.classifier, "small", handler.service.decoder))


def test_the_log_says_how_long_each_step_took(one_processor, clock, log, monkeypatch):
    handler = one_processor
    monkeypatch.setattr(module, "fetch_all", clock.takes(3.0002, lambda *_: [encoded("red")] * 2))
    decoder = handler.service.decoder
    monkeypatch.setattr(decoder, "decode", clock.takes(0.2003, decoder.decode))
    monkeypatch.setattr(module, "scale", clock.takes(0.1001, module.scale))
    classifier = handler.service.classifier
    monkeypatch.setattr(classifier, "predict", clock.takes(0.5, classifier.predict))
    log()
    handler.handle({"urls": ["http://a", "http://b"]}, context(30))
    [line] = log()
    steps = ("fetch_ms", "decode_ms", "infer_ms", "ms")
    assert [line[name] for name in steps] == [3000.2, 600.8, 1000.0, 4601.0]
    for image in line["images"]:
        assert (image["decode_ms"], image["infer_ms"]) == (300.4, 500.0)


def test_what_is_done_when_time_runs_out_is_answered(one_processor, monkeypatch):
    handler = one_processor
    classifier, clock = handler.service.classifier, Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(classifier, "predict", clock.takes(4.9, classifier.predict))
    image = base64_of(encoded("red"))
    answers = handler.handle({"images": [image] * 3}, context(5))
    assert best_label(answers[0]) == "red"
    assert [answer["error"]["type"] for answer in answers[1:]] == ["DeadlineError"] * 2


def test_one_line_is_logged_of_each_request(handler, url, log):
    fresh = Handler(handler.service)
    log()
    fresh.handle({"url": f"{url}/red.png?token=secret#part"}, context(30))
    fresh.handle(http("POST", body=encoded("blue"), kind="image/png"), context(30))
    fresh.handle({"urls": ["http://user:secret@127.0.0.1/a?secret", f"{url}/blue.png"]})
    first, second, third = log()

    assert (first["request_id"], first["cold_start"], first["event"]) == ("id-1", True, "direct")
    [image] = first["images"]
    assert image["url"] == f"{url}/red.png"
    assert (image["source"], image["bytes"]) == ("url", len(encoded("red")))
    assert (image["format"], image["width"], image["height"]) == ("PNG", 60, 40)
    assert all(first[name] >= 0 for name in ("ms", "fetch_ms", "decode_ms", "infer_ms"))
    assert first["ms"] >= first["fetch_ms"] + first["decode_ms"] + first["infer_ms"] - 0.3

    assert (second["cold_start"], second["event"], second["status"]) == (False, "http 2.0", 200)
    assert second["images"][0]["source"] == "image"
    assert third["errors"] == 1
    assert third["images"][0]["error"] == "AddressError"
    assert "secret" not in json.dumps([first, second, third])
    assert all((line["level"], line["message"]) == ("INFO", "request") for line in (first, second))


def test_the_line_of_a_request_says_what_went_wrong(handler, log):
    broken = encoded("red")[:60]
    log()
    handler.handle({"urls": []})
    handler.handle({"image": base64_of(broken)})
    handler.handle(http("POST", body=broken, kind="image/png"))
    handler.handle(http("propfind" * 9, "health"))
    handler.handle({"images": ["?", base64_of(broken), base64_of(encoded("red"))]})
    lines = log()
    assert [line.get("error") for line in lines] == [
        "InvalidRequestError",
        "ImageError",
        "ImageError",
        "MethodError",
        None,  # of the list as a whole
    ]
    assert [line["errors"] for line in lines] == [1, 1, 1, 1, 2]
    assert [line.get("status") for line in lines] == [None, None, 422, 405, None]
    assert [line.get("method") for line in lines] == [None, None, "POST", "PROPFIND" * 2, None]
    kinds = [image.get("error") for image in lines[4]["images"]]
    assert kinds == ["InvalidRequestError", "ImageError", None]


@pytest.mark.parametrize(
    ("url", "logged"),
    [
        ("http://127.0.0.2/a/b.jpg?c=d#e", "http://127.0.0.2/a/b.jpg"),
        ("https://rose:thorn@127.0.0.2:8/", "unreadable"),
        ("https://127.0.0.2:8/;thorn", "https://127.0.0.2:8/"),
        ("http://127.0.0.2/" + "a" * 300, "http://127.0.0.2/" + "a" * 183),
        ("ftp://127.0.0.2/thorn", "unreadable"),
        ("thorn", "unreadable"),
        ("http:thorn", "unreadable"),
        ("http://[thorn", "unreadable"),
    ],
)
def test_of_a_url_the_log_has_only_what_may_be_read_there(handler, log, url, logged):
    log()
    handler.handle({"url": url})
    [line] = log()
    assert line["images"][0]["url"] == logged
    assert "thorn" not in json.dumps(line)


def test_a_line_is_written_at_once(handler, monkeypatch):
    """Lambda may freeze the process as soon as it has answered."""
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written))
    handler.handle({})
    assert json.loads(written.getvalue())["message"] == "request"


def test_metrics_are_logged_if_turned_on(handler, log, monkeypatch):
    event = {"image": base64_of(encoded("red"))}
    log()
    handler.handle(event)
    assert "_aws" not in log()[0]
    monkeypatch.setenv("METRICS_NAMESPACE", "flowers")
    handler.handle(event)
    [line] = log()
    [directive] = line["_aws"]["CloudWatchMetrics"]
    units = dict.fromkeys(("ms", "fetch_ms", "decode_ms", "infer_ms"), "Milliseconds")
    units["errors"] = "Count"
    assert directive == {
        "Namespace": "flowers",
        "Dimensions": [[]],
        "Metrics": [{"Name": name, "Unit": unit} for name, unit in units.items()],
    }
    assert all(line[name] >= 0 for name in units)
    assert abs(line["_aws"]["Timestamp"] - time.time() * 1000) < 60_000
    handler.handle({})
    [line] = log()
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert [metric["Name"] for metric in directive["Metrics"]] == ["ms", "errors"]
    assert line["errors"] == 1


def test_a_defect_of_ours_is_logged_and_kept_from_callers(handler, log, monkeypatch):
    def fail(*_):
        raise KeyError("https://example.com/a?secret=1")

    log()
    scale = module.scale
    monkeypatch.setattr(module, "scale", fail)
    events = [{"image": base64_of(encoded("red"))}]
    events.append(http("POST", body=encoded("red"), kind="image/png"))
    for event in events:
        answer = handler.handle(event, context(30))
        assert "InternalError" in json.dumps(answer)
        assert "example.com" not in json.dumps(answer)
        defect, request = log()
        assert (defect["level"], defect["request_id"]) == ("ERROR", "id-1")
        assert "KeyError" in defect["exception"]
        assert "in _decode" in defect["exception"]
        assert "secret" not in json.dumps([defect, request])
    events = [{"images": [events[0]["image"]] * 2}]
    first = True

    def fail_once(*arguments):
        nonlocal first
        if first:
            first = False
            fail()
        return scale(*arguments)

    monkeypatch.setattr(module, "scale", fail_once)
    broken, sound = handler.handle(events[0], context(30))
    assert (broken["error"]["type"], best_label(sound)) == ("InternalError", "red")
    defect, request = log()
    assert (defect["request_id"], request["errors"]) == ("id-1", 1)
    monkeypatch.setattr(http_events, "parse_body", fail)
    response = handler.handle(http("POST"))
    assert response["statusCode"] == 500
    assert json.loads(response["body"])["error"]["type"] == "InternalError"


def test_a_defect_outside_the_images_is_answered_too(log):
    log()
    events = ({"image": base64_of(encoded("red"))}, http("GET", "health"))
    direct, over_http = (DEFECTIVE.handle(event, context(30)) for event in events)
    message = "The service failed on this request; its log says why."
    assert direct == {"error": {"type": "InternalError", "message": message}}
    assert over_http["statusCode"] == 500
    assert json.loads(over_http["body"]) == direct
    lines = log()
    assert [line["message"] for line in lines] == ["defect", "request"] * 2
    assert {line["request_id"] for line in lines} == {"id-1"}
    assert all(line["error"] == "InternalError" for line in lines[1::2])


def test_of_images_that_are_done_nothing_is_kept(handler, http_server, monkeypatch):
    """Sixteen large ones, be they broken, are hundreds of megabytes."""
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")
    behind = bytes(1_000_000)
    pages = {"/whole": encoded("red") + behind, "/broken": encoded("red")[:60] + behind}
    url = http_server({path: (200, {}, body) for path, body in pages.items()})
    held, decode = [], handler.service.decoder.decode

    def watch(*arguments, **limits):
        held.append(tracemalloc.get_traced_memory()[0])
        return decode(*arguments, **limits)

    monkeypatch.setattr(handler.service.decoder, "decode", watch)
    tracemalloc.start()
    answers = handler.handle({"urls": [f"{url}/{name}" for name in ("broken", "whole") * 4]})
    tracemalloc.stop()
    assert ["error" in answer for answer in answers] == [True, False] * 4
    assert held[-1] < 2 * len(behind), "its own bytes are there, the others' are not"


@pytest.mark.parametrize("length", [60_000, 1_000_000])
def test_of_long_urls_nothing_is_kept(handler, length):
    """urlsplit keeps the last 128 texts, with four bytes a character if one needs as many."""
    urls = [f"https://127.0.0.1:{i}/{'a' * length}\U0001f339" for i in range(1, 51)]
    handler.handle({"urls": urls[:16]})
    tracemalloc.start()
    for url in urls:
        assert "error" in handler.handle({"url": url})
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000
