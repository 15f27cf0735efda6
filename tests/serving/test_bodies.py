"""serving.bodies: JSON, images and forms as clients send them over HTTP."""

import base64
import contextlib
import gzip
import json
import logging
import subprocess
import sys
import time
import tracemalloc
import zlib
from urllib.parse import urlencode

import pytest
import requests
from conftest import ROOT

from serving.bodies import MAX_UNPACKED, MULTIPART, URLENCODED, Body, is_binary, parse, unpack
from serving.errors import InvalidRequestError, TooLargeError, UnsupportedTypeError
from serving.events import EXPECTED, Request, Source

IMAGE = b"\xff\xd8\xff\xe0" + bytes(range(256)) + b"\r\n--\r\n"
URL = "https://a.b/c.jpg"
JSON = json.dumps({"url": URL})
OF_IMAGE = Request((Source(image=IMAGE),))
OF_URL = Request((Source(url=URL),))
FIRST_BYTES = {
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "GIF": b"GIF89a\x01\0\x01\0\x80\0\0",
    "WebP": b"RIFF\x24\0\0\0WEBPVP8 ",
    "BMP": b"BM\x46\0\0\0\0\0\0\0\x36\0",
    "TIFF": b"II*\0\x08\0\0\0",
    "TIFF, the other way round": b"MM\0*\0\0\0\x08",
    "AVIF": b"\0\0\0\x20ftypavif",
    "HEIC": b"\0\0\0\x18ftypheic",
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
}
NOT_UTF_8 = "text that is not UTF-8. Encode it as UTF-8"
TEXTS = {
    "JSON": JSON.encode(),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": JSON.encode("utf-16"),
    "UTF-16 without a mark": JSON.encode("utf-16-be"),
    "JSON that was no text": '{"url": "\ufffd\x00'.encode(),
    "HTML": b"<!DOCTYPE html>\r\n\t<html>\f",
    "other letters": "роза".encode() * 20,
    "letters that are cut off": ("a" + "роза" * 20).encode(),
    "nothing": b"",
}


def form(*files, **fields):
    """Return the body that the package requests makes of `files` and text `fields`."""
    parts = [*files, *((name, (None, text)) for name, text in fields.items())]
    request = requests.Request("POST", "http://a", files=parts).prepare()
    return Body(request.body, request.headers["Content-Type"])


def file(name="image", data=IMAGE, filename="rose.jpg"):
    return name, (filename, data)


def refused(body, kind=InvalidRequestError):
    with pytest.raises(kind) as caught:
        parse(body)
    return str(caught.value)


@pytest.mark.parametrize("data", FIRST_BYTES.values(), ids=FIRST_BYTES)
@pytest.mark.parametrize("kind", ["", "text/plain", URLENCODED, "image/jpeg"])
def test_the_first_bytes_tell_an_image_whatever_its_type(data, kind):
    assert is_binary(data)
    assert parse(Body(data, kind)) == Request((Source(image=data),))


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS)
def test_text_is_no_image(data):
    assert not is_binary(data)


@pytest.mark.parametrize("kind", ["", "application/json", "text/json", "a/b+json", URLENCODED])
@pytest.mark.parametrize("start", ["", "\ufeff", "\u200b\n", "\ufeff\ufeff "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
def test_json_may_begin_with_a_mark_and_be_in_any_unicode(kind, start, encoding):
    if encoding != "utf-16-le" or not start:  # the mark would be read as another
        assert parse(Body((start + JSON).encode(encoding), kind)) == OF_URL


@pytest.mark.parametrize("start", ["", "\ufeff \n"])
def test_json_may_be_sent_as_a_file_of_any_kind(start):
    assert parse(Body((start + JSON).encode(), "application/octet-stream")) == OF_URL
    pages = (b"<html>", b"{\\rtf1", b"{")
    for page in pages:
        assert parse(Body(page, "binary/octet-stream")) == Request((Source(image=page),))


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b" \n", "nothing"),
        (IMAGE, "bytes that are no text. Name the image's type in the header Content-Type"),
        (URL.encode(), 'an address alone. Send it as {"url": "https://..."}'),
        (b"DATA:;base64,aGk=", 'an address alone. Send it as {"url": "https://..."}'),
        (base64.b64encode(IMAGE), 'base64 alone. Send it as {"image": "<base64>"}'),
        (b"url=" + URL.encode(), f"a form. Send it as {URLENCODED}"),
        (b"{'url': 'a'}", "text that is not JSON. Check its quotes"),
        ('{"url": "https://a.b/é.jpg"}'.encode("latin-1"), NOT_UTF_8),
        (b' {"url": "' + b"a" * 99 + b'\xe9"}', NOT_UTF_8),
        ('{"url": "\ufeff"}'.encode("utf-16")[:-1], NOT_UTF_8),
        (
            b'{"url": "a", "b": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "JSON that is nested too deeply. Leave out what is not asked for",
        ),
        (
            b'{"url": "a", "top": ' + b"1" * 5000 + b"}",
            "JSON with a number of too many digits. Write fewer",
        ),
        (json.dumps(URL).encode(), "a string"),
        (json.dumps([URL]).encode(), "a list"),
        (b'{"image_url": "a"}', "none of these, but image_url"),
        (b'{"Records": [{"eventSource": "aws:sqs"}]}', "none of these, but Records"),
        (b'{"body": "{}"}', "none of these, but body"),
        (b'{"warmup": true}', "none of these, but warmup"),
    ],
)
def test_json_that_is_something_else_is_named(data, received):
    assert refused(Body(data, "application/json")) == f"{EXPECTED} Received: {received}."


def test_an_image_that_a_gateway_took_for_text_is_told():
    sentence = (
        "Expected the image's bytes, passed on by the gateway as binary. Received: text. "
        "Send it as {}, and let the gateway treat that as a binary media type."
    )
    for text in (IMAGE.decode("utf-8", "replace"), IMAGE.decode("latin-1")):
        for kind in ("", URLENCODED, "image/png", "application/octet-stream"):
            if is_binary(text.encode()) or kind in ("image/png", "application/octet-stream"):
                body = Body(text.encode(), kind, is_text=True)
                assert refused(body) == sentence.format("image/*")
        whole = form(file())
        data = whole.data.decode("latin-1").replace(IMAGE.decode("latin-1"), text).encode()
        assert refused(Body(data, whole.content_type, is_text=True)) == sentence.format(MULTIPART)
    assert refused(Body(b"", "image/png")).endswith("Received: nothing.")


# Forms.


@pytest.mark.parametrize("name", ["image", "file", "x", "", "url", "Bild ü"])
def test_a_file_may_have_any_name(name):
    assert parse(form(file(name))) == OF_IMAGE
    assert parse(form(file(name), top="2", csrf="a")) == Request(OF_IMAGE.sources, top=2)


@pytest.mark.parametrize("name", ["images", "urls", "file[]", "images[0]"])
def test_names_of_lists_are_answered_by_lists(name):
    assert parse(form(file(name))) == Request(OF_IMAGE.sources, is_batch=True)


@pytest.mark.parametrize(
    "other",
    [("tags[]", "garden"), ("meta[0]", "x"), ("urls", ""), ("images", " "), ("image[]", "\r\n")],
)
def test_fields_without_images_make_no_list(other):
    name, text = other
    assert parse(form(file(), (name, (None, text)))) == OF_IMAGE
    fields = urlencode([("url", URL), (name, text)])
    assert parse(Body(fields.encode(), URLENCODED)) == OF_URL


def test_several_files_are_several_images():
    other = b"GIF89a\x01\0\x01\0\x80\0\0"
    body = form(file("a"), file("b", other), file("a"))
    sources = tuple(Source(image=data) for data in (IMAGE, other, IMAGE))
    assert parse(body) == Request(sources, is_batch=True)
    assert len(parse(form(*[file()] * 16)).sources) == 16
    assert refused(form(*[file()] * 17)) == (
        "Expected images to be a list of 1 to 16. Received: 17."
    )
    assert "at most 64 parts. Received: more" in refused(form(*[file()] * 65))


def test_a_form_may_have_urls_or_an_image_as_text():
    assert parse(form(url=f" {URL}\r\n", note="a")) == OF_URL
    assert parse(form(urls=f"{URL}\r\n\r\nhttps://b\r\n")) == Request(
        (Source(url=URL), Source(url="https://b")), is_batch=True
    )
    assert parse(form(("urls[0]", (None, URL)))) == Request(OF_URL.sources, is_batch=True)
    many = form(urls="a\n\n" * 1_000_000)
    assert "a list of 1 to 16. Received: 1000000." in refused(many)
    encoded = base64.b64encode(IMAGE).decode()
    for text in (encoded, f"data:image/jpeg;base64,{encoded}"):
        assert parse(form(image=text)) == OF_IMAGE
    assert parse(form(image=IMAGE)) == OF_IMAGE  # curl -F "image=<rose.jpg"
    error, taken = parse(form(("images", (None, "?")), ("images", (None, encoded)))).sources
    assert isinstance(error, InvalidRequestError)
    assert taken == Source(image=IMAGE)


def test_what_a_browser_sends_of_empty_inputs_counts_as_absent():
    assert parse(form(file("file", b"", ""), url=URL)) == OF_URL
    for empty in ("", " \r\n"):
        assert parse(form(file(), url=" ", top=empty, details=empty)) == OF_IMAGE
    assert parse(form(file(data=b""))) == Request((Source(image=b""),))


@pytest.mark.parametrize(
    ("body", "received"),
    [
        (form(file(), url=URL), "url and image"),
        (form(file("file", b"", "")), "a form without these"),
        (form(name="rose"), "a form without these"),
    ],
)
def test_a_form_names_images_in_one_way(body, received):
    assert refused(body) == f"{EXPECTED} Received: {received}."


def test_a_damaged_form_is_told():
    whole = form(file())
    lines = whole.data.replace(b"\r\n", b"\n")
    no_name = whole.data.replace(b'name="image"; ', b"")
    for data in (whole.data[:-10], whole.data[:50], lines, no_name, b"", IMAGE):
        assert refused(Body(data, whole.content_type)) == (
            "Expected a complete multipart/form-data body. Received: one that is cut off or "
            "damaged. Let the client build it, curl -F for example."
        )
    for kind in ("", "; boundary=", '; boundary=""', "; boundary=\u2603"):
        assert refused(Body(whole.data, MULTIPART + kind)) == (
            "Expected Content-Type: multipart/form-data with a boundary. Received: none. "
            "Leave the header to the client, which knows the boundary."
        )
    assert "damaged" in refused(Body(whole.data, f"{MULTIPART}; boundary={'x' * 300}"))


def part(name=b"a", headers=b"", data=b"hi"):
    start = b"--x\r\nContent-Disposition: form-data; name=" + name + b"; filename=a\r\n"
    return Body(start + headers + b"\r\n" + data + b"\r\n--x--\r\n", f"{MULTIPART}; boundary=x")


def test_a_part_may_be_in_base64():
    encoding = b"Content-Transfer-Encoding: base64\r\n"
    assert parse(part(headers=encoding, data=base64.b64encode(IMAGE))) == OF_IMAGE
    assert "damaged" in refused(part(headers=encoding, data=b"aGk"))
    assert "damaged" in refused(part(headers=b"Content-Transfer-Encoding: x-own\r\n"))


@pytest.mark.parametrize(
    "body",
    [
        part(headers=b"A: " + b"a" * 5_000_000),
        part(headers=b"A: b\r\n" * 900_000),
        part(name=b'"' * 4000),
        part(data=b"\r\n--" * 1_000_000),
        part(data=b"\r\n--xa" * 800_000),
        part(data=b"\n" * 5_000_000),
        Body(b"\r\n--" * 1_000_000, f"{MULTIPART}; boundary=x"),
        Body(b"url=" + b"%" * 5_000_000, URLENCODED),
        Body(b"a=&" * 1_600_000, URLENCODED),
        Body(b"url=" + b"+" * 5_000_000, URLENCODED),
    ],
    ids=range(10),
)
def test_a_hostile_form_costs_little(body):
    tracemalloc.start()
    started = time.monotonic()
    with contextlib.suppress(InvalidRequestError):
        parse(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - started < 5
    assert peak < 8 * len(body.data)


def test_nothing_that_was_sent_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    parse(form(file()))
    for body in (part(headers=b"secret\x01: a\r\n"), Body(b"secret", part().content_type)):
        assert "secret" not in refused(body)
    assert caplog.records == []


def test_the_parser_of_forms_is_imported_when_a_form_arrives():
    code = "import sys, serving.http_events as h; print('python_multipart' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "False\n", process.stderr


@pytest.mark.parametrize(
    ("data", "request_"),
    [
        (urlencode({"url": URL, "top": 2}), Request(OF_URL.sources, top=2)),
        (urlencode({"url": URL, "details": "on"}), Request(OF_URL.sources, details=True)),
        (f"url={URL}&details=0&details=1", OF_URL),
        (f"url={URL}&top=1000000000", Request(OF_URL.sources, top=10**9)),
        (f"url={URL}", OF_URL),
        (f"url={URL}&url=https://b", Request((*OF_URL.sources, Source(url="https://b")), True)),
        (f"urls={URL}", Request(OF_URL.sources, True)),
        (urlencode({"image": base64.b64encode(b"\xfb\xff" * 9)}), b"\xfb\xff" * 9),
        ("image=" + base64.b64encode(b"\xfb\xff" * 9).decode(), b"\xfb\xff" * 9),
        (f"\ufeff{JSON}", OF_URL),
        (f' {JSON[:-1]}, "a": "b=c"}}', OF_URL),
    ],
)
def test_an_urlencoded_form_is_read_as_well(data, request_):
    if isinstance(request_, bytes):
        request_ = Request((Source(image=request_),))
    assert parse(Body(data.encode(), URLENCODED)) == request_


@pytest.mark.parametrize(
    ("data", "received"),
    [
        ("name=rose", "Received: a form without these."),
        ("https://a.b/c?d=e", 'Received: an address alone. Send it as {"url": "https://..."}.'),
        ("url=a&top=two", "whole number from 1. Received: two."),
        ("url=a&details=all", "true or false. Received: all."),
        ("&".join(["a=b"] * 65), "at most 64 fields. Received: a longer one."),
    ],
)
def test_an_urlencoded_form_without_an_image_is_refused(data, received):
    assert received in refused(Body(data.encode(), URLENCODED))


@pytest.mark.parametrize("ending", [b"\xff", b"\xff\xff", b"\xff\xff\xff"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])
def test_base64_alone_is_no_form_whatever_its_padding(encode, ending):
    sentence = 'Received: base64 alone. Send it as {"image": "<base64>"}.'
    assert refused(Body(encode(IMAGE + ending), URLENCODED)).endswith(sentence)


@pytest.mark.parametrize("data", [b"url=", b"image=\n", b"url=&image=", b"a="])
def test_a_form_of_empty_fields_is_a_form(data):
    assert refused(Body(data, URLENCODED)).endswith("Received: a form without these.")


def test_another_type_is_named_as_far_as_it_prints():
    sentence = refused(Body(b"{}", "Text/HTML\x00; charset=utf-8"), UnsupportedTypeError)
    assert "Received: text/html\\x00. " in sentence


# Codings.


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
        ("gzip", lambda data: gzip.compress(data) + gzip.compress(b"") * 127),
        (" X-GZip ", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),
        ("identity", bytes),
        ("", bytes),
        ("gzip", bytes),  # a gateway has unpacked it
        ("deflate", bytes),
    ],
)
def test_packed_bodies_are_unpacked(coding, pack):
    assert unpack(pack(JSON.encode()), coding) == JSON.encode()


def test_a_bomb_is_not_unpacked():
    bomb = gzip.compress(bytes(200_000_000), 1)
    tracemalloc.start()
    with pytest.raises(TooLargeError, match="at most 6 MB when unpacked. Received: more"):
        unpack(bomb, "gzip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_UNPACKED
    assert len(unpack(gzip.compress(bytes(MAX_UNPACKED)), "gzip")) == MAX_UNPACKED


def test_members_are_at_most_6_mb_together():
    half = gzip.compress(bytes(MAX_UNPACKED // 2))
    assert unpack(half * 2, "gzip") == bytes(MAX_UNPACKED)
    with pytest.raises(TooLargeError, match="at most 6 MB when unpacked. Received: more"):
        unpack(half * 2 + gzip.compress(b"a"), "gzip")


def test_a_body_of_very_many_members_is_refused_at_once():
    started = time.process_time()
    with pytest.raises(InvalidRequestError) as caught:
        unpack(gzip.compress(b"") * 300_000, "gzip")
    assert str(caught.value) == (
        "Expected a gzip body of at most 128 members. Received: more. Pack it as one."
    )
    assert time.process_time() - started < 2


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "base64", "a\0" * 50])
def test_other_codings_are_refused(coding):
    with pytest.raises(UnsupportedTypeError, match="^Expected a body without Content-Encoding, or"):
        unpack(b"{}", coding)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-9],
        lambda d: d.decode("utf-8", "replace").encode(),
        lambda d: d + d[:-9],
        lambda d: d + b"\n",
    ],
)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_damaged_packed_body_is_told(coding, damage):
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}[coding](IMAGE * 9)
    with pytest.raises(InvalidRequestError, match=f"Expected a complete body in {coding}"):
        unpack(damage(packed), coding)
