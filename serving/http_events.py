"""Reads HTTP requests from Lambda events and writes their responses.

API Gateway's REST APIs use payload format 1.0, its HTTP APIs 1.0 or 2.0, Function URLs 2.0.
Application Load Balancers have a format of their own, close to 1.0.
"""

import base64
import binascii
import json
import os
import re
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
    """

    payload_format: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: str
    is_base64: bool
    multi_value: bool

    @property
    def route(self) -> str:
        """The last part of the path; "" at the root."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def allowed_method(self) -> str:
        """The method to use at this path; HEAD goes where GET does."""
        return "GET" if self.route in PAGES else "POST"


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
    headers = _strings(event.get("headers")) | _strings(event.get("multiValueHeaders"))
    return HttpRequest(
        payload_format=payload_format,
        method=_text(method).upper(),
        path=_text(path),
        query=_strings(event.get("queryStringParameters"))
        | _strings(event.get("multiValueQueryStringParameters")),
        headers={name.lower(): value for name, value in headers.items()},
        body=_text(event.get("body")),
        is_base64=event.get("isBase64Encoded") is True,
        multi_value=payload_format == "alb" and "multiValueHeaders" in event,
    )


def find_page(request: HttpRequest, service: Service) -> Result | None:
    """Return the requested page, or None if `request` posts images.

    Raises:
        NotFoundError: there is no page at its path.
        MethodError: its path needs another method.
    """
    method = "GET" if request.method == "HEAD" else request.method
    if method == "OPTIONS":
        return Result({})
    if method == "GET" and "url" in request.query:
        raise MethodError(
            'Expected POST with {"url": "https://..."} as the body. '
            "Received: GET with url in the query. See /openapi.json."
        )
    if method == "GET" and request.route not in ("", *PAGES):
        raise NotFoundError(
            "Expected GET /health, GET /openapi.json or POST /. "
            "Received: another path. See /openapi.json."
        )
    if method != request.allowed_method:
        raise MethodError(
            f"Expected {request.allowed_method} at this path. "
            "Received: another method. See /openapi.json."
        )
    if request.route == "health":
        return Result(service.health())
    if request.route == "openapi.json":
        return Result(json.loads(OPENAPI.read_text(encoding="utf-8")))
    return None


def parse_body(request: HttpRequest) -> Request:
    """Parse a body: JSON, as in direct invocations, an image, or a form.

    Raises:
        InvalidRequestError: the body does not match its type, or names no image.
        UnsupportedTypeError: it is neither JSON nor an image nor a form, or in a coding other
            than gzip and deflate.
        TooLargeError: it unpacks to more than Lambda takes.
    """
    query = request.query
    top = events.parse_top(events.decimal(query.get("top")))
    details = events.parse_details(events.yes_or_no(query.get("details")))
    data = bodies.unpack(_bytes(request), request.headers.get("content-encoding", ""))
    if not data and "url" in query:
        raise events.refusal("nothing as the body, but url in the query. Send it in the body")
    kind = request.headers.get("content-type", "")
    parsed = bodies.parse(Body(data, kind, is_text=not request.is_base64))
    return replace(
        parsed,
        top=top if "top" in query else parsed.top,
        details=details if "details" in query else parsed.details,
    )


def write_response(request: HttpRequest, result: Result) -> dict:
    """Return the response with the status, headers and body of `result`."""
    headers = cors()
    if request.method == "OPTIONS":
        return answer(request, 204, None, headers)
    if isinstance(result.error, MethodError):
        allowed = "GET, HEAD" if request.allowed_method == "GET" else request.allowed_method
        headers["Allow"] = f"{allowed}, OPTIONS"
    status = result.error.status if result.error else 200
    return answer(request, status, result.body, headers)


def answer(
    request: HttpRequest, status: int, payload: object = None, headers: dict | None = None
) -> dict:
    """Return a response in the gateway's format; `payload` becomes JSON unless None."""
    named = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} | (headers or {})
    body = ""
    if payload is not None:
        named["Content-Type"] = "application/json"
        body = json.dumps(payload)
        if request.method == "HEAD":
            named["Content-Length"], body = str(len(body)), ""  # of what GET answers
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
        SettingError: CORS_HEADERS is malformed.
    """
    origin = os.environ.get("CORS_ORIGIN", "").strip() or "*"
    if origin.lower() == "off":
        return {}
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": ", ".join((*CORS_HEADERS, *_more_headers())),
        "Access-Control-Max-Age": "86400",  # seconds: browsers repeat the preflight once a day
    }
    return headers if origin == "*" else headers | {"Vary": "Origin"}


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
