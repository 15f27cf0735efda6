"""Take the screenshot of the page that is in docs/: a drawn rose and where the model looked.

    python -m tests.page.screenshot

Needs Debian's chromium, and the best model of models/ converted (python convert_to_tflite.py).
"""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps
from playwright.sync_api import Page

from serving.classifier import Classifier
from serving.decoder import Decoder
from serving.errors import UserError
from serving.handler import Handler
from serving.model_files import best_model, tflite_path
from serving.resources import thread_count
from serving.service import Service
from tests.page.browser import MISSING, Watch, find_chromium, launched
from tests.page.steps import answered, give_files
from tools.function_url import serving
from training.cli import make_parser, run_command

ROOT = Path(__file__).parent.parent.parent
ROSE = ROOT / "docs" / "rose.jpg"
OUT = ROOT / "docs" / "page.png"
WINDOW = {"width": 800, "height": 600}


class NoBrowserError(UserError):
    """There is no browser."""


def main(arguments: list[str] | None = None) -> int:
    """Write the screenshot and return the exit code."""
    parser = make_parser(__doc__, "python -m tests.page.screenshot")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write [docs/page.png]")
    out = parser.parse_args(arguments).out
    return run_command(lambda: take(out), "screenshot", paths=f"write {out}")


def take(out: Path) -> None:
    """Write a screenshot of the page with the answer for `ROSE` to `out`."""
    executable = find_chromium()
    if executable is None:
        raise NoBrowserError(f"Expected a browser. Received: {MISSING}.")
    model = tflite_path(best_model(ROOT / "models", ".h5"))
    decoder = Decoder()
    handler = Handler(Service(Classifier(model, thread_count()), model.stem, decoder))
    with launched(executable) as browser, serving(handler.handle) as port:
        watch, url = Watch(), f"http://127.0.0.1:{port}/"
        watch.allow(url)
        page = watch.context(browser, viewport=WINDOW, reduced_motion="reduce").new_page()
        page.goto(url)
        page.request.post(url, data=ROSE.read_bytes())  # the first answer takes longer
        show(page, ROSE)
        image = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
        watch.check()
    decoder.close()
    # 64 levels of each channel look the same and need two thirds of the bytes.
    ImageOps.posterize(image, 6).save(out, optimize=True)
    print(f"Wrote: {out}, {out.stat().st_size / 1000:.0f} kB.")


def show(page: Page, path: Path) -> None:
    """Give the page an image and switch the heat map of its result on."""
    give_files(page, path)
    switch = answered(page).get_by_role("button", name="Heat map")
    if switch.get_attribute("aria-pressed") != "true":
        switch.click()


if __name__ == "__main__":
    sys.exit(main())
