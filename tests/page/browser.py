"""Debian's Chromium, driven by Playwright, and what must never happen while the page is open."""

import contextlib
import os
import shutil
from collections.abc import Callable, Generator
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

VARIABLE = "CHROMIUM"  # names a browser in the environment
COMMANDS = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    f"no browser: {VARIABLE} names none that is installed, nor is there {', '.join(COMMANDS)}; "
    "install Debian's chromium"
)
LOCAL = "127.0.0.1"
DESKTOP = {"width": 1100, "height": 800}
PATIENCE = 10_000  # milliseconds to wait for anything on a page
# Chromium writes one for every answer of 400 and above, which is no fault of the page.
FAILED_REQUEST = "Failed to load resource"
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", event => console.error(
    `Content-Security-Policy: ${event.effectiveDirective} ${event.blockedURI} ${event.sample}`));
"""


def find_chromium() -> str | None:
    """Return the path of a browser, None if there is none."""
    named = os.environ.get(VARIABLE)
    return next(filter(None, map(shutil.which, (named,) if named else COMMANDS)), None)


@contextlib.contextmanager
def launched(executable: str, host: str = LOCAL) -> Generator[Browser]:
    """Run the browser while the context lasts.

    It finds no host but `host`, whatever a page or the browser itself asks for.
    """
    # Chromium's own sandbox refuses to run as root, as in a container.
    options = [
        f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {host}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    expect.set_options(timeout=PATIENCE)  # five seconds otherwise
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        yield browser
        browser.close()


class Watch:
    """Collects what goes wrong on pages.

    Attributes:
        hosts: "host:port" of all that may be asked.
        faults: a sentence for each violation of the Content-Security-Policy, error in a script or
            on the console, and request to another host.
        requests: "METHOD path" of each request to `hosts`, in order.
    """

    def __init__(self) -> None:
        """Allow no host yet."""
        self.hosts: set[str] = set()
        self.faults: list[str] = []
        self.requests: list[str] = []

    def allow(self, url: str) -> None:
        """Let pages ask the host of `url`."""
        self.hosts.add(urlsplit(url).netloc)

    def context(self, browser: Browser, **options: object) -> BrowserContext:
        """Return a browser context whose pages are watched."""
        context = browser.new_context(**{"viewport": DESKTOP} | options)
        context.set_default_timeout(PATIENCE)
        context.add_init_script(REPORT_VIOLATIONS)
        context.on("console", self._console)
        context.on("weberror", lambda error: self.faults.append(f"Script: {error.error}"))
        context.on("request", lambda request: self._request(request.method, request.url))
        return context

    def _console(self, message: ConsoleMessage) -> None:
        address = message.location.get("url", "")
        failed = message.text.startswith(FAILED_REQUEST) and urlsplit(address).netloc in self.hosts
        if message.type in {"error", "warning"} and not failed:
            self.faults.append(f"Console: {message.text}")

    def _request(self, method: str, url: str) -> None:
        parts = urlsplit(url)
        if parts.netloc in self.hosts:
            self.requests.append(f"{method} {parts.path}")
        elif parts.scheme not in {"data", "blob", "about"}:
            self.faults.append(f"Request: {method} {url}")

    def check(self) -> None:
        """Fail if anything went wrong."""
        assert not self.faults, "\n".join(self.faults)


Opener = Callable[..., Page]
