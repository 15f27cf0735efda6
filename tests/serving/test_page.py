"""The page at GET /, its headers, and who gets JSON instead."""

import base64
import hashlib
import json
import re
from types import SimpleNamespace

import pytest

from serving import http_events, page
from serving.details import Details
from serving.errors import SettingError
from serving.handler import Handler
from serving.page import describe, matches, prefers_html, read_page
from serving.service import Service

LABELS = ("daisy", "rose", "tulip")
CHROME = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;"
    "q=0.8,application/signed-exchange;v=b3;q=0.7"
)
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
HTML = "text/html; charset=utf-8"
FORMATS = ("1.0", "2.0", "alb", "alb lists")


@pytest.fixture
def handler():
    classifier = SimpleNamespace(
        labels=LABELS, runtime="none", input_size=(9, 9), details=Details(), card=None
    )
    return Handler(Service(classifier, "small", None))


def event_of(payload_format, method="GET", path="/", headers=None, context=None, **more):
    """Return the event of a request as one of AWS's gateways passes it on."""
    headers, context = headers or {"Accept": CHROME}, context or {}
    if payload_format == "2.0":
        http = {"method": method, "path": path}
        return {
            "version": "2.0",
            "rawPath": path,
            "headers": headers,
            "requestContext": {"http": http, **context},
            **more,
        }
    elb = {"elb": {"targetGroupArn": "arn"}} if payload_format.startswith("alb") else {}
    event = {"httpMethod": method, "path": path, "requestContext": {**elb, **context}, **more}
    if payload_format == "alb lists":
        return event | {"multiValueHeaders": {name: [value] for name, value in headers.items()}}
    return event | {"headers": headers}


def headers_of(response):
    """Return the headers of a `response` in any format, with names in lower case."""
    many = response.get("multiValueHeaders", {})
    single = {name: value for name, [value] in many.items()} or response["headers"]
    return {name.lower(): value for name, value in single.items()}


# Who gets HTML.


@pytest.mark.parametrize(
    "accept",
    [
        CHROME,
        FIREFOX,
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",  # Safari
        "text/html, application/xhtml+xml, image/jxr, */*",  # Edge before Chromium
        "text/html, text/plain, text/sgml, text/css, application/xhtml+xml, */*;q=0.01",  # Lynx
        "text/html, text/*;q=0.5, image/*, application/*, audio/*, multipart/*, video/*",  # w3m
        "text/html",
        "TEXT/HTML;Q=1.000",
        "text/html;charset=utf-8",
        "text/*",
        "text/*, */*",
        "text/html;q=0.9, application/json;q=0.8",
        "text/html ; q=0.001",
        "*/*;q=0.1, text/html;q=0.2",
        "application/json;q=0, text/html;q=0.1",
        "text/html, */*;q=x",
    ],
)
def test_who_prefers_html_gets_it(accept):
    assert prefers_html(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",  # curl, fetch, Python's clients
        "application/json",
        "application/json, text/plain, */*",  # axios
        "text/html, application/json",  # neither is preferred
        "application/json, text/html",
        "text/html;q=0.8, application/json",
        "text/html;q=0.5, */*",
        "text/html;q=0, */*",
        "text/html;q=0",
        "text/html;q=0.0, application/xml",
        "text/*;q=0.5, application/*",
        "application/xhtml+xml, application/xml;q=0.9",
        "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",  # Chrome's for images
        "text/html/x, html, text",
        ",;,;q=1",
        "\x00",
    ],
)
def test_all_others_get_json(accept):
    assert not prefers_html(accept)


def test_a_long_header_takes_no_time():
    assert not prefers_html("text/plain;a=b;" * 5000 + "," * 5000)


# What they get.


@pytest.mark.parametrize("payload_format", FORMATS)
def test_a_browser_gets_the_page_in_each_format(handler, payload_format):
    response = handler.handle(event_of(payload_format))
    assert (response["statusCode"], response["isBase64Encoded"]) == (200, False)
    assert response["body"] == page.PAGE.read_text(encoding="utf-8")
    headers = headers_of(response)
    assert headers["content-type"] == HTML
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"
    assert headers["vary"] == "Accept"
    assert re.fullmatch(r'"[0-9a-f]{32}"', headers["etag"])
    assert "server-timing" not in headers


@pytest.mark.parametrize("payload_format", FORMATS)
@pytest.mark.parametrize("accept", ["application/json", "*/*"])
def test_a_program_gets_a_description_with_links(handler, payload_format, accept):
    response = handler.handle(event_of(payload_format, headers={"ACCEPT": accept}))
    assert response["statusCode"] == 200
    assert json.loads(response["body"]) == {
        "name": "Image classifier",
        "description": "Says which of its classes an image shows, with a score for each: "
        "POST an image, or JSON with its URL.",
        "model": "small",
        "classes": ["daisy", "rose", "tulip"],
        "links": {"page": "/", "health": "/health", "openapi": "/openapi.json"},
    }
    headers = headers_of(response)
    assert (headers["content-type"], headers["vary"]) == ("application/json", "Accept")
    assert headers["cache-control"] == "no-store"
    assert not {"etag", "content-security-policy"} & set(headers)


def test_without_any_header_there_is_a_description(handler):
    event = {"version": "2.0", "rawPath": "/", "requestContext": {"http": {"method": "GET"}}}
    assert json.loads(handler.handle(event)["body"])["model"] == "small"


def test_several_values_of_accept_are_one_list(handler):
    event = event_of("alb lists")
    event["multiValueHeaders"]["accept"] = ["text/html", "*/*;q=0.1"]
    event["multiValueHeaders"].pop("Accept")
    assert headers_of(handler.handle(event))["content-type"] == HTML
    event["multiValueHeaders"]["accept"] = ["text/html;q=0.5", None, "application/json"]
    assert headers_of(handler.handle(event))["content-type"] == "application/json"


@pytest.mark.parametrize("payload_format", FORMATS)
def test_head_has_the_headers_of_get_and_its_length(handler, payload_format):
    got = handler.handle(event_of(payload_format))
    head = handler.handle(event_of(payload_format, "HEAD"))
    assert (head["statusCode"], head["body"]) == (200, "")
    length = str(len(got["body"].encode()))
    assert headers_of(head) == headers_of(got) | {"content-length": length}


@pytest.mark.parametrize("payload_format", FORMATS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_page_that_the_browser_has_is_not_sent_again(handler, payload_format, method):
    headers = headers_of(handler.handle(event_of(payload_format)))
    again = {"Accept": CHROME, "If-None-Match": headers["etag"]}
    response = handler.handle(event_of(payload_format, method, headers=again))
    assert (response["statusCode"], response["body"]) == (304, "")
    assert headers_of(response) == headers
    if payload_format.startswith("alb"):
        assert response["statusDescription"] == "304 Not Modified"
    again["If-None-Match"] = '"another"'
    assert handler.handle(event_of(payload_format, method, headers=again))["statusCode"] == 200


def test_a_program_is_answered_whatever_it_has(handler):
    headers = {"Accept": "application/json", "If-None-Match": "*"}
    assert handler.handle(event_of("2.0", headers=headers))["statusCode"] == 200


@pytest.mark.parametrize(
    ("if_none_match", "expected"),
    [
        ('"a"', True),
        ('W/"a"', True),  # what a gateway that compresses makes of it
        ('"b", "a"', True),
        ('"b",W/"a","c"', True),
        ("*", True),
        (" * ", True),
        ("", False),
        ("a", False),
        ('"A"', False),
        ('"b"', False),
        ('"b*"', False),
        ('"', False),
    ],
)
def test_an_entity_tag_is_found_in_a_list(if_none_match, expected):
    assert matches('"a"', if_none_match) is expected


# Where it is.


@pytest.mark.parametrize("payload_format", ["1.0", "2.0"])
@pytest.mark.parametrize("path", ["/prod/", "/prod", "/", "", "//", "/prod//"])
def test_a_stage_may_come_before_the_root(handler, payload_format, path):
    event = event_of(payload_format, path=path, context={"stage": "prod"})
    assert headers_of(handler.handle(event))["content-type"] == HTML


@pytest.mark.parametrize("payload_format", FORMATS)
@pytest.mark.parametrize("path", ["/prod/", "/other", "/dev/prod/", "/prod/x", "/index.html"])
def test_another_path_is_not_found(handler, payload_format, path):
    context = {"stage": "dev"} if payload_format in ("1.0", "2.0") else {}
    response = handler.handle(event_of(payload_format, path=path, context=context))
    assert response["statusCode"] == 404
    assert json.loads(response["body"])["error"]["type"] == "NotFoundError"


@pytest.mark.parametrize(
    ("payload_format", "more"),
    [("1.0", {"resource": "/"}), ("2.0", {"routeKey": "GET /"}), ("2.0", {"routeKey": "ANY /"})],
)
def test_a_route_of_the_root_is_the_root_behind_a_mapping(handler, payload_format, more):
    event = event_of(payload_format, path="/flowers/", **more)
    assert headers_of(handler.handle(event))["content-type"] == HTML


@pytest.mark.parametrize(
    ("payload_format", "more"),
    [
        ("1.0", {"resource": "/{proxy+}"}),
        ("2.0", {"routeKey": "$default"}),
        ("2.0", {"routeKey": "GET /{a}/"}),
    ],
)
def test_other_routes_are_not(handler, payload_format, more):
    event = event_of(payload_format, path="/flowers/", **more)
    assert handler.handle(event)["statusCode"] == 404


@pytest.mark.parametrize("path", ["/health", "/prod/health", "/health/health"])
def test_a_stage_of_the_name_of_a_page_hides_none(handler, path):
    event = event_of("2.0", path=path, context={"stage": "health"})
    assert json.loads(handler.handle(event)["body"])["status"] == "ready"


@pytest.mark.parametrize(
    ("payload_format", "path", "context", "root"),
    [
        ("2.0", "/prod/", {"stage": "prod"}, "/prod"),
        ("2.0", "/prod", {"stage": "prod"}, "/prod"),
        ("1.0", "/", {"stage": "prod", "path": "/prod/"}, "/prod"),  # a REST API
        ("2.0", "//", {}, ""),
    ],
)
def test_links_begin_with_the_stage(handler, payload_format, path, context, root):
    event = event_of(payload_format, path=path, context=context, headers={"Accept": "*/*"})
    assert json.loads(handler.handle(event)["body"])["links"] == {
        "page": f"{root}/",
        "health": f"{root}/health",
        "openapi": f"{root}/openapi.json",
    }


@pytest.mark.parametrize("path", ["/", "/prod/"])
def test_a_url_in_the_query_keeps_its_sentence(handler, path):
    query = {"queryStringParameters": {"url": "https://a.example/b.jpg"}}
    response = handler.handle(event_of("2.0", path=path, context={"stage": "prod"}, **query))
    assert response["statusCode"] == 405
    assert "Received: GET with url in the query." in response["body"]


# The policy.


def test_the_policy_allows_the_pages_own_blocks_and_nothing_else(handler):
    text = page.PAGE.read_text(encoding="utf-8")
    hashes = {}
    for element in ("script", "style"):
        [block] = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", text, re.DOTALL)
        digest = hashlib.sha256(block.encode()).digest()
        hashes[element] = f"'sha256-{base64.b64encode(digest).decode()}'"
    policy = headers_of(handler.handle(event_of("2.0")))["content-security-policy"]
    assert dict(part.split(" ", 1) for part in policy.split("; ")) == {
        "default-src": "'none'",
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "img-src": "'self' blob: data: https: http:",
        "connect-src": "'self'",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert "unsafe" not in policy


def test_the_page_is_one_small_file_that_the_policy_lets_work():
    text = page.PAGE.read_text(encoding="utf-8")
    assert len(text.encode()) < 60_000
    assert (text.count("<script>"), text.count("<style>")) == (1, 1)
    markup = re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)
    assert not re.findall(r"<(?:iframe|object|embed|base)\b", markup)
    assert all('href="data:' in link for link in re.findall(r"<link\b[^>]*>", markup))
    assert not re.findall(r"""\s(?:style|on\w+)\s*=""", markup)
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//""", markup)
    assert "@import" not in text
    assert not re.findall(r"url\(", text)


def test_each_block_of_a_page_has_a_hash_and_none_is_none(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes("<style>é\r\n</style><style></style>".encode())
    html = read_page(path)
    # A browser's parser makes one line feed of both before it compares.
    digests = [hashlib.sha256(text.encode()).digest() for text in ("é\n", "")]
    sources = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    assert f"script-src 'none'; style-src {sources}; " in html.headers["Content-Security-Policy"]
    assert html.text == "<style>é\n</style><style></style>"


def test_another_page_has_another_tag(tmp_path):
    tags = []
    for name in "ab":
        (tmp_path / name).write_text(f"<p>{name}")
        tags.append(read_page(tmp_path / name).etag)
    assert tags[0] != tags[1]


def test_the_file_is_read_once(handler, monkeypatch):
    handler.handle(event_of("2.0"))
    monkeypatch.setattr(type(page.PAGE), "read_text", lambda *_, **__: pytest.fail("read again"))
    assert handler.handle(event_of("2.0"))["statusCode"] == 200


# The setting.


@pytest.mark.parametrize("value", ["off", " OFF "])
def test_the_page_can_be_turned_off(handler, monkeypatch, value):
    monkeypatch.setenv("PAGE", value)
    response = handler.handle(event_of("2.0"))
    assert response["statusCode"] == 200
    links = json.loads(response["body"])["links"]
    assert links == {"health": "/health", "openapi": "/openapi.json"}


@pytest.mark.parametrize("value", ["", "on", "On "])
def test_it_is_on_unless_it_is_off(monkeypatch, value):
    monkeypatch.setenv("PAGE", value)
    assert http_events.shows_page()


def test_another_setting_is_refused_at_the_start(handler, monkeypatch):
    monkeypatch.setenv("PAGE", "no")
    with pytest.raises(SettingError) as caught:
        Handler(handler.service)
    assert str(caught.value) == (
        "Expected PAGE to be on or off. Received: 'no'. Correct it, or unset PAGE."
    )


def test_with_one_origin_the_answer_varies_by_it_too(handler, monkeypatch):
    monkeypatch.setenv("CORS_ORIGIN", "https://a.example")
    for accept in (CHROME, "*/*"):
        response = handler.handle(event_of("2.0", headers={"Accept": accept}))
        assert headers_of(response)["vary"] == "Accept, Origin"


def test_a_description_without_a_page_has_no_link_to_it():
    assert describe("a", ("b",), "/c/", has_page=False)["links"] == {
        "health": "/c/health",
        "openapi": "/c/openapi.json",
    }
