"""Turns HTTP requests into events and answers into HTTP responses, as a Function URL does on AWS.

Events are of payload format 2.0. `emulator_queue` in the container and `tools.function_url` on a
developer's machine use it; on AWS nothing does. Needs no package.
"""

import base64
import json
import time
import uuid
from collections.abc import Iterable
from urllib.parse import parse_qs

from serving.errors import UserError

INVOCATIONS = "/2015-03-31/functions/function/invocations"  # where Lambda takes events
MAX_PAYLOAD = 6 * 1024 * 1024  # bytes of an event: Lambda's limit
# Headers about one connection, which are not passed on.
HOP_BY_HOP = {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}
Headers = list[tuple[str, str]]
Response = tuple[int, Headers, bytes]  # status, headers, body
TOO_LONG: Response = (
    413,
    [("Content-Type", "application/json")],
    b'{"message":"Request Too Long"}',
)


class AnswerError(UserError):
    """The function gave no usable answer; `str(error)` says why.

    Attributes:
        body: of the response, by default as AWS has it.
    """

    body = "Internal Server Error"

    @property
    def response(self) -> Response:
        """What the client gets."""
        return 502, [("Content-Type", "text/plain; charset=utf-8")], self.body.encode()


def to_event(method: str, target: str, headers: dict[str, str], body: bytes, peer: str) -> dict:
    """Return AWS's event for an HTTP request from the address `peer`.

    `target` is the path with the query.
    """
    path, _, text = target.partition("?")
    query = {name: ",".join(v) for name, v in parse_qs(text, True).items()}
    headers = {name.lower(): value for name, value in headers.items()}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": text,
        "headers": headers,
        **({"queryStringParameters": query} if query else {}),
        "requestContext": {
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": peer,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": str(uuid.uuid4()),
            "routeKey": "$default",
            "stage": "$default",
            "timeEpoch": int(time.time() * 1000),
        },
        # AWS encodes binary bodies only, but an event may have any body encoded.
        **({"body": base64.b64encode(body).decode()} if body else {}),
        "isBase64Encoded": bool(body),
    }


def parse_answer(text: str, source: str) -> object:
    """Return the JSON that a function answered, whose `source` an error names.

    Raises:
        AnswerError: it is none.
    """
    try:
        return json.loads(text)
    except ValueError:
        raise AnswerError(
            f"Expected an answer in JSON from {source}. Received: {text[:200]!r}."
        ) from None


def to_response(answer: object) -> Response:
    """Return the HTTP response that a function's `answer` describes.

    Raises:
        AnswerError: it describes none.
    """
    if not isinstance(answer, dict) or not is_status(answer.get("statusCode")):
        raise AnswerError(
            "Expected an answer with a statusCode. Received: "
            f"{json.dumps(answer)[:200]}. See the container's log."
        )
    try:
        text = answer.get("body") or ""
        body = base64.b64decode(text) if answer.get("isBase64Encoded") else text.encode()
        headers = [(name, str(value)) for name, value in (answer.get("headers") or {}).items()]
        headers += [("Set-Cookie", cookie) for cookie in answer.get("cookies") or ()]
        _require_lines(headers)
    except (ValueError, AttributeError, TypeError) as error:
        raise AnswerError(f"Expected headers and a body as text. Received: {error}.") from None
    return answer["statusCode"], headers, body


def is_status(value: object) -> bool:
    """Return whether `value` is the status code of a response."""
    return type(value) is int and 200 <= value < 600


def _require_lines(headers: Iterable[tuple[str, str]]) -> None:
    """Raise ValueError unless each of `headers` fits one line of HTTP."""
    for name, value in headers:
        line = f"{name}: {value}"
        line.encode("latin-1")
        if "\r" in line or "\n" in line:
            raise ValueError(f"a line break in the header {name[:100]!r}")


def framed(method: str, response: Response) -> Response:
    """Return `response` with the body that an answer to `method` has, and its Content-Length."""
    status, headers, body = response
    given = [value for name, value in headers if name.lower() == "content-length"]
    headers = [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]
    if status in (204, 304):
        return status, headers, b""
    # Without a body, the answer to HEAD may name the length that GET's would have.
    length = given[0] if given and method == "HEAD" and not body else str(len(body))
    headers.append(("Content-Length", length))
    return status, headers, b"" if method == "HEAD" else body
