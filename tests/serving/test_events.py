"""serving.events: what a request may contain, and the sentences that refuse others."""

import base64

import pytest

from serving.errors import InvalidRequestError
from serving.events import MAX_IMAGES, Request, Source, parse, parse_top

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
    ],
)
def test_an_image(text):
    assert parse({"image": text}) == Request((Source(image=b"x" * 100),))


def test_base64_is_that_of_rfc_4648_with_padding():
    assert parse({"image": "+/8="}) == Request((Source(image=b"\xfb\xff"),))
    for text in ("-_8=", "+/8", "+/8=====!", "+!/8=", "+/8*", "===="):
        with pytest.raises(InvalidRequestError, match="Received: an image that is not base64"):
            parse({"image": text})


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


@pytest.mark.parametrize("top", [0, -1, 1.0, True, "", "1", [1], {}])
def test_top_is_a_whole_number_from_1(top):
    with pytest.raises(InvalidRequestError, match="^Expected top to be a whole number from 1"):
        parse({"url": "http://a", "top": top})


@pytest.mark.parametrize(
    ("event", "received"),
    [
        ({}, "none of these"),
        ({"uri": "x"}, "none of these"),
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
