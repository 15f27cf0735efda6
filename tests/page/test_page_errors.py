"""What the page says when something fails, and that no text becomes part of it."""

import base64
import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from serving.classifier import Classifier
from serving.handler import Handler
from serving.service import Service
from tests.page.conftest import Front
from tests.page.images import patches
from tests.page.steps import (
    answered,
    bars,
    failure,
    give_files,
    give_url,
    http_answer,
    read_csv,
    results,
)

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>&amp;'
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60" '
    "onload=\"document.title = 'ran'\"><script>document.title = 'ran'</script></svg>"
)
BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


def is_post(event: dict) -> bool:
    return event["requestContext"]["http"]["method"] == "POST"


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return patches(tmp_path, "red")


def test_a_text_file_with_the_name_of_an_image(front, page, tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("no image")
    give_files(page, path)
    assert failure(page) == front.ask_file(path)["error"]["message"]


def test_an_empty_file(page, tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    give_files(page, path)
    assert failure(page)


def test_no_url(front, page):
    page.get_by_role("button", name="Classify", exact=True).click()
    give_url(page, "   ")
    page.wait_for_timeout(100)
    assert not front.sent()
    assert not page.locator("article.result[data-state=done]").count()


@pytest.mark.parametrize(
    ("status", "body", "kind", "expected"),
    [
        (502, BAD_GATEWAY, "text/html", "502"),
        (502, "Internal Server Error", "text/plain", "502"),
        (413, {"message": "Request Too Long"}, "application/json", "Request Too Long"),
        (413, "", "text/plain", "413"),
        (403, {"Message": "Forbidden"}, "application/json", "403"),
        (504, {"message": "Endpoint request timed out"}, "application/json", "timed out"),
        (429, {"message": "Too Many Requests"}, "application/json", "Too Many Requests"),
        (200, "surprise", "text/plain", ""),
        (200, [], "application/json", ""),
        (200, None, "application/json", ""),
        (200, {"label": "red"}, "application/json", ""),
        (400, {"error": {"type": "A", "message": HOSTILE}}, "application/json", HOSTILE),
        (400, {"error": HOSTILE}, "application/json", "400"),
    ],
)
def test_what_a_gateway_answers_instead(front, page, red, status, body, kind, expected):
    instead = http_answer(status, body, kind)
    front.intercept = lambda event, answer: instead if is_post(event) else answer(event)
    give_files(page, red)
    sentence = failure(page)
    assert expected in sentence
    assert 10 < len(sentence) < 400
    assert "<html" not in sentence
    assert "undefined" not in sentence
    assert "[object" not in sentence
    front.intercept = lambda event, answer: answer(event)
    give_files(page, red)  # the page goes on
    assert results(page, 2)[0].get_attribute("data-state") == "done"


def test_the_service_is_down(front, page, red):
    front.stop()
    give_files(page, red)
    assert failure(page)
    assert page.get_by_role("alert").count() == 1


def test_an_answer_that_never_comes(front, open_page, watch, red):
    watch.allow(front.url)
    page = open_page("about:blank")
    page.clock.install()
    page.goto(front.url)
    page.route(
        front.url, lambda route: None if route.request.method == "POST" else route.continue_()
    )
    with page.expect_request(lambda request: request.method == "POST"):  # its time has begun
        give_files(page, red)
    expect(page.locator("article.result[data-state=waiting]")).to_have_count(1)
    page.clock.fast_forward("05:00")
    assert "time" in failure(page) or "second" in failure(page)


def test_a_failure_is_said_once(page, tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("no image")
    give_files(page, path)
    sentence = failure(page)
    assert page.get_by_role("alert").count() == 1
    assert sentence not in page.get_by_role("status").inner_text()


def test_one_that_is_tried_again_beside_another_counts_once(front, page, tmp_path, red):
    other = patches(tmp_path, "green", "other.png")
    encoded = base64.b64encode(red.read_bytes()).decode()
    held, seen = [], []

    def answer(route):
        if route.request.method != "POST":
            route.continue_()
        elif json.loads(route.request.post_data)["image"] != encoded:
            held.append(route)
        elif seen:
            route.continue_()
        else:
            seen.append(route)
            route.fulfill(status=500, body="broken", content_type="text/plain")

    page.route(front.url, answer)
    give_files(page, red, other)
    first, progress = page.locator("article.result", has_text=red.name), page.locator("#progress")
    expect(first).to_have_attribute("data-state", "failed")
    expect(progress).to_contain_text("1 of 2")
    first.get_by_role("button", name="Try again").click()
    expect(first).to_have_attribute("data-state", "done")
    expect(progress).to_contain_text("1 of 2")
    [route] = held
    route.continue_()
    results(page, 2)
    expect(page.get_by_role("status")).to_have_text("2 images classified.")


@pytest.mark.parametrize("health", [http_answer(500, "broken", "text/plain"), http_answer(200, [])])
def test_without_health_it_still_classifies(front, open_page, red, health):
    front.intercept = lambda event, answer: (
        health if event["rawPath"] == "/health" else answer(event)
    )
    page = open_page(front.url)
    give_files(page, red)
    expect(answered(page).locator(".label")).to_have_text("red")


NAMES = [
    "<img src=x onerror=alert(1)>.png",
    "&lt;b&gt;.png",
    "'\"`;$(alert 1).png",
    "__proto__",
    "ａ\u202egnp.exe",
]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_are_text(page, tmp_path, name):
    give_files(page, patches(tmp_path, "red", name))
    expect(answered(page).locator("h2")).to_have_text(name)


def test_class_names_are_text(telling, decoder, open_page, tmp_path, red):
    classifier = Classifier(telling.tflite)
    classifier.labels = (HOSTILE, "__proto__", "constructor")
    with Front(Handler(Service(classifier, HOSTILE, decoder))) as front:
        page = open_page(front.url)
        give_files(page, red, patches(tmp_path, "green"))
        articles = results(page, 2)
        assert {each.locator(".label").inner_text() for each in articles} == {HOSTILE, "__proto__"}
        for article in articles:
            for label in classifier.labels:
                expect(article.locator(".bars")).to_contain_text(label)
        with page.expect_download() as download:
            page.get_by_role("button", name="Save CSV").click()
        download.value.save_as(tmp_path / "saved.csv")
        rows = {row["image"]: row for row in read_csv(tmp_path / "saved.csv")}
        scores = front.ask_file(red)["scores"]
        row = rows["red.png"]
        assert row["label"] == HOSTILE
        assert {label: float(row[label]) for label in classifier.labels} == scores


def test_many_long_class_names(telling, decoder, open_page, red):
    classifier = Classifier(telling.tflite)
    classifier.labels = ("r" * 300, "green " * 40, "blue")
    with Front(Handler(Service(classifier, "long", decoder))) as front:
        page = open_page(front.url, viewport={"width": 320, "height": 640})
        give_files(page, red)
        expect(answered(page).locator(".label")).to_have_text("r" * 300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_model_that_tells_only_scores(small_tflite, decoder, open_page, red):
    with Front(Handler(Service(Classifier(small_tflite), "small", decoder))) as front:
        page = open_page(front.url)
        give_files(page, red)
        article = answered(page)
        assert bars(article).keys() == {"red", "green", "blue"}
        expect(article.get_by_role("button", name="Heat map")).to_have_count(0)
        expect(article.locator(".label")).to_have_text("red")
        assert "null" not in article.inner_text()


def test_an_svg_runs_nothing(page, tmp_path):
    path = tmp_path / "drawing.svg"
    path.write_text(SVG)
    give_files(page, path)
    results(page, 1)
    assert page.title() != "ran"


@pytest.mark.parametrize(
    "url",
    ["javascript:document.title='ran'", "file:///etc/passwd", "data:text/html,<b>", "//a", "a"],
)
def test_what_is_no_url_is_not_sent(front, page, url):
    give_url(page, url)
    expect(page.get_by_role("status")).to_contain_text("http")
    assert not front.bodies
    assert page.title() != "ran"
