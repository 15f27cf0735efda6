"""Parses JSON, of direct invocations and of HTTP bodies, into requests."""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import unquote_to_bytes

from serving.errors import InvalidRequestError

MAX_IMAGES = 16  # in one request
ONE = ("url", "image")
SEVERAL = {"urls": "url", "images": "image"}
EXPECTED = (
    'Expected {"url": "https://..."}, {"image": "<base64 of an image file>"}, {"urls": [...]} '
    'or {"images": [...]}.'
)
OPTIONS = ("top", "details")  # keys beside them
YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")  # of queries and forms
SHOWN_KEYS = 3  # in a sentence
SHOWN = 40  # characters of each
MAX_URL_TEXT = 65_536  # characters of a URL with what copying adds to it

# What copying brings along, and no URL contains: soft hyphens, zero-width spaces, marks of the
# writing direction (RFC 3987, section 4.1), and byte order marks.
_INVISIBLE = (
    "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)
# White space as str.split has it, which would make a list of millions of words.
_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\u00a0\u1680\u2028\u2029\u202f\u205f\u3000"
_SPACES += "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
_NO_SPACES = str.maketrans("", "", _SPACES)
# Brackets and quotation marks, each opening one before its closing one.
_PAIRS = "<>()[]{}\u201c\u201d\u2018\u2019\u00ab\u00bb\u00bb\u00ab\u2039\u203a\u203a\u2039"
_PAIRS += "\uff08\uff09\u3010\u3011\u300c\u300d\u300a\u300b"
_CLOSING = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True)) | {"\u201e": "\u201c\u201d"}
_CLOSING |= {mark: mark for mark in "\"'`*_~|"}  # quotes, and Markdown's emphasis
MAX_NESTED = 8  # quotes and brackets around a URL
# A link in Markdown, [text](URL "title"), and in Slack's format, <URL|text>.
_LINK = re.compile(
    r"!?\[[^\]]*\]\(\s*<?(https?:\S*?)>?(?:\s[^)]*)?\)|<(https?:[^|>\s]*)\|[^>]*>", re.IGNORECASE
)
# What a sentence puts behind a URL. Programs that turn URLs into links leave it out.
_PUNCTUATION = ".,;:!\u3001\u3002\uff01\uff0c\uff1a\uff1b\u2026"
_SCHEME = re.compile(r"^(https?):[/\\]+", re.IGNORECASE)
_URL_START = re.compile(r"(?:^|\s)https?:[/\\]", re.IGNORECASE)
# The part of a data: URL before its data. Some clients omit what stands before "base64".
_DATA_URL = re.compile(
    r"\s*(?:data(?::|%3a)|(?=[^,]*base64))[^,]*?(?P<base64>base64)?\s*(?:,|%2c)", re.I
)
MAX_DATA_HEAD = 300  # characters
MAX_PERCENT_ENCODED = 1_000_000  # characters of data that is not base64
# What base64 becomes in a URL's query or a form.
_PERCENT = {"2b": "+", "2f": "/", "3d": "=", "2d": "-", "5f": "_", "0a": "", "0d": "", "20": ""}
_ESCAPES = ("\\n", "\\r", "\\t")  # white space that was escaped twice
_BYTES_LITERAL = re.compile(r"b(['\"])(.*)\1", re.DOTALL)  # Python's str() of bytes


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
        details: whether to return all that the model tells, not only scores.
    """

    sources: tuple[Source | InvalidRequestError, ...]
    is_batch: bool = False
    top: int | None = None
    details: bool = False


def parse(event: object) -> Request:
    """Return the request in `event`.

    Raises:
        InvalidRequestError: it is not a JSON object with exactly one of `url`, `image`, `urls`
            and `images`, `top` is not a whole number from 1, `details` neither true nor false, or
            the list is empty or has more than `MAX_IMAGES` entries.
    """
    if not isinstance(event, dict):
        raise refusal(kind_of(event))
    named = named_keys(event)
    if not named:
        raise refusal(_other_keys(event))
    if len(named) > 1:
        raise refusal(" and ".join(named))
    [key] = named
    top, details = parse_top(event.get("top")), parse_details(event.get("details"))
    if key in ONE:
        return Request((parse_source(key, event[key]),), top=top, details=details)
    return Request(_sources(key, event[key]), is_batch=True, top=top, details=details)


def named_keys(event: dict) -> list[str]:
    """Return which of `url`, `image`, `urls` and `images` are in `event`; null counts as absent."""
    return [key for key in (*ONE, *SEVERAL) if event.get(key) is not None]


def parse_top(value: object) -> int | None:
    """Return how many classes to return; None for all.

    Raises:
        InvalidRequestError: `value` is not a whole number from 1.
    """
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise _wrong_top(str(value) if type(value) in (int, float) else kind_of(value))
    return value


def read_top(text: str) -> int | None:
    """Return how many classes `text`, of a query or form, asks for; None for all, if it is empty.

    Raises:
        InvalidRequestError: it is not a whole number from 1.
    """
    text = text.strip()
    if not text:
        return None
    try:
        if not (text.isascii() and text.isdecimal()):
            raise ValueError
        return parse_top(int(text))
    except ValueError:  # also of more digits than Python reads
        raise _wrong_top(text) from None


def parse_details(value: object) -> bool:
    """Return whether more than scores is asked for.

    Raises:
        InvalidRequestError: `value` is neither true nor false.
    """
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong_details(str(value) if isinstance(value, int | float) else kind_of(value))
    return value


def read_details(text: str) -> bool | None:
    """Return whether `text`, of a query or form, asks for more than scores; None if it is empty.

    Raises:
        InvalidRequestError: it is none of `YES` and `NO`.
    """
    word = text.strip().lower()
    if word and word not in (*YES, *NO):
        raise _wrong_details(text.strip())
    return word in YES if word else None


def parse_source(key: str, value: object) -> Source:
    """Return the image that `value` names as `key`, "url" or "image".

    Either may be a data: URL; bytes are those of an image file.

    Raises:
        InvalidRequestError: it is not a string, or neither an address nor base64.
    """
    if isinstance(value, bytes):
        return Source(image=value)
    if not isinstance(value, str):
        raise refusal(f"{kind_of(value)} as {key}")
    text = _visible(value).strip()
    if not text:
        raise refusal(f"an empty string as {key}")
    is_data = text[:7].lower().startswith(("data:", "data%3a"))
    if key == "url" and not is_data:
        return Source(url=clean_url(text))
    if text[:8].lower().startswith(("http://", "https://")):
        raise refusal("the address of an image as image. Send it as url")
    return Source(image=decode_image(text))


def parse_sources(
    values: Sequence[tuple[str, object]],
) -> tuple[Source | InvalidRequestError, ...]:
    """Return the image of each (key, value), or the error in it: the others are classified."""
    found: list[Source | InvalidRequestError] = []
    for key, value in values:
        try:
            found.append(parse_source(key, value))
        except InvalidRequestError as error:
            found.append(error)
    return tuple(found)


def clean_url(text: str) -> str:
    """Return the URL in `text` without what copying adds to it.

    Removes invisible characters, line breaks, quotes or brackets around it and punctuation behind
    it, and takes the URL out of a link in Markdown. As browsers do, reads backslashes as slashes,
    and any number of them before the host as two.

    Raises:
        InvalidRequestError: nothing is left, there are several URLs, or `text` is too long.
    """
    if len(text) > MAX_URL_TEXT:
        raise refusal(f"more than {MAX_URL_TEXT} characters as url. Send an image as image")
    text = _visible(text).strip()
    if len(_URL_START.findall(text)) > 1:
        raise refusal('several addresses as url. Send them as {"urls": [...]}')
    text = "".join(line.strip() for line in text.splitlines()).replace("\t", "")
    if link := _LINK.fullmatch(text):
        text = link[1] or link[2]
    for _ in range(MAX_NESTED):
        if closing := _CLOSING.get(text[:1]):
            text = text[1:].strip()
            text = text[:-1].strip() if text[-1:] in closing else text
    text = text.rstrip('"<>` ' + _PUNCTUATION)
    text = text if "(" in text else text.rstrip(")" + _PUNCTUATION)
    if not text:
        raise refusal("an empty string as url")
    text = _SCHEME.sub(r"\1://", text)
    end = min((text.find(mark) for mark in "?#" if mark in text), default=len(text))
    return text[:end].replace("\\/", "/").replace("\\", "/") + text[end:]


def decode_image(text: str) -> bytes:
    """Return the bytes in `text`: base64 or a data: URL.

    Base64 may have line breaks and the alphabet for URLs, and lack its padding.

    Raises:
        InvalidRequestError: it is neither.
    """
    text = literal[2] if (literal := _BYTES_LITERAL.fullmatch(text)) else text.strip("\"'` ")
    head = _DATA_URL.match(text[:MAX_DATA_HEAD])
    if head is None:
        return _decode_base64(text)
    rest = text[head.end() :]
    try:
        return _decode_base64(rest)
    except InvalidRequestError:
        if head["base64"] or not 1 <= len(rest) <= MAX_PERCENT_ENCODED:
            raise
        return unquote_to_bytes(rest.encode("utf-8", "replace"))  # the bytes themselves


def refusal(received: str) -> InvalidRequestError:
    """Return the error for a request that names no image but contains what was `received`."""
    return InvalidRequestError(f"{EXPECTED} Received: {received}.")


def too_many(count: int, key: str = "images") -> InvalidRequestError:
    """Return the error for `count` images in one request."""
    return InvalidRequestError(
        f"Expected {key} to be a list of 1 to {MAX_IMAGES}. Received: {count}."
    )


def kind_of(value: object) -> str:
    """Return what `value` is in the words of JSON."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    names |= {bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), "something else")


def shown(text: str) -> str:
    """Return the start of `text` for a sentence, with what does not print escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:SHOWN])


def _wrong_top(received: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Expected top to be a whole number from 1. Received: {shown(received)}. "
        "Leave it out for all classes."
    )


def _wrong_details(received: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Expected details to be true or false. Received: {shown(received)}. "
        "Leave it out for scores only."
    )


def _sources(key: str, values: object) -> tuple[Source | InvalidRequestError, ...]:
    if not isinstance(values, list):
        raise InvalidRequestError(
            f"Expected {key} to be a list of 1 to {MAX_IMAGES}. Received: {kind_of(values)}."
        )
    if not 1 <= len(values) <= MAX_IMAGES:
        raise too_many(len(values), key)
    return parse_sources([(SEVERAL[key], value) for value in values])


def _other_keys(event: dict) -> str:
    keys = (shown(k) for k, value in event.items() if k not in OPTIONS and value is not None)
    if not (listed := list(islice(filter(None, keys), SHOWN_KEYS))):
        return "none of these"
    return "none of these, but " + ", ".join(listed)


def _visible(text: str) -> str:
    return _without(text, _INVISIBLE)


def _without(text: str, marks: Sequence[str]) -> str:
    """Return `text` without `marks`, one after the other: re would list what is between them."""
    for mark in marks:
        text = text.replace(mark, "")
    return text


def _decode_base64(text: str) -> bytes:
    if "%" in text:
        for code, character in _PERCENT.items():
            text = text.replace(f"%{code}", character).replace(f"%{code.upper()}", character)
    text = _without(text, _ESCAPES).replace("\\/", "/")
    text = _visible(text).translate(_NO_SPACES).replace("-", "+").replace("_", "/")
    digits = text.rstrip("=")
    try:
        if not digits or len(text) - len(digits) > 2:
            raise ValueError
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise refusal("an image that is not base64") from None
