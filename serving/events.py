"""Parses direct invocations into requests."""

import base64
import binascii
from dataclasses import dataclass

from serving.errors import InvalidRequestError

MAX_IMAGES = 16  # in one request
ONE = ("url", "image")
SEVERAL = {"urls": "url", "images": "image"}
EXPECTED = (
    'Expected {"url": "https://..."}, {"image": "<base64 of an image file>"}, {"urls": [...]} '
    'or {"images": [...]}.'
)


@dataclass(frozen=True)
class Source:
    """An image by its URL or by the bytes of its file."""

    url: str | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Request:
    """Images to classify.

    Attributes:
        sources: of each image, in order, or the error in it.
        is_batch: whether to return a list, even of one image.
        top: how many of the best classes to return; None for all, in the order of the model.
    """

    sources: tuple[Source | InvalidRequestError, ...]
    is_batch: bool = False
    top: int | None = None


def parse(event: object) -> Request:
    """Return the request in `event`.

    Raises:
        InvalidRequestError: it is not a JSON object with exactly one of `url`, `image`, `urls`
            and `images`, `top` is not a whole number from 1, or the list is empty or has more
            than `MAX_IMAGES` entries.
    """
    if not isinstance(event, dict):
        raise InvalidRequestError(f"{EXPECTED} Received: {_kind(event)}.")
    named = [key for key in (*ONE, *SEVERAL) if event.get(key) is not None]
    if len(named) != 1:
        received = " and ".join(named) or "none of these"
        raise InvalidRequestError(f"{EXPECTED} Received: {received}.")
    [key] = named
    top = parse_top(event.get("top"))
    if key in ONE:
        return Request((_source(key, event[key]),), top=top)
    return Request(tuple(_sources(key, event[key])), is_batch=True, top=top)


def parse_top(value: object) -> int | None:
    """Return how many classes to return; None for all.

    Raises:
        InvalidRequestError: `value` is not a whole number from 1.
    """
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise InvalidRequestError(
            f"Expected top to be a whole number from 1. Received: {_kind(value)}. "
            "Leave it out for all classes."
        )
    return value


def _sources(key: str, values: object) -> list[Source | InvalidRequestError]:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_IMAGES:
        received = str(len(values)) if isinstance(values, list) else _kind(values)
        raise InvalidRequestError(
            f"Expected {key} to be a list of 1 to {MAX_IMAGES}. Received: {received}."
        )
    found = []
    for value in values:
        try:
            found.append(_source(SEVERAL[key], value))
        except InvalidRequestError as error:  # the others are still classified
            found.append(error)
    return found


def _source(key: str, value: object) -> Source:
    if not isinstance(value, str) or not value.strip():
        received = "an empty string" if isinstance(value, str) else _kind(value)
        raise InvalidRequestError(f"{EXPECTED} Received: {received} as {key}.")
    return Source(url=value.strip()) if key == "url" else Source(image=_decode(value))


def _decode(text: str) -> bytes:
    if text.lstrip().startswith("data:"):  # as FileReader.readAsDataURL in browsers
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(f"{EXPECTED} Received: an image that is not base64.") from None


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    names |= {bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), "something else")
