"""Connections with checked addresses, a deadline and a limit on bytes.

They raise what urllib3's own connections raise, and errors that pass through it unchanged.
"""

import functools
import http.client
import logging
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import urllib3
import urllib3.connection
from requests import certs
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NewConnectionError
from urllib3.util.ssltransport import SSLTransport

from serving.addresses import Allowed, check_addresses
from serving.errors import FetchError

MAX_ADDRESSES = 4  # of a name that are tried; all are checked
MAX_INTERIM = 100  # answers 1xx before the one that counts
TIMEOUT = 5.0  # seconds to connect to an address, and to wait for each piece of the answer


class LimitError(Exception):
    """Hosts sent more bytes than `Limits.overhead` besides the body."""


@dataclass
class Limits:
    """What the connections of a fetch may do, all together."""

    allowed: Allowed  # besides public addresses
    deadline: float  # of time.monotonic, for the last byte
    # Bytes that may still be received: handshakes, headers, chunk sizes. Whoever reads the body
    # adds each piece of it again, so that a host cannot send more and more around a few bytes.
    overhead: int

    def wait(self) -> float:
        """Return how many seconds the next step may take.

        Raises:
            TimeoutError: none are left.
        """
        seconds = min(TIMEOUT, self.deadline - time.monotonic())
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def receive(self, count: int) -> None:
        """Count the bytes that were received.

        Raises:
            LimitError: they are too many.
        """
        self.overhead -= count
        if self.overhead < 0:
            raise LimitError


class CheckedAdapter(HTTPAdapter):
    """Sends the requests of the package requests over connections within limits."""

    def __init__(self, limits: Limits):
        """Keep every connection within `limits`, and urllib3 from logging."""
        super().__init__()
        # It would log paths and query strings, which may contain passwords.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        self.poolmanager.pool_classes_by_scheme = {  # ty: ignore[invalid-assignment]
            "http": functools.partial(_HTTPPool, limits=limits),
            "https": functools.partial(_HTTPSPool, limits=limits),
        }


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS context; reading its CA bundle takes longer than fetching."""
    context = ssl.create_default_context(cafile=certs.where())
    context.set_alpn_protocols(["http/1.1"])
    context.hostname_checks_common_name = False  # RFC 9525, section 2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


class _Response(http.client.HTTPResponse):
    """An answer that may come after others, as 103 Early Hints.

    http.client passes over 100 Continue only, and takes another one for the answer itself.
    """

    _interim = 0

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # ty: ignore[missing-attribute]
        if not 100 <= status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
            return version, status, reason
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise http.client.BadStatusLine(reason)
        return version, http.HTTPStatus.CONTINUE, reason


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _Response

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits

    def _new_conn(self) -> socket.socket:
        """Connect to an address of the host, after checking all of them."""
        try:
            answers = _resolve(self.host, self.port, self._limits.deadline)
            addresses = [address[0] for *_, address in answers]
            check_addresses(self.host, self.port, addresses, self._limits.allowed)
            return _connect(answers, self._limits)
        except UnicodeError:  # a label of the name is empty or too long
            raise LocationParseError(self.host) from None
        except TimeoutError:
            raise ConnectTimeoutError(self, "no connection in time") from None
        except OSError as error:
            raise NewConnectionError(self, str(error)) from None


class _HTTPSConnection(_HTTPConnection, urllib3.connection.HTTPSConnection):
    def connect(self) -> None:
        """Connect and verify the certificate for the URL's host."""
        self.sock = self._new_conn()
        try:
            # ssl's own sockets read inside OpenSSL, which goes on as long as records come. This
            # reads through ours, 16 kB at a time. The context is ours, because requests and
            # urllib3 read the CA bundle for each connection.
            self.sock = SSLTransport(self.sock, tls_context(), self.host)
        except ssl.SSLCertVerificationError:
            raise FetchError(
                "Expected a host whose certificate can be verified. "
                "Received: one that is expired, for another name, or of an unknown issuer. "
                "Use another host."
            ) from None
        self.is_verified = True


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection  # ty: ignore[invalid-assignment]


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection  # ty: ignore[invalid-assignment]


class _Socket(socket.socket):
    """A socket within limits.

    A timeout alone would start anew with each byte, and some hosts send one byte at a time.
    """

    limits: Limits

    def recv(self, *args: Any) -> bytes:
        """Read as socket.socket does; SSLTransport reads through this method only."""
        self.settimeout(self.limits.wait())
        data = super().recv(*args)
        self.limits.receive(len(data))
        return data

    def recv_into(self, *args: Any, **options: Any) -> int:
        """Read as socket.socket does; http.client reads through this method only."""
        self.settimeout(self.limits.wait())
        count = super().recv_into(*args, **options)
        self.limits.receive(count)
        return count

    def sendall(self, data: Any, *args: Any) -> None:
        """Write as socket.socket does, but no empty `data`, as SSLTransport after each record."""
        if data:
            self.settimeout(self.limits.wait())
            super().sendall(data, *args)


def _resolve(host: str, port: int, deadline: float) -> list[tuple]:
    """Return getaddrinfo's answers for `host`, or stop waiting for them at `deadline`.

    getaddrinfo has no timeout, so a thread waits for it, and ends with it.
    """
    answers: Future[list[tuple]] = Future()

    def look_up() -> None:
        try:
            answers.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.set_exception(error)

    threading.Thread(target=look_up, name="getaddrinfo", daemon=True).start()
    return answers.result(deadline - time.monotonic())


def _connect(answers: list[tuple], limits: Limits) -> socket.socket:
    """Return a socket connected to the first of `answers` that accepts, of `MAX_ADDRESSES`.

    The last one is of the other family, if there is one: IPv6 may be out of order, or IPv4.
    """
    first, rest = answers[: MAX_ADDRESSES - 1], answers[MAX_ADDRESSES - 1 :]
    others = [answer for answer in rest if answer[0] != answers[0][0]]
    failure = OSError("no addresses")
    for family, kind, protocol, _, address in first + (others or rest)[:1]:
        connection = _Socket(family, kind, protocol)
        connection.limits = limits
        try:
            connection.settimeout(limits.wait())
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure
