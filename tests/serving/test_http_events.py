"""serving.http_events, with AWS's own examples of its gateways' events, and with events of ours."""

import base64
import gzip
import json
import math
import time
from dataclasses import replace

import pytest

from serving.errors import (
    InvalidRequestError,
    MethodError,
    SettingError,
    UnsupportedTypeError,
)
from serving.events import EXPECTED, Request, Source
from serving.http_events import (
    HttpRequest,
    Page,
    answer,
    cors,
    find_page,
    parse_body,
    read_event,
    write_response,
)
from serving.service import Result
from tools.emulator import EmulatorError, sample_event

SAMPLES = {"1.0": "apigateway/AwsProxy", "2.0": "apigateway/HttpApi", "alb": "alb/ALBRequest"}
URL = {"url": "https://example.com/rose.jpg"}
ALWAYS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}  # in each answer


@pytest.fixture(params=SAMPLES)
def payload_format(request):
    return request.param


@pytest.fixture
def sample(payload_format):
    """Make AWS's example in `payload_format`: (method, path, body as bytes, its type) -> event."""

    def make(method="POST", path="", body=b"", kind="application/json", **more):
        places = {"method": method, "path": path, "stage": "prod", "resource": "{proxy+}"}
        try:
            event = sample_event(
                SAMPLES[payload_format], body=base64.b64encode(body).decode(), **places
            )
        except EmulatorError as error:
            pytest.skip(str(error))
        headers = "multiValueHeaders" if payload_format == "1.0" else "headers"
        event[headers]["Content-Type"] = [kind] if payload_format == "1.0" else kind
        return event | more

    return make


def test_the_request_is_read(sample, payload_format):
    request = read_event(sample("POST", "flowers/health", json.dumps(URL).encode()))
    assert (request.payload_format, request.method, request.path) == (
        payload_format,
        "POST",
        "/flowers/health",
    )
    assert request.route == "health"
    assert request.is_base64
    assert parse_body(request) == Request((Source(url=URL["url"]),))


@pytest.mark.parametrize(
    ("waited", "left"),
    [
        (0, 28.0),
        (1500, 26.5),
        (27_999, 0.001),
        (28_000, 28.0),
        (60_000, 28.0),
        (-1, 28.0),
        (-(10**400), 28.0),
        (10**400, 28.0),
        (None, 28.0),
    ],
)
def test_api_gateway_has_to_be_answered_in_time(monkeypatch, waited, left):
    """Its HTTP APIs give up 30 seconds after the request arrived, its REST APIs after 29."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    arrived = None if waited is None else 1_700_000_000_000 - waited
    context = {"domainName": "id.execute-api.us-east-1.amazonaws.com", "timeEpoch": arrived}
    event = {"version": "2.0", "requestContext": context}
    assert read_event(event).seconds == pytest.approx(left)
    context["requestTimeEpoch"] = context.pop("timeEpoch")
    if waited != 27_999:
        expected = left - 1 if waited != 28_000 else 27.0
        assert read_event(event | {"version": "1.0"}).seconds == pytest.approx(expected)


@pytest.mark.parametrize("arrived", ["1700000000000", True, math.nan, {}, []])
def test_a_time_that_is_none_counts_as_now(arrived):
    context = {"domainName": "flowers.test", "timeEpoch": arrived}
    assert read_event({"version": "2.0", "requestContext": context}).seconds == 28.0


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"domainName": "id.lambda-url.us-east-1.on.aws"},
        {"domainName": 1},
        {"domainName": "flowers.test", "elb": {}},
    ],
)
def test_others_wait_as_long_as_lambda(context):
    context |= {"timeEpoch": int(time.time() * 1000) - 5000}
    event = {"version": "1.0" if "elb" in context else "2.0", "requestContext": context}
    assert read_event(event).seconds == math.inf


def test_an_example_that_was_recorded_has_all_the_time(sample, payload_format):
    expected = {"1.0": 27.0, "2.0": 28.0, "alb": math.inf}
    assert read_event(sample()).seconds == expected[payload_format]


def test_an_image_as_the_body(sample):
    data = bytes(range(256))
    kinds = ("image/jpeg", "IMAGE/PNG; q=1", " image/webp ", "application/octet-stream")
    for kind in (*kinds, "binary/octet-stream ; a=b"):
        request = read_event(sample(body=data, kind=kind))
        assert parse_body(request) == Request((Source(image=data),))


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("", ""),
        ("/", ""),
        ("//", ""),
        ("/health", "health"),
        ("/health/", "health"),
        ("/prod/health//", "health"),
        ("/prod/flowers/", "flowers"),
        ("/openapi.json", "openapi.json"),
    ],
)
def test_the_route_is_the_last_part_of_the_path(sample, path, route):
    places = {"2.0": "rawPath"}
    event = sample()
    event[places.get(read_event(event).payload_format, "path")] = path
    assert (read_event(event).path, read_event(event).route) == (path, route)


def test_methods_are_read_in_upper_case_and_names_of_headers_in_lower(sample):
    request = read_event(sample("post") | {"headers": {"CONTENT-Type": "Image/PNG", "x-A": "B"}})
    assert request.method == "POST"
    assert {"content-type", "x-a"} <= set(request.headers)
    assert request.headers["x-a"] == "B"


@pytest.mark.parametrize(
    ("query", "body", "details"),
    [
        ("1", None, True),
        ("false", True, False),
        (None, True, True),
        ("true", False, True),
        (None, None, False),
        ("", True, True),
        ("", None, False),
    ],
)
def test_details_in_the_query_go_before_those_in_the_body(sample, query, body, details):
    more = {"queryStringParameters": None if query is None else {"details": query}}
    request = read_event(sample(body=json.dumps(URL | {"details": body}).encode(), **more))
    assert parse_body(request) == Request((Source(url=URL["url"]),), details=details)


@pytest.mark.parametrize("details", ["2", "all", "\u0661"])
def test_other_details_in_the_query_are_refused(sample, details):
    more = {"queryStringParameters": {"details": details}}
    sentence = f"^Expected details to be true or false. Received: {details}. Leave"
    with pytest.raises(InvalidRequestError, match=sentence):
        parse_body(read_event(sample(body=b"\0", kind="image/png", **more)))


@pytest.mark.parametrize("top", [2, 999_999_999, 1_000_000_000, 10**999])
def test_top_in_the_query(sample, top):
    more = {"queryStringParameters": {"top": str(top)}}
    request = read_event(sample(body=b"\0", kind="image/png", **more))
    assert parse_body(request).top == top


@pytest.mark.parametrize(
    ("query", "body", "top"),
    [
        *((None, None, None), (None, 3, 3), ("2", None, 2), ("2", 3, 2), ("3", 2, 3)),
        *(("", None, None), ("", 3, 3), (" ", 3, 3), (" 2\n", 3, 2)),
    ],
)
def test_top_in_the_query_goes_before_the_one_in_the_body(sample, query, body, top):
    more = {"queryStringParameters": None if query is None else {"top": query}}
    request = read_event(sample(body=json.dumps(URL | {"top": body}).encode(), **more))
    assert parse_body(request) == Request((Source(url=URL["url"]),), top=top)


def test_a_list_over_http_stays_a_list(sample):
    more = {"queryStringParameters": {"top": "1"}}
    request = read_event(sample(body=json.dumps({"urls": [URL["url"]]}).encode(), **more))
    assert parse_body(request) == Request((Source(url=URL["url"]),), is_batch=True, top=1)


@pytest.mark.parametrize(
    ("top", "received"),
    [
        *((text, text) for text in ("0", "-1", "+1", "1.5", "²", "\u0663", "2,3", "1_0", "a")),
        ("1" * 5000, "1" * 40),
        ("a\r\nb" * 5000, r"a\r\nba\r\nba\r\nba\r\nba\r\nba\r\nba\r\nba\r\nba\r\nba\r\nb"),
    ],
)
def test_top_in_the_query_is_a_whole_number_from_1(sample, top, received):
    event = sample(body=b"0", kind="image/png", queryStringParameters={"top": top})
    with pytest.raises(InvalidRequestError) as caught:
        parse_body(read_event(event))
    assert str(caught.value) == (
        f"Expected top to be a whole number from 1. Received: {received}. "
        "Leave it out for all classes."
    )


def test_an_image_that_the_gateway_took_for_text(sample):
    request = read_event(sample(body=b"some bytes", kind="image/png", isBase64Encoded=False))
    with pytest.raises(InvalidRequestError, match="gateway treat that as a binary media type"):
        parse_body(request)
    request = read_event(sample(body=b"", kind="image/png", isBase64Encoded=False))
    with pytest.raises(InvalidRequestError, match="an image as the body. Received: nothing"):
        parse_body(request)


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "application/vnd.a+json; charset=utf-8",
        "Application/JSON ; charset=utf-8",
        "application/x-www-form-urlencoded",  # what `curl -d` says
    ],
)
def test_json_by_other_types(sample, kind):
    event = sample(kind=kind) | {"body": json.dumps(URL), "isBase64Encoded": False}
    assert parse_body(read_event(event)) == Request((Source(url=URL["url"]),))


def test_json_without_a_type():
    event = {"requestContext": {}, "httpMethod": "POST", "path": "/", "body": json.dumps(URL)}
    assert parse_body(read_event(event)) == Request((Source(url=URL["url"]),))


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/mixed; boundary=x",
        "text/html",
        "video/mp4",
        "application/xml",
        "image",
        "imagejpeg",
    ],
)
def test_other_types_are_refused(sample, kind):
    with pytest.raises(UnsupportedTypeError, match="^Expected a body of the type application/json"):
        parse_body(read_event(sample(body=b"{}", kind=kind)))


@pytest.mark.parametrize(
    "body", ["", "{", "[" * 100_000, '{"url": "\ud800', '{"url": ' + "1" * 5000 + "}", "null"]
)
def test_a_body_that_is_no_json_or_asks_for_nothing(sample, body):
    event = sample() | {"body": body, "isBase64Encoded": False}
    with pytest.raises(InvalidRequestError, match='^Expected {"url": "https') as caught:
        parse_body(read_event(event))
    assert (str(caught.value).endswith(" Received: nothing.")) == (body == "")


@pytest.mark.parametrize("body", ["é", "a", "{}"])
def test_a_body_that_is_no_base64(sample, body):
    with pytest.raises(InvalidRequestError, match="^Expected a body in base64"):
        parse_body(read_event(sample() | {"body": body}))


def test_bytes_that_are_no_text(sample):
    with pytest.raises(InvalidRequestError):
        parse_body(read_event(sample(body=b"\xff\xfe\xfd")))


def test_the_answer_has_the_form_that_was_asked_in(sample, payload_format):
    request = read_event(sample())
    response = answer(request, 422, {"error": "é"}, {"Allow": "POST"})
    assert json.loads(response.pop("body")) == {"error": "é"}
    assert response == {
        "statusCode": 422,
        "headers": ALWAYS | {"Content-Type": "application/json", "Allow": "POST"},
        "isBase64Encoded": False,
        **({"statusDescription": "422 Unprocessable Entity"} if payload_format == "alb" else {}),
    }


def balanced(method="POST", body="{}"):
    """An event of a load balancer that gives, and wants, lists of values and nothing else."""
    return {
        "requestContext": {"elb": {}},
        "httpMethod": method,
        "path": "/",
        "queryStringParameters": None,
        "multiValueQueryStringParameters": {"a": ["1"], "top": ["7", "2"]},
        "multiValueHeaders": {"Content-Type": ["text/html", "application/json"], "x": []},
        "body": body,
        "isBase64Encoded": False,
    }


def test_a_load_balancer_with_lists_of_headers_gets_lists():
    request = read_event(balanced())
    assert request.headers == {"content-type": "application/json"}
    headers = ALWAYS | {"Content-Type": "application/json", "Vary": "Origin"}
    assert answer(request, 200, {}, {"Vary": "Origin"}) == {
        "statusCode": 200,
        "statusDescription": "200 OK",
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "body": "{}",
        "isBase64Encoded": False,
    }


def test_of_lists_of_values_the_last_one_counts():
    request = read_event(balanced(body=json.dumps(URL)))
    assert request.query == {"a": "1", "top": "2"}
    assert parse_body(request).top == 2


def test_a_rest_api_gives_headers_twice_and_wants_them_once():
    event = balanced() | {"requestContext": {}, "headers": {"content-type": "text/plain", "b": "c"}}
    event["queryStringParameters"] = {"top": "9", "c": "d"}
    request = read_event(event)
    assert request.payload_format == "1.0"
    assert request.headers["b"] == "c"
    assert request.query == {"a": "1", "top": "2", "c": "d"}
    response = answer(request, 200, {})
    assert response["headers"] == ALWAYS | {"Content-Type": "application/json"}
    assert set(response) == {"statusCode", "headers", "body", "isBase64Encoded"}


def test_nothing_is_answered_without_a_payload_and_to_head(sample):
    response = answer(read_event(sample("OPTIONS")), 204)
    assert (response["body"], response["headers"]) == ("", ALWAYS)
    response = answer(read_event(sample("HEAD")), 200, {"status": "ready"})
    assert response["body"] == ""
    length = {"Content-Length": str(len('{"status": "ready"}'))}
    assert response["headers"] == ALWAYS | {"Content-Type": "application/json"} | length
    response = answer(read_event(balanced("HEAD")), 404, {"error": {}})
    assert (response["body"], response["statusDescription"]) == ("", "404 Not Found")


@pytest.mark.parametrize("event", [None, [], "x", 1, {}, URL, {"requestContext": "x"}])
def test_other_events_are_no_http(event):
    assert read_event(event) is None


def test_an_event_of_another_shape_is_read_as_far_as_it_goes():
    request = read_event(
        {
            "requestContext": {"http": []},
            "version": "2.0",
            "headers": {"a": 1, "B": "b", "c": []},
            "queryStringParameters": [],
            "body": 7,
            "isBase64Encoded": "yes",
        }
    )
    assert (request.method, request.path, request.body) == ("", "", "")
    assert (request.headers, request.query, request.is_base64) == ({"b": "b"}, {}, False)


# Events written out here: fields, answers and sentences, each whole.


def event_of(payload_format, method="POST", path="/", **more):
    """Return a gateway's event of the `payload_format`; `more` are its other fields."""
    if payload_format == "2.0":
        event = {
            "version": payload_format,
            "rawPath": path,
            "requestContext": {"http": {"method": method}},
        }
    else:
        context = (
            {"elb": {"targetGroupArn": "arn"}} if payload_format == "alb" else {"stage": "prod"}
        )
        event = {"httpMethod": method, "path": path, "requestContext": context}
    return event | more


def request_of(kind="application/json", body="", is_base64=False, method="POST", **query):
    """Return a request in payload format 2.0."""
    return HttpRequest("2.0", method, "/", query, {"content-type": kind}, body, is_base64, False)


@pytest.mark.parametrize("payload_format", ["1.0", "2.0", "alb"])
def test_every_field_of_an_event_has_its_place(payload_format):
    event = event_of(
        payload_format,
        "post",
        "/prod/health",
        headers={"Content-Type": "image/png", "X-A": "b"},
        queryStringParameters={"top": "2", "Q": "r"},
        body="aGk=",
        isBase64Encoded=True,
    )
    event["requestContext"]["path"] = "/shown/health"
    assert read_event(event) == HttpRequest(
        payload_format=payload_format,
        method="POST",
        path="/prod/health",
        query={"top": "2", "Q": "r"},
        headers={"content-type": "image/png", "x-a": "b"},
        body="aGk=",
        is_base64=True,
        multi_value=False,
        root="prod" if payload_format == "1.0" else "",
        public_path="/shown/health",
        seconds=27.0 if payload_format == "1.0" else math.inf,
    )


@pytest.mark.parametrize(
    ("payload_format", "lists"), [("1.0", False), ("2.0", False), ("alb", True)]
)
def test_of_several_values_the_last_counts_and_lists_go_before_single_ones(payload_format, lists):
    event = event_of(
        payload_format,
        headers={"X-A": "single", "X-B": "b"},
        multiValueHeaders={"X-A": ["first", "last"], "X-C": [], "X-D": ["d", 1]},
        queryStringParameters={"top": "1", "q": "r"},
        multiValueQueryStringParameters={"top": ["2", "3"]},
    )
    request = read_event(event)
    assert request.headers == {"x-a": "last", "x-b": "b"}
    assert request.query == {"top": "3", "q": "r"}
    assert request.multi_value is lists  # only load balancers want lists back


@pytest.mark.parametrize("payload_format", ["1.0", "2.0", "alb"])
def test_an_event_with_nothing_in_it_is_an_empty_request(payload_format):
    event = event_of(payload_format, None, None)
    expected = HttpRequest(payload_format, "", "", {}, {}, "", False, False)
    if payload_format == "1.0":
        expected = replace(expected, root="prod", seconds=27.0)
    assert read_event(event) == expected
    if payload_format == "2.0":
        assert read_event(event | {"requestContext": {}}).method == ""


@pytest.mark.parametrize("said", ["true", 1, None])
def test_only_true_says_that_a_body_is_base64(said):
    assert read_event(event_of("1.0", isBase64Encoded=said)).is_base64 is False


@pytest.mark.parametrize(
    ("path", "route"),
    [("", ""), ("/", ""), ("/health", "health"), ("/prod/health/", "health"), ("/a/b//", "b")],
)
def test_the_last_part_of_the_path_is_the_route(path, route):
    assert read_event(event_of("2.0", path=path)).route == route


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        " Application/JSON ; a=b;c=d",
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-8",
        "a/b+json",
    ],
)
@pytest.mark.parametrize("is_base64", [True, False])
def test_these_types_are_json(kind, is_base64):
    body = json.dumps(URL)
    body = base64.b64encode(body.encode()).decode() if is_base64 else body
    assert parse_body(request_of(kind, body, is_base64)) == Request((Source(url=URL["url"]),))


def test_without_a_type_a_body_is_json():
    request = HttpRequest("2.0", "POST", "/", {}, {}, json.dumps(URL), False, False)
    assert parse_body(request) == Request((Source(url=URL["url"]),))


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "image/x", "Application/Octet-Stream", "binary/octet-stream; a=b"]
)
def test_these_types_are_an_image(kind):
    parsed = parse_body(request_of(kind, "aGk=", True, top="3"))
    assert parsed == Request((Source(image=b"hi"),), is_batch=False, top=3)


@pytest.mark.parametrize(
    ("request_", "kind", "sentence"),
    [
        (
            request_of("text/html", json.dumps(URL)),
            UnsupportedTypeError,
            "Expected a body of the type application/json, image/* or multipart/form-data. "
            "Received: text/html. Name its type in the header Content-Type.",
        ),
        (
            request_of("image/png", "aGk="),
            InvalidRequestError,
            "Expected the image's bytes, passed on by the gateway as binary. "
            "Received: text. Send it as image/*, and let the gateway treat that as a binary media "
            "type.",
        ),
        (
            request_of("image/png", "a GE=", True),
            InvalidRequestError,
            "Expected a body in base64, as isBase64Encoded says. Received: something else.",
        ),
        (
            request_of(body="{"),
            InvalidRequestError,
            f"{EXPECTED} Received: text that is not JSON. Check its quotes.",
        ),
        (request_of(), InvalidRequestError, f"{EXPECTED} Received: nothing."),
        (request_of(body="[]"), InvalidRequestError, f"{EXPECTED} Received: a list."),
        (
            request_of("image/png", "aGk=", True, top="two"),
            InvalidRequestError,
            "Expected top to be a whole number from 1. Received: two. "
            "Leave it out for all classes.",
        ),
    ],
)
def test_a_refusal_says_all_of_this(request_, kind, sentence):
    with pytest.raises(kind) as caught:
        parse_body(request_)
    assert str(caught.value) == sentence


def test_top_of_the_query_goes_before_top_of_the_body():
    body = json.dumps({"urls": ["http://a"], "top": 2})
    assert parse_body(request_of(body=body)) == Request((Source(url="http://a"),), True, 2)
    assert parse_body(request_of(body=body, top="5")) == Request((Source(url="http://a"),), True, 5)


SENT = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Type": "application/json",
    "Allow": "GET",
}


@pytest.mark.parametrize(
    ("payload_format", "more"),
    [("1.0", {}), ("2.0", {}), ("alb", {"statusDescription": "404 Not Found"})],
)
def test_an_answer_is_this_and_nothing_else(payload_format, more):
    request = read_event(event_of(payload_format))
    assert answer(request, 404, {"a": ["é"]}, {"Allow": "GET"}) == {
        "statusCode": 404,
        "headers": SENT,
        "body": json.dumps({"a": ["é"]}),
        "isBase64Encoded": False,
        **more,
    }


def test_a_load_balancer_that_speaks_in_lists_is_answered_in_lists():
    request = read_event(event_of("alb", multiValueHeaders={}))
    assert answer(request, 200, [], {"Allow": "GET"}) == {
        "statusCode": 200,
        "statusDescription": "200 OK",
        "multiValueHeaders": {name: [value] for name, value in SENT.items()},
        "body": "[]",
        "isBase64Encoded": False,
    }


def test_without_a_payload_there_is_neither_body_nor_type():
    for given in (None, {}):
        response = answer(read_event(event_of("2.0", "OPTIONS")), 204, headers=given)
        assert response["body"] == ""
        assert response["headers"] == {
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }


def test_head_is_answered_with_type_and_length_and_a_given_header_wins():
    request = read_event(event_of("2.0", "HEAD"))
    response = answer(request, 200, {}, {"Cache-Control": "max-age=1"})
    assert response["body"] == ""
    assert response["headers"] == {
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "max-age=1",
        "Content-Type": "application/json",
        "Content-Length": "2",
    }


CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Content-Encoding, Authorization, X-Api-Key, "
    "X-Amz-Date, X-Amz-Security-Token, X-Amz-Content-Sha256",
    "Access-Control-Max-Age": "86400",
}


def test_more_headers_may_be_named_and_none_be_sent_at_all(monkeypatch):
    monkeypatch.setenv("CORS_HEADERS", " X-Trace-Id,x-client ,,")
    named = CORS["Access-Control-Allow-Headers"] + ", X-Trace-Id, x-client"
    assert cors() == CORS | {"Access-Control-Allow-Headers": named}
    for wrong in ("X Trace", "X-A\r\nX-B", "é", "X-A;X-B"):
        monkeypatch.setenv("CORS_HEADERS", wrong)
        with pytest.raises(SettingError, match="^Expected names of headers, separated by commas"):
            cors()
    monkeypatch.setenv("CORS_ORIGIN", " Off ")
    assert cors() == {}


@pytest.mark.parametrize("path", ["/", "/other"])
def test_a_url_in_the_query_is_told_where_to_go(path):
    request = request_of(method="GET", url="https://a.b/c.jpg")
    with pytest.raises(MethodError, match="Received: GET with url in the query"):
        find_page(replace(request, path=path), service=None)
    with pytest.raises(InvalidRequestError, match="but url in the query. Send it in the body"):
        parse_body(replace(request, method="POST", path=path))


def test_what_another_function_answered_is_no_http():
    event = {"version": "1.0", "requestContext": {"functionArn": "arn"}, "requestPayload": {}}
    assert read_event(event) is None


@pytest.mark.parametrize("coding", ["gzip", "GZIP ", "x-gzip"])
def test_a_packed_body_is_unpacked(coding):
    body = base64.b64encode(gzip.compress(json.dumps(URL).encode())).decode()
    request = replace(request_of(body=body, is_base64=True), headers={"content-encoding": coding})
    assert parse_body(request) == Request((Source(url=URL["url"]),))


def test_a_form_is_read_with_its_whole_type():
    body = b'--B\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nhi\r\n--B--\r\n'
    request = request_of('multipart/form-data; boundary="B"', base64.b64encode(body).decode(), True)
    assert parse_body(request) == Request((Source(image=b"hi"),))
    request = request_of(
        'multipart/form-data; boundary="B"', "\xff".join(body.decode().split("hi"))
    )
    with pytest.raises(InvalidRequestError, match="Send it as multipart/form-data, and let the ga"):
        parse_body(request)


def test_one_origin_may_be_named_and_none_means_all(monkeypatch):
    monkeypatch.setenv("CORS_ORIGIN", "")
    assert cors() == CORS
    monkeypatch.delenv("CORS_ORIGIN")
    assert cors() == CORS
    monkeypatch.setenv("CORS_ORIGIN", "https://a.b")
    assert cors() == CORS | {"Access-Control-Allow-Origin": "https://a.b", "Vary": "Origin"}


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("*", "*"),
        (" https://a.example ", "https://a.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("HTTPS://Rosen.Example", "https://rosen.example"),
        ("https://xn--rschen-wxa.example:8443", "https://xn--rschen-wxa.example:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://a.example:443", "http://a.example:443"),
        ("https://a.example.", "https://a.example."),
        ("capacitor://localhost", "capacitor://localhost"),
        ("moz-extension://1b2c-3d", "moz-extension://1b2c-3d"),
    ],
)
def test_an_origin_is_as_browsers_send_it(monkeypatch, text, origin):
    monkeypatch.setenv("CORS_ORIGIN", text)
    assert cors()["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize(
    "text",
    [
        "https://a.example/",
        "https://a.example/, https://b.example",
        "https://a.example,https://b.example",
        "https://a.example https://b.example",
        "https://a.example/page",
        "https://a.example?b",
        "https://röschen.example",
        "https://a.example:443",
        "http://a.example:80",
        "https://a.example:",
        "https://a.example:٣",
        "https://user@a.example",
        "https://*.example",
        "https://",
        "https://a..example",
        "http://::1",
        "a.example",
        "://a.example",
        "1a://b",
        "file://",
        "null",
        "a\r\nX-B: c",
    ],
)
def test_another_origin_is_refused(monkeypatch, text):
    monkeypatch.setenv("CORS_ORIGIN", text)
    with pytest.raises(SettingError) as caught:
        cors()
    assert str(caught.value) == (
        "Expected CORS_ORIGIN to be one origin as browsers send it, such as https://example.com or "
        "http://localhost:3000: without a path, a slash at its end or the default port, and with a "
        f"host in ASCII (xn--...); or * or off. Received: {text!r}. Correct it, or unset "
        "CORS_ORIGIN."
    )


TIMINGS = {"decode": 1.5, "total": 12.0}


def test_timings_are_told_to_who_posts(monkeypatch):
    named = CORS | ALWAYS | {"Content-Type": "application/json"}
    timing = {"Server-Timing": "decode;dur=1.5, total;dur=12.0"}
    exposed = {"Access-Control-Expose-Headers": "Server-Timing", "Timing-Allow-Origin": "*"}
    response = write_response(request_of(), Result({}), TIMINGS)
    assert response["headers"] == named | timing | exposed
    failed = write_response(request_of(), Result.failed(InvalidRequestError("a")), TIMINGS)
    assert failed["headers"] == named | timing | exposed
    for method in ("GET", "HEAD", "OPTIONS", "PUT"):
        response = write_response(request_of(method=method), Result({}), TIMINGS)
        assert "Server-Timing" not in response["headers"]
    monkeypatch.setenv("CORS_ORIGIN", "https://a.b")
    response = write_response(request_of(), Result({}), TIMINGS)
    assert response["headers"]["Timing-Allow-Origin"] == "https://a.b"
    monkeypatch.setenv("CORS_ORIGIN", "off")
    response = write_response(request_of(), Result({}), TIMINGS)
    assert response["headers"] == ALWAYS | {"Content-Type": "application/json"} | timing


def test_the_length_named_to_head_is_in_bytes():
    page = Page({}, {"Content-Type": "text/plain"}, text="é")
    response = write_response(request_of(method="HEAD"), page)
    assert (response["headers"]["Content-Length"], response["body"]) == ("2", "")
    assert response["headers"]["Content-Type"] == "text/plain"
