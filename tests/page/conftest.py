"""The service, served as by a Function URL, and a browser that opens its page."""

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from serving.classifier import Classifier
from serving.decoder import Decoder
from serving.handler import Handler
from serving.service import Service
from tests.page.browser import MISSING, Opener, Watch, find_chromium, launched
from tools.function_url import serving

Intercept = Callable[[dict, Callable[[dict], dict]], dict]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(MISSING)
    with launched(executable) as browser:
        yield browser


class Front:
    """The service behind HTTP.

    Attributes:
        url: of the page.
        bodies: of the POST requests so far, as sent.
        intercept: called with each event and the function that answers it; returns the answer.
    """

    def __init__(self, handler: Handler):
        """Serve `handler` on 127.0.0.1."""
        self.url, self.bodies, self.handler = "", [], handler
        self.intercept: Intercept = lambda event, answer: answer(event)
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> "Front":
        port = self._stack.enter_context(serving(self._invoke))
        self.url = f"http://127.0.0.1:{port}/"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer nothing any more."""
        self._stack.close()

    def sent(self) -> list[bytes]:
        """Return the image files that were posted, in order."""
        found = [json.loads(body).get("image") for body in self.bodies]
        return [base64.b64decode(text) for text in found if text]

    def ask(self, **body: object) -> dict:
        """Return the service's own answer to a POST of `body`, with details."""
        event = {
            "version": "2.0",
            "rawPath": "/",
            "requestContext": {"http": {"method": "POST"}},
            "headers": {"content-type": "application/json"},
            "body": json.dumps(body | {"details": True}),
            "isBase64Encoded": False,
        }
        return json.loads(self.handler.handle(event)["body"])

    def ask_file(self, path: Path) -> dict:
        """Return the service's own answer to the file at `path`, with details."""
        return self.ask(image=base64.b64encode(path.read_bytes()).decode())

    def _invoke(self, event: dict) -> object:
        if event["requestContext"]["http"]["method"] == "POST":
            with self._lock:
                self.bodies.append(base64.b64decode(event["body"]))
        return self.intercept(event, self.handler.handle)


@pytest.fixture(scope="module")
def handler(telling, decoder: Decoder) -> Handler:
    """The service with a small model that tells unknown images and heat maps."""
    return Handler(Service(Classifier(telling.tflite), "telling", decoder))


@pytest.fixture
def front(handler: Handler) -> Iterator[Front]:
    """The service with that model, behind HTTP."""
    with Front(handler) as front:
        yield front


@pytest.fixture
def watch() -> Watch:
    """What must not happen on the test's pages; checked at its end."""
    return Watch()


@pytest.fixture
def open_page(chromium: Browser, watch: Watch) -> Iterator[Opener]:
    """Open an address in a window of its own; the test fails if `watch` notices anything."""
    contexts = []

    def open_at(url: str, **options: object) -> Page:
        watch.allow(url)
        contexts.append(watch.context(chromium, **options))
        page = contexts[-1].new_page()
        # Choosers are handed over from here on. Asked for only where one is expected, that may come
        # after the click or the key.
        page.on("filechooser", lambda _: None)
        page.goto(url)
        return page

    yield open_at
    for context in contexts:
        for page in context.pages:
            page.wait_for_timeout(20)  # for events on their way
        context.close()
    watch.check()


@pytest.fixture
def page(front: Front, open_page: Opener) -> Page:
    """The page of `front`."""
    return open_page(front.url)
