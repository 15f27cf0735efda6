"""Requests to the stack: the API, the Function URL, and the page behind both."""

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from tests.cloud.steps import ROOT, ask, best, post_image, post_signed
from tests.page.browser import MISSING, find_chromium, launched
from tests.page.conftest import open_page, watch  # noqa: F401 - fixtures
from tests.page.steps import answered, bars, give_files
from tools import ministack

TO_ALL = {"FunctionUrlAuthorization": "NONE"}
TO_NONE = {"ApiAuthorization": "AWS_IAM"}


@pytest.fixture
def deploy(cloud, image):
    """Deploy the stack again with parameters; in the end it has its own again."""
    yield lambda parameters: ministack.deploy(cloud.url, image, parameters)
    ministack.deploy(cloud.url, image)


@pytest.fixture(scope="module")
def chromium(cloud) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip(MISSING)
    with launched(executable, urlsplit(cloud.url).hostname) as browser:
        yield browser


def test_the_api_answers_an_image(cloud):
    assert best(post_image(cloud.api)) == "rose"


def test_the_api_has_the_page_the_health_and_the_description(cloud):
    assert b"<!doctype html>" in ask(cloud.api, headers={"Accept": "text/html"})[1]
    assert json.loads(ask(f"{cloud.api}health")[1])["status"] == "ready"
    assert json.loads(ask(f"{cloud.api}openapi.json")[1])["openapi"].startswith("3.")


def test_wrong_requests_are_answered_by_the_service(cloud):
    status, body = ask(cloud.api, b"hello", {"Content-Type": "text/plain"})
    assert (status, json.loads(body)["error"]["type"]) == (400, "InvalidRequestError")
    status, body = ask(f"{cloud.api}a/path")
    assert (status, json.loads(body)["error"]["type"]) == (404, "NotFoundError")


def test_the_function_url_takes_signed_requests_only(cloud):
    assert post_image(cloud.function_url) == (403, b'{"Message":"Forbidden"}')
    assert best(post_signed(cloud.function_url, "lambda")) == "rose"


def test_by_its_parameter_the_api_takes_signed_requests_only(cloud, deploy):
    deploy(TO_NONE)
    assert post_image(cloud.api)[0] == 403
    assert best(post_signed(cloud.api, "execute-api")) == "rose"


@pytest.mark.parametrize("address", ["api", "function_url"])
def test_the_page_classifies_an_image(cloud, deploy, open_page, tmp_path, address):  # noqa: F811
    deploy(TO_ALL)
    page = open_page(getattr(cloud, address))
    expect(page.locator("body")).to_contain_text("daisy, dandelion, rose, sunflower and tulip")
    give_files(page, ROOT / "docs" / "rose.jpg")
    article = answered(page)
    expect(article.locator(".label")).to_have_text("rose")
    expect(article.get_by_role("button", name="Heat map")).to_be_visible()
    assert bars(article)["rose"] > 99
