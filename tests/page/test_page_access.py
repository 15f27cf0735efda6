"""The page for everybody: keyboard, screen reader, phone, dark mode."""

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import stripes
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.page.images import patches, scene
from tests.page.steps import answered, drop, expect_clipboard, failure, give_files, results

PHONE = {"viewport": {"width": 375, "height": 700}, "has_touch": True, "is_mobile": True}
DARK = {"color_scheme": "dark"}
LOOKS = {"light": {}, "dark": DARK, "phone": PHONE}
SERIOUS = {"serious", "critical"}


def nothing(page: Page, folder: Path) -> None:
    expect(page.get_by_role("heading", level=1)).to_be_visible()


def one(page: Page, folder: Path) -> None:
    path = folder / "scene.png"
    scene((480, 320)).save(path)
    give_files(page, path)
    article = answered(page)
    article.locator("summary").click()


def unknown(page: Page, folder: Path) -> None:
    path = folder / "stripes.png"
    Image.fromarray(stripes()).save(path)
    give_files(page, path)
    answered(page)


def failed(page: Page, folder: Path) -> None:
    path = folder / "text.jpg"
    path.write_text("no image")
    give_files(page, path)
    failure(page)


def gallery(page: Page, folder: Path) -> None:
    broken = folder / "broken.png"
    broken.write_bytes(patches(folder, "red").read_bytes()[:40])
    long_name = f"{'a_long_name_' * 12}.png"
    give_files(page, patches(folder, "red"), patches(folder, "green", long_name), broken)
    results(page, 3)


STATES = {each.__name__: each for each in (nothing, one, unknown, failed, gallery)}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing_serious(front, open_page, tmp_path, look, state):
    page = open_page(front.url, **LOOKS[look])
    STATES[state](page, tmp_path)
    found = Axe().run(page).response["violations"]
    described = [
        f"{each['impact']}: {each['id']}: {each['help']}: {node['html']}"
        for each in found
        for node in each["nodes"]
    ]
    assert not [each for each in found if each["impact"] in SERIOUS], "\n".join(described)


@pytest.mark.parametrize("width", [375, 320])
def test_nothing_is_wider_than_a_phone(front, open_page, tmp_path, width):
    page = open_page(front.url, viewport={"width": width, "height": 600})
    for state in STATES.values():
        state(page, tmp_path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state.__name__
        page.reload()


def test_axe_would_find_something(page):
    page.evaluate("document.body.append(document.createElement('button'))")
    assert "button-name" in {each["id"] for each in Axe().run(page).response["violations"]}


def background(page: Page) -> int:
    """Return how light the page's background is, 0 to 255."""
    color = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    if color == "rgba(0, 0, 0, 0)":
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", color)[:3])) // 3


def test_dark_mode_is_dark(front, open_page):
    assert background(open_page(front.url)) > 200
    assert background(open_page(front.url, **DARK)) < 60


def tab_to(page: Page, target: Locator, most: int = 30) -> None:
    """Press Tab until `target` has the focus, which has to be visible there."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            style = target.evaluate(
                "e => { const s = getComputedStyle(e); return [s.outlineStyle, s.boxShadow]; }"
            )
            assert style != ["none", "none"], "the focus cannot be seen"
            return
    raise AssertionError(f"Tab does not lead to {target}")


def test_a_whole_run_with_the_keyboard_alone(front, open_page, tmp_path):
    page = open_page(front.url, permissions=["clipboard-read", "clipboard-write"])
    path = tmp_path / "scene.png"
    scene((480, 320)).save(path)
    tab_to(page, page.get_by_role("button", name="Choose images"))
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([path])
    article = answered(page)
    switch = article.get_by_role("button", name="Heat map")
    before = switch.get_attribute("aria-pressed")
    tab_to(page, switch)
    page.keyboard.press("Space")
    assert {before, switch.get_attribute("aria-pressed")} == {"true", "false"}
    summary = article.locator("summary")
    tab_to(page, summary)
    page.keyboard.press("Enter")
    tab_to(page, article.get_by_role("button", name="Copy"))
    page.keyboard.press("Enter")
    expect_clipboard(page, article.locator("pre > code").inner_text())


def test_a_url_with_the_keyboard_alone(page, watch, http_server):
    address = http_server({})
    watch.allow(address)
    tab_to(page, page.get_by_role("textbox", name="Image URL"))
    page.keyboard.type(f"{address}/a.png")
    page.keyboard.press("Enter")
    assert failure(page)


def test_what_a_screen_reader_reads(front, page, tmp_path):
    path = patches(tmp_path, "red")
    give_files(page, path)
    article = answered(page)
    assert path.name in article.get_by_role("img").first.get_attribute("alt")
    tree = article.aria_snapshot()
    for label, score in front.ask_file(path)["scores"].items():
        assert re.search(rf"{label}\W+{score * 100:.1f} ?%", tree.replace("\n", " ")), tree
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    assert article.locator("canvas.heat").get_attribute("aria-hidden") == "true"
    assert page.locator("html").get_attribute("lang") == "en"


def test_focus_stays_where_it_was_while_answers_arrive(page, tmp_path):
    field = page.get_by_role("textbox", name="Image URL")
    field.focus()
    drop(page, "#drop", patches(tmp_path, "red"))
    results(page, 1)
    assert field.evaluate("element => element === document.activeElement")


def test_after_clear_the_focus_is_not_lost(page, tmp_path):
    give_files(page, patches(tmp_path, "red"), patches(tmp_path, "green"))
    results(page, 2)
    clear = page.get_by_role("button", name="Clear")
    clear.focus()
    page.keyboard.press("Enter")
    expect(page.locator("article.result")).to_have_count(0)
    assert page.evaluate("document.activeElement !== document.body")


def test_enlarged_text_fits(front, open_page, tmp_path):
    """At 400 %, a window of 1,280 pixels is 320 wide: WCAG 2.2, 1.4.10."""
    page = open_page(front.url, viewport={"width": 320, "height": 256})
    one(page, tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_who_wants_no_motion_gets_none(front, open_page, tmp_path):
    page = open_page(front.url, reduced_motion="reduce")
    give_files(page, patches(tmp_path, "red"))
    answered(page)
    moving = page.evaluate(
        "document.getAnimations().filter(each => each.effect.getTiming().duration > 10).length"
    )
    assert moving == 0
