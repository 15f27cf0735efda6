"""serving.function_url: what a Function URL makes of requests and answers, each whole."""

import base64
import json

import pytest

from serving.function_url import (
    TOO_LONG,
    AnswerError,
    framed,
    parse_answer,
    to_event,
    to_response,
)


def test_a_request_is_an_event_of_format_2():
    event = to_event("PUT", "/a%20b?c=&d=%C3%A4&d=e", {"User-Agent": "me", "X-A": "B"}, b"", "::1")
    context = event.pop("requestContext")
    assert event == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/a%20b",
        "rawQueryString": "c=&d=%C3%A4&d=e",
        "queryStringParameters": {"c": "", "d": "ä,e"},
        "headers": {"user-agent": "me", "x-a": "B"},
        "isBase64Encoded": False,
    }
    assert (context["stage"], context["routeKey"]) == ("$default", "$default")
    assert context["http"] == {
        "method": "PUT",
        "path": "/a%20b",
        "protocol": "HTTP/1.1",
        "sourceIp": "::1",
        "userAgent": "me",
    }


def test_a_body_is_in_base64_and_what_is_absent_is_left_out():
    event = to_event("POST", "/", {}, b"\0\xff", "")
    assert (event["body"], event["isBase64Encoded"]) == ("AP8=", True)
    assert "queryStringParameters" not in event
    assert event["requestContext"]["http"]["userAgent"] == ""
    assert "body" not in to_event("GET", "/", {}, b"", "")


def test_what_is_no_json_is_named_with_where_it_is_from():
    assert parse_answer('{"a": 1}', "the function") == {"a": 1}
    with pytest.raises(AnswerError) as caught:
        parse_answer("x" * 300, "the function")
    sentence = "Expected an answer in JSON from the function. Received: "
    assert str(caught.value) == f"{sentence}{'x' * 200!r}."
    assert caught.value.response == (
        502,
        [("Content-Type", "text/plain; charset=utf-8")],
        b"Internal Server Error",
    )


def test_an_answer_is_a_response():
    answer = {
        "statusCode": 201,
        "headers": {"X-Number": 5, "Connection": "keep-alive"},
        "cookies": ["a=1", "b=2"],
        "body": "é",
    }
    headers = [
        *(("X-Number", "5"), ("Connection", "keep-alive")),
        *(("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")),
    ]
    assert to_response(answer) == (201, headers, "é".encode())
    body = base64.b64encode(b"\0\xff").decode()
    encoded = {"statusCode": 200, "body": body, "isBase64Encoded": True}
    assert to_response(encoded) == (200, [], b"\0\xff")
    for empty in ({}, {"body": None, "headers": None, "cookies": None}):
        assert to_response({"statusCode": 599} | empty) == (599, [], b"")


@pytest.mark.parametrize("status", [None, "200", True, 199, 600, 200.0])
def test_without_a_status_it_is_none(status):
    with pytest.raises(AnswerError) as caught:
        to_response({"statusCode": status})
    assert str(caught.value) == (
        f"Expected an answer with a statusCode. Received: {json.dumps({'statusCode': status})}. "
        "See the container's log."
    )
    with pytest.raises(AnswerError, match="Expected an answer with a statusCode. Received: null."):
        to_response(None)


@pytest.mark.parametrize(
    "fields",
    [
        {"body": {"a": 1}},
        {"body": "a", "isBase64Encoded": True},
        {"headers": ["a"]},
        {"headers": {"X-A": "b\r\nX-C: d"}},
        {"headers": {"X-A\n": "b"}},
        {"headers": {"X-A": "\u2603"}},
        {"cookies": ["a\nb"]},
        {"cookies": 5},
    ],
    ids=str,
)
def test_headers_and_a_body_are_text_of_a_line(fields):
    with pytest.raises(AnswerError, match="^Expected headers and a body as text. Received: .+"):
        to_response({"statusCode": 200} | fields)


@pytest.mark.parametrize(
    ("method", "given", "length", "body"),
    [
        ("GET", [], "3", b"abc"),
        ("GET", [("content-length", "99")], "3", b"abc"),
        ("HEAD", [], "3", b""),
        ("HEAD", [("Content-Length", "99")], "3", b""),
    ],
)
def test_a_body_has_its_own_length_and_head_none_of_it(method, given, length, body):
    hop = [("Connection", "keep-alive"), ("transfer-encoding", "chunked"), ("Keep-Alive", "x")]
    response = framed(method, (200, [*given, ("X-A", "b"), *hop], b"abc"))
    assert response == (200, [("X-A", "b"), ("Content-Length", length)], body)


def test_head_names_the_length_that_the_function_names():
    headers = [("Content-Length", "17")]
    assert framed("HEAD", (200, headers, b"")) == (200, headers, b"")
    assert framed("GET", (200, headers, b"")) == (200, [("Content-Length", "0")], b"")


@pytest.mark.parametrize("status", [204, 304])
def test_without_content_there_is_no_length(status):
    response = (status, [("ETag", '"a"'), ("Content-Length", "5")], b"hello")
    assert framed("GET", response) == (status, [("ETag", '"a"')], b"")


def test_too_long_is_said_as_aws_says_it():
    status, headers, body = TOO_LONG
    assert (status, json.loads(body)) == (413, {"message": "Request Too Long"})
    assert headers == [("Content-Type", "application/json")]
