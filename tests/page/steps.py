"""What a person does with the page, and what it shows then."""

import base64
import csv
import json
import re
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

LABELS = ("red", "green", "blue")


def give_files(page: Page, *paths: Path) -> None:
    """Choose files, as the dialog behind "Choose images" does."""
    page.locator("#file").set_input_files(paths)


def give_url(page: Page, url: str) -> None:
    """Type `url` and press "Classify"."""
    page.get_by_role("textbox", name="Image URL").fill(url)
    page.get_by_role("button", name="Classify", exact=True).click()


def drop(page: Page, selector: str, *paths: Path) -> None:
    """Drop files in the middle of an element, by the browser's own events."""
    box = page.locator(selector).bounding_box()
    assert box
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {
                "type": kind,
                "x": box["x"] + box["width"] / 2,
                "y": box["y"] + min(box["height"] / 2, 100),
                "data": {"items": [], "files": [*map(str, paths)], "dragOperationsMask": 1},
            },
        )


def copy_image(page: Page, png: Path) -> None:
    """Put an image on the clipboard, as another program would."""
    page.evaluate(
        """async base64 => {
            const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
            const blob = new Blob([bytes], {type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        base64.b64encode(png.read_bytes()).decode(),
    )


def results(page: Page, count: int, timeout: float = 15_000) -> list[Locator]:
    """Return the `count` results, newest first, once none of them waits any more."""
    articles = page.locator("article.result")
    expect(articles).to_have_count(count, timeout=timeout)
    waiting = page.locator("article.result[data-state=waiting]")
    expect(waiting).to_have_count(0, timeout=timeout)
    return articles.all()


def result(page: Page) -> Locator:
    """Return the only result."""
    return results(page, 1)[0]


def answered(page: Page) -> Locator:
    """Return the only result, which has to have an answer."""
    article = result(page)
    assert article.get_attribute("data-state") == "done", article.inner_text()
    return article


def failure(page: Page) -> str:
    """Return the sentence of the only result, which has to have failed."""
    article = result(page)
    assert article.get_attribute("data-state") == "failed", article.inner_text()
    return article.locator(".error").inner_text()


def bars(article: Locator) -> dict[str, float]:
    """Return the percentages beside the bars, {label: percent}, as they are read."""
    text = " ".join(article.locator(".bars").inner_text().split())
    return {name: float(share) for name, share in re.findall(r"(\S+) ([\d.]+) ?%", text)}


def shown(scores: dict[str, float]) -> dict[str, float]:
    """Return `scores` as the page rounds them."""
    return {label: round(score * 100, 1) for label, score in scores.items()}


def curl_line(article: Locator) -> str:
    """Return the request that the result shows, opening its details."""
    if not article.locator("details").get_attribute("open"):
        article.locator("summary").click()
    return article.locator("pre > code").inner_text()


def expect_clipboard(page: Page, text: str) -> None:
    """Fail unless `text` gets onto the clipboard, which takes a moment after the click."""
    for _ in range(100):
        if page.evaluate("navigator.clipboard.readText()") == text:
            return
        page.wait_for_timeout(50)
    assert page.evaluate("navigator.clipboard.readText()") == text


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file that the page saved."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def http_answer(status: int, body: object, kind: str = "application/json") -> dict:
    """Return a function's answer with `status` and `body`, text or what becomes JSON."""
    text = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": kind}
    return {"statusCode": status, "headers": headers, "body": text, "isBase64Encoded": False}
