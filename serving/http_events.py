"""HTTP as Lambda sees it: the events of API Gateway, Function URLs and load balancers.

API Gateway's REST and HTTP APIs come in payload format 1.0 or 2.0, Function URLs in 2.0, and an
Application Load Balancer in a form of its own that is close to 1.0.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from http import HTTPStatus

from serving import events
from serving.errors import InvalidRequestError, UnsupportedTypeError
from serving.events import Request, Source

# `curl -d` says that it sends a form.
JSON_TYPES = ("", "application/json", "text/plain", "application/x-www-form-urlencoded")
IMAGE_TYPES = ("application/octet-stream", "binary/octet-stream")  # and image/*


@dataclass(frozen=True)
class HttpRequest:
    """An HTTP request.

    Attributes:
        payload_format: "1.0", "2.0" or "alb", in which the answer has to be, too.
        method: in upper case.
        path: without the query; behind a stage or a prefix of the gateway's.
        query: {name: value}, the last value of each.
        headers: {name in lower case: value}.
        body: as the gateway gives it.
        is_base64: whether `body` is bytes in base64, and else text.
        multi_value: whether the load balancer wants lists of header values.
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
        """The last part of the path, such as "health"; "" at the root."""
        return self.path.rstrip("/").rpartition("/")[2]


def read_event(event: object) -> HttpRequest | None:
    """Return the HTTP request in `event`, None where it is a direct invocation."""
    if not isinstance(event, dict) or not isinstance(event.get("requestContext"), dict):
        return None
    context = event["requestContext"]
    if event.get("version") == "2.0":
        http = context.get("http") if isinstance(context.get("http"), dict) else {}
        payload_format, method, path = "2.0", http.get("method"), event.get("rawPath")
    else:
        payload_format = "alb" if "elb" in context else "1.0"
        method, path = event.get("httpMethod"), event.get("path")
    headers = _table(event.get("headers")) | _table(event.get("multiValueHeaders"))
    return HttpRequest(
        payload_format=payload_format,
        method=_text(method).upper(),
        path=_text(path),
        query=_table(event.get("queryStringParameters"))
        | _table(event.get("multiValueQueryStringParameters")),
        headers={name.lower(): value for name, value in headers.items()},
        body=_text(event.get("body")),
        is_base64=event.get("isBase64Encoded") is True,
        multi_value=payload_format == "alb" and "multiValueHeaders" in event,
    )


def parse_body(request: HttpRequest) -> Request:
    """Return what the body of `request` asks for: JSON as of a direct invocation, or an image.

    Raises:
        InvalidRequestError: the body is not what its type says, or asks for nothing.
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
    asked = events.parse(_json(request))
    return Request(asked.sources, asked.is_batch, asked.top if top is None else top)


def answer(
    request: HttpRequest,
    status: int,
    payload: object = None,
    headers: dict[str, str] | None = None,
) -> dict:
    """Return the gateway's form of an answer: `payload` as JSON, or nothing where it is None."""
    named = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} | (headers or {})
    body = ""
    if payload is not None:
        named["Content-Type"] = "application/json"
        body = "" if request.method == "HEAD" else json.dumps(payload)
    response = {"statusCode": status, "headers": named, "body": body, "isBase64Encoded": False}
    if request.payload_format == "alb":
        response["statusDescription"] = f"{status} {HTTPStatus(status).phrase}"
    if request.multi_value:
        response["multiValueHeaders"] = {n: [value] for n, value in response.pop("headers").items()}
    return response


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
    """Return `text` as the number that it writes, as it is where it writes none."""
    digits = text and len(text) < 10 and text.isascii() and text.isdecimal()
    return int(text) if digits else text


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _table(value: object) -> dict[str, str]:
    """Return the pairs of strings in `value`; of a list of values the last one."""
    if not isinstance(value, dict):
        return {}
    last = {n: v[-1] if isinstance(v, list) and v else v for n, v in value.items()}
    return {n: v for n, v in last.items() if isinstance(n, str) and isinstance(v, str)}
