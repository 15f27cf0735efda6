"""serving.connection: sockets that keep to addresses, a deadline and a number of bytes."""

import contextlib
import socket
import ssl
import threading
import time

import pytest
import requests
from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NewConnectionError

from serving import connection as module
from serving.addresses import Allowed, parse_allowed
from serving.connection import CheckedAdapter, LimitError, Limits, tls_context
from serving.errors import AddressError

HERE = parse_allowed("127.0.0.1")


def limits(seconds=60.0, max_bytes=1000, allowed=HERE):
    return Limits(allowed, time.monotonic() + seconds, max_bytes)


@pytest.fixture
def pair():
    """One of our sockets, and the one at the other end."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        answers = socket.getaddrinfo(*server.getsockname(), type=socket.SOCK_STREAM)
        ours = stack.enter_context(module._connect(answers, limits()))
        yield ours, stack.enter_context(server.accept()[0])


def connection(host, port=80, **options):
    return module._HTTPConnection(host, port, limits=limits(**options))


def test_as_many_bytes_as_allowed_are_received(pair):
    ours, other = pair
    ours.limit(limits(max_bytes=10))
    other.sendall(b"x" * 11)
    buffer = bytearray(10)
    assert ours.recv_into(buffer) == 10
    with pytest.raises(LimitError):
        ours.recv_into(buffer)


def test_a_read_ends_at_the_deadline_or_after_the_timeout(pair, monkeypatch):
    ours, _ = pair
    ours.limit(limits(seconds=0.1))
    with pytest.raises(TimeoutError):
        ours.recv_into(bytearray(1))
    assert ours.gettimeout() <= 0.1
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    ours.limit(limits())
    with pytest.raises(TimeoutError):
        ours.recv_into(bytearray(1))
    assert ours.gettimeout() == 0.05


def test_nothing_is_read_after_the_deadline(pair):
    ours, other = pair
    other.sendall(b"x")
    ours.limit(limits(seconds=-1))
    with pytest.raises(TimeoutError):
        ours.recv_into(bytearray(1))


def test_the_first_address_that_accepts_is_connected_to():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        places = [closed.getsockname(), server.getsockname()]
        answers = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in places]
        with module._connect(answers, limits()) as connected:
            assert connected.getpeername() == server.getsockname()
        with pytest.raises(ConnectionRefusedError):
            module._connect(answers[:1], limits())


def test_names_are_looked_up_until_the_deadline(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(10))
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        module._resolve("flowers.test", 80, started + 0.05)
    assert time.monotonic() - started < 5
    done.set()


def test_what_fails_is_raised_as_urllib3_raises_it(monkeypatch):
    """So that requests and serving.fetch understand it."""
    with pytest.raises(LocationParseError):
        connection("a..b")._new_conn()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(NewConnectionError):
            connection(*closed.getsockname())._new_conn()
    with pytest.raises(ConnectTimeoutError) as caught:
        connection("127.0.0.1", seconds=-1)._new_conn()
    assert not isinstance(caught.value, NewConnectionError)


def test_no_address_is_connected_to_that_is_not_allowed(monkeypatch):
    monkeypatch.setattr(module, "_connect", lambda *_: pytest.fail("it connected"))
    with pytest.raises(AddressError):
        connection("127.0.0.1", allowed=Allowed())._new_conn()


def test_both_schemes_keep_within_the_limits():
    within = limits()
    with contextlib.closing(CheckedAdapter(within)) as adapter:
        for scheme in ("http", "https"):
            pool = adapter.poolmanager.connection_from_url(f"{scheme}://127.0.0.1/")
            made = pool._new_conn()
            assert isinstance(made, module._HTTPConnection)
            assert made._limits is within


def test_the_ca_bundle_is_read_once(monkeypatch):
    first = tls_context()
    monkeypatch.setattr(requests.certs, "where", lambda: pytest.fail("read again"))
    assert tls_context() is first
    assert first.verify_mode == ssl.CERT_REQUIRED
    assert first.check_hostname
    assert first.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_the_tls_context_offers_http_1_1_and_reads_by_the_deadline(monkeypatch):
    offered = []
    monkeypatch.setattr(
        ssl.SSLContext, "set_alpn_protocols", lambda _, protocols: offered.append(protocols)
    )
    tls_context.cache_clear()
    assert tls_context().sslsocket_class is module._TLSSocket
    assert offered == [["http/1.1"]]
    tls_context.cache_clear()


@pytest.mark.parametrize(("left", "seconds"), [(3.0, 3.0), (100.0, 5.0), (5.0, 5.0), (0.25, 0.25)])
def test_a_step_waits_for_its_timeout_or_until_the_deadline(left, seconds, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert module._wait(100.0 + left) == seconds


@pytest.mark.parametrize("left", [0.0, -1.0])
def test_at_the_deadline_no_step_is_begun(left, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    with pytest.raises(TimeoutError):
        module._wait(100.0 + left)


def test_the_thread_that_resolves_a_name_keeps_no_process_alive(monkeypatch):
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: (started.append(thread), start(thread))[1]
    )
    module._resolve("127.0.0.1", 80, time.monotonic() + 10)
    [thread] = started
    assert (thread.name, thread.daemon) == ("getaddrinfo", True)
