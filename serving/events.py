"""The events that the service understands."""

import base64
import binascii
from dataclasses import dataclass

from serving.errors import InvalidRequestError

EXPECTED = 'Expected {"url": "https://..."} or {"image": "<base64 of a picture file>"}.'


@dataclass(frozen=True)
class Request:
    """What was asked for: the address of a picture, or its bytes."""

    url: str | None = None
    image: bytes | None = None


def parse(event: object) -> Request:
    """Return what `event` asks for.

    Raises:
        InvalidRequestError: it is not a JSON object with exactly one of `url` and `image`.
    """
    if not isinstance(event, dict):
        raise InvalidRequestError(f"{EXPECTED} Received: {_kind(event)}.")
    named = [key for key in ("url", "image") if event.get(key) is not None]
    if len(named) != 1:
        received = "both" if named else "neither"
        raise InvalidRequestError(f"{EXPECTED} Received: {received}.")
    [key] = named
    value = event[key]
    if not isinstance(value, str) or not value.strip():
        received = "an empty string" if isinstance(value, str) else _kind(value)
        raise InvalidRequestError(f"{EXPECTED} Received: {received} as {key}.")
    return Request(url=value.strip()) if key == "url" else Request(image=_decode(value))


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(f"{EXPECTED} Received: an image that is not base64.") from None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), "something else")
