"""Reads HTTP requests from Lambda events and writes their responses.

API Gateway's REST APIs use payload format 1.0, its HTTP APIs 1.0 or 2.0, Function URLs 2.0.
Application Load Balancers have a format of their own, close to 1.0.
"""

import base64
import binascii
import json
import os
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from serving import events
from serving.errors import InvalidRequestError, MethodError, NotFoundError, UnsupportedTypeError
from serving.events import Request, Source
from serving.service import Result, Service

PAGES = ("health", "openapi.json")  # routes to GET; images may be posted to any other
OPENAPI = Path(__file__).with_name("openapi.json")
# `curl -d` sends application/x-www-form-urlencoded.
JSON_TYPES = ("", "application/json", "text/plain", "application/x-www-form-urlencoded")
IMAGE_TYPES = ("application/octet-stream", "binary/octet-stream")  # and image/*


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
        """The method to use at this path."""
        return "GET" if self.route in PAGES else "POST"


def read_event(event: object) -> HttpRequest | None:
    """Return the HTTP request in `event`, or None for a direct invocation."""
    if not isinstance(event, dict) or not isinstance(event.get("requestContext"), dict):
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
    """Parse a body: JSON, as in direct invocations, or one image.

    Raises:
        InvalidRequestError: the body does not match its type, or names no image.
        UnsupportedTypeError: it is neither JSON nor an image.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    top = events.parse_top(_number(request.query.get("top")))
    if kind.startswith("image/") or kind in IMAGE_TYPES:
        return Request((Source(image=_image(request)),), top=top)
    if kind not in JSON_TYPES and not kind.endswith("+json"):
        raise UnsupportedTypeError(
            "Expected a body of the type application/json or image/*. Received: another one. "
            "Name its type in the header Content-Type."
        )
    parsed = events.parse(_json(request))
    return Request(parsed.sources, parsed.is_batch, parsed.top if top is None else top)


def write_response(request: HttpRequest, result: Result) -> dict:
    """Return the response with the status, headers and body of `result`."""
    headers = cors()
    if request.method == "OPTIONS":
        return answer(request, 204, None, headers)
    if isinstance(result.error, MethodError):
        headers["Allow"] = f"{request.allowed_method}, OPTIONS"
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
        body = "" if request.method == "HEAD" else json.dumps(payload)
    response = {"statusCode": status, "headers": named, "body": body, "isBase64Encoded": False}
    if request.payload_format == "alb":
        response["statusDescription"] = f"{status} {HTTPStatus(status).phrase}"
    if request.multi_value:
        response["multiValueHeaders"] = {name: [value] for name, value in named.items()}
        del response["headers"]
    return response


def cors() -> dict[str, str]:
    """Return the CORS headers for all origins, or for CORS_ORIGIN."""
    origin = os.environ.get("CORS_ORIGIN") or "*"
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type",
        "Access-Control-Max-Age": "86400",  # seconds: browsers repeat the preflight once a day
    }
    return headers if origin == "*" else headers | {"Vary": "Origin"}


def _image(request: HttpRequest) -> bytes:
    if not request.is_base64:
        raise InvalidRequestError(
            "Expected the image's bytes, passed on by the gateway as binary. "
            "Received: text or nothing. Let the gateway treat image/* as a binary media type."
        )
    return _bytes(request)


def _json(request: HttpRequest) -> object:
    try:
        return json.loads(_bytes(request) if request.is_base64 else request.body)
    except (ValueError, RecursionError):
        received = "something else" if request.body else "nothing"
        raise InvalidRequestError(f"{events.EXPECTED} Received: {received}.") from None


def _bytes(request: HttpRequest) -> bytes:
    try:
        return base64.b64decode(request.body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(
            "Expected a body in base64, as isBase64Encoded says. Received: something else."
        ) from None


def _number(text: str | None) -> int | str | None:
    """Return `text` as an int if it is decimal, else unchanged."""
    digits = text and len(text) < 10 and text.isascii() and text.isdecimal()
    return int(text) if digits else text


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _strings(value: object) -> dict[str, str]:
    """Return the pairs of strings, with the last of several values."""
    if not isinstance(value, dict):
        return {}
    last = {n: v[-1] if isinstance(v, list) and v else v for n, v in value.items()}
    return {n: v for n, v in last.items() if isinstance(n, str) and isinstance(v, str)}
