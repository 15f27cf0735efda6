"""The page: every way in, and all that it shows of an answer."""

import json
import re
from pathlib import Path

import pytest
from conftest import stripes
from PIL import Image
from playwright.sync_api import expect

from tests.page.images import patches, scene
from tests.page.steps import (
    LABELS,
    answered,
    bars,
    copy_image,
    drop,
    failure,
    give_files,
    give_url,
    read_csv,
    result,
    results,
    shown,
)


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return patches(tmp_path, "red")


@pytest.fixture
def striped(tmp_path: Path) -> Path:
    """An image that the model does not know."""
    path = tmp_path / "stripes.png"
    Image.fromarray(stripes()).save(path)
    return path


def expect_red(article):
    expect(article.locator(".label")).to_have_text("red")
    expect(article.get_by_role("img").first).to_be_visible()


def test_it_says_what_it_classifies(page):
    expect(page.get_by_role("heading", level=1)).to_have_text("Image classifier")
    for label in LABELS:
        expect(page.locator("body")).to_contain_text(label)


def test_a_file_that_is_chosen(page, red):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose images").click()
    assert chooser.value.is_multiple()
    chooser.value.set_files([red])
    article = answered(page)
    expect_red(article)
    expect(article.get_by_role("heading", level=2)).to_have_text("red.png")


def test_the_same_file_can_be_chosen_twice(page, red):
    give_files(page, red)
    results(page, 1)
    give_files(page, red)
    assert [each.locator(".label").inner_text() for each in results(page, 2)] == ["red", "red"]


@pytest.mark.parametrize("where", ["#drop", "body"])
def test_files_that_are_dropped(page, red, where):
    drop(page, where, red)
    expect_red(answered(page))


def test_an_image_that_is_dragged_from_another_page(
    front, page, watch, http_server, red, monkeypatch
):
    """It comes as HTML, of which nothing is shown or loaded, beside a link to something else."""
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")
    address = http_server({"/a.png?b=1&c": (200, {"Content-Type": "image/png"}, red.read_bytes())})
    watch.allow(address)
    html = (
        f'<a href="{address}/page" style="color: red"><img style="width: 9px" '
        f'src="{address}/a.png?b=1&amp;c"'
        " onload=\"document.title = 'ran'\" onerror=\"document.title = 'ran'\"></a>"
        '<img src="http://192.0.2.1/pixel.png">'
    )
    page.evaluate(
        """([html, link]) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.setData("text/html", html);
            dataTransfer.setData("text/uri-list", link);
            const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
            document.querySelector("#drop").dispatchEvent(event);
        }""",
        [html, f"{address}/page"],
    )
    article = answered(page)
    expect_red(article)
    assert page.title() != "ran"
    assert [json.loads(body)["url"] for body in front.bodies] == [f"{address}/a.png?b=1&c"]


def test_a_folder_that_is_dropped(page, tmp_path, red):
    (tmp_path / "album" / "trip").mkdir(parents=True)
    patches(tmp_path / "album" / "trip", "green")
    patches(tmp_path / "album", "blue")
    (tmp_path / "album" / "notes.txt").write_text("no image")
    drop(page, "#drop", tmp_path / "album", red)
    labels = sorted(each.locator(".label").inner_text() for each in results(page, 3))
    assert labels == ["blue", "green", "red"]


def test_an_image_that_is_pasted_by_its_keys(front, open_page, red):
    page = open_page(front.url, permissions=["clipboard-read", "clipboard-write"])
    copy_image(page, red)
    page.keyboard.press("Control+V")
    expect_red(answered(page))


def test_an_image_that_is_pasted_by_the_button(front, open_page, red):
    page = open_page(front.url, permissions=["clipboard-read", "clipboard-write"])
    copy_image(page, red)
    page.get_by_role("button", name="Paste image").click()
    expect_red(answered(page))


def test_a_clipboard_without_an_image(front, open_page):
    page = open_page(front.url, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('only words')")
    page.get_by_role("button", name="Paste image").click()
    expect(page.locator("body")).to_contain_text(re.compile("no image", re.I))
    assert not front.bodies


def test_text_that_is_pasted_into_the_field_stays_there(front, open_page):
    page = open_page(front.url, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('https://example.com/a.jpg')")
    page.get_by_role("textbox", name="Image URL").focus()
    page.keyboard.press("Control+V")
    expect(page.get_by_role("textbox", name="Image URL")).to_have_value("https://example.com/a.jpg")
    assert not front.bodies


def test_phones_get_a_camera_and_computers_do_not(front, open_page):
    computer = open_page(front.url)
    expect(computer.get_by_role("button", name="Take a photo")).to_be_hidden()
    phone = open_page(front.url, has_touch=True, is_mobile=True)
    with phone.expect_file_chooser() as chooser:
        phone.get_by_role("button", name="Take a photo").tap()
    camera = phone.locator("input#camera")
    assert (camera.get_attribute("capture"), camera.get_attribute("accept")) == (
        "environment",
        "image/*",
    )
    assert chooser.value.element.get_attribute("id") == "camera"


def test_a_url(front, page, watch, http_server, red, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")
    address = http_server({"/a.png": (200, {"Content-Type": "image/png"}, red.read_bytes())})
    watch.allow(address)
    give_url(page, f"{address}/a.png")
    article = answered(page)
    expect_red(article)
    expect(article.get_by_role("heading", level=2)).to_contain_text("a.png")
    expect(article.locator("img")).to_have_js_property("naturalWidth", 60)  # once it is loaded
    assert not front.sent()  # the service fetches it


def test_a_url_that_the_service_may_not_fetch(page, watch, http_server):
    address = http_server({})
    watch.allow(address)  # the page may try to show the image
    give_url(page, f"{address}/private.png")
    assert "FETCH_ALLOW" in failure(page)


def test_the_numbers_are_those_of_the_service(front, page, red):
    give_files(page, red)
    expected = front.ask_file(red)
    article = answered(page)
    assert bars(article) == shown(expected["scores"])
    assert expected["prediction_set"] == ["red"]
    expect(article.locator(".set")).to_have_text("May be: red")
    assert re.search(r"\d ms", article.locator(".timing").inner_text())


def test_the_times_are_those_of_the_service(front, page, red):
    """A round trip holds the service's time."""
    give_files(page, red)
    times = re.findall(r"(\d+) ms", answered(page).locator(".timing").inner_text())
    assert len(times) == 2, times
    assert int(times[0]) >= int(times[1])


def test_an_image_of_something_else_is_unknown(front, page, striped):
    expected = front.ask_file(striped)
    assert expected["unknown"]
    give_files(page, striped)
    label = answered(page).locator(".label")
    expect(label).to_have_text(f"unknown (looks like {expected['label']})")


def test_what_is_announced(page, red, striped):
    status = page.get_by_role("status")
    give_files(page, red)
    results(page, 1)
    expect(status).to_have_text(re.compile(r"^red, [\d.]+ %"))
    give_files(page, striped)
    results(page, 2)
    expect(status).to_have_text(re.compile(r"^unknown \(looks like \w+\)"))
    expect(status).not_to_have_text(re.compile("%"))


def switch_on(article):
    switch = article.get_by_role("button", name="Heat map")
    if switch.get_attribute("aria-pressed") != "true":
        switch.click()


def test_the_heat_map_can_be_switched(front, page, tmp_path):
    path = tmp_path / "scene.png"
    scene((480, 320)).save(path)
    give_files(page, path)
    article = answered(page)
    canvas, switch = article.locator("canvas.heat"), article.get_by_role("button", name="Heat map")
    image = article.locator("img")
    if switch.get_attribute("aria-pressed") == "true":
        switch.click()
    expect(canvas).to_be_hidden()
    without = image.screenshot()
    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "true")
    expect(canvas).to_be_visible()
    assert image.screenshot() != without
    over, under = canvas.bounding_box(), image.bounding_box()
    assert over == pytest.approx(under, abs=1)


def test_the_heat_map_is_warm_where_the_model_looked(front, page, tmp_path):
    path = tmp_path / "scene.png"
    scene((480, 320)).save(path)
    heat = front.ask_file(path)["heatmap"]
    rows, columns, values = heat["rows"], heat["columns"], heat["values"]
    give_files(page, path)
    article = answered(page)
    switch_on(article)
    opacity = article.locator("canvas.heat").evaluate(
        """(canvas, [rows, columns]) => {
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            const at = (count, place, length) => Math.floor((place + 0.5) * length / count);
            return Array.from({ length: rows * columns }, (_, i) => {
                const row = at(rows, Math.floor(i / columns), height);
                return data[4 * (row * width + at(columns, i % columns, width)) + 3];
            });
        }""",
        [rows, columns],
    )
    hottest, coldest = values.index(max(values)), values.index(min(values))
    assert opacity[hottest] > opacity[coldest] + 20


def test_several_become_a_gallery_with_a_table_to_save(front, page, tmp_path, striped):
    paths = [patches(tmp_path, color) for color in ("red", "green", "blue")]
    broken = tmp_path / "no, image;.jpg"
    broken.write_text("not an image")
    paths += [patches(tmp_path, "blue", '=1+1, "quoted".png'), striped, broken]
    give_files(page, *paths)
    articles = results(page, 6)
    assert {each.locator("h2").inner_text() for each in articles} == {path.name for path in paths}
    with page.expect_download() as download:
        page.get_by_role("button", name="Save CSV").click()
    saved = tmp_path / "saved.csv"
    download.value.save_as(saved)
    assert download.value.suggested_filename.endswith(".csv")
    rows = read_csv(saved)
    columns = ["image", "label", "score", "known", "unknown", "prediction_set", "error"]
    assert list(rows[0]) == [*columns, *LABELS]
    # Spreadsheets take a cell that begins like this for a formula.
    assert not [row for row in rows if row["image"].startswith("=")]
    by_name = {row["image"].lstrip("'\t "): row for row in rows}
    assert by_name.keys() == {path.name for path in paths}
    for path in paths:
        row, expected = by_name[path.name], front.ask_file(path)
        if "error" in expected:
            assert "image" in row["error"]
            assert not row["label"] + row["score"] + row["red"]
            continue
        scores = expected["scores"]
        assert not row["error"]
        assert row["label"] == expected["label"]
        assert float(row["score"]) == scores[expected["label"]]
        assert {label: float(row[label]) for label in LABELS} == scores
        assert float(row["known"]) == expected["known"]
        assert row["unknown"].lower() == str(expected["unknown"]).lower()
        assert re.split(r"\W+", row["prediction_set"]) == expected["prediction_set"]


def test_one_result_needs_no_table(page, red):
    give_files(page, red)
    result(page)
    expect(page.get_by_role("button", name="Save CSV")).to_be_hidden()


def test_the_newest_is_on_top_and_all_can_be_cleared(page, tmp_path, red):
    give_files(page, red)
    results(page, 1)
    give_files(page, patches(tmp_path, "blue"))
    assert [each.locator(".label").inner_text() for each in results(page, 2)] == ["blue", "red"]
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("article.result")).to_have_count(0)
    give_files(page, red)
    expect_red(answered(page))


def test_two_hundred_at_once_are_sent_two_at_a_time(front, page, tmp_path):
    paths = [patches(tmp_path, LABELS[number % 3], f"{number:03d}.png") for number in range(200)]
    under_way, most = 0, 0

    def count(change):
        nonlocal under_way, most
        under_way += change
        most = max(most, under_way)

    page.on("request", lambda request: count(+1) if request.method == "POST" else None)
    page.on("requestfinished", lambda request: count(-1) if request.method == "POST" else None)
    give_files(page, *paths)
    results(page, 200, timeout=40_000)
    expect(page.locator("article.result[data-state=done]")).to_have_count(200)
    assert len(front.bodies) == 200
    assert most == 2
    found = dict(
        page.locator("article.result").evaluate_all(
            "all => all.map(e => ['h2', '.label'].map(each => e.querySelector(each).textContent))"
        )
    )
    assert found == {path.name: LABELS[number % 3] for number, path in enumerate(paths)}


def test_another_page_and_back(front, page, red):
    give_files(page, red)
    results(page, 1)
    page.goto(f"{front.url}health")
    page.go_back()
    count = page.locator("article.result").count()
    give_files(page, red)
    expect_red(results(page, count + 1)[0])
    page.go_forward()
    expect(page.locator("body")).to_contain_text("ready")


def test_nothing_is_stored_in_the_browser(page, red):
    give_files(page, red)
    results(page, 1)
    kept = page.evaluate(
        "[localStorage.length, sessionStorage.length, document.cookie, location.search]"
    )
    assert kept == [0, 0, "", ""]


def test_under_a_stage_of_a_gateway_it_asks_its_own_address(front, open_page, watch, red):
    def add_stage(event, answer):
        context = event["requestContext"] | {"stage": "prod"}
        return answer(event | {"requestContext": context})

    front.intercept = add_stage
    page = open_page(f"{front.url}prod/")
    give_files(page, red)
    expect_red(answered(page))
    assert {line for line in watch.requests if "favicon" not in line} == {
        "GET /prod/",
        "GET /prod/health",
        "POST /prod/",
    }
