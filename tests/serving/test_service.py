"""serving.service: a request to its result, without events and HTTP."""

import base64
import time
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from serving import fetch
from serving import service as module
from serving.errors import (
    DeadlineError,
    ImageError,
    InternalError,
    InvalidRequestError,
    UnsupportedTypeError,
)
from serving.events import Request, Source, parse
from serving.service import Service, top_k

LABELS = ("red", "green", "blue")
FOREVER = float("inf")


def encoded(color):
    buffer = BytesIO()
    Image.new("RGB", (60, 40), color).save(buffer, "PNG")
    return buffer.getvalue()


def mean_color(inputs):
    """Return the shares of red, green and blue in the network's inputs, float32 (3,)."""
    shares = (inputs.mean((0, 1, 2)) + 1) / 2
    return shares / shares.sum()


@pytest.fixture
def service():
    classifier = SimpleNamespace(
        labels=LABELS, input_size=(9, 9), runtime="numpy", probabilities=mean_color
    )
    return Service(classifier, "colors")


@pytest.fixture
def three_images():
    return Request(tuple(Source(image=encoded(color)) for color in LABELS), is_batch=True)


def test_one_image_has_the_scores_of_all_labels(service):
    result = service.classify(Request((Source(image=encoded("red")),)), FOREVER)
    assert result.body == {"red": 1.0, "green": 0.0, "blue": 0.0}
    assert result.error is None
    assert [image.answer for image in result.images] == [result.body]


def test_the_error_of_one_image_is_that_of_the_request(service):
    result = service.classify(Request((Source(image=encoded("red")[:50]),)), FOREVER)
    assert isinstance(result.error, ImageError)
    assert result.body == {"error": {"type": "ImageError", "message": str(result.error)}}


def test_a_batch_has_no_error_of_its_own(service):
    images = [base64.b64encode(data).decode() for data in (encoded("green"), b"no image")]
    result = service.classify(parse({"images": [*images, "?"]}), FOREVER)
    assert result.error is None
    assert result.body[0] == {"red": 0.0, "green": 1.0, "blue": 0.0}
    errors = [type(image.error) for image in result.images]
    assert errors == [type(None), UnsupportedTypeError, InvalidRequestError]


def test_after_the_reserve_no_image_is_decoded(service, three_images, monkeypatch):
    monkeypatch.setattr(module, "open_image", lambda *_: pytest.fail("decoded"))
    due = time.monotonic() + module.INFERENCE_RESERVE_S - 0.001
    result = service.classify(three_images, due)
    assert {type(image.error) for image in result.images} == {DeadlineError}


def test_urls_are_fetched_until_the_reserve(service, monkeypatch):
    calls = []

    def fetch_all(urls, latest):
        calls.append((urls, latest))
        return [encoded("blue"), InvalidRequestError("no url")]

    monkeypatch.setattr(module, "fetch_all", fetch_all)
    sources = (Source(url="http://a"), Source(image=encoded("red")), Source(url="b"))
    due = time.monotonic() + 60
    result = service.classify(Request(sources, is_batch=True), due)
    assert calls == [(["http://a", "b"], due - module.INFERENCE_RESERVE_S)]
    assert [max(image.answer, key=image.answer.get) for image in result.images] == [
        "blue",
        "red",
        "error",
    ]


def test_an_unexpected_error_costs_its_own_image_only(service, three_images, monkeypatch, capsys):
    probabilities = service.classifier.probabilities

    def fail_on_green(inputs):
        scores = probabilities(inputs)
        if np.argmax(scores) == 1:
            raise ZeroDivisionError
        return scores

    monkeypatch.setattr(service.classifier, "probabilities", fail_on_green)
    result = service.classify(three_images, FOREVER, "id-1")
    assert [type(image.error) for image in result.images] == [type(None), InternalError, type(None)]
    [line] = capsys.readouterr().out.splitlines()
    assert '"request_id": "id-1"' in line
    assert "ZeroDivisionError" in line


def test_files_are_not_kept_nor_what_their_errors_refer_to(service, three_images):
    sources = (*three_images.sources, Source(image=b"no image"))
    result = service.classify(Request(sources, is_batch=True), FOREVER)
    assert [image.data for image in result.images] == [b""] * 4
    assert result.images[3].error.__traceback__ is None
    assert result.images[3].error.__cause__ is None


def test_an_image_of_more_bytes_than_a_url_may_have_is_refused(service, monkeypatch):
    monkeypatch.setattr(module, "open_image", lambda *_: pytest.fail("decoded"))
    result = service.classify(Request((Source(image=bytes(fetch.MAX_BYTES + 1)),)), FOREVER)
    assert result.error.status == 413


def test_all_scores_come_in_the_order_of_the_classes_and_the_best_by_score():
    scores = np.float32([0.2, 0.5, 0.3])
    assert list(top_k(LABELS, scores, None).items()) == [
        ("red", 0.2),
        ("green", 0.5),
        ("blue", 0.3),
    ]
    assert list(top_k(LABELS, scores, 2).items()) == [("green", 0.5), ("blue", 0.3)]
    assert list(top_k(LABELS, scores, 9)) == ["green", "blue", "red"]
