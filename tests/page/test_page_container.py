"""The page of the container image, as `docker run` serves it.

Needs a Docker daemon, as tests/test_container.py does.
"""

import shutil
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from test_container import build, copy_context, docker, run, start  # noqa: F401 - a fixture

from benchmarks.load import image_server
from tests.page.images import patches, photo
from tests.page.steps import answered, failure, give_files, give_url
from tools.ministack import bridge


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Iterator[str]:
    """The address of a server with an image, which the container may ask."""
    folder = tmp_path_factory.mktemp("images")
    files = {"/green.png": patches(folder, "green").read_bytes()}
    with image_server(files, 0, bridge()) as address:
        yield address


@pytest.fixture(scope="module")
def container(docker, telling, images, tmp_path_factory) -> Iterator[str]:  # noqa: F811
    """The URL of the page in a container, which is run as on Lambda."""
    folder, name = tmp_path_factory.mktemp("context"), f"flowers-test-{uuid.uuid4().hex[:12]}"
    copy_context(folder)
    (folder / "models").mkdir()
    shutil.copy(telling.tflite, folder / "models" / "xception_fin_05_0.900.tflite")
    try:
        build(folder, "--tag", name)
        host = images.removeprefix("http://").partition(":")[0]
        endpoint = start(docker, name, name, f"--env=FETCH_ALLOW={host}")
        url = f"{endpoint.partition('/2015-03-31')[0]}/"
        wait(url)
        yield url
    finally:
        run("docker", "rm", "--force", name, check=False)
        run("docker", "image", "rm", "--force", name, check=False)


def wait(url: str) -> None:
    """Return once the container answers."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"{url}health", timeout=10):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def test_it_shows_the_classes_and_classifies_a_file(container, open_page, tmp_path):
    page = open_page(container)
    expect(page.locator("body")).to_contain_text("green")
    give_files(page, patches(tmp_path, "red"))
    expect(answered(page).locator(".label")).to_have_text("red")


def test_it_classifies_a_large_photo(container, open_page, tmp_path):
    page = open_page(container)
    give_files(page, photo(tmp_path / "photo.jpg", (4000, 3000)))
    article = answered(page)
    expect(article.get_by_role("button", name="Heat map")).to_be_visible()


def test_it_fetches_a_url(container, open_page, watch, images):
    watch.allow(images)
    page = open_page(container)
    give_url(page, f"{images}/green.png")
    expect(answered(page).locator(".label")).to_have_text("green")


def test_it_says_what_is_wrong(container, open_page, tmp_path: Path):
    page = open_page(container)
    path = tmp_path / "text.jpg"
    path.write_text("no image")
    give_files(page, path)
    assert "image" in failure(page)


def test_several_at_once_wait_for_each_other(container, open_page, tmp_path):
    page = open_page(container)
    give_files(page, *(patches(tmp_path, "red", f"{number}.png") for number in range(12)))
    done = page.locator("article.result[data-state=done]")
    expect(done).to_have_count(12, timeout=20_000)
