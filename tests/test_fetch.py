"""serving.fetch, against real servers on this machine."""

import gzip
import socket
import threading
import time

import pytest

from serving import fetch as module
from serving.errors import FetchError, InvalidRequestError, TooLargeError
from serving.fetch import fetch


def test_it_returns_the_body(http_server):
    url = http_server({"/a.jpg": (200, {}, b"bytes")})
    assert fetch(f"{url}/a.jpg") == b"bytes"


def test_it_says_what_it_is(http_server):
    seen = {}
    url = http_server({"/": lambda request: seen.update(request.headers) or (200, {}, b"")})
    fetch(f"{url}/")
    assert seen["User-Agent"] == "flower-classifier/1.0"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://localhost/a.jpg",
        "data:image/png;base64,AAAA",
        "rose.jpg",
        "//example.com/rose.jpg",
        "http://",
        "http:///rose.jpg",
        "http://[::1",
        "http://a..b/",
        "",
    ],
)
def test_only_http_and_https_addresses(url):
    with pytest.raises(InvalidRequestError, match="^Expected a url that begins with http"):
        fetch(url)


def test_redirects_are_followed(http_server):
    url = http_server(
        {"/old": (302, {"Location": "/new"}, b""), "/new": (200, {}, b"picture")},
    )
    assert fetch(f"{url}/old") == b"picture"


def test_a_redirect_to_a_file_is_refused(http_server):
    url = http_server({"/": (302, {"Location": "file:///etc/passwd"}, b"")})
    with pytest.raises(InvalidRequestError, match="begins with http"):
        fetch(f"{url}/")


def test_a_redirect_that_never_ends_is_refused(http_server):
    url = http_server({"/": (302, {"Location": "/"}, b"")})
    with pytest.raises(FetchError, match="at most 3 redirects"):
        fetch(f"{url}/")


@pytest.mark.parametrize("status", [204, 404, 500])
def test_an_error_of_the_host_is_told(http_server, status):
    url = http_server({"/": (status, {}, b"")})
    with pytest.raises(FetchError, match=f"Received: {status}"):
        fetch(f"{url}/")


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(FetchError, match="no connection"):
        fetch(f"http://127.0.0.1:{port}/")


def test_a_host_without_an_address():
    with pytest.raises(FetchError, match="no connection"):
        fetch("http://no-such-host.invalid/a.jpg")


def test_a_host_that_never_answers(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(FetchError, match="no answer or only a part"),
    ):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/")


def test_a_body_that_drips_is_cut_off_at_the_deadline(monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 0.5)
    done = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not done.wait(0.1):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        started = time.monotonic()
        with pytest.raises(FetchError, match="only a part"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert time.monotonic() - started < 5
        done.set()
        thread.join()


def test_a_body_that_breaks_off_is_an_error(http_server):
    url = http_server({"/": (200, {"Content-Length": "1000"}, b"short")})
    with pytest.raises(FetchError):
        fetch(f"{url}/")


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "99999999999"}])
def test_too_long_a_body_announced_or_not(http_server, headers, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    url = http_server({"/": (200, headers, b"x" * 200_000)})
    with pytest.raises(TooLargeError, match="^Expected at most"):
        fetch(f"{url}/")


def test_a_body_that_unpacks_to_too_much(http_server, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    bomb = gzip.compress(b"\0" * 10_000_000)
    assert len(bomb) < 100_000
    url = http_server({"/": (200, {"Content-Encoding": "gzip"}, bomb)})
    with pytest.raises(TooLargeError):
        fetch(f"{url}/")


def test_proxies_of_the_environment_are_not_used(http_server, monkeypatch):
    url = http_server({"/": (200, {}, b"direct")})
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert fetch(f"{url}/") == b"direct"
