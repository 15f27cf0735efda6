"""serving.fetch and serving.addresses: the sentences that a caller reads, whole, and the bounds."""

import ssl
import time

import pytest

from serving import fetch as module
from serving.addresses import Allowed, AllowError, check_addresses, parse_allowed
from serving.errors import (
    AddressError,
    FetchError,
    FetchTimeoutError,
    InternalError,
    InvalidRequestError,
    ServingError,
    TooLargeError,
)
from serving.fetch import fetch, fetch_all, prepare

WRONG_URL = "Expected a url that begins with http:// or https://. Received: {}."


@pytest.fixture(autouse=True)
def _this_machine_is_allowed(monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")


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
        ("http:///rose.jpg", "an address that cannot be read"),
        ("http://127.0.0.1/" + "a" * 8176, "one of more than 8192 characters"),
        ("http://127.0.0.1/" + "ü" * 2000, "one of more than 8192 characters"),
    ],
)
def test_a_wrong_url_is_told_why(url, received):
    assert refusal(url) == (InvalidRequestError, WRONG_URL.format(received))


def test_a_url_may_have_8192_characters():
    assert len(module._prepare("http://127.0.0.1/" + "a" * 8175).url) == 8192


def test_a_redirect_that_cannot_be_read_is_told_like_a_url(http_server):
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
            "Expected an image as it is. "
            "Received: one that its host has compressed again. Use another host.",
        ),
        (
            (302, {"Location": "/"}, b""),
            FetchError,
            "Expected at most 3 redirects. Received: more. Give the final url.",
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
            "Expected at most 10 MB. Received: more. Send a smaller image.",
        ),
    ],
)
def test_what_a_host_does_is_told(answer, kind, sentence, http_server):
    url = http_server({"/": answer})
    assert refusal(f"{url}/") == (kind, sentence)


def test_a_host_that_is_too_slow_is_told(http_server):
    with pytest.raises(FetchTimeoutError) as caught:
        fetch(http_server({}), time.monotonic() - 1)
    assert str(caught.value) == (
        "Expected the image's host to answer in time, at most 10 seconds. "
        "Received: no answer or only a part of it. Try again, or use another host."
    )


def test_a_certificate_that_cannot_be_verified_is_told(http_server, monkeypatch):
    def wrap_socket(connection, server_hostname):
        connection.close()
        raise ssl.SSLCertVerificationError(server_hostname)

    monkeypatch.setattr(module.tls_context(), "wrap_socket", wrap_socket, raising=False)
    assert refusal(http_server({}).replace("http", "https")) == (
        FetchError,
        "Expected a host whose certificate can be verified. "
        "Received: one that is expired, for another name, or of an unknown issuer. "
        "Use another host.",
    )


def test_addresses_that_are_off_limits_are_told(monkeypatch):
    monkeypatch.delenv("FETCH_ALLOW")
    assert refusal("http://a:b@127.0.0.1/") == (
        AddressError,
        "Expected a url that anybody may open. "
        "Received: one with a user name or a password. Leave them out.",
    )
    assert refusal("http://127.0.0.1/") == (
        AddressError,
        "Expected the address of a host on the public Internet. "
        "Received: one that is private or reserved. Use a public host.",
    )
    assert refusal("http://1.1.1.1:81/") == (
        AddressError,
        "Expected a url at port 80 or 443, as http and https have them. "
        "Received: another port. Use a host on the public Internet.",
    )


def test_a_list_that_cannot_be_read_is_told():
    with pytest.raises(AllowError) as caught:
        parse_allowed("10.0.0.0/8,10.0.0.0/99")
    assert str(caught.value) == (
        "Expected host names and networks, separated by commas, in FETCH_ALLOW, such as "
        "images.internal,10.0.0.0/8. Received: '10.0.0.0/99'. Correct it, or unset FETCH_ALLOW."
    )


def test_an_allowed_address_goes_on_to_the_next_one():
    allowed = parse_allowed("10.0.0.0/8")
    with pytest.raises(AddressError):
        check_addresses("example.com", 80, ["10.0.0.1", "192.168.0.1"], allowed)
    check_addresses("example.com", 80, [], Allowed())


def test_a_defect_of_ours_is_told_without_what_it_was(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(module, "_open", fail)
    [error] = fetch_all(["http://127.0.0.1/"])
    assert isinstance(error, InternalError)
    assert str(error) == "The service failed on this url; its log says why."


# Before the first request.


def test_what_is_prepared_is_the_tls_context_and_the_list(monkeypatch):
    module.tls_context.cache_clear()
    prepare()
    assert module.tls_context.cache_info().currsize == 1
    monkeypatch.delenv("FETCH_ALLOW")
    prepare()
    monkeypatch.setenv("FETCH_ALLOW", "10.0.0.0/99")
    with pytest.raises(AllowError, match="Received: '10.0.0.0/99'"):
        prepare()


def test_the_tls_context_offers_http_1_1_and_reads_by_the_deadline(monkeypatch):
    offered = []
    monkeypatch.setattr(
        ssl.SSLContext, "set_alpn_protocols", lambda _, protocols: offered.append(protocols)
    )
    module.tls_context.cache_clear()
    assert module.tls_context().sslsocket_class is module._TLSSocket
    assert offered == [["http/1.1"]]
    module.tls_context.cache_clear()


# Bounds.


@pytest.mark.parametrize(("left", "seconds"), [(3.0, 3.0), (100.0, 5.0), (5.0, 5.0), (0.25, 0.25)])
def test_a_step_waits_for_its_timeout_or_until_the_deadline(left, seconds, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
    assert module._wait(100.0 + left) == seconds


@pytest.mark.parametrize("left", [0.0, -1.0])
def test_at_the_deadline_no_step_is_begun(left, monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
    with pytest.raises(TimeoutError):
        module._wait(100.0 + left)


def test_as_many_bytes_may_come_as_are_left(http_server, monkeypatch):
    received = []
    receive = module._BoundedSocket.recv_into

    def count(connection, *args):
        received.append(receive(connection, *args))
        return received[-1]

    url = http_server({"/": (200, {}, b"rose")})
    monkeypatch.setattr(module._BoundedSocket, "recv_into", count)
    assert fetch(f"{url}/") == b"rose"
    total = sum(received)
    monkeypatch.setattr(module._BoundedSocket, "left", total)
    assert fetch(f"{url}/") == b"rose"
    monkeypatch.setattr(module._BoundedSocket, "left", total - 1)
    with pytest.raises(TooLargeError):
        fetch(f"{url}/")


def test_the_thread_that_resolves_a_name_keeps_no_process_alive(monkeypatch):
    import threading

    started = []
    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: (started.append(thread), start(thread))[1]
    )
    module._resolve("127.0.0.1", 80, time.monotonic() + 10)
    [thread] = started
    assert (thread.name, thread.daemon) == ("getaddrinfo", True)
