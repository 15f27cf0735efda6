"""serving.http_events, by events written out here: fields, answers and sentences, each whole."""

import base64
import json

import pytest

from serving.errors import InvalidRequestError, UnsupportedTypeError
from serving.events import EXPECTED, Request, Source
from serving.http_events import HttpRequest, answer, parse_body, read_event

URL = {"url": "https://example.com/rose.jpg"}


def event_of(payload_format, method="POST", path="/", **more):
    """Return the event that a gateway of `payload_format` makes of a request; `more` are its other fields."""
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
    """Return a request of the form 2.0."""
    return HttpRequest("2.0", method, "/", query, {"content-type": kind}, body, is_base64, False)


@pytest.mark.parametrize("form", ["1.0", "2.0", "alb"])
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
    assert read_event(event) == HttpRequest(
        payload_format=payload_format,
        method="POST",
        path="/prod/health",
        query={"top": "2", "Q": "r"},
        headers={"content-type": "image/png", "x-a": "b"},
        body="aGk=",
        is_base64=True,
        multi_value=False,
    )


@pytest.mark.parametrize(("form", "lists"), [("1.0", False), ("2.0", False), ("alb", True)])
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


@pytest.mark.parametrize("form", ["1.0", "2.0", "alb"])
def test_an_event_with_nothing_in_it_is_an_empty_request(payload_format):
    event = event_of(payload_format, None, None)
    assert read_event(event) == HttpRequest(payload_format, "", "", {}, {}, "", False, False)
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
    asked = parse_body(request_of(kind, "aGk=", True, top="3"))
    assert asked == Request((Source(image=b"hi"),), is_batch=False, top=3)


@pytest.mark.parametrize(
    ("request_", "kind", "sentence"),
    [
        (
            request_of("text/html", json.dumps(URL)),
            UnsupportedTypeError,
            "Expected a body of the type application/json or image/*. Received: another one. "
            "Name its type in the header Content-Type.",
        ),
        (
            request_of("image/png", "aGk="),
            InvalidRequestError,
            "Expected the image's bytes, passed on by the gateway as binary. "
            "Received: text or nothing. Let the gateway treat image/* as a binary media type.",
        ),
        (
            request_of("image/png", "a GE=", True),
            InvalidRequestError,
            "Expected a body in base64, as isBase64Encoded says. Received: something else.",
        ),
        (request_of(body="{"), InvalidRequestError, f"{EXPECTED} Received: something else."),
        (request_of(), InvalidRequestError, f"{EXPECTED} Received: nothing."),
        (request_of(body="[]"), InvalidRequestError, f"{EXPECTED} Received: a list."),
        (
            request_of("image/png", "aGk=", True, top="two"),
            InvalidRequestError,
            "Expected top to be a whole number from 1. Received: a string. "
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


def test_top_of_the_query_has_nine_digits_at_most():
    assert parse_body(request_of("image/png", "aGk=", True, top="9" * 9)).top == 999_999_999
    with pytest.raises(InvalidRequestError, match="Received: a string"):
        parse_body(request_of("image/png", "aGk=", True, top="1" * 10))


SENT = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Type": "application/json",
    "Allow": "GET",
}


@pytest.mark.parametrize(
    ("form", "more"),
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


def test_head_is_answered_with_the_type_alone_and_a_given_header_wins():
    request = read_event(event_of("2.0", "HEAD"))
    response = answer(request, 200, {}, {"Cache-Control": "max-age=1"})
    assert response["body"] == ""
    assert response["headers"] == {
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "max-age=1",
        "Content-Type": "application/json",
    }
