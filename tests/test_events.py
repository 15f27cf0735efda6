"""serving.events: what may be asked."""

import base64

import pytest

from serving.errors import InvalidRequestError
from serving.events import Request, parse


def test_a_url():
    assert parse({"url": " https://example.com/rose.jpg "}) == Request(
        url="https://example.com/rose.jpg"
    )


def test_an_image():
    assert parse({"image": base64.b64encode(b"bytes").decode()}) == Request(image=b"bytes")


def test_base64_with_line_breaks():
    assert parse({"image": base64.encodebytes(b"x" * 100).decode()}) == Request(image=b"x" * 100)


@pytest.mark.parametrize(
    ("event", "received"),
    [
        ({}, "neither"),
        ({"uri": "x"}, "neither"),
        ({"url": None}, "neither"),
        ({"url": "http://a", "image": "aGk="}, "both"),
        ({"url": 7}, "a number as url"),
        ({"url": ["http://a"]}, "a list as url"),
        ({"url": "  "}, "an empty string as url"),
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
    assert str(caught.value).startswith('Expected {"url": "https://..."} or {"image": ')
    assert str(caught.value).endswith(f"Received: {received}.")
