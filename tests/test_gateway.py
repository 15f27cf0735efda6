"""serving.gateway: HTTP as AWS's gateways pass it on, by AWS's own examples of their events."""

import base64
import json

import pytest

from serving.errors import InvalidRequestError, UnsupportedTypeError
from serving.events import Request, Source
from serving.gateway import answer, parse_body, read_event
from tools.emulator import EmulatorError, sample_event

SAMPLES = {"1.0": "apigateway/AwsProxy", "2.0": "apigateway/HttpApi", "alb": "alb/ALBRequest"}
URL = {"url": "https://example.com/rose.jpg"}


@pytest.fixture(params=SAMPLES)
def form(request):
    return request.param


@pytest.fixture
def sample(form):
    """Make AWS's example of `form`: (method, path, body as bytes, its type) -> event."""

    def make(method="POST", path="", body=b"", kind="application/json", **more):
        places = {"method": method, "path": path, "stage": "prod", "resource": "{proxy+}"}
        try:
            event = sample_event(SAMPLES[form], body=base64.b64encode(body).decode(), **places)
        except EmulatorError as error:
            pytest.skip(str(error))
        headers = "multiValueHeaders" if form == "1.0" else "headers"
        event[headers]["Content-Type"] = [kind] if form == "1.0" else kind
        return event | more

    return make


def test_the_request_is_read(sample, form):
    request = read_event(sample("POST", "flowers/health", json.dumps(URL).encode()))
    assert (request.form, request.method, request.path) == (form, "POST", "/flowers/health")
    assert request.route == "health"
    assert request.is_base64
    assert parse_body(request) == Request((Source(url=URL["url"]),))


def test_a_picture_as_the_body(sample):
    data = bytes(range(256))
    for kind in ("image/jpeg", "IMAGE/PNG; q=1", "application/octet-stream"):
        request = read_event(sample(body=data, kind=kind))
        assert parse_body(request) == Request((Source(image=data),))


def test_top_in_the_query(sample):
    request = read_event(sample(body=b"\0", kind="image/png", queryStringParameters={"top": "2"}))
    assert parse_body(request).top == 2


@pytest.mark.parametrize("top", ["", "0", "-1", "1.5", "²", "1" * 5000, "a"])
def test_top_in_the_query_is_a_whole_number_from_1(sample, top):
    event = sample(body=b"0", kind="image/png", queryStringParameters={"top": top})
    with pytest.raises(InvalidRequestError, match="^Expected top to be a whole number from 1"):
        parse_body(read_event(event))


def test_a_picture_that_the_gateway_took_for_text(sample):
    request = read_event(sample(kind="image/png", isBase64Encoded=False))
    with pytest.raises(InvalidRequestError, match="treat image/\\* as a binary media type"):
        parse_body(request)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/vnd.a+json; charset=utf-8"])
def test_json_by_other_types(sample, kind):
    event = sample(kind=kind) | {"body": json.dumps(URL), "isBase64Encoded": False}
    assert parse_body(read_event(event)) == Request((Source(url=URL["url"]),))


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "text/html", "video/mp4"])
def test_other_types_are_refused(sample, kind):
    with pytest.raises(UnsupportedTypeError, match="^Expected a body of the type application/json"):
        parse_body(read_event(sample(body=b"{}", kind=kind)))


@pytest.mark.parametrize(
    "body", ["", "{", "[" * 100_000, "\ud800", '{"url": ' + "1" * 5000 + "}", "null"]
)
def test_a_body_that_is_no_json_or_asks_for_nothing(sample, body):
    event = sample() | {"body": body, "isBase64Encoded": False}
    with pytest.raises(InvalidRequestError, match='^Expected {"url": "https'):
        parse_body(read_event(event))


@pytest.mark.parametrize("body", ["é", "a", "{}"])
def test_a_body_that_is_no_base64(sample, body):
    with pytest.raises(InvalidRequestError, match="^Expected a body in base64"):
        parse_body(read_event(sample() | {"body": body}))


def test_bytes_that_are_no_text(sample):
    with pytest.raises(InvalidRequestError):
        parse_body(read_event(sample(body=b"\xff\xfe\xfd")))


def test_the_answer_has_the_form_that_was_asked_in(sample, form):
    request = read_event(sample())
    response = answer(request, 422, {"error": "é"}, {"Allow": "POST"})
    assert json.loads(response["body"]) == {"error": "é"}
    assert response["statusCode"] == 422
    assert response["isBase64Encoded"] is False
    assert response["headers"]["Content-Type"] == "application/json"
    assert response["headers"]["Allow"] == "POST"
    assert response.get("statusDescription") == (
        "422 Unprocessable Entity" if form == "alb" else None
    )


def test_a_load_balancer_with_lists_of_headers_gets_lists():
    event = {
        "requestContext": {"elb": {}},
        "httpMethod": "POST",
        "path": "/",
        "multiValueHeaders": {"content-type": ["text/html", "application/json"]},
        "body": "{}",
    }
    request = read_event(event)
    assert request.headers["content-type"] == "application/json"
    response = answer(request, 200, {})
    assert response["multiValueHeaders"]["Content-Type"] == ["application/json"]
    assert "headers" not in response


def test_nothing_is_answered_without_a_payload_and_to_head(sample):
    response = answer(read_event(sample("OPTIONS")), 204)
    assert (response["body"], "Content-Type" in response["headers"]) == ("", False)
    response = answer(read_event(sample("HEAD")), 200, {"status": "ready"})
    assert (response["body"], "Content-Type" in response["headers"]) == ("", True)


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
