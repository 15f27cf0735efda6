"""serving.events: what a request may contain, and the sentences that refuse others."""

import base64
import contextlib
import sys
import time
import tracemalloc

import pytest

from serving.errors import InvalidRequestError
from serving.events import (
    MAX_IMAGES,
    Request,
    Source,
    parse,
    parse_details,
    parse_top,
    read_details,
)

EXPECTED = (
    'Expected {"url": "https://..."}, {"image": "<base64 of an image file>"}, {"urls": [...]} '
    'or {"images": [...]}.'
)


def test_a_url():
    assert parse({"url": " https://example.com/rose.jpg "}) == Request(
        (Source(url="https://example.com/rose.jpg"),)
    )


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(b"x" * 100).decode(),
        base64.encodebytes(b"x" * 100).decode(),
        "data:image/png;base64," + base64.b64encode(b"x" * 100).decode(),
        " \n data:;base64, " + base64.b64encode(b"x" * 100).decode(),
        "data:," + base64.b64encode(b"x" * 100).decode(),
        "DATA:IMAGE/PNG;charset=utf-8;BASE64," + base64.b64encode(b"x" * 100).decode(),
        "image/png;base64," + base64.b64encode(b"x" * 100).decode(),
        "data:image/png," + "%78" * 100,
        "data%3Aimage%2Fpng%3Bbase64%2C" + base64.b64encode(b"x" * 100).decode().rstrip("="),
        '"' + base64.b64encode(b"x" * 100).decode() + '"',
        str(base64.b64encode(b"x" * 100)),
        "\ufeff" + base64.b64encode(b"x" * 100).decode(),
        base64.b64encode(b"x" * 100).decode().replace("4e", "4\\r\\ne"),
    ],
)
def test_an_image(text):
    assert parse({"image": text}) == Request((Source(image=b"x" * 100),))
    if text.strip()[:4].lower() == "data":
        assert parse({"urls": [text]}).sources == (Source(image=b"x" * 100),)


def test_base64_is_that_of_rfc_4648_in_both_alphabets_padded_or_not():
    for text in ("+/8=", "-_8=", "+/8", "-_8", "%2B%2f8%3D", "+\n/8=", "\u200b+/8="):
        assert parse({"image": text}) == Request((Source(image=b"\xfb\xff"),))
    for text in ("+/8=====!", "+!/8=", "+/8*", "====", "+/8===", "aGk=aGk=", "a", "data:;base64,!"):
        with pytest.raises(InvalidRequestError, match="Received: an image that is not base64"):
            parse({"image": text})


ADDRESS = "https://example.com/a.jpg"


@pytest.mark.parametrize(
    "text",
    [
        *(f"{mark}{ADDRESS}{mark}" for mark in "\ufeff\u200b\u200e\u2060\u00ad\u00a0\u3000 \n"),
        *(f"<{ADDRESS}>", f'"{ADDRESS}"', f"'{ADDRESS}'", f"`{ADDRESS}`", f"({ADDRESS})"),
        *(f"\u201c{ADDRESS}\u201d", f"\u00ab {ADDRESS} \u00bb", f'"<{ADDRESS}>"', f'{ADDRESS}"'),
        *(f"**{ADDRESS}**", f"|| {ADDRESS} ||", f"_{ADDRESS}_", f"{{{ADDRESS}}}"),
        *(f"\uff08{ADDRESS}\uff09", f"\u300c{ADDRESS}\u300d", f"\u00bb{ADDRESS}\u00ab"),
        *(
            f"{ADDRESS}{mark}"
            for mark in (".", ",", ";", "...", "\u3002", "\u2026", ")", "),", '",')
        ),
        *(
            f"[a rose]({ADDRESS})",
            f"![]( <{ADDRESS}> )",
            f"[{ADDRESS}]({ADDRESS} 'A rose')",
        ),
        *(f"<{ADDRESS}|a rose>", f"<{ADDRESS}|{ADDRESS}>"),
        *(ADDRESS.replace("//", slashes) for slashes in ("/", "///", "\\", "/\\")),
        *("https:\\/\\/example.com\\/a.jpg", "https:\\\\example.com\\a.jpg"),
        *(
            "https://exam\nple.com/\r\n   a.jpg",
            "https://example.com/\ta.jpg",
            "https://example\u200b.com/a.jpg",
        ),
    ],
)
def test_what_copying_adds_to_a_url_is_dropped(text):
    assert parse({"url": text}) == Request((Source(url=ADDRESS),))
    assert parse({"urls": [text]}).sources == (Source(url=ADDRESS),)


@pytest.mark.parametrize(
    "url",
    [
        "https://en.wikipedia.org/wiki/Rose_(flower)",
        "https://web.archive.org/web/2020/https://example.com/a.jpg",
        "https://example.com/a|b*_~]",
        "https://example.com/it's'",
        "https://example.com/my rose.jpg",
        "https://example.com/a?b=\\c#\\d",
        "https://example.com/\u200c\u2019",
        "rose.jpg",
    ],
)
def test_what_may_belong_to_a_url_stays(url):
    assert parse({"url": url}) == Request((Source(url=url),))


@pytest.mark.parametrize(
    "text",
    [
        " ",
        '"',
        "\n",
        "%",
        "\\n",
        ",",
        "\u200b",
        "b'",
        "http:/ ",
        "base64",
        "(",
        "[",
        "](https:/",
        " ).",
    ],
)
@pytest.mark.parametrize("start", ["", "data:a;base64,"])
def test_long_texts_take_no_longer_than_they_are(text, start):
    """Milliseconds each, where a quadratic step would take hours."""
    for key in ("url", "image"):
        started = time.monotonic()
        with contextlib.suppress(InvalidRequestError):
            parse({key: start + text * (300_000 // len(text))})
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "text", ["ab\n", "ab ", "ab\\n", "\u0436\u00ad", " http:/", "\u0436\u3000", "a\u200b"]
)
@pytest.mark.parametrize("key", ["url", "image"])
def test_long_texts_take_no_more_memory_than_a_few_copies(key, text):
    """Where a list of the words or lines in them would take twenty times as much."""
    event = {key: text * (600_000 // len(text))}
    tracemalloc.start()
    with contextlib.suppress(InvalidRequestError):
        parse(event)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * sys.getsizeof(event[key])


def test_of_many_keys_only_a_few_are_read():
    event = dict.fromkeys(map(str, range(300_000)), 1)
    tracemalloc.start()
    with pytest.raises(InvalidRequestError, match=r"none of these, but 0, 1, 2\.$"):
        parse(event)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_white_space_in_base64_is_that_of_unicode():
    spaces = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    for space in spaces:
        assert parse({"image": f"+{space}/8{space}="}) == Request((Source(image=b"\xfb\xff"),))


def test_a_url_has_at_most_65536_characters_around_it():
    url = "https://example.com/a.jpg"
    assert parse({"url": f"{url}{',' * (65_536 - len(url))}"}) == Request((Source(url=url),))
    with pytest.raises(InvalidRequestError) as caught:
        parse({"url": f"{url}{',' * (65_537 - len(url))}"})
    assert str(caught.value) == (
        f"{EXPECTED} Received: more than 65536 characters as url. Send an image as image."
    )


def test_several_in_order():
    urls = ["https://example.com/1", "https://example.com/2"]
    assert parse({"urls": urls, "top": 2}) == Request(
        tuple(Source(url=url) for url in urls), is_batch=True, top=2
    )
    assert parse({"images": ["aGk="]}) == Request((Source(image=b"hi"),), is_batch=True)
    assert parse({"image": None, "urls": urls[:1], "url": None}) == Request(
        (Source(url=urls[0]),), is_batch=True
    )


def test_sixteen_are_the_most():
    urls = [f"https://example.com/{n}" for n in range(16)]
    assert parse({"urls": urls}).sources == tuple(Source(url=url) for url in urls)
    images = [base64.b64encode(bytes([n])).decode() for n in range(16)]
    assert parse({"images": images}).sources == tuple(Source(image=bytes([n])) for n in range(16))
    for several in ({"urls": [*urls, urls[0]]}, {"images": [*images, images[0]]}):
        with pytest.raises(InvalidRequestError, match="to be a list of 1 to 16. Received: 17"):
            parse(several)


def test_a_wrong_one_costs_the_others_nothing():
    request = parse({"images": ["aGk=", "not base64!", 7, "aG8="]})
    assert [type(source) for source in request.sources] == [
        Source,
        InvalidRequestError,
        InvalidRequestError,
        Source,
    ]
    assert request.sources[3] == Source(image=b"ho")


@pytest.mark.parametrize("top", [1, 5, 10**6])
def test_top(top):
    assert parse({"url": "http://a", "top": top}).top == top


@pytest.mark.parametrize("top", [0, -1, 1.5, True, "", "1", [1], {}])
def test_top_is_a_whole_number_from_1(top):
    shown = top if type(top) in (int, float) else "an?"
    sentence = f"^Expected top to be a whole number from 1. Received: {shown}"
    with pytest.raises(InvalidRequestError, match=sentence):
        parse({"url": "http://a", "top": top})


@pytest.mark.parametrize(
    ("event", "received"),
    [
        ({}, "none of these"),
        ({"uri": "x", "top": 1}, "none of these, but uri"),
        (
            {"\ufeffurl": 1, "": 2, "b" * 99: 3, "c": 4},
            f"none of these, but \\ufeffurl, {'b' * 40}, c",
        ),
        ({"image": "https://a.b/c"}, "the address of an image as image. Send it as url"),
        ({"url": "http://a HTTPS://b"}, 'several addresses as url. Send them as {"urls": [...]}'),
        ({"url": "\ufeff\u200b"}, "an empty string as url"),
        ({"url": "<\u200e>"}, "an empty string as url"),
        ({"url": None}, "none of these"),
        ({"url": "http://a", "image": "aGk="}, "url and image"),
        ({"url": "http://a", "urls": ["http://a"]}, "url and urls"),
        ({"url": 7}, "a number as url"),
        ({"url": ["http://a"]}, "a list as url"),
        ({"url": "  "}, "an empty string as url"),
        ({"url": ""}, "an empty string as url"),
        ({"image": ""}, "an empty string as image"),
        ({"url": False}, "a boolean as url"),
        ({"image": 0}, "a number as image"),
        ({"image": "aGk=", "images": ["aGk="]}, "image and images"),
        ({"urls": ["http://a"], "images": []}, "urls and images"),
        ({"image": {"a": 1}}, "an object as image"),
        ({"image": "not base64!"}, "an image that is not base64"),
        ({"image": "é"}, "an image that is not base64"),
        (None, "null"),
        ("http://a", "a string"),
        ([], "a list"),
        (3.5, "a number"),
        (True, "a boolean"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(event, received):
    with pytest.raises(InvalidRequestError) as caught:
        parse(event)
    assert str(caught.value).startswith('Expected {"url": "https://..."}, {"image": ')
    assert str(caught.value).endswith(f"Received: {received}.")


@pytest.mark.parametrize(
    ("values", "received"),
    [
        ([], "0"),
        (["http://a"] * (MAX_IMAGES + 1), "17"),
        ("http://a", "a string"),
        ({}, "an obj"),
        (7, "a number"),
    ],
)
def test_a_list_is_neither_empty_nor_too_long(values, received):
    with pytest.raises(InvalidRequestError, match=f"a list of 1 to 16. Received: {received}"):
        parse({"urls": values})


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (b"bytes", f"{EXPECTED} Received: something else."),
        ({}, f"{EXPECTED} Received: none of these."),
        ({"images": [], "urls": []}, f"{EXPECTED} Received: urls and images."),
        ({"image": ""}, f"{EXPECTED} Received: an empty string as image."),
        ({"url": " \n"}, f"{EXPECTED} Received: an empty string as url."),
        ({"image": "a"}, f"{EXPECTED} Received: an image that is not base64."),
        ({"images": "aGk="}, "Expected images to be a list of 1 to 16. Received: a string."),
        ({"urls": []}, "Expected urls to be a list of 1 to 16. Received: 0."),
        (
            {"url": "http://a", "top": "3"},
            "Expected top to be a whole number from 1. Received: a string. "
            "Leave it out for all classes.",
        ),
    ],
)
def test_a_refusal_says_all_of_this(event, sentence):
    with pytest.raises(InvalidRequestError) as caught:
        parse(event)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("event", "received"),
    [
        ({"urls": [7, "http://a"]}, "a number as url"),
        ({"images": [7, "aGk="]}, "a number as image"),
    ],
)
def test_what_is_wrong_in_a_list_is_named_as_it_would_be_alone(event, received):
    refused, taken = parse(event).sources
    assert str(refused) == f"{EXPECTED} Received: {received}."
    assert isinstance(taken, Source)


@pytest.mark.parametrize("count", [1, MAX_IMAGES])
@pytest.mark.parametrize(("key", "value"), [("urls", "http://a"), ("images", "aGk=")])
def test_a_list_of_one_and_a_full_one_are_accepted(key, value, count):
    request = parse({key: [value] * count})
    assert len(request.sources) == count
    assert request.is_batch


def test_what_is_null_counts_as_left_out():
    event = {"url": None, "urls": None, "images": None, "image": "aGk=", "top": None}
    assert parse(event) == Request((Source(image=b"hi"),), is_batch=False, top=None)


def test_top_may_be_one_and_none_stands_for_all():
    assert parse_top(1) == 1
    assert parse_top(None) is None
    assert parse({"image": "aGk=", "top": 2}).top == 2


def test_a_data_url_may_have_space_around_it_and_one_comma_only():
    text = base64.b64encode(b"x" * 60).decode()
    assert parse({"image": f" \ndata:image/png;base64,{text}\n"}) == Request(
        (Source(image=b"x" * 60),)
    )
    with pytest.raises(InvalidRequestError, match="an image that is not base64"):
        parse({"image": f"data:image/png;base64,{text},"})


@pytest.mark.parametrize(("value", "details"), [(True, True), (False, False), (None, False)])
def test_details_are_true_or_false_for_one_image_and_several(value, details):
    for event in ({"url": "http://a"}, {"image": "aGk="}, {"urls": ["http://a"]}):
        assert parse(event).details is False
        assert parse(event | {"details": value}).details is details
    assert parse_details(value) is details


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (1, "1"),
        (0, "0"),
        (0.5, "0.5"),
        ("true", "a string"),
        ("", "a string"),
        ([True], "a list"),
        ({}, "an object"),
    ],
)
def test_other_details_are_refused(value, received):
    with pytest.raises(InvalidRequestError) as caught:
        parse({"url": "http://a", "details": value})
    assert str(caught.value) == (
        f"Expected details to be true or false. Received: {received}. Leave it out for scores only."
    )


def test_details_name_no_image():
    with pytest.raises(InvalidRequestError, match="Received: none of these, but uri"):
        parse({"uri": "x", "details": True})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "1", "yes", "on", "TRUE", " On ")),
        *((text, False) for text in ("false", "0", "no", "off", "False")),
        *((text, None) for text in ("", " \n")),
    ],
)
def test_text_is_yes_or_no_or_empty(text, value):
    assert read_details(text) is value


@pytest.mark.parametrize(
    ("text", "received"), [("2", "2"), (" y ", "y"), ("None", "None"), ("a\0", r"a\x00")]
)
def test_other_text_is_shown(text, received):
    with pytest.raises(InvalidRequestError) as caught:
        read_details(text)
    assert str(caught.value) == (
        f"Expected details to be true or false. Received: {received}. Leave it out for scores only."
    )
