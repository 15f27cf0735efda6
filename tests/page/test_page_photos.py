"""The page reduces large photos before it sends them, and the service sees the same in them."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from tests.page.images import patches, photo, scene
from tests.page.steps import answered, bars, give_files, shown

LONGEST = 1024  # pixels
CLOSE = 1.0  # points of a percentage


def assert_close(article, expected: dict) -> None:
    assert article.locator(".label").inner_text() == expected["label"]
    assert bars(article) == pytest.approx(shown(expected["scores"]), abs=CLOSE)


def only_sent(front) -> Image.Image:
    [data] = front.sent()
    return Image.open(BytesIO(data))


def colors(image: Image.Image) -> list[tuple]:
    """Return the colours in the middle of the four quarters."""
    width, height = image.size
    quarters = [
        (x, y) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)
    ]
    return [image.convert("RGB").getpixel(place) for place in quarters]


def is_blue(color: tuple) -> bool:
    return color[2] > 150 and color[0] < 100


def test_a_large_photo_is_reduced(front, page, tmp_path):
    path = photo(tmp_path / "photo.jpg", (4000, 3000))
    assert path.stat().st_size > 2e6
    give_files(page, path)
    article = answered(page)
    assert max(map(len, front.bodies)) < 1.5e6
    sent = only_sent(front)
    assert sent.size == (LONGEST, 768)
    assert [is_blue(color) for color in colors(sent)] == [False, False, True, False]
    assert_close(article, front.ask_file(path))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_photo_is_upright_whether_reduced_or_not(front, page, tmp_path, orientation):
    for number, size in enumerate([(1600, 1200), (300, 200)]):
        path = photo(tmp_path / f"{size[0]}.jpg", size, orientation)
        give_files(page, path)
        page.locator("article.result").nth(number).wait_for()
        page.locator("article.result[data-state=waiting]").wait_for(state="detached")
        upright = ImageOps.exif_transpose(Image.open(BytesIO(front.sent()[-1])))
        assert upright.size == ((1024, 768) if number == 0 else (300, 200))
        assert [is_blue(color) for color in colors(upright)] == [False, False, True, False]
        article = page.locator("article.result").first
        assert_close(article, front.ask_file(path))
        shape = article.locator("img").evaluate(
            "image => image.decode().then(() => image.naturalWidth / image.naturalHeight)"
        )
        assert shape == pytest.approx(size[0] / size[1], rel=0.01)


def test_a_small_file_is_sent_as_it_is(front, page, tmp_path):
    paths = [patches(tmp_path, "red"), photo(tmp_path / "small.jpg", (1000, 700))]
    for path in paths:
        give_files(page, path)
        page.locator(f"article.result:has(h2:text-is('{path.name}'))[data-state=done]").wait_for()
    assert front.sent() == [path.read_bytes() for path in paths]


def test_a_format_that_only_the_service_reads_is_sent_as_it_is(front, page, tmp_path):
    path = tmp_path / "scan.tiff"
    scene((1200, 900)).save(path)
    give_files(page, path)
    answered(page)
    assert front.sent() == [path.read_bytes()]


def test_transparency_is_seen_as_the_service_sees_it(front, page, tmp_path):
    path = tmp_path / "cut_out.png"
    image = scene((1800, 1200)).convert("RGBA")
    image.paste((0, 255, 0, 0), (300, 0, 1800, 700))
    image.save(path)
    give_files(page, path)
    article = answered(page)
    assert max(only_sent(front).size) == LONGEST
    assert_close(article, front.ask_file(path))


def test_a_panorama_keeps_its_shape(front, page, tmp_path):
    path = tmp_path / "panorama.png"
    scene((6000, 50)).save(path)
    give_files(page, path)
    answered(page)
    assert only_sent(front).size == (LONGEST, 9)


def test_the_large_photos_fit_the_limit_of_lambda(front, page, tmp_path):
    """The worst that can be: noise, as a PNG of more than 6 MB."""
    path: Path = tmp_path / "noise.png"
    Image.effect_noise((3000, 2500), 200).convert("RGB").save(path)
    assert path.stat().st_size > 6e6
    give_files(page, path)
    answered(page)
    assert max(map(len, front.bodies)) < 1.5e6
