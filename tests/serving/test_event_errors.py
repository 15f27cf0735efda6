"""serving.events: the sentences that a caller reads, whole, and the edges of what is accepted."""

import base64

import pytest

from serving.errors import InvalidRequestError
from serving.events import MAX_IMAGES, Request, Source, parse, parse_top

EXPECTED = (
    'Expected {"url": "https://..."}, {"image": "<base64 of an image file>"}, {"urls": [...]} '
    'or {"images": [...]}.'
)


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
    asked = {"url": None, "urls": None, "images": None, "image": "aGk=", "top": None}
    assert parse(asked) == Request((Source(image=b"hi"),), is_batch=False, top=None)


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
