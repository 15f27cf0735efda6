"""Reads the bodies of HTTP requests: JSON, an image, or a form with either."""

import json
import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from urllib.parse import parse_qsl

from serving import events, file_types
from serving.errors import InvalidRequestError, TooLargeError, UnsupportedTypeError
from serving.events import ONE, SEVERAL, Request, Source

MAX_UNPACKED = 6 * 1024 * 1024  # bytes: of an event, Lambda takes as many
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"  # what `curl -d` and `--data-binary` send
# Of these types clients send any file: an image, but some also JSON.
IMAGE_TYPES = ("application/octet-stream", "binary/octet-stream")  # and image/*
JSON_TYPES = ("application/json", "text/json", "")  # and +json
# Of these types clients send anything, so the first bytes decide whether it is an image.
UNNAMED_TYPES = ("", "text/plain", URLENCODED)
# zlib's window bits: gzip; zlib; raw deflate, which some clients send as deflate.
GZIP = 31
CODINGS = {"gzip": (GZIP,), "x-gzip": (GZIP,), "deflate": (15, -15)}
MAX_MEMBERS = 128  # of a gzip body; bgzip makes one of 64 kB
_INDEX = re.compile(r"\[\d{0,3}\]$")  # of a list's item, as PHP and axios write it
ADDRESSES = (b"http://", b"https://", b"data:")
HEAD = 64  # bytes that tell text from other files
MAX_PARTS = 64  # of a form, files and fields
MAX_ESCAPES = 500_000  # percent-encoded characters in a form; base64 of 4.5 MB has 200,000


@dataclass(frozen=True)
class Body:
    """The body of an HTTP request.

    Attributes:
        data: its bytes, as the client sent them unless `is_text`.
        content_type: the header, with its parameters.
        is_text: whether the gateway passed it on as text, which destroys other bytes.
    """

    data: bytes
    content_type: str = ""
    is_text: bool = False

    @property
    def kind(self) -> str:
        """The media type, in lower case."""
        return self.content_type.partition(";")[0].strip().lower()


def parse(body: Body) -> Request:
    """Return the request in `body`.

    Raises:
        InvalidRequestError: the body does not match its type, or names no image.
        UnsupportedTypeError: it is neither JSON nor an image nor a form.
    """
    kind = body.kind
    if kind == MULTIPART:
        return _form_request(_multipart_fields(body))
    is_image = kind.startswith("image/") or kind in IMAGE_TYPES
    if kind in IMAGE_TYPES and file_types.describe(body.data)[0] == "JSON":
        return events.parse(_json(body.data))
    if is_image or (kind in UNNAMED_TYPES and is_binary(body.data)):
        return Request((Source(image=_image(body)),))
    if kind == URLENCODED and _is_form(body.data):
        return _form_request(_urlencoded_fields(body.data))
    if kind not in (*JSON_TYPES, *UNNAMED_TYPES) and not kind.endswith("+json"):
        raise UnsupportedTypeError(
            f"Expected a body of the type application/json, image/* or {MULTIPART}. "
            f"Received: {events.shown(kind)}. Name its type in the header Content-Type."
        )
    return events.parse(_json(body.data))


def unpack(data: bytes, coding: str) -> bytes:
    """Return `data` without its `coding`, the header Content-Encoding.

    Raises:
        UnsupportedTypeError: it is another than gzip or deflate.
        InvalidRequestError: the data is damaged, or has more than `MAX_MEMBERS` members.
        TooLargeError: it unpacks to more than `MAX_UNPACKED` bytes.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return data
    if coding not in CODINGS:
        raise UnsupportedTypeError(
            "Expected a body without Content-Encoding, or in gzip or deflate. "
            f"Received: {events.shown(coding)}. Send it without."
        )
    for window_bits in CODINGS[coding]:
        if (unpacked := _unpack_members(data, window_bits)) is not None:
            return unpacked
    if not is_binary(data):  # a gateway has unpacked it already
        return data
    raise InvalidRequestError(
        f"Expected a complete body in {coding}, as Content-Encoding says. "
        "Received: a damaged one. Send it without, or let the gateway pass it on as binary."
    )


def _unpack_members(data: bytes, window_bits: int) -> bytes | None:
    """Return what is packed in `data`, which only gzip has in several members; None if damaged."""
    unpacked = b""
    for _ in range(MAX_MEMBERS):
        unpacker = zlib.decompressobj(window_bits)
        try:
            unpacked += unpacker.decompress(data, MAX_UNPACKED + 1 - len(unpacked))
        except zlib.error:
            return None
        if len(unpacked) > MAX_UNPACKED:
            raise TooLargeError(
                f"Expected at most {MAX_UNPACKED >> 20} MB when unpacked. Received: more. "
                "Use a smaller image."
            )
        if not unpacker.eof:
            return None
        if not (data := unpacker.unused_data):
            return unpacked
        if window_bits != GZIP:
            return None
    raise InvalidRequestError(
        f"Expected a gzip body of at most {MAX_MEMBERS} members. Received: more. Pack it as one."
    )


def is_binary(data: bytes) -> bool:
    """Return whether `data` begins like a file that is no text, as all images do."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"{", b"[")) or data[:2].count(0) == 1:
        return False  # JSON, or UTF-16, in which PowerShell writes files; no image begins so
    text = data[:HEAD].decode("utf-8", "replace")
    # The last character may be cut off.
    return "\ufffd" in text[:-1] or any(c < " " and c not in "\t\n\r\f" for c in text)


def _is_form(data: bytes) -> bool:
    """Return whether `data` is a form; `curl -d` calls JSON and base64 one, too."""
    start = data[:HEAD].strip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"{", b"[", b'"', *ADDRESSES)):
        return False
    # The padding of base64 stands at its end, as the sign of a form's only, empty field does.
    in_between = b"=" in data.rstrip(b"= \t\r\n")
    return in_between or (b"=" in data and file_types.describe(data)[0] != "base64")


def _image(body: Body) -> bytes:
    if not body.data:
        raise InvalidRequestError("Expected an image as the body. Received: nothing.")
    if body.is_text:
        raise _not_binary("image/*")
    return body.data


def _not_binary(media_type: str) -> InvalidRequestError:
    return InvalidRequestError(
        "Expected the image's bytes, passed on by the gateway as binary. Received: text. "
        f"Send it as {media_type}, and let the gateway treat that as a binary media type."
    )


def _json(data: bytes) -> object:
    try:
        # UTF-8, UTF-16 or UTF-32, with a byte order mark or without.
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        return json.loads(text.strip("\ufeff\u200b\u2060\xa0 \t\r\n"))
    except json.JSONDecodeError:
        received = _no_json(data, "text that is not JSON. Check its quotes")
    except UnicodeDecodeError:
        received = _no_json(data, "text that is not UTF-8. Encode it as UTF-8")
    except ValueError:
        received = "JSON with a number of too many digits. Write fewer"
    except RecursionError:
        received = "JSON that is nested too deeply. Leave out what is not asked for"
    raise events.refusal(received)


def _no_json(data: bytes, otherwise: str) -> str:
    """Return what `data` is if it is not JSON, and what to do; `otherwise` if it is plain text."""
    if not data.strip():
        return "nothing"
    if is_binary(data):
        return "bytes that are no text. Name the image's type in the header Content-Type"
    start = data[:HEAD].lstrip().lower()
    if start.startswith(ADDRESSES):
        return 'an address alone. Send it as {"url": "https://..."}'
    if file_types.describe(data)[0] == "base64":
        return 'base64 alone. Send it as {"image": "<base64>"}'
    if start.startswith((b"url=", b"urls=", b"image=", b"images=")):
        return f"a form. Send it as {URLENCODED}"
    return otherwise


def _form_request(fields: Sequence[tuple[str, str | bytes]]) -> Request:
    """Return the request in a form's (name, value) pairs; bytes are files."""
    images: list[tuple[str, object]] = []
    is_list = False
    for name, value in fields:
        if found := _images_in(name, value):
            images.extend(found)
            is_list |= name in SEVERAL or bool(_INDEX.search(name))
    keys = {key for key, _ in images}
    if len(keys) != 1:
        raise events.refusal(" and ".join(sorted(keys, reverse=True)) or "a form without these")
    if len(images) > events.MAX_IMAGES:
        raise events.too_many(len(images))
    return Request(
        events.parse_sources(images),
        is_batch=is_list or len(images) > 1,
        top=events.read_top(_option(fields, "top")),
        details=bool(events.read_details(_option(fields, "details"))),
    )


def _option(fields: Sequence[tuple[str, str | bytes]], name: str) -> str:
    """Return the first text in a form's fields called `name`; "" if there is none."""
    texts = (value for key, value in fields if key == name and isinstance(value, str))
    return next(texts, "")


def _images_in(name: str, value: str | bytes) -> list[tuple[str, object]]:
    """Return the (key, value) of each image in a form's field; none in fields of other names."""
    key = _INDEX.sub("", name)
    if isinstance(value, bytes):
        return [("image", value)]
    if key == "urls":  # a text area may have one a line
        lines = (line for line in StringIO(value, newline=None) if line.strip())
        urls = list(islice(lines, events.MAX_IMAGES))
        if more := sum(1 for _ in lines):
            raise events.too_many(len(urls) + more, key)
        return [("url", line) for line in urls]
    if key not in (*ONE, *SEVERAL) or not value.strip():
        return []
    return [(SEVERAL.get(key, key), value)]


def _urlencoded_fields(data: bytes) -> list[tuple[str, str | bytes]]:
    try:
        if data.count(b"%") > MAX_ESCAPES:
            raise ValueError
        text = data.decode("utf-8", "replace").strip()
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARTS)
    except ValueError:
        raise InvalidRequestError(
            f"Expected a form of at most {MAX_PARTS} fields. Received: a longer one. "
            f"Send images as {MULTIPART}."
        ) from None
    # Base64 whose plus signs were not encoded arrives with spaces in their place.
    return [(n, v.replace(" ", "+") if "image" in n and v.strip() else v) for n, v in pairs]


def _multipart_fields(body: Body) -> list[tuple[str, str | bytes]]:
    """Return the (name, value) of each part: bytes of files, text of fields."""
    boundary = _boundary(body.content_type)
    if not boundary:
        raise InvalidRequestError(
            f"Expected Content-Type: {MULTIPART} with a boundary. Received: none. "
            "Leave the header to the client, which knows the boundary."
        )
    if body.data.count(b"\r\n--" + boundary) > MAX_PARTS:
        raise InvalidRequestError(
            f"Expected a form of at most {MAX_PARTS} parts. Received: more. Send fewer."
        )
    fields = _parts(body.data, boundary)
    if fields is None:
        raise InvalidRequestError(
            f"Expected a complete {MULTIPART} body. Received: one that is cut off or damaged. "
            "Let the client build it, curl -F for example."
        )
    if body.is_text and any(isinstance(v, bytes) and not v.isascii() for _, v in fields):
        raise _not_binary(MULTIPART)
    return fields


def _boundary(content_type: str) -> bytes | None:
    from python_multipart.multipart import parse_options_header

    try:
        return parse_options_header(content_type)[1].get(b"boundary")
    except UnicodeEncodeError:
        return None


def _parts(data: bytes, boundary: bytes) -> list[tuple[str, str | bytes]] | None:
    """Return the (name, value) of each part of a form; None if it is not complete."""
    # Imported here because few requests need it, and a cold start should not wait for it.
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import Field, File, FormParser

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs what it was sent
    fields: list[tuple[str, str | bytes]] = []
    ends: list[None] = []

    def on_field(field: Field) -> None:
        value = field.value or b""
        is_file = is_binary(value) or (field.content_type or "").startswith("image/")
        fields.append((_text(field.field_name), value if is_file else _text(value)))

    def on_file(file: File) -> None:
        if file.size or file.file_name:  # otherwise none was chosen
            file.file_object.seek(0)
            fields.append((_text(file.field_name), file.file_object.read()))

    config = {"MAX_MEMORY_FILE_SIZE": float("inf"), "UPLOAD_ERROR_ON_BAD_CTE": True}
    try:
        parser = FormParser(
            MULTIPART, on_field, on_file, lambda: ends.append(None), boundary, config=config
        )
        parser.write(data)
    except FormParserError:
        return None
    return fields if ends else None


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")
