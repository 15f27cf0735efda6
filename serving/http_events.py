"""Reads HTTP requests from Lambda events and writes their responses.

API Gateway's REST APIs use payload format 1.0, its HTTP APIs 1.0 or 2.0, Function URLs 2.0.
Application Load Balancers have a format of their own, close to 1.0.
"""

import base64
import binascii
import json
import os
import re
import time
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

from serving import aws_events, bodies, events
from serving.bodies import Body
from serving.errors import InvalidRequestError, MethodError, NotFoundError, SettingError
from serving.events import Request
from serving.service import Result, Service

# Keys of events with a requestContext that are no HTTP requests: what another function answered,
# which Lambda hands on, and what authorizers of API Gateway and AppSync are asked.
NOT_HTTP = {"requestPayload", "methodArn", "routeArn", "authorizationToken"}
PAGES = ("health", "openapi.json")  # routes to GET; images may be posted to any other
LISTS = ("accept", "if-none-match")  # headers of which several values are one list
# Of API Gateway's payload formats: the seconds within which it has to be answered, and where events
# have the time of their arrival, in milliseconds. REST APIs (1.0) give up after 29 seconds, HTTP
# APIs after 30. Function URLs and load balancers have no such limit.
GATEWAY_S = {"1.0": 27.0, "2.0": 28.0}
ARRIVAL = {"1.0": "requestTimeEpoch", "2.0": "timeEpoch"}
OPENAPI = Path(__file__).with_name("openapi.json")
# What pages may send: types, codings, and what authorizers, usage plans and AWS_IAM ask for.
CORS_HEADERS = (
    "Content-Type",
    "Content-Encoding",
    "Authorization",
    "X-Api-Key",
    "X-Amz-Date",
    "X-Amz-Security-Token",
    "X-Amz-Content-Sha256",
)
# An origin as browsers send it, in lower case and without its default port: RFC 6454, section 6.2.
_ORIGIN = re.compile(
    r"(?!http:.*:80$|https:.*:443$)"
    r"[a-z][a-z0-9+.-]*://([a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
)
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # a token: RFC 9110, section 5.6.2


@dataclass(frozen=True)
class HttpRequest:
    """An HTTP request.

    Attributes:
        payload_format: "1.0", "2.0" or "alb"; the response needs the same.
        method: in upper case.
        path: without the query; may begin with a stage or a prefix of the gateway.
        query: {name: value}, the last value of each.
        headers: {name in lower case: value}.
        body: text, or base64 if `is_base64`.
        is_base64: whether the gateway encoded the body.
        multi_value: whether the load balancer expects lists of header values.
        root: path of the root beside "/", without slashes at its ends: a stage or a prefix.
        public_path: the path as the client sees it, if that is another one.
        seconds: until the gateway has to be answered.
    """

    payload_format: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: str
    is_base64: bool
    multi_value: bool
    root: str = ""
    public_path: str = ""
    seconds: float = float("inf")

    @property
    def route(self) -> str:
        """The last part of the path; "" at the root."""
        last = self.path.rstrip("/").rpartition("/")[2]
        return "" if last not in PAGES and self.path.strip("/") == self.root else last

    @property
    def allowed_methods(self) -> tuple[str, ...]:
        """The methods to use at this path; HEAD goes where GET does."""
        if self.route in PAGES:
            return ("GET",)
        return ("POST",) if self.route else ("GET", "POST")


class Page(Result):
    """A result with a status and headers of its own, and perhaps text in place of its body."""

    def __init__(self, body: dict, headers: dict[str, str], text: str = "", status: int = 200):
        """Answer with `text` or, without one, with `body` as JSON."""
        super().__init__(body)
        self.headers, self.text, self.status = headers, text, status


def read_event(event: object) -> HttpRequest | None:
    """Return the HTTP request in `event`, or None for a direct invocation."""
    if not isinstance(event, dict) or not isinstance(event.get("requestContext"), dict):
        return None
    if aws_events.is_web_socket(event) or NOT_HTTP.intersection(event):
        return None
    context = event["requestContext"]
    if event.get("version") == "2.0":
        http = context.get("http") if isinstance(context.get("http"), dict) else {}
        payload_format, method, path = "2.0", http.get("method"), event.get("rawPath")
    else:
        payload_format = "alb" if "elb" in context else "1.0"
        method, path = event.get("httpMethod"), event.get("path")
    return HttpRequest(
        payload_format=payload_format,
        method=_text(method).upper(),
        path=_text(path),
        query=_strings(event.get("queryStringParameters"))
        | _strings(event.get("multiValueQueryStringParameters")),
        headers=_headers(event),
        body=_text(event.get("body")),
        is_base64=event.get("isBase64Encoded") is True,
        multi_value=payload_format == "alb" and "multiValueHeaders" in event,
        root=_root(event, _text(path)),
        public_path=_text(context.get("path")),
        seconds=_seconds(context, payload_format),
    )


def _seconds(context: dict, payload_format: str) -> float:
    """Return how many seconds are left until API Gateway has to be answered.

    Of an event that did not arrive just now, such as a recorded one, all are left.
    """
    domain = _text(context.get("domainName"))  # the container's own events have none
    is_url = payload_format == "2.0" and (not domain or ".lambda-url." in domain)
    if is_url or payload_format not in GATEWAY_S:
        return float("inf")
    limit, arrival = GATEWAY_S[payload_format], context.get(ARRIVAL[payload_format])
    waited = int(time.time() * 1000) - arrival if isinstance(arrival, int) else 0
    return limit - waited / 1000 if 0 < waited < limit * 1000 else limit


def _headers(event: dict) -> dict[str, str]:
    """Return {name in lower case: value}: of several values the last, or all if they are a list."""
    many = event.get("multiValueHeaders")
    headers = _strings(event.get("headers")) | _strings(many)
    headers = {name.lower(): value for name, value in headers.items()}
    for name, values in many.items() if isinstance(many, dict) else ():
        if str(name).lower() in LISTS and isinstance(values, list):
            headers[name.lower()] = ", ".join(value for value in values if isinstance(value, str))
    return headers


def _root(event: dict, path: str) -> str:
    """Return the path of the root, without slashes at its ends.

    An HTTP API puts its stage in front of paths. A route of `/` alone is the root, whatever a
    domain's mapping puts in front of it.
    """
    if event.get("resource") == "/" or _text(event.get("routeKey")).endswith(" /"):
        return path.strip("/")
    return _text(event["requestContext"].get("stage"))


def find_page(request: HttpRequest, service: Service) -> Result | None:
    """Return the requested page, or None if `request` posts images.

    Raises:
        NotFoundError: there is no page at its path.
        MethodError: its path needs another method.
    """
    method = "GET" if request.method == "HEAD" else request.method
    if method == "OPTIONS":
        return Result({})
    if method == "GET" and "url" in request.query and "POST" in request.allowed_methods:
        raise MethodError(
            'Expected POST with {"url": "https://..."} as the body. '
            "Received: GET with url in the query. See /openapi.json."
        )
    if method == "GET" and request.route not in ("", *PAGES):
        raise NotFoundError(
            "Expected GET /, GET /health, GET /openapi.json or POST /. "
            "Received: another path. See /openapi.json."
        )
    if method not in request.allowed_methods:
        raise MethodError(
            f"Expected {' or '.join(request.allowed_methods)} at this path. "
            "Received: another method. See /openapi.json."
        )
    if method == "POST":
        return None
    if request.route == "health":
        return Result(service.health())
    if request.route == "openapi.json":
        return Result(json.loads(OPENAPI.read_text(encoding="utf-8")))
    return _front_page(request, service)


def _front_page(request: HttpRequest, service: Service) -> Page:
    """Return the page for browsers, or for programs what the service is."""
    from serving import page  # a cold start does without it

    vary = {"Vary": "Accept"}
    if shows_page() and page.prefers_html(request.headers.get("accept", "")):
        html = page.read_page()
        headers = html.headers | vary
        if page.matches(html.etag, request.headers.get("if-none-match", "")):
            return Page({}, headers, status=304)
        return Page({}, headers, html.text)
    root = request.public_path or request.path
    labels = service.classifier.labels
    return Page(page.describe(service.name, labels, root, shows_page()), vary)


def shows_page() -> bool:
    """Return whether browsers get the page at GET /, as PAGE says: "on", the default, or "off".

    Raises:
        SettingError: it is something else.
    """
    value = os.environ.get("PAGE", "").strip()
    if value.lower() not in ("", "on", "off"):
        raise SettingError(
            f"Expected PAGE to be on or off. Received: {value!r}. Correct it, or unset PAGE."
        )
    return value.lower() != "off"


def parse_body(request: HttpRequest) -> Request:
    """Parse a body: JSON, as in direct invocations, an image, or a form.

    Raises:
        InvalidRequestError: the body does not match its type, or names no image.
        UnsupportedTypeError: it is neither JSON nor an image nor a form, or in a coding other
            than gzip and deflate.
        TooLargeError: it unpacks to more than Lambda takes.
    """
    query = request.query
    top = events.read_top(query.get("top", ""))
    details = events.read_details(query.get("details", ""))
    data = bodies.unpack(_bytes(request), request.headers.get("content-encoding", ""))
    if not data and "url" in query:
        raise events.refusal("nothing as the body, but url in the query. Send it in the body")
    kind = request.headers.get("content-type", "")
    parsed = bodies.parse(Body(data, kind, is_text=not request.is_base64))
    return replace(
        parsed,
        top=parsed.top if top is None else top,
        details=parsed.details if details is None else details,
    )


def write_response(
    request: HttpRequest, result: Result, timings: dict[str, float] | None = None
) -> dict:
    """Return the response with the status, headers and body of `result`.

    Those to POST tell their `timings`, {step: milliseconds}, to the browser's own tools.
    """
    headers = cors()
    if request.method == "OPTIONS":
        return answer(request, 204, None, headers)
    if request.method == "POST" and timings:
        headers |= _server_timing(timings, headers.get("Access-Control-Allow-Origin"))
    if isinstance(result.error, MethodError):
        named = ", ".join(request.allowed_methods).replace("GET", "GET, HEAD")
        headers["Allow"] = f"{named}, OPTIONS"
    if isinstance(result, Page):
        vary = [each["Vary"] for each in (result.headers, headers) if "Vary" in each]
        headers |= result.headers | {"Vary": ", ".join(vary)}
        payload = None if result.status == 304 else result.text or result.body
        return answer(request, result.status, payload, headers)
    status = result.error.status if result.error else 200
    return answer(request, status, result.body, headers)


def _server_timing(timings: dict[str, float], origin: str | None) -> dict[str, str]:
    """Return the headers for `timings`; pages of another `origin` may read them, too."""
    steps = ", ".join(f"{step};dur={ms}" for step, ms in timings.items())
    if origin is None:
        return {"Server-Timing": steps}
    return {
        "Server-Timing": steps,
        "Timing-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Server-Timing",
    }


def answer(
    request: HttpRequest, status: int, payload: object = None, headers: dict | None = None
) -> dict:
    """Return a response in the gateway's format; `payload` becomes JSON unless text or None."""
    named = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} | (headers or {})
    body = ""
    if payload is not None:
        named.setdefault("Content-Type", "application/json")
        body = payload if isinstance(payload, str) else json.dumps(payload)
        if request.method == "HEAD":  # of what GET answers
            named["Content-Length"], body = str(len(body.encode())), ""
    response = {"statusCode": status, "headers": named, "body": body, "isBase64Encoded": False}
    if request.payload_format == "alb":
        response["statusDescription"] = f"{status} {HTTPStatus(status).phrase}"
    if request.multi_value:
        response["multiValueHeaders"] = {name: [value] for name, value in named.items()}
        del response["headers"]
    return response


def cors() -> dict[str, str]:
    """Return the CORS headers for all origins, or for CORS_ORIGIN; none if that is "off".

    CORS_HEADERS names request headers that pages may send besides `CORS_HEADERS`.

    Raises:
        SettingError: CORS_ORIGIN or CORS_HEADERS is malformed.
    """
    origin = _cors_origin()
    if origin == "off":
        return {}
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": ", ".join((*CORS_HEADERS, *_more_headers())),
        "Access-Control-Max-Age": "86400",  # seconds: browsers repeat the preflight once a day
    }
    return headers if origin == "*" else headers | {"Vary": "Origin"}


def _cors_origin() -> str:
    """Return the origin in CORS_ORIGIN: "*", the default, "off", or one as browsers send it."""
    text = os.environ.get("CORS_ORIGIN", "").strip()
    origin = text.lower() or "*"
    if origin not in ("*", "off") and not _ORIGIN.fullmatch(origin):
        raise SettingError(
            "Expected CORS_ORIGIN to be one origin as browsers send it, such as "
            "https://example.com or http://localhost:3000: without a path, a slash at its end or "
            "the default port, and with a host in ASCII (xn--...); or * or off. "
            f"Received: {text!r}. Correct it, or unset CORS_ORIGIN."
        )
    return origin


def _more_headers() -> list[str]:
    """Return the header names that CORS_HEADERS in the environment lists, separated by commas."""
    text = os.environ.get("CORS_HEADERS", "")
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not _HEADER_NAME.fullmatch(name):
            raise SettingError(
                "Expected names of headers, separated by commas, in CORS_HEADERS, such as "
                f"X-Trace-Id,X-Client. Received: {name!r}. Correct it, or unset CORS_HEADERS."
            )
    return names


def _bytes(request: HttpRequest) -> bytes:
    if not request.is_base64:
        return request.body.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(request.body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(
            "Expected a body in base64, as isBase64Encoded says. Received: something else."
        ) from None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _strings(value: object) -> dict[str, str]:
    """Return the pairs of strings, with the last of several values."""
    if not isinstance(value, dict):
        return {}
    last = {n: v[-1] if isinstance(v, list) and v else v for n, v in value.items()}
    return {n: v for n, v in last.items() if isinstance(n, str) and isinstance(v, str)}
