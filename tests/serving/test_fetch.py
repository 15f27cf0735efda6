"""serving.fetch, against real servers on this machine."""

import contextlib
import gc
import gzip
import json
import logging
import os
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from certificates import rsa_key, write_certificate

from serving import connection as sockets
from serving import fetch as module
from serving.addresses import AllowError
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
from serving.fetch import fetch, fetch_all, prepare
from tests.fuzz import tls
from tests.fuzz.tls import HANDSHAKE, alert, message, record

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nrose"
Talk = Callable[[socket.socket], None]
WRONG_URL = "Expected a url that begins with http:// or https://. Received: {}."


@pytest.fixture(autouse=True)
def _this_machine_is_allowed(monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")


@pytest.fixture
def closed(monkeypatch):
    """Allow nothing, the default."""
    monkeypatch.delenv("FETCH_ALLOW")


@pytest.fixture
def talk() -> Iterator[Callable[..., str]]:
    """Start a server that has a function talk to each that connects; return where it is.

    A connection ends when the function does, or when it writes to somebody who has gone.
    """
    servers = []
    threads = []

    def serve(server: socket.socket, function: Talk) -> None:
        with contextlib.suppress(OSError):  # it was shut down
            while True:
                connection, _ = server.accept()
                threads.append(threading.Thread(target=answer, args=(connection, function)))
                threads[-1].start()

    def answer(connection: socket.socket, function: Talk) -> None:
        with connection, contextlib.suppress(OSError):
            function(connection)

    def start(function: Talk, host: str = "127.0.0.1", port: int = 0) -> str:
        server = socket.create_server((host, port))
        servers.append(server)
        threads.append(threading.Thread(target=serve, args=(server, function)))
        threads[-1].start()
        return f"{host}:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "a connection was left open"


@pytest.fixture
def dns(monkeypatch) -> dict[str, list[list[str]]]:
    """Names, and for each what it resolves to the first time, the second, and so on."""
    names: dict[str, list[list[str]]] = {}
    resolve = socket.getaddrinfo

    def look_up(host: str, *args: object, **options: object) -> list[tuple]:
        if host not in names:
            return resolve(host, *args, **options)
        addresses = names[host].pop(0)
        return [answer for name in addresses for answer in resolve(name, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A key and its certificate for flowers.test and 127.0.0.1."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    return write_certificate(path, "flowers.test", "127.0.0.1")


@pytest.fixture
def trusted(certificate, monkeypatch) -> Iterator[None]:
    """Trust `certificate`, and no other."""
    monkeypatch.setattr(requests.certs, "where", lambda: str(certificate))
    sockets.tls_context.cache_clear()
    yield
    sockets.tls_context.cache_clear()


def over_tls(certificate: Path, function: Talk, names: list[str | None] | None = None) -> Talk:
    """Return what has `function` talk inside TLS, and notes the name that is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if names is not None:
        context.sni_callback = lambda _, name, __: names.append(name)

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as inside:
            function(inside)

    return talk


def says(*pieces: bytes, every: float = 0.0) -> Talk:
    """Return what reads a request, then writes `pieces`, one each `every` seconds."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(every)

    return talk


def repeats(start: bytes, piece: bytes, every: float = 0.0) -> Talk:
    """Return what reads a request, writes `start`, then `piece` for ever."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(every)

    return talk


def test_it_returns_the_body(http_server):
    url = http_server({"/a.jpg": (200, {}, b"bytes")})
    assert fetch(f"{url}/a.jpg") == b"bytes"


def test_requests_have_these_headers_and_no_others(http_server):
    seen = {}
    url = http_server({"/": lambda request: seen.update(request.headers) or (200, {}, b"a")})
    fetch(f"{url}/")
    assert seen == {
        "Host": url.removeprefix("http://"),
        "User-Agent": "flower-classifier/1.0",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
    }


@pytest.mark.parametrize(
    ("contact", "sent"),
    [
        ("", "flower-classifier/1.0"),
        (" https://a.b/bot; me@a.b ", "flower-classifier/1.0 (https://a.b/bot; me@a.b)"),
    ],
)
def test_hosts_learn_whom_to_ask(contact, sent, http_server, monkeypatch):
    monkeypatch.setenv("FETCH_CONTACT", contact)
    prepare()
    seen = []
    url = http_server({"/": lambda r: seen.append(r.headers["User-Agent"]) or (200, {}, b"a")})
    fetch(f"{url}/")
    assert seen == [sent]


@pytest.mark.parametrize("contact", ["a\nb", "a\r\nX: y", "é", "a (b)", "a\\b", "a" * 201, "a\tb"])
def test_a_contact_that_is_no_line_of_ascii_shows_at_the_start(contact, monkeypatch):
    monkeypatch.setenv("FETCH_CONTACT", contact)
    for use in (prepare, lambda: fetch_all([]), lambda: fetch("http://127.0.0.1:9/")):
        with pytest.raises(SettingError, match="^Expected a web or mail address in FETCH_CONTACT"):
            use()


# URLs.


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://localhost/a.jpg",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "data:image/png;base64,AAAA",
        "httpx://example.com/",
        "rose.jpg",
        "//example.com/rose.jpg",
        "http:",
        "http://",
        "http:///rose.jpg",
        "http://[::1",
        "http://[1.1.1.1]/",
        "http://a..b/",
        "http://.a/",
        f"http://{'a' * 64}.com/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:-1/",
        "http://127.0.0.1:http/",
        "http://127.0.0.1%00.example.com/",
        "http://exa mple.com/",
        "http://exa\x00mple.com/",
        f"http://127.0.0.1/{'a' * 10_000}",
        f"http://127.0.0.1/{'ü' * 5_000}",
        "",
    ],
)
def test_only_http_and_https_addresses(url):
    with pytest.raises(InvalidRequestError, match="^Expected a url that begins with http"):
        fetch(url)


def test_a_url_has_at_most_8192_characters(http_server):
    url = f"{http_server({})}/"
    url += "a" * (8192 - len(url))
    with pytest.raises(FetchError, match="Received: 404"):
        fetch(url)
    with pytest.raises(InvalidRequestError, match="Received: one of more than 8192 characters"):
        fetch(f"{url}a")


@pytest.mark.parametrize(
    "url",
    [
        "http://rose@127.0.0.1/",
        "http://rose:thorn@127.0.0.1/",
        "http://:thorn@127.0.0.1/",
        "http://1.1.1.1:80@127.0.0.1/",
        "http://127.0.0.1%2F@1.1.1.1/",
    ],
)
def test_a_user_name_or_a_password_is_refused(url):
    with pytest.raises(AddressError, match="Received: one with a user name or a password"):
        fetch(url)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f000001",
        "0X7F.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "0",
        "0.0.0.0",  # noqa: S104
        "localhost",
        "LOCALHOST",
        "localhost.",
        "%31%32%37.0.0.1",
        "@127.0.0.1",
        "127.0.0.1\\@1.1.1.1",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::FFFF:7F00:1]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:FF9B:1::7F00:1]",
        "[2002:a9fe:a9fe::]",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "192.168.1.1:443",
        "224.0.0.1",
        "255.255.255.255",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.usefixtures("closed")
def test_hosts_that_are_not_public_are_refused_in_each_spelling(scheme, host):
    with pytest.raises(AddressError, match="host on the public Internet") as caught:
        fetch(f"{scheme}://{host}/latest/meta-data?secret=1")
    assert not any(part in str(caught.value) for part in ("127", "::", "latest", "secret"))


@pytest.mark.parametrize(
    "host",
    [
        "\uff11\uff12\uff17.\uff10.\uff10.\uff11",  # full-width digits
        "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",  # circled digits
        "127\u30020\u30020\u30021",  # ideographic full stops
        "\uff4cocalhost",
        "[fe80::1%25lo]",
        "[fe80::1%lo]",
        "[::1%25lo]",
    ],
)
@pytest.mark.usefixtures("closed")
def test_spellings_that_lead_nowhere(host, monkeypatch):
    monkeypatch.setattr(sockets, "_connect", lambda *_: pytest.fail("it connected"))
    with pytest.raises(ServingError):
        fetch(f"http://{host}/")


@pytest.mark.parametrize("port", [1, 22, 8080, 9001])
@pytest.mark.usefixtures("closed")
def test_other_ports_of_public_hosts_are_refused(port, monkeypatch):
    monkeypatch.setattr(sockets, "_connect", lambda *_: pytest.fail("it connected"))
    with pytest.raises(AddressError, match="Received: another port"):
        fetch(f"https://1.1.1.1:{port}/")


@pytest.mark.usefixtures("closed")
def test_a_server_on_this_machine_hears_nothing(talk):
    heard = []
    place = talk(heard.append)
    for url in (f"http://{place}/", f"https://{place}/"):
        with pytest.raises(AddressError):
            fetch(url)
    assert heard == []


@pytest.mark.parametrize(
    ("addresses", "reached"),
    [
        (["64:ff9b::5db8:d822"], True),
        (["64:ff9b::5db8:d822", "93.184.216.34"], True),
        (["64:ff9b::a00:1"], False),
        (["93.184.216.34", "64:ff9b::a9fe:a9fe"], False),
        (["64:ff9b:1::5db8:d822"], False),
    ],
)
@pytest.mark.usefixtures("closed")
def test_behind_nat64_the_ipv4_address_inside_decides(addresses, reached, dns, monkeypatch):
    dns["flowers.test"] = [addresses]
    wanted = []

    def refuse(answers: list[tuple], limits: sockets.Limits) -> socket.socket:
        wanted.extend(address[0] for *_, address in answers)
        raise OSError

    monkeypatch.setattr(sockets, "_connect", refuse)
    with pytest.raises(FetchError if reached else AddressError):
        fetch("http://flowers.test/a.jpg")
    assert wanted == (addresses if reached else [])


@pytest.mark.parametrize("url", ["http://flowers.test/a", "https://flowers.test/a"])
@pytest.mark.usefixtures("closed", "trusted")
def test_public_hosts_are_reached(url, talk, dns, certificate, monkeypatch):
    """With a server on this machine in the place of the host at 1.1.1.1."""
    place = talk(over_tls(certificate, says(OK)) if url.startswith("https") else says(OK))
    dns["flowers.test"] = [["1.1.1.1", "2606:4700:4700::1111"]]
    wanted = []
    connect = sockets._connect

    def connect_here(answers: list[tuple], limits: sockets.Limits) -> socket.socket:
        wanted.extend(address[:2] for *_, address in answers)
        host, port = place.split(":")
        return connect(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), limits)

    monkeypatch.setattr(sockets, "_connect", connect_here)
    assert fetch(url) == b"rose"
    port = 443 if url.startswith("https") else 80
    assert wanted == [("1.1.1.1", port), ("2606:4700:4700::1111", port)]


# What a name resolves to.


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(
    talk, dns, monkeypatch, reserve_port
):
    """DNS rebinding: the second answer would be another one."""
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.2")
    heard = []

    def note(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(OK)

    port = reserve_port()
    talk(note, host="127.0.0.2", port=port)
    talk(lambda _: pytest.fail("it connected"), port=port)
    dns["flowers.test"] = [["127.0.0.2"], ["127.0.0.1"]]
    assert fetch(f"http://flowers.test:{port}/") == b"rose"
    assert dns["flowers.test"] == [["127.0.0.1"]]
    assert f"\r\nHost: flowers.test:{port}\r\n".encode() in heard[0]


def test_the_second_answer_is_checked_when_a_redirect_asks_for_it(talk, dns, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.2")
    place = talk(says(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"), host="127.0.0.2")
    dns["flowers.test"] = [["127.0.0.2"], ["127.0.0.1"]]
    with pytest.raises(AddressError):
        fetch(f"http://flowers.test:{place.split(':')[1]}/")
    assert dns["flowers.test"] == []


@pytest.mark.parametrize(
    "answers", [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "10.0.0.1"]]
)
def test_one_answer_that_is_not_public_refuses_the_name(answers, talk, dns):
    heard = []
    port = talk(heard.append).split(":")[1]
    dns["flowers.test"] = [answers]
    with pytest.raises(AddressError):
        fetch(f"http://flowers.test:{port}/")
    assert heard == []


def test_the_next_address_is_tried_when_one_does_not_answer(talk, dns, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.0/8")
    port = talk(says(OK)).split(":")[1]
    dns["flowers.test"] = [["127.0.0.9", "127.0.0.1"]]
    assert fetch(f"http://flowers.test:{port}/") == b"rose"


@pytest.mark.parametrize("allowed", ["Flowers.TEST", "flowers.test.", "10.0.0.0/8, 127.0.0.1 "])
def test_what_is_allowed_is_reached_at_any_port(allowed, talk, dns, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", allowed)
    port = talk(says(OK)).split(":")[1]
    dns["flowers.test"] = [["127.0.0.1"]]
    assert fetch(f"http://flowers.test:{port}/") == b"rose"


@pytest.mark.parametrize("urls", [[], ["http://127.0.0.1/"]])
def test_a_list_that_cannot_be_read_opens_nothing(urls, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1,10.0.0.0/99")
    with pytest.raises(AllowError, match="Received: '10.0.0.0/99'"):
        fetch("http://127.0.0.1/")
    with pytest.raises(AllowError):
        fetch_all(urls)


def test_nobody_there(reserve_port):
    with pytest.raises(FetchError, match="no connection"):
        fetch(f"http://127.0.0.1:{reserve_port()}/")


@pytest.mark.usefixtures("no_such_host")
def test_a_host_without_an_address():
    with pytest.raises(FetchError, match="no connection"):
        fetch("http://no-such-host.invalid/a.jpg")


# Where redirects lead.


def test_redirects_are_followed(http_server):
    url = http_server(
        {"/old": (302, {"Location": "/new?a=b"}, b""), "/new?a=b": (200, {}, b"image")},
    )
    assert fetch(f"{url}/old") == b"image"


def test_five_redirects_are_followed_and_no_more(http_server):
    routes = {f"/{n}": (302, {"Location": f"/{n - 1}"}, b"") for n in range(1, 7)}
    url = http_server(routes | {"/0": (200, {}, b"image")})
    assert fetch(f"{url}/5") == b"image"
    with pytest.raises(FetchError) as caught:
        fetch(f"{url}/6")
    assert str(caught.value) == (
        "Expected at most 5 redirects. Received: more. Give the final url."
    )


def test_a_host_that_asks_for_its_cookie_again_is_told_of(http_server):
    there = (302, {"Location": "/a#part", "Set-Cookie": "ok=1; Path=/"}, b"")
    url = http_server({"/a": there, "/": (302, {"Location": "/a"}, b"")})
    for path in ("/a", "/"):
        with pytest.raises(FetchError, match="one that leads back, as of hosts that ask for cook"):
            fetch(f"{url}{path}")


def test_a_redirect_that_is_not_ascii_is_followed(talk):
    heard = []

    def redirect(connection: socket.socket) -> None:
        heard.append(connection.recv(65536).split()[1])
        if heard[-1] == b"/":
            location = "Location: /blüte\r\n".encode()
            connection.sendall(b"HTTP/1.1 301 Moved\r\n" + location + b"\r\n")
        else:
            connection.sendall(OK)

    assert fetch(f"http://{talk(redirect)}/") == b"rose"
    assert heard == [b"/", b"/bl%C3%BCte"]


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("file:///etc/passwd", InvalidRequestError),
        ("gopher://127.0.0.1/", InvalidRequestError),
        ("http://[::1", InvalidRequestError),
        ("http://rose:thorn@127.0.0.1/", AddressError),
        ("http://169.254.169.254/latest/meta-data/", AddressError),
        ("//10.0.0.1/", AddressError),
        ("http://2130706434/", AddressError),
        ("http://[::ffff:127.0.0.1]/", AddressError),
        ("https://localhost.test/", AddressError),
        ("http://1.1.1.1:22/", AddressError),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_checked_as_urls_are(status, location, error, http_server, dns):
    dns["localhost.test"] = [["::1"]]
    url = http_server({"/": (status, {"Location": location}, b"")})
    with pytest.raises(error):
        fetch(f"{url}/")


def test_of_long_redirects_nothing_is_kept(talk):
    """urlsplit keeps the last 128 texts, with four bytes a character if one needs as many."""

    def redirect(connection: socket.socket) -> None:
        path = connection.recv(1000).split()[1]
        location = b"http://127.0.0.1" + path + b"a" * 60_000 + "\U0001f339".encode()
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n\r\n")

    url = talk(redirect)
    refused = (InvalidRequestError, WRONG_URL.format("one of more than 8192 characters"))
    assert refusal(f"http://{url}/") == refused
    tracemalloc.start()
    for i in range(50):
        assert refusal(f"http://{url}/{i}") == refused
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


@pytest.mark.usefixtures("trusted")
def test_a_redirect_may_lead_to_https_and_back(talk, certificate):
    places = []
    back = b"HTTP/1.1 302 Found\r\nLocation: http://%s/\r\n\r\n"
    places.append(talk(says(OK)))
    places.append(talk(over_tls(certificate, says(back % places[0].encode()))))
    there = b"HTTP/1.1 302 Found\r\nLocation: https://%s/\r\n\r\n"
    places.append(talk(says(there % places[1].encode())))
    assert fetch(f"http://{places[2]}/") == b"rose"


def test_the_body_of_a_redirect_is_not_read(talk):
    start = b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Encoding: gzip\r\n\r\n"
    place = talk(repeats(start, b"x" * 65536))
    started = time.monotonic()
    with pytest.raises(FetchError, match="Received: one that leads back"):
        fetch(f"http://{place}/")
    assert time.monotonic() - started < module.DEADLINE


def test_nothing_that_hosts_set_is_sent_on(http_server, tmp_path, monkeypatch):
    """No cookies, and no passwords of the person whose machine this is."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login rose password thorn\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen = []
    answers = {
        "/": (302, {"Location": "/b", "Set-Cookie": "a=b; Path=/"}, b""),
        "/b": (200, {"Set-Cookie": "c=d"}, b"image"),
    }
    url = http_server(
        {path: lambda r: seen.append(dict(r.headers)) or answers[r.path] for path in answers}
    )
    fetch(f"{url}/")
    fetch(f"{url}/b")
    assert len(seen) == 3
    for headers in seen:
        assert not {"Cookie", "Authorization", "Referer"}.intersection(headers)


def test_proxies_of_the_environment_are_not_used(http_server, monkeypatch):
    url = http_server({"/": (200, {}, b"direct")})
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert fetch(f"{url}/") == b"direct"


# TLS.


@pytest.mark.usefixtures("trusted")
def test_the_certificate_and_the_name_are_those_of_the_url(talk, dns, certificate):
    asked = []
    heard = []

    def note(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(OK)

    port = talk(over_tls(certificate, note, asked)).split(":")[1]
    dns["flowers.test"] = [["127.0.0.1"]]
    assert fetch(f"https://flowers.test:{port}/") == b"rose"
    assert fetch(f"https://127.0.0.1:{port}/") == b"rose"
    assert asked == ["flowers.test", None]  # an address is no server name: RFC 6066
    assert f"\r\nHost: flowers.test:{port}\r\n".encode() in heard[0]


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_name_is_refused(talk, dns, certificate):
    port = talk(over_tls(certificate, says(OK))).split(":")[1]
    dns["other.test"] = [["127.0.0.1"]]
    with pytest.raises(FetchError, match="^Expected a host whose certificate can be verified"):
        fetch(f"https://other.test:{port}/")


def test_a_certificate_that_nobody_signed_is_refused(talk, certificate):
    place = talk(over_tls(certificate, says(OK)))
    with pytest.raises(FetchError, match="certificate can be verified"):
        fetch(f"https://{place}/")


def test_a_certificate_that_has_expired_is_refused(talk, tmp_path, monkeypatch):
    expired = write_certificate(tmp_path / "expired.pem", "127.0.0.1", days=-1)
    monkeypatch.setattr(requests.certs, "where", lambda: str(expired))
    sockets.tls_context.cache_clear()
    place = talk(over_tls(expired, says(OK)))
    with pytest.raises(FetchError, match="certificate can be verified"):
        fetch(f"https://{place}/")
    sockets.tls_context.cache_clear()


def test_a_certificate_that_has_the_name_in_its_subject_only_is_refused(
    talk, dns, tmp_path, monkeypatch
):
    subject = write_certificate(tmp_path / "subject.pem", common_name="flowers.test")
    monkeypatch.setattr(requests.certs, "where", lambda: str(subject))
    sockets.tls_context.cache_clear()
    port = talk(over_tls(subject, says(OK))).split(":")[1]
    dns["flowers.test"] = [["127.0.0.1"]]
    with pytest.raises(FetchError, match="certificate can be verified"):
        fetch(f"https://flowers.test:{port}/")
    monkeypatch.setattr(sockets.tls_context(), "hostname_checks_common_name", True)
    dns["flowers.test"] = [["127.0.0.1"]]
    assert fetch(f"https://flowers.test:{port}/") == b"rose"
    sockets.tls_context.cache_clear()


def test_a_host_that_does_not_speak_tls(talk):
    place = talk(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(FetchError, match="no connection or a broken one"):
        fetch(f"https://{place}/")


@pytest.mark.usefixtures("trusted")
def test_it_asks_for_http_1(talk, certificate):
    """Some hosts talk HTTP/2 to whoever says nothing of it."""
    chosen = []

    def note(connection: ssl.SSLSocket) -> None:
        chosen.append(connection.selected_alpn_protocol())
        says(OK)(connection)

    assert fetch(f"https://{talk(over_tls(certificate, note))}/") == b"rose"
    assert chosen == ["http/1.1"]


# What is answered.


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500, 503])
def test_an_error_of_the_host_is_passed_on_by_its_status(http_server, status):
    url = http_server({"/": (status, {"Retry-After": "1"}, b"")})
    with pytest.raises(FetchError, match=f"Received: {status}"):
        fetch(f"{url}/")


def test_a_redirect_to_nowhere_is_an_error(http_server):
    url = http_server({"/": (302, {}, b"")})
    with pytest.raises(FetchError, match="Received: 302"):
        fetch(f"{url}/")


END = b"\r\n\r\n"  # of the headers
INTERIM = [100, 102, 103, 104, 199]


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.usefixtures("trusted")
def test_answers_before_the_one_that_counts_are_passed_over(tls, talk, certificate):
    before = b"".join(b"HTTP/1.1 %d Wait\r\nLink: </a>; rel=b\r\n\r\n" % n for n in INTERIM)
    function = says(before, OK)
    place = talk(over_tls(certificate, function) if tls else function)
    assert fetch(f"{'https' if tls else 'http'}://{place}/") == b"rose"


def test_a_hundred_of_them_are_enough(talk):
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert fetch(f"http://{talk(says(hint * 100 + OK))}/") == b"rose"
    with pytest.raises(FetchError, match="a broken one"):
        fetch(f"http://{talk(says(hint * 101 + OK))}/")
    with pytest.raises(FetchError, match="Received: 101"):
        fetch(f"http://{talk(says(b'HTTP/1.1 101 Switching', END))}/")


def test_a_body_in_chunks_is_put_together(talk):
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    place = talk(says(start, b"2;name=value\r\nro\r\n", b"00002\r\nse\r\n", b"0\r\na: b\r\n\r\n"))
    assert fetch(f"http://{place}/") == b"rose"


def test_a_body_without_a_length_ends_with_the_connection(talk):
    assert fetch(f"http://{talk(says(b'HTTP/1.0 200 OK', END, b'ro', b'se'))}/") == b"rose"
    assert fetch(f"http://{talk(says(OK.replace(b'Length: 4', b'Length: -4')))}/") == b"rose"


def test_a_body_that_breaks_off_is_an_error(http_server):
    url = http_server({"/": (200, {"Content-Length": "1000"}, b"short")})
    with pytest.raises(FetchError, match="a broken one"):
        fetch(f"{url}/")


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "99999999999"}])
def test_too_long_a_body_announced_or_not(http_server, headers, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    url = http_server({"/": (200, headers, b"x" * 200_000)})
    with pytest.raises(TooLargeError, match="^Expected at most"):
        fetch(f"{url}/")


def test_a_length_that_is_too_long_is_enough(talk):
    """The body need not come first."""
    done = threading.Event()

    def announce(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        done.wait(20)

    with pytest.raises(TooLargeError):
        fetch(f"http://{talk(announce)}/")
    done.set()


@pytest.mark.parametrize("headers", [{}, {"X-Long": "x" * 50_000}])
def test_a_body_of_just_the_size_is_not_too_long(http_server, headers):
    body = bytes(10_000_001)
    url = http_server({"/": (200, headers, body[1:]), "/1": (200, headers, body)})
    assert fetch(f"{url}/") == body[1:]
    with pytest.raises(TooLargeError, match="^Expected at most 10 MB"):
        fetch(f"{url}/1")


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """What unpacks twice, to 100 MB."""
    return gzip.compress(gzip.compress(b"\0" * 100_000_000))


@pytest.mark.parametrize(
    "coding",
    [
        *("gzip", "GZip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"),
        *("identity, gzip", "gzip,gzip"),
    ],
)
def test_what_is_compressed_again_is_refused_and_not_unpacked(coding, bomb, http_server):
    url = http_server({"/": (200, {"Content-Encoding": coding}, bomb)})
    tracemalloc.start()
    with pytest.raises(FetchError, match="Received: one that its host has compressed again"):
        fetch(f"{url}/")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("coding", ["identity", "", "base64", "utf-8", "aws-chunked"])
def test_codings_without_meaning_are_ignored(coding, http_server):
    url = http_server({"/": (200, {"Content-Encoding": coding}, b"rose")})
    assert fetch(f"{url}/") == b"rose"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NONSENSE = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/0.9": b"rose",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "a long status line": b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n",
    "a long header": b"HTTP/1.1 200 OK\r\na: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 4, 5\r\n\r\nrose",
    "a chunk longer than memory": CHUNKED + b"f" * 20 + b"\r\nrose\r\n",
    "a chunk's size of a megabyte": CHUNKED + b"f" * 1_000_000 + b"\r\nrose\r\n",
    "a chunk without end": CHUNKED + b"5\r\nrose",
    "a chunk of letters": CHUNKED + b"xyz\r\nrose\r\n",
    "chunks without an end": CHUNKED + b"4\r\nrose\r\n",
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.usefixtures("trusted")
def test_nonsense_ends_in_one_sentence(answer, talk, certificate):
    for scheme, function in (
        ("http", says(answer)),
        ("https", over_tls(certificate, says(answer))),
    ):
        with pytest.raises(FetchError, match="^Expected the image's host to answer"):
            fetch(f"{scheme}://{talk(function)}/")


@pytest.mark.parametrize("length", ["9" * 5000, "4.0", "four", "0x4", "", "\u00b2"])
def test_a_length_that_is_no_number_is_ignored(length, talk):
    start = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("latin-1")
    assert fetch(f"http://{talk(says(start + b'rose'))}/") == b"rose"


@pytest.mark.parametrize("size", [b"-1", b"-4", b"-ffffffffffffffffffff"])
def test_a_negative_chunk_is_an_error(size, talk):
    place = talk(says(CHUNKED + size + b"\r\nrose\r\n0\r\n\r\n"))
    with pytest.raises(FetchError):
        fetch(f"http://{place}/")


# How long it may take, and how much may come.

FOREVER = {
    "headers": repeats(b"HTTP/1.1 200 OK\r\n", b"a" * 60_000 + b": b\r\n"),
    "100 Continue": repeats(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "the body": repeats(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
    "chunks": repeats(CHUNKED, b"1\r\nx\r\n" * 10_000),
    "a chunk's extension": repeats(CHUNKED + b"1", b";" * 65536),
    "trailers": repeats(CHUNKED + b"0\r\n", b"a: b\r\n" * 10_000),
}
DRIP = {
    "the status line": repeats(b"HTTP/1.1 200 ", b"x", every=0.02),
    "a header": repeats(b"HTTP/1.1 200 OK\r\na: ", b"x", every=0.02),
    "100 Continue": repeats(b"", b"HTTP/1.1 100 Continue\r\n\r\n", every=0.02),
    "the body": repeats(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x", every=0.02),
    "a body without a length": repeats(b"HTTP/1.1 200 OK\r\n\r\n", b"x", every=0.02),
    "chunks": repeats(CHUNKED, b"1\r\nx\r\n", every=0.02),
    "a chunk's size": repeats(CHUNKED, b"0", every=0.02),
    "trailers": repeats(CHUNKED + b"0\r\n", b"a: b\r\n", every=0.02),
}


@pytest.mark.parametrize("function", FOREVER.values(), ids=FOREVER)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.usefixtures("trusted")
def test_what_never_ends_is_cut_off(function, tls, talk, certificate, monkeypatch):
    """By what came, not by the time: that is far off."""
    monkeypatch.setattr(module, "DEADLINE", 100.0)
    place = talk(over_tls(certificate, function) if tls else function)
    with pytest.raises((FetchError, TooLargeError)) as caught:
        fetch(f"{'https' if tls else 'http'}://{place}/")
    assert not isinstance(caught.value, FetchTimeoutError)


@pytest.mark.parametrize("function", DRIP.values(), ids=DRIP)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.usefixtures("trusted")
def test_what_drips_is_cut_off_at_the_deadline(function, tls, talk, certificate, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 0.5)
    place = talk(over_tls(certificate, function) if tls else function)
    started = time.monotonic()
    with pytest.raises(FetchTimeoutError, match="no answer or only a part of it"):
        fetch(f"{'https' if tls else 'http'}://{place}/")
    assert time.monotonic() - started < sockets.TIMEOUT


HELLO_REQUEST = record(HANDSHAKE, message(tls.HELLO_REQUEST))
PART = record(HANDSHAKE, b"\2\0\1\0" + bytes(4)) + record(HANDSHAKE, b"x") * 200
ODD_RECORDS = {
    "hello requests": repeats(b"", HELLO_REQUEST * 10_000),
    "warnings": repeats(b"", record(tls.ALERT, alert(1, 90)) * 10_000),
    "empty records": repeats(b"", record(HANDSHAKE) * 10_000),
    "changes of the cipher": repeats(b"", record(tls.CHANGE_CIPHER_SPEC, b"\1") * 10_000),
    "one byte a record": repeats(PART, PART),
    "a length without end": repeats(b"\x16\3\3\x40\0\x0b\xff\xff\xff", b"\0" * 16_384),
}


@pytest.mark.parametrize("function", ODD_RECORDS.values(), ids=ODD_RECORDS)
def test_a_handshake_that_never_ends_is_cut_off(function, talk, monkeypatch):
    """By what came: the time is far off. OpenSSL itself reads hello requests for ever."""
    monkeypatch.setattr(module, "DEADLINE", 100.0)
    begun = time.thread_time()
    with pytest.raises(FetchError) as caught:
        fetch(f"https://{talk(function)}/")
    assert not isinstance(caught.value, FetchTimeoutError)
    assert time.thread_time() - begun < 2


def test_a_handshake_that_never_ends_has_one_deadline(talk):
    place = talk(repeats(b"", HELLO_REQUEST * 100, every=0.01))
    started = time.monotonic()
    with pytest.raises(FetchTimeoutError):
        fetch(f"https://{place}/", started + 0.3)
    assert time.monotonic() - started < sockets.TIMEOUT


def in_tls_13(certificate: Path, *records: tuple[int, bytes], chain: int = 1) -> Talk:
    """Return what talks TLS 1.3 with `chain` certificates, and then sends `records` for ever."""
    pem = certificate.read_text()
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") :])

    def talk(connection: socket.socket) -> None:
        hello = connection.recv(65536)
        session = tls.Session(hello, [der] * chain, rsa_key()[1], bytes(range(32)))
        flight = b"".join(session.flight)
        pieces = (flight[n : n + 16_000] for n in range(0, len(flight), 16_000))
        sealed = session.handshake.seal(*((HANDSHAKE, piece) for piece in pieces))
        connection.sendall(session.server_hello + sealed)
        while True:
            connection.sendall(session.data.seal(*records))

    return talk


WHOLE = (tls.DATA, OK)
AFTER_THE_HANDSHAKE = {
    "tickets": [(HANDSHAKE, tls.ticket(10_000))] * 50,
    "new keys": [(HANDSHAKE, message(tls.KEY_UPDATE, b"\0"))] * 1000,
    "new keys in return": [(HANDSHAKE, message(tls.KEY_UPDATE, b"\1"))] * 1000,
    "a hello request": [(HANDSHAKE, message(tls.HELLO_REQUEST))],
    "a request for a certificate": [(HANDSHAKE, message(tls.REQUEST, b"\0\0\0"))],
    "one byte a record": [(tls.DATA, b"\n")] * 1000,
}


@pytest.mark.parametrize("records", AFTER_THE_HANDSHAKE.values(), ids=AFTER_THE_HANDSHAKE)
@pytest.mark.usefixtures("trusted")
def test_what_never_ends_after_the_handshake_is_cut_off(records, talk, certificate, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 100.0)
    monkeypatch.setattr(module, "MAX_OVERHEAD", 50_000)  # what is sealed takes time
    with pytest.raises(FetchError) as caught:
        fetch(f"https://{talk(in_tls_13(certificate, *records))}/")
    assert not isinstance(caught.value, FetchTimeoutError)


@pytest.mark.usefixtures("trusted")
def test_tickets_and_new_keys_before_the_answer_are_usual(talk, certificate):
    before = [(HANDSHAKE, tls.ticket()), (HANDSHAKE, message(tls.KEY_UPDATE, b"\1"))]
    assert fetch(f"https://{talk(in_tls_13(certificate, *before, WHOLE))}/") == b"rose"


@pytest.mark.parametrize(("chain", "fetched"), [(10, True), (1000, False)])
@pytest.mark.usefixtures("trusted")
def test_a_chain_of_certificates_may_be_long_but_not_endless(chain, fetched, talk, certificate):
    place = talk(in_tls_13(certificate, WHOLE, chain=chain))
    with contextlib.nullcontext() if fetched else pytest.raises(FetchError):
        assert fetch(f"https://{place}/") == b"rose"


def test_a_handshake_that_drips_is_cut_off_at_the_deadline(talk, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 0.5)
    place = talk(repeats(b"\x16\x03\x03\x40\x00", b"\0", every=0.02))
    started = time.monotonic()
    with pytest.raises(FetchTimeoutError):
        fetch(f"https://{place}/")
    assert time.monotonic() - started < sockets.TIMEOUT


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_never_answers(scheme, talk, monkeypatch):
    monkeypatch.setattr(sockets, "TIMEOUT", 0.2)
    done = threading.Event()
    place = talk(lambda _: done.wait(10))
    with pytest.raises(FetchTimeoutError, match="no answer or only a part"):
        fetch(f"{scheme}://{place}/")
    done.set()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.usefixtures("trusted")
def test_each_step_waits_five_seconds_at_most(scheme, talk, certificate, monkeypatch):
    waits = []
    set_timeout = socket.socket.settimeout

    def note(self: socket.socket, seconds: float | None) -> None:
        if isinstance(self, sockets._Socket):
            waits.append(seconds)
        set_timeout(self, seconds)

    monkeypatch.setattr(socket.socket, "settimeout", note)
    place = talk(over_tls(certificate, says(OK)) if scheme == "https" else says(OK))
    assert fetch(f"{scheme}://{place}/", time.monotonic() + 60) == b"rose"
    assert waits
    assert all(0 < seconds <= 5 for seconds in waits)
    assert max(waits) == 5


def test_redirects_share_one_deadline(talk, monkeypatch):
    """Each one alone would be in time."""
    monkeypatch.setattr(module, "DEADLINE", 0.5)
    monkeypatch.setattr(module, "MAX_REDIRECTS", 1000)

    def redirect(connection: socket.socket) -> None:
        next_one = int(connection.recv(65536).split()[1][1:] or 0) + 1
        time.sleep(0.1)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /%d\r\n\r\n" % next_one)

    with pytest.raises(FetchTimeoutError):
        fetch(f"http://{talk(redirect)}/")


def test_name_servers_that_do_not_answer_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 0.2)
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(10))
    started = time.monotonic()
    with pytest.raises(FetchTimeoutError):
        fetch("http://flowers.test/")
    assert time.monotonic() - started < 5
    done.set()


@pytest.fixture
def full(monkeypatch) -> Iterator[tuple[list[str], int]]:
    """Three addresses and a port at which nobody accepts connections, nor refuses them."""
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.0/8")
    addresses = ["127.0.0.3", "127.0.0.4", "127.0.0.5"]
    with contextlib.ExitStack() as stack:
        port = 0
        for address in addresses:
            server = stack.enter_context(socket.create_server((address, port), backlog=0))
            port = server.getsockname()[1]
            waiting = []
            for _ in range(4):
                client = stack.enter_context(socket.socket())
                client.settimeout(0.1)
                waiting.append(client.connect_ex((address, port)))
            assert any(waiting), "the queue is not full"
        yield addresses, port


def test_slow_addresses_share_one_deadline(full, dns, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 0.5)
    monkeypatch.setattr(sockets, "TIMEOUT", 0.3)
    addresses, port = full
    dns["flowers.test"] = [addresses * 100]
    started = time.monotonic()
    with pytest.raises(FetchTimeoutError):
        fetch(f"http://flowers.test:{port}/")
    assert time.monotonic() - started < 5


def test_an_earlier_deadline_holds(talk):
    place = talk(DRIP["the body"])
    started = time.monotonic()
    with pytest.raises(FetchTimeoutError):
        fetch(f"http://{place}/", started + 0.3)
    assert time.monotonic() - started < sockets.TIMEOUT


def test_a_later_deadline_does_not(talk, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 0.3)
    place = talk(DRIP["the body"])
    started = time.monotonic()
    with pytest.raises(FetchTimeoutError):
        fetch(f"http://{place}/", started + 1000)
    assert time.monotonic() - started < sockets.TIMEOUT


def test_a_deadline_that_has_passed(talk):
    with pytest.raises(FetchTimeoutError, match="in time, at most 10 seconds"):
        fetch(f"http://{talk(says(OK))}/", time.monotonic() - 1)


# What is left behind.


def held() -> tuple[int, int]:
    """Return how many files and threads this process has."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
@pytest.mark.usefixtures("trusted", "no_such_host")
def test_no_files_and_no_threads_are_left(talk, certificate, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 0.1)
    chunk = b"x" * 65536
    functions = {
        "http": [says(OK), says(b""), DRIP["a header"], DRIP["the body"]],
        "https": [over_tls(certificate, says(OK)), DRIP["the body"], says(b"no TLS")],
    }
    functions["http"] += [repeats(b"HTTP/1.1 200 OK\r\n\r\n", chunk)]
    functions["http"] += [repeats(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", chunk)]
    functions["http"] += [says(b"HTTP/1.1 404 Not Found\r\n\r\n" + chunk)]
    urls = [f"{scheme}://{talk(each)}/" for scheme in functions for each in functions[scheme]]
    urls += [url.replace("127.0.0.1", "127.0.0.2") for url in urls[:2]]  # not allowed
    urls += ["http://no-such-host.invalid/", "http://127.0.0.1:1/", "ftp://a"]
    files, threads = held()
    for url in urls * 5:
        with contextlib.suppress(ServingError):
            fetch(url)
    for _ in range(400):  # the servers in this process close their side a little later
        if held()[0] <= files and held()[1] <= threads:
            break
        time.sleep(0.05)
    # Fewer where what other tests had left has ended meanwhile.
    assert held()[0] <= files
    assert held()[1] <= threads


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_nothing_is_logged_of_where_it_went(level, talk, caplog):
    """Not even what urllib3 says of headers that it cannot read, or of two lengths."""
    caplog.set_level(level)
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n"
    for answer in (OK, b"", start + b"\r\n4\r\nrose\r\n0\r\n\r\n", start + b"no header\r\n\r\n"):
        with contextlib.suppress(FetchError):
            fetch(f"http://{talk(says(answer))}/path?secret=1")
    assert caplog.records == []


# Several at a time.


def test_several_are_fetched_in_order_and_a_bad_one_costs_no_other(http_server):
    url = http_server({f"/{n}": (200, {}, str(n).encode()) for n in range(20)})
    urls = [f"{url}/{n}" for n in range(20)]
    urls[3] = "http://127.0.0.2/"
    urls[5] = "rose.jpg"
    urls[7] = f"{url}/none"
    bodies = fetch_all(urls)
    assert isinstance(bodies[3], AddressError)
    assert isinstance(bodies[5], InvalidRequestError)
    assert isinstance(bodies[7], FetchError)
    good = [n for n in range(20) if n not in (3, 5, 7)]
    assert [bodies[n] for n in good] == [str(n).encode() for n in good]
    assert fetch_all([]) == []


def test_eight_are_fetched_at_the_same_time_and_no_more(talk):
    """Each host answers only when eight have been asked, and a moment later."""
    together = threading.Barrier(8, timeout=20)
    asked, most, lock = 0, 0, threading.Lock()

    def wait_for_all(connection: socket.socket) -> None:
        nonlocal asked, most
        connection.recv(65536)
        with lock:
            asked += 1
            most = max(most, asked)
        together.wait()
        time.sleep(0.1)
        with lock:
            asked -= 1
        connection.sendall(OK)

    assert fetch_all([f"http://{talk(wait_for_all)}/"] * 16) == [b"rose"] * 16
    assert most == 8


@pytest.mark.usefixtures("trusted")
def test_several_share_one_tls_context(talk, certificate, monkeypatch):
    """The CA bundle is read once, not in each thread, and no other context made."""
    place = talk(over_tls(certificate, says(OK)))
    used, read = set(), []
    wrap, load = ssl.SSLContext.wrap_bio, ssl.SSLContext.load_verify_locations

    def note(self: ssl.SSLContext, *arguments: object, **options: object) -> ssl.SSLObject:
        used.add(self)
        return wrap(self, *arguments, **options)

    def read_bundle(self: ssl.SSLContext, *arguments: object, **options: object) -> None:
        read.append(self)
        time.sleep(0.1)  # long enough for all threads to get here
        load(self, *arguments, **options)

    monkeypatch.setattr(ssl.SSLContext, "wrap_bio", note)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", read_bundle)
    assert fetch_all([f"https://{place}/"] * 20) == [b"rose"] * 20
    assert used == set(read) == {sockets.tls_context()}
    assert len(read) == 1


def test_several_end_at_one_deadline(talk):
    place = talk(DRIP["the body"])
    started = time.monotonic()
    errors = fetch_all([f"http://{place}/"] * 20, started + 0.5)
    assert time.monotonic() - started < sockets.TIMEOUT
    assert [type(error) for error in errors] == [FetchTimeoutError] * 20


def test_a_defect_is_logged_and_costs_its_own_url_only(http_server, monkeypatch, capsys):
    url = http_server({"/": (200, {}, b"rose")})
    read = module._read
    broken = f"{url}/?broken"

    def break_one(response: requests.Response, limits: sockets.Limits) -> bytes:
        if response.url == broken:
            raise ZeroDivisionError("our defect at http://example.com/?secret")
        return read(response, limits)

    monkeypatch.setattr(module, "_read", break_one)
    first, second = fetch_all([broken, f"{url}/"])
    assert isinstance(first, InternalError)
    assert "defect" not in str(first)
    assert second == b"rose"
    [line] = capsys.readouterr().out.splitlines()
    logged = json.loads(line)
    assert logged["level"] == "ERROR"
    assert "our defect" in logged["exception"]
    assert "secret" not in line
    with pytest.raises(ZeroDivisionError):
        fetch(broken)


# Whole sentences.


def refusal(url):
    with pytest.raises(ServingError) as caught:
        fetch(url)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("url", "received"),
    [
        ("rose.jpg", "an address without a scheme"),
        ("", "an address without a scheme"),
        ("http://[::1", "an address that cannot be read"),
        ("http://", "an address that cannot be read"),
        ("http://a..b/", "an address that cannot be read"),
        (f"http://{'a' * 64}.com/", "an address that cannot be read"),
        ("file:///etc/passwd", "another scheme"),
        ("ftp://localhost/a.jpg", "another scheme"),
        ("A rose: HTTPS://localhost/a.jpg", "text before the address"),
        ("view-source:http://localhost/a.jpg", "text before the address"),
        ("http:///rose.jpg", "an address that cannot be read"),
        ("http://127.0.0.1/" + "a" * 8176, "one of more than 8192 characters"),
        ("http://127.0.0.1/" + "ü" * 2000, "one of more than 8192 characters"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason(url, received):
    assert refusal(url) == (InvalidRequestError, WRONG_URL.format(received))


def test_a_url_may_have_8192_characters():
    assert len(module._prepare("http://127.0.0.1/" + "a" * 8175).url) == 8192


def test_a_redirect_that_cannot_be_read_is_refused_like_a_url(http_server):
    url = http_server({"/": (302, {"Location": "http://[::1"}, b"")})
    assert refusal(f"{url}/") == (
        InvalidRequestError,
        WRONG_URL.format("an address that cannot be read"),
    )


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (
            (404, {}, b""),
            FetchError,
            "Expected the image's host to answer 200. Received: 404. Check the url.",
        ),
        (
            (200, {"Content-Encoding": "identity, GZip"}, b""),
            FetchError,
            "Expected an image without Content-Encoding. "
            "Received: one that its host has compressed again. Use another host.",
        ),
        (
            (302, {"Location": "/"}, b""),
            FetchError,
            "Expected redirects that lead to an image. Received: one that leads back, as of hosts "
            "that ask for cookies or a login. Give the address of the image itself.",
        ),
        (
            (200, {}, b""),
            FetchError,
            "Expected the image's host to answer with an image. "
            "Received: nothing, an empty body. Check the url.",
        ),
        (
            (200, {"Content-Length": "9"}, b"short"),
            FetchError,
            "Expected the image's host to answer. "
            "Received: no connection or a broken one. Check the url.",
        ),
        (
            (200, {"Content-Length": "10000001"}, b""),
            TooLargeError,
            "Expected at most 10 MB. Received: more. Use a smaller image.",
        ),
    ],
)
def test_other_answers_are_errors_in_these_sentences(answer, kind, sentence, http_server):
    url = http_server({"/": answer})
    assert refusal(f"{url}/") == (kind, sentence)


def test_a_host_that_is_too_slow_is_an_error_in_this_sentence(http_server):
    with pytest.raises(FetchTimeoutError) as caught:
        fetch(http_server({}), time.monotonic() - 1)
    assert str(caught.value) == (
        "Expected the image's host to answer in time, at most 10 seconds. "
        "Received: no answer or only a part of it. Try again, or use another host."
    )


def test_an_unverified_certificate_is_refused_in_this_sentence(http_server, monkeypatch):
    def wrap_bio(*_, server_hostname):
        raise ssl.SSLCertVerificationError(server_hostname)

    monkeypatch.setattr(sockets.tls_context(), "wrap_bio", wrap_bio, raising=False)
    assert refusal(http_server({}).replace("http", "https")) == (
        FetchError,
        "Expected a host whose certificate can be verified. "
        "Received: one that is expired, for another name, or of an unknown issuer. "
        "Use another host.",
    )


def test_addresses_that_are_off_limits_are_refused_in_these_sentences(monkeypatch):
    monkeypatch.delenv("FETCH_ALLOW")
    assert refusal("http://a:b@127.0.0.1/") == (
        AddressError,
        "Expected a url that anybody may open. "
        "Received: one with a user name or a password. Leave them out.",
    )
    assert refusal("http://127.0.0.1/") == (
        AddressError,
        "Expected the address of a host on the public Internet. "
        "Received: one that is private or reserved. Use a public host; "
        "FETCH_ALLOW, set where this runs, allows others.",
    )
    assert refusal("http://1.1.1.1:81/") == (
        AddressError,
        "Expected a url at port 80 or 443, the ports of http and https. "
        "Received: another port. Use one of these; "
        "FETCH_ALLOW, set where this runs, allows others.",
    )


def test_the_sentence_for_a_defect_of_ours_says_nothing_of_it(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(module, "_open", fail)
    [error] = fetch_all(["http://127.0.0.1/"])
    assert isinstance(error, InternalError)
    assert str(error) == "The service failed on this url; its log says why."


# Names of AWS_LAMBDA_INITIALIZATION_TYPE, and whether a request waits.
STARTS = {"on-demand": True, "provisioned-concurrency": False, "snap-start": False, None: True}


@pytest.mark.parametrize("start", STARTS)
def test_the_tls_context_is_prepared_where_no_request_waits(start, monkeypatch):
    monkeypatch.delenv("AWS_LAMBDA_INITIALIZATION_TYPE", raising=False)
    if start:
        monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", start)
    sockets.tls_context.cache_clear()
    prepare()
    assert sockets.tls_context.cache_info().currsize == (not STARTS[start])


def test_what_is_prepared_is_the_list(monkeypatch):
    prepare()
    monkeypatch.delenv("FETCH_ALLOW")
    prepare()
    monkeypatch.setenv("FETCH_ALLOW", "10.0.0.0/99")
    with pytest.raises(AllowError, match="Received: '10.0.0.0/99'"):
        prepare()


def test_as_many_bytes_may_come_as_are_left(http_server, monkeypatch):
    received = []
    receive = sockets._Socket.recv_into

    def count(sock, *args):
        received.append(receive(sock, *args))
        return received[-1]

    url = http_server({"/": (200, {}, b"rose")})
    monkeypatch.setattr(sockets._Socket, "recv_into", count)
    assert fetch(f"{url}/") == b"rose"
    total = sum(received)
    monkeypatch.setattr(module, "MAX_OVERHEAD", total)
    assert fetch(f"{url}/") == b"rose"
    monkeypatch.setattr(module, "MAX_OVERHEAD", total - 1)
    with pytest.raises(FetchError):
        fetch(f"{url}/")
