"""The request that the page shows, run by bash as it stands there."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.page.images import patches, photo
from tests.page.steps import (
    answered,
    bars,
    curl_line,
    expect_clipboard,
    give_files,
    give_url,
    results,
    shown,
)

NAMES = (
    "plain.png",
    "two words.png",
    'it\'s "quoted".png',
    "semi;colon,comma.png",
    "-leading.png",
    "@at=.png",
    "$(touch ran) `touch ran` $HOME !!.png",
    "back\\slash\\.png",
    "line\nbreak.png",
    "ünïcode 花.png",
    "%41 {a,b} [1-3].png",
)


@pytest.fixture(autouse=True)
def curl() -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl is installed")


def run(line: str, folder: Path) -> dict:
    """Return the JSON that the command `line` prints in `folder`."""
    process = subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=20
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def scores(answer: dict) -> dict[str, float]:
    return answer.get("scores", answer)


def test_it_answers_as_the_page_whatever_a_file_is_called(page, tmp_path):
    give_files(page, *(patches(tmp_path, "red", name) for name in NAMES))
    for article in results(page, len(NAMES)):
        answer = scores(run(curl_line(article), tmp_path))
        assert bars(article) == shown(answer), article.locator("h2").inner_text()
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(NAMES)


def test_of_a_large_photo(page, tmp_path):
    give_files(page, photo(tmp_path / "photo.jpg", (2000, 1500)))
    answer = scores(run(curl_line(answered(page)), tmp_path))
    assert bars(answered(page)) == pytest.approx(shown(answer), abs=1)


def test_of_a_url(page, watch, http_server, tmp_path, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")
    image = patches(tmp_path, "green").read_bytes()
    target = "/it's%20a$(touch%20ran).png?a=1&b=%22"
    address = http_server({target: (200, {"Content-Type": "image/png"}, image)})
    watch.allow(address)
    give_url(page, address + target)
    answer = scores(run(curl_line(answered(page)), tmp_path))
    assert bars(answered(page)) == shown(answer)
    assert [each.name for each in tmp_path.iterdir()] == ["green.png"]


def test_it_can_be_copied(front, open_page, tmp_path):
    page = open_page(front.url, permissions=["clipboard-read", "clipboard-write"])
    give_files(page, patches(tmp_path, "red", "it's.png"))
    line = curl_line(answered(page))
    page.get_by_role("button", name="Copy").click()
    expect_clipboard(page, line)
