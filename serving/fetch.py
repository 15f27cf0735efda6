"""Fetches strangers' URLs, within limits of address, time and size.

A URL alone proves nothing: its name may resolve to any address, to another one a moment later,
and its host may redirect. So addresses are checked where connections are made: each connection
(serving/connection.py) resolves its name once, checks every answer and connects to one of them.
FETCH_ALLOW in the environment, host names and networks separated by commas
(images.internal,10.0.0.0/8), allows more hosts, at any port. FETCH_CONTACT, an address of a page
or of mail, tells hosts whom to ask about the requests.
"""

import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from serving import log
from serving.addresses import VARIABLE, Allowed, parse_allowed
from serving.errors import (
    AddressError,
    FetchError,
    FetchTimeoutError,
    InternalError,
    InvalidRequestError,
    ServingError,
    SettingError,
    TooLargeError,
)

# Imported by what uses it: a cold start answers one request, which may have no URL.
if TYPE_CHECKING:
    import requests

    from serving.connection import CheckedAdapter, Limits

SCHEMES = ("http", "https")
DEADLINE = 10.0  # seconds for all of it, from looking up the name to the last byte
MAX_URL = 8192  # characters: what servers usually accept
MAX_BYTES = 10_000_000  # of a body
MAX_OVERHEAD = 1_000_000  # bytes besides the body: TLS, redirects, headers, chunk sizes
MAX_REDIRECTS = 5  # http to https, to www, to a page's file, to the network that delivers it
MAX_PARALLEL = 8
CHUNK = 65_536
CONTACT = "FETCH_CONTACT"
MAX_CONTACT = 200  # characters
# How Lambda starts this process: on-demand means for a request that waits.
INITIALIZATION, ON_DEMAND = "AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"
# Images are compressed already, and a body that is not unpacked cannot unpack to gigabytes.
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity"}
# Some hosts, such as Wikimedia, refuse clients without it, and ask it to name a contact.
USER_AGENT = "flower-classifier/1.0"
_COMMENT = re.compile(r"[ !-'*-\[\]-~]+")  # of a header, without escapes: RFC 9110, section 5.6.5
OTHER_STATUS = "Expected the image's host to answer 200. "  # begins the error's sentence
# Values of Content-Encoding. Others mean nothing: S3 sends base64, utf-8 or aws-chunked.
COMPRESSIONS = {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"}


def fetch(url: str, deadline: float | None = None) -> bytes:
    """Return the body at `url`, at most `MAX_BYTES` bytes.

    Ends within `DEADLINE` seconds, or at `deadline` (of `time.monotonic`) if that is sooner.
    Follows redirects, also from https to http, without cookies or a referrer.

    Raises:
        InvalidRequestError: it is not an http or https address.
        AddressError: it leads to a host that is not on the public Internet, to a port other
            than 80 and 443, or contains a user name or a password.
        FetchError: the host does not answer, or answers with an error.
        FetchTimeoutError: the host or the name servers do not answer in time.
        TooLargeError: the body is longer than `MAX_BYTES`.
        AllowError: FETCH_ALLOW is malformed.
        SettingError: FETCH_CONTACT is malformed.
    """
    return _fetch(url, deadline, parse_allowed(os.environ.get(VARIABLE, "")))


def fetch_all(urls: Sequence[str], deadline: float | None = None) -> list[bytes | ServingError]:
    """Return the body at each of `urls`, or its error.

    Keeps the order. Fetches `MAX_PARALLEL` at a time. An unexpected error is logged and becomes
    an InternalError of its own URL.

    Raises:
        AllowError: FETCH_ALLOW is malformed.
        SettingError: FETCH_CONTACT is malformed.
    """
    user_agent()
    allowed = parse_allowed(os.environ.get(VARIABLE, ""))
    if len(urls) > 1:
        _prepare_connections()  # once, not in each thread
    with ThreadPoolExecutor(MAX_PARALLEL, thread_name_prefix="fetch") as threads:
        return list(threads.map(lambda url: _fetch_or_error(url, deadline, allowed), urls))


def prepare() -> None:
    """Check the settings before the first fetch.

    That fetch imports its packages and reads the CA bundle, unless no request waits for this
    process, as before a snapshot (SnapStart) and with provisioned concurrency: then it is done now.

    Raises:
        AllowError: FETCH_ALLOW is malformed.
        SettingError: FETCH_CONTACT is malformed.
    """
    parse_allowed(os.environ.get(VARIABLE, ""))
    user_agent()
    if os.environ.get(INITIALIZATION, ON_DEMAND) != ON_DEMAND:
        _prepare_connections()


def user_agent() -> str:
    """Return the header User-Agent, with the contact in FETCH_CONTACT if there is one.

    Raises:
        SettingError: FETCH_CONTACT is not one line of printable ASCII, or has a parenthesis.
    """
    contact = os.environ.get(CONTACT, "").strip()
    if not contact:
        return USER_AGENT
    if len(contact) > MAX_CONTACT or not _COMMENT.fullmatch(contact):
        raise SettingError(
            f"Expected a web or mail address in {CONTACT}: one line of at most {MAX_CONTACT} ASCII "
            f"characters without parentheses. Received: {contact[:MAX_CONTACT]!r}. "
            f"Correct it, or unset {CONTACT}."
        )
    return f"{USER_AGENT} ({contact})"


def too_large() -> TooLargeError:
    """Return the error for an image of more than `MAX_BYTES`."""
    return TooLargeError(
        f"Expected at most {MAX_BYTES / 1e6:.0f} MB. Received: more. Use a smaller image."
    )


def _prepare_connections() -> None:
    """Import the packages for fetching, and read the CA bundle."""
    from serving.connection import tls_context

    tls_context()


def _fetch_or_error(url: str, deadline: float | None, allowed: Allowed) -> bytes | ServingError:
    try:
        return _fetch(url, deadline, allowed)
    except ServingError as error:
        return error
    except Exception as defect:
        log.log_exception(None, defect)
        return InternalError("The service failed on this url; its log says why.")


def _fetch(url: str, deadline: float | None, allowed: Allowed) -> bytes:
    import requests
    import urllib3

    from serving.connection import CheckedAdapter, LimitError, Limits

    latest = time.monotonic() + DEADLINE
    deadline = latest if deadline is None else min(deadline, latest)
    limits = Limits(allowed, deadline, MAX_OVERHEAD)
    try:
        with closing(CheckedAdapter(limits)) as adapter, _open(adapter, url) as response:
            return _read(response, limits)
    except LimitError:
        raise FetchError(
            "Expected little from the image's host besides the image. "
            f"Received: more than {MAX_OVERHEAD / 1e6:.0f} MB, such as headers. Use another host."
        ) from None
    except urllib3.exceptions.LocationParseError:
        raise _wrong_url("an address that cannot be read") from None
    except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
        raise FetchTimeoutError(
            f"Expected the image's host to answer in time, at most {DEADLINE:.0f} seconds. "
            "Received: no answer or only a part of it. Try again, or use another host."
        ) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, OverflowError):
        # http.client raises OverflowError for a chunk size far below zero.
        raise FetchError(
            "Expected the image's host to answer. "
            "Received: no connection or a broken one. Check the url."
        ) from None


def _open(adapter: "CheckedAdapter", url: str) -> "requests.Response":
    """Follow redirects from `url` and return the last response, unread.

    A requests.Session would read the bodies of redirects, however long, keep cookies, and take
    proxies and passwords from the environment.
    """
    from serving.connection import TIMEOUT

    visited = set()
    for _ in range(MAX_REDIRECTS + 1):
        request = _prepare(url)
        address = (request.url or "").partition("#")[0]
        if address in visited:
            raise FetchError(
                "Expected redirects that lead to an image. Received: one that leads back, as of "
                "hosts that ask for cookies or a login. Give the address of the image itself."
            )
        visited.add(address)
        response = adapter.send(request, stream=True, timeout=TIMEOUT)
        if not response.is_redirect:
            return response
        response.close()
        # http.client decodes headers as latin-1, but hosts send addresses in UTF-8.
        location = response.headers["Location"].encode("latin-1").decode("utf-8", "replace")
        _require_short(location)
        url = _join(response.url, location)
    raise FetchError(
        f"Expected at most {MAX_REDIRECTS} redirects. Received: more. Give the final url."
    )


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise _wrong_url("an address that cannot be read") from None


def _require_short(url: str) -> None:
    """Raise InvalidRequestError if `url` is too long.

    Before urlsplit is given it, which keeps the last 128 texts. What is not ASCII counts by its
    bytes in UTF-8, each of which will be escaped.
    """
    if len(url.encode("utf-8", "surrogatepass")) > MAX_URL:
        raise _wrong_url(f"one of more than {MAX_URL} characters")


def _prepare(url: str) -> "requests.PreparedRequest":
    import requests

    _require_short(url)
    try:
        request = requests.Request("GET", url, HEADERS | {"User-Agent": user_agent()}).prepare()
        # Check the address after requests has normalized it: the one that will be connected to.
        normalized = request.url or ""
        parts = urlsplit(normalized)
        host = parts.hostname
    except requests.exceptions.MissingSchema:
        raise _wrong_url("an address without a scheme") from None
    except (requests.RequestException, ValueError):
        raise _wrong_url("an address that cannot be read") from None
    _require_short(normalized)  # escapes have made it longer
    if parts.scheme not in SCHEMES:
        has_address = re.search("https?://", url, re.IGNORECASE)
        raise _wrong_url("text before the address" if has_address else "another scheme")
    if not host:
        raise _wrong_url("an address without a host")
    if "@" in parts.netloc:
        raise AddressError(
            "Expected a url that anybody may open. "
            "Received: one with a user name or a password. Leave them out."
        )
    return request


def _read(response: "requests.Response", limits: "Limits") -> bytes:
    if response.status_code != HTTPStatus.OK:
        raise FetchError(f"{OTHER_STATUS}Received: {response.status_code}. Check the url.")
    codings = response.headers.get("Content-Encoding", "").lower().split(",")
    if COMPRESSIONS.intersection(coding.strip() for coding in codings):
        raise FetchError(
            "Expected an image without Content-Encoding. "
            "Received: one that its host has compressed again. Use another host."
        )
    if (response.raw.length_remaining or 0) > MAX_BYTES:
        raise too_large()
    body = bytearray()
    while piece := response.raw.read1(CHUNK, decode_content=False):
        body += piece
        limits.overhead += len(piece)
        if len(body) > MAX_BYTES:
            raise too_large()
    if not body:
        raise FetchError(
            "Expected the image's host to answer with an image. "
            "Received: nothing, an empty body. Check the url."
        )
    return bytes(body)


def _wrong_url(received: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Expected a url that begins with http:// or https://. Received: {received}."
    )
