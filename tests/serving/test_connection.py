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


def limits(seconds=60.0, overhead=1000, allowed=HERE):
    return Limits(allowed, time.monotonic() + seconds, overhead)


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


@pytest.fixture(params=["recv", "recv_into"])
def read(request):
    """Both ways to read as many bytes as given from a socket of ours."""
    if request.param == "recv":
        return lambda ours, size: len(ours.recv(size))
    return lambda ours, size: ours.recv_into(bytearray(size))


def test_as_many_bytes_as_allowed_are_received(pair, read):
    ours, other = pair
    ours.limits = limits(overhead=10)
    other.sendall(b"x" * 11)
    assert read(ours, 10) == 10
    assert ours.limits.overhead == 0
    with pytest.raises(LimitError):
        read(ours, 10)


def test_what_the_connections_of_a_fetch_receive_is_counted_together():
    within = limits(overhead=10)
    within.receive(4)
    within.receive(6)
    with pytest.raises(LimitError):
        within.receive(1)


def test_a_read_ends_at_the_deadline_or_after_the_timeout(pair, read, monkeypatch):
    ours, _ = pair
    ours.limits = limits(seconds=0.1)
    with pytest.raises(TimeoutError):
        read(ours, 1)
    assert ours.gettimeout() <= 0.1
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    ours.limits = limits()
    with pytest.raises(TimeoutError):
        read(ours, 1)
    assert ours.gettimeout() == 0.05


def test_nothing_is_read_or_written_after_the_deadline(pair, read):
    ours, other = pair
    other.sendall(b"x")
    ours.limits = limits(seconds=-1)
    for step in (lambda: read(ours, 1), lambda: ours.sendall(b"x")):
        with pytest.raises(TimeoutError):
            step()


def test_a_write_to_a_host_that_does_not_read_ends_at_the_deadline(pair):
    ours, _ = pair
    ours.limits = limits(seconds=0.1)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        ours.sendall(bytes(100_000_000))
    assert time.monotonic() - started < 5


def test_what_is_empty_is_not_written(pair, monkeypatch):
    """After each record that SSLTransport reads, it writes its answer, which is mostly empty."""
    ours, _ = pair
    monkeypatch.setattr(ours, "settimeout", lambda _: pytest.fail("a step"), raising=False)
    ours.sendall(b"")


def test_the_first_address_that_accepts_is_connected_to():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        places = [closed.getsockname(), server.getsockname()]
        answers = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in places]
        with module._connect(answers, limits()) as connected:
            assert connected.getpeername() == server.getsockname()
        with pytest.raises(ConnectionRefusedError):
            module._connect(answers[:1], limits())


def addresses(v6, v4):
    """Answers of getaddrinfo: `v6` addresses, then `v4`."""
    return [
        *((socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"::{n}", 80, 0, 0)) for n in range(v6)),
        *((socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"8.8.8.{n}", 80)) for n in range(v4)),
    ]


@pytest.mark.parametrize(
    ("answers", "tried"),
    [
        (addresses(0, 1000), ["8.8.8.0", "8.8.8.1", "8.8.8.2", "8.8.8.3"]),
        (addresses(0, 4), ["8.8.8.0", "8.8.8.1", "8.8.8.2", "8.8.8.3"]),
        (addresses(0, 2), ["8.8.8.0", "8.8.8.1"]),
        (addresses(8, 8), ["::0", "::1", "::2", "8.8.8.0"]),
        (addresses(2, 2), ["::0", "::1", "8.8.8.0", "8.8.8.1"]),
        (addresses(8, 8)[::-1], ["8.8.8.7", "8.8.8.6", "8.8.8.5", "::7"]),
    ],
    ids=["many", "four", "two", "both families", "two of each", "IPv4 first"],
)
def test_at_most_four_addresses_are_tried(answers, tried, monkeypatch):
    """One of the other family among them: IPv6 leads nowhere on some networks."""
    asked = []

    def refuse(_, address):
        asked.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(module._Socket, "connect", refuse, raising=False)
    with pytest.raises(ConnectionRefusedError):
        module._connect(answers, limits())
    assert asked == tried


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


def test_the_tls_context_offers_http_1_1(monkeypatch):
    offered = []
    monkeypatch.setattr(
        ssl.SSLContext, "set_alpn_protocols", lambda _, protocols: offered.append(protocols)
    )
    tls_context.cache_clear()
    assert not tls_context().hostname_checks_common_name
    assert tls_context().options & ssl.OP_NO_RENEGOTIATION
    assert offered == [["http/1.1"]]
    tls_context.cache_clear()


@pytest.mark.parametrize(("left", "seconds"), [(3.0, 3.0), (100.0, 5.0), (5.0, 5.0), (0.25, 0.25)])
def test_a_step_waits_for_its_timeout_or_until_the_deadline(left, seconds, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert Limits(HERE, 100.0 + left, 0).wait() == seconds


@pytest.mark.parametrize("left", [0.0, -1.0])
def test_at_the_deadline_no_step_is_begun(left, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    with pytest.raises(TimeoutError):
        Limits(HERE, 100.0 + left, 0).wait()


def test_the_thread_that_resolves_a_name_keeps_no_process_alive(monkeypatch):
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: (started.append(thread), start(thread))[1]
    )
    module._resolve("127.0.0.1", 80, time.monotonic() + 10)
    [thread] = started
    assert (thread.name, thread.daemon) == ("getaddrinfo", True)
