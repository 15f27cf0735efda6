"""A URL from a stranger to the bytes behind it, within bounds, and from public addresses only.

A URL proves nothing: names resolve to what their owners like, to something else a moment later,
and hosts redirect. So the rules stand where the connection is made: each one resolves its name
once, checks every answer, and connects to one of those; each read waits no longer than the
deadline and counts what came. The environment variable FETCH_ALLOW, host names and networks
separated by commas (images.internal,10.0.0.0/8), lets it go to more places, at any port.
"""

import functools
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from serving import log
from serving.addresses import VARIABLE, Allowed, check_addresses, parse_allowed
from serving.errors import (
    AddressError,
    FetchError,
    FetchTimeoutError,
    InternalError,
    InvalidRequestError,
    ServingError,
    TooLargeError,
)

SCHEMES = ("http", "https")
TIMEOUT = 5.0  # seconds to connect to an address, and to wait for each piece of the answer
DEADLINE = 10.0  # seconds for all of it, from the name to the last byte
MAX_URL = 8192  # characters, what servers usually read
MAX_BYTES = 10_000_000
MAX_OVERHEAD = 1_000_000  # bytes of a connection that are no body: headers, sizes of chunks
MAX_REDIRECTS = 3
MAX_PARALLEL = 8
CHUNK = 65_536
# Some hosts, Wikimedia's among them, refuse clients that do not say what they are. An image is
# compressed as it is, and what is not unpacked cannot unpack to gigabytes.
HEADERS = {
    "User-Agent": "flower-classifier/1.0",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}
# Other values are common and mean nothing: images in S3 have base64, utf-8 or aws-chunked here.
COMPRESSIONS = {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"}


def fetch(url: str, deadline: float | None = None) -> bytes:
    """Return what `url` answers, at most `MAX_BYTES` bytes.

    It ends within `DEADLINE` seconds, or at `deadline` (of `time.monotonic`) if that is sooner.
    Redirects are followed, also from https to http; nothing is sent along that the answers set.

    Raises:
        InvalidRequestError: it is no http or https address.
        AddressError: it leads to a host that is not on the public Internet, to a port other
            than 80 and 443, or has a user name or a password in it.
        FetchError: the host does not answer, or answers with an error.
        FetchTimeoutError: the host, or the name servers, do not answer in time.
        TooLargeError: the answer is longer than `MAX_BYTES`.
        AllowError: FETCH_ALLOW cannot be read.
    """
    return _fetch(url, deadline, parse_allowed(os.environ.get(VARIABLE, "")))


def fetch_all(urls: Sequence[str], deadline: float | None = None) -> list[bytes | ServingError]:
    """Return what each of `urls` answers, or the error that `fetch` has for it, in their order.

    `MAX_PARALLEL` are fetched at a time. A defect in here is logged and costs its own URL only,
    which gets an InternalError.

    Raises:
        AllowError: FETCH_ALLOW cannot be read.
    """
    allowed = parse_allowed(os.environ.get(VARIABLE, ""))
    with ThreadPoolExecutor(MAX_PARALLEL, thread_name_prefix="fetch") as threads:
        return list(threads.map(lambda url: _fetch_or_error(url, deadline, allowed), urls))


def prepare() -> None:
    """Do what the first fetch need not wait for, and find out whether FETCH_ALLOW can be read.

    Raises:
        AllowError: it cannot.
    """
    parse_allowed(os.environ.get(VARIABLE, ""))
    tls_context()


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the one context of all connections: reading the CA bundle costs more than a fetch."""
    context = ssl.create_default_context(cafile=requests.certs.where())
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _TLSSocket
    return context


def too_large() -> TooLargeError:
    """Return the error for an image of more than `MAX_BYTES`, wherever it came from."""
    return TooLargeError(
        f"Expected at most {MAX_BYTES / 1e6:.0f} MB. Received: more. Send a smaller image."
    )


def _fetch_or_error(url: str, deadline: float | None, allowed: Allowed) -> bytes | ServingError:
    try:
        return _fetch(url, deadline, allowed)
    except ServingError as error:
        return error
    except Exception as defect:
        log.log_exception(None, defect)
        return InternalError("The service failed on this url; its log says why.")


def _fetch(url: str, deadline: float | None, allowed: Allowed) -> bytes:
    latest = time.monotonic() + DEADLINE
    deadline = latest if deadline is None else min(deadline, latest)
    try:
        with closing(_Adapter(deadline, allowed)) as adapter, _open(adapter, url) as response:
            return _read(response)
    except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
        raise _too_slow() from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, OverflowError):
        # OverflowError is what http.client makes of a chunk whose size is far below zero.
        raise _unreachable() from None


def _open(adapter: HTTPAdapter, url: str) -> requests.Response:
    """Return the answer at the end of the redirects that start at `url`, its body not yet read.

    Not by a requests.Session: that reads the bodies of redirects, however long they are, keeps
    cookies, and looks for proxies and passwords in the environment.
    """
    for _ in range(MAX_REDIRECTS + 1):
        response = adapter.send(_prepare(url), stream=True, timeout=TIMEOUT)
        if not response.is_redirect:
            return response
        response.close()
        # http.client reads headers as latin-1; an address that is not ASCII is UTF-8.
        location = response.headers["Location"].encode("latin-1").decode("utf-8", "replace")
        url = _join(response.url, location)
    raise FetchError(
        f"Expected at most {MAX_REDIRECTS} redirects. Received: more. Give the final url."
    )


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise _wrong_url("an address that cannot be read") from None


def _prepare(url: str) -> requests.PreparedRequest:
    if len(url) > MAX_URL:
        raise _wrong_url(f"one of more than {MAX_URL} characters")
    try:
        request = requests.Request("GET", url, HEADERS).prepare()
        # What is checked is what will be connected to, after requests has normalized it.
        parts = urlsplit(request.url)
        host = parts.hostname
    except requests.exceptions.MissingSchema:
        raise _wrong_url("an address without a scheme") from None
    except (requests.RequestException, ValueError):
        raise _wrong_url("an address that cannot be read") from None
    # So that one is sent at once: a host that reads nothing stops nobody.
    if len(request.url) > MAX_URL:
        raise _wrong_url(f"one of more than {MAX_URL} characters")
    if parts.scheme not in SCHEMES:
        raise _wrong_url("another scheme")
    if not host:
        raise _wrong_url("an address without a host")
    if "@" in parts.netloc:
        raise AddressError(
            "Expected a url that anybody may open. "
            "Received: one with a user name or a password. Leave them out."
        )
    return request


def _read(response: requests.Response) -> bytes:
    if response.status_code != requests.codes.ok:
        raise FetchError(
            "Expected the image's host to answer 200. "
            f"Received: {response.status_code}. Check the url."
        )
    codings = response.headers.get("Content-Encoding", "").lower().split(",")
    if COMPRESSIONS.intersection(coding.strip() for coding in codings):
        raise FetchError(
            "Expected an image as it is. "
            "Received: one that its host has compressed again. Use another host."
        )
    if (response.raw.length_remaining or 0) > MAX_BYTES:
        raise too_large()
    body = bytearray()
    while piece := response.raw.read1(CHUNK, decode_content=False):
        body += piece
        if len(body) > MAX_BYTES:
            raise too_large()
    return bytes(body)


class _Adapter(HTTPAdapter):
    """requests' way to the network, over connections that check where they go."""

    def __init__(self, deadline: float, allowed: Allowed) -> None:
        super().__init__()
        self.poolmanager.pool_classes_by_scheme = {
            "http": functools.partial(_HTTPPool, deadline=deadline, allowed=allowed),
            "https": functools.partial(_HTTPSPool, deadline=deadline, allowed=allowed),
        }
        # It would log paths and query strings, in which people keep passwords.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)


class _CheckedConnection:
    """A connection that goes to checked addresses only, and only until the deadline."""

    def __init__(self, *args: object, deadline: float, allowed: Allowed, **options: object) -> None:
        super().__init__(*args, **options)
        self._deadline = deadline
        self._allowed = allowed

    def _new_conn(self) -> socket.socket:
        try:
            answers = _resolve(self.host, self.port, self._deadline)
            addresses = [address[0] for *_, address in answers]
            check_addresses(self.host, self.port, addresses, self._allowed)
            return _connect(answers, self._deadline)
        except UnicodeError:  # a label of the name is empty or too long
            raise _wrong_url("an address that cannot be read") from None
        except TimeoutError:
            raise _too_slow() from None
        except OSError:
            raise _unreachable() from None


class _HTTPConnection(_CheckedConnection, urllib3.connection.HTTPConnection):
    pass


class _HTTPSConnection(_CheckedConnection, urllib3.connection.HTTPSConnection):
    def connect(self) -> None:
        """Connect, and verify that the certificate is one for the name in the URL."""
        self.sock = self._new_conn()
        try:
            # The socket's timeout is that of the whole handshake. The context is ours: those that
            # requests and urllib3 make read the CA bundle for each connection.
            self.sock = tls_context().wrap_socket(self.sock, server_hostname=self.host)
        except ssl.SSLCertVerificationError:
            raise FetchError(
                "Expected a host whose certificate can be verified. "
                "Received: one that is expired, for another name, or of an unknown issuer. "
                "Use another host."
            ) from None
        self.sock.deadline = self._deadline
        self.is_verified = True


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _BoundedSocket:
    """A socket that reads until `deadline`, and at most `left` bytes more.

    A timeout by itself starts anew with each byte, and some hosts send one byte at a time.
    """

    deadline = 0.0
    left = MAX_BYTES + MAX_OVERHEAD

    def recv_into(self, *args: object, **options: object) -> int:
        """Read as socket.socket does; all reads of http.client come through here."""
        self.settimeout(_wait(self.deadline))
        count = super().recv_into(*args, **options)
        self.left -= count
        if self.left < 0:
            raise too_large()
        return count


class _Socket(_BoundedSocket, socket.socket):
    pass


class _TLSSocket(_BoundedSocket, ssl.SSLSocket):
    pass


def _resolve(host: str, port: int, deadline: float) -> list[tuple]:
    """Return getaddrinfo's answers for `host`, or stop waiting for them at `deadline`.

    It has no timeout of its own; a thread that nobody waits for any more ends with it.
    """
    answers: Future[list[tuple]] = Future()

    def ask() -> None:
        try:
            answers.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.set_exception(error)

    threading.Thread(target=ask, name="getaddrinfo", daemon=True).start()
    return answers.result(deadline - time.monotonic())


def _connect(answers: list[tuple], deadline: float) -> socket.socket:
    """Return a socket connected to the first of `answers` that lets it."""
    failure = OSError("no addresses")
    for family, kind, protocol, _, address in answers:
        connection = _Socket(family, kind, protocol)
        try:
            connection.settimeout(_wait(deadline))
            connection.connect(address)
            # The handshake that may follow has what is left.
            connection.settimeout(_wait(deadline))
        except OSError as error:
            connection.close()
            failure = error
        else:
            connection.deadline = deadline
            return connection
    raise failure


def _wait(deadline: float) -> float:
    """Return how many seconds the next step may take.

    Raises:
        TimeoutError: none are left.
    """
    seconds = min(TIMEOUT, deadline - time.monotonic())
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _wrong_url(received: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Expected a url that begins with http:// or https://. Received: {received}."
    )


def _unreachable() -> FetchError:
    return FetchError(
        "Expected the image's host to answer. "
        "Received: no connection or a broken one. Check the url."
    )


def _too_slow() -> FetchTimeoutError:
    return FetchTimeoutError(
        f"Expected the image's host to answer in time, at most {DEADLINE:.0f} seconds. "
        "Received: no answer or only a part of it. Try again, or use another host."
    )
