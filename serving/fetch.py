"""A URL to the bytes behind it, within bounds."""

import time
from urllib.parse import urlsplit

import requests
import urllib3

from serving.errors import FetchError, InvalidRequestError, TooLargeError

SCHEMES = ("http", "https")
TIMEOUT = 5.0  # seconds to connect, and to wait for each piece of the answer
DEADLINE = 10.0  # seconds for the whole answer
MAX_BYTES = 10_000_000
MAX_REDIRECTS = 3
CHUNK = 65_536
# Some hosts, Wikimedia's among them, refuse clients that do not say what they are.
USER_AGENT = "flower-classifier/1.0"


def fetch(url: str) -> bytes:
    """Return what `url` answers, at most `MAX_BYTES` bytes.

    Raises:
        InvalidRequestError: it is no http or https address.
        FetchError: the host does not answer in time, or answers with an error.
        TooLargeError: the answer is longer than `MAX_BYTES`.
    """
    _check(url)
    deadline = time.monotonic() + DEADLINE
    try:
        with requests.Session() as session:
            session.trust_env = False  # no proxies and no .netrc passwords from the environment
            session.max_redirects = MAX_REDIRECTS
            session.headers["User-Agent"] = USER_AGENT
            with session.get(url, stream=True, timeout=TIMEOUT) as response:
                if response.status_code != requests.codes.ok:
                    raise FetchError(
                        "Expected the picture's host to answer 200. "
                        f"Received: {response.status_code}. Check the url."
                    )
                return _read(response, deadline)
    except requests.TooManyRedirects:
        raise FetchError(
            f"Expected at most {MAX_REDIRECTS} redirects. Received: more. Give the final url."
        ) from None
    except requests.exceptions.InvalidSchema:  # a redirect to file:// and the like
        raise _wrong_scheme("a redirect to something else") from None
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise _too_slow() from None
    except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationValueError, UnicodeError):
        raise _wrong_scheme("an address that cannot be read") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError):
        raise FetchError(
            "Expected the picture's host to answer. "
            "Received: no connection or a broken one. Check the url."
        ) from None


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong_scheme("an address that cannot be read") from None
    if parts.scheme.lower() not in SCHEMES:
        raise _wrong_scheme(f"{parts.scheme}:" if parts.scheme else "an address without a scheme")
    if not parts.hostname:
        raise _wrong_scheme("an address without a host")


def _read(response: requests.Response, deadline: float) -> bytes:
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > MAX_BYTES:
        raise _too_large()
    body = bytearray()
    # read1 returns what one read brings, so that a host which drips cannot outlast the deadline.
    while piece := response.raw.read1(CHUNK, decode_content=True):
        body += piece
        if len(body) > MAX_BYTES:
            raise _too_large()
        if time.monotonic() > deadline:
            raise _too_slow()
    return bytes(body)


def _wrong_scheme(received: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Expected a url that begins with http:// or https://. Received: {received}."
    )


def _too_large() -> TooLargeError:
    return TooLargeError(
        f"Expected at most {MAX_BYTES / 1e6:.0f} MB. Received: more. Send a smaller picture."
    )


def _too_slow() -> FetchError:
    return FetchError(
        f"Expected the picture's host to answer within {DEADLINE:.0f} seconds. "
        "Received: no answer or only a part of it. Try again, or use another host."
    )
