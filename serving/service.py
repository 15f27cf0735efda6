"""From an event to its answer: fetch, open, ask the model, for each image; and what HTTP adds."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from serving import events, http_events, log
from serving.classifier import Classifier, named_scores
from serving.errors import (
    DeadlineError,
    InternalError,
    MethodError,
    NotFoundError,
    ServingError,
    error_body,
)
from serving.events import Request, Source
from serving.fetch import MAX_BYTES, fetch_all, too_large
from serving.http_events import HttpRequest
from serving.image import open_image
from serving.preprocess import preprocess

INFERENCE_RESERVE_S = (
    1.0  # seconds that an image may take once it is there: to decode, and to ask the model
)
# The last part of a path, and what may be done there; everywhere else an image may be sent.
ROUTES = {"health": ("GET",), "openapi.json": ("GET",), "": ("POST",)}
OPENAPI = Path(__file__).with_name("openapi.json")


@dataclass
class ImageResult:
    """What became of an image, and what the log says of it; times are in milliseconds."""

    source: Source | ServingError
    data: bytes | None = None
    answer: dict | None = None
    error: ServingError | None = None
    facts: dict = field(default_factory=dict)

    def fail(self, error: ServingError) -> None:
        """Let `error` be the answer, without its traceback, whose frames hold the image."""
        self.error, self.answer = type(error)(str(error)), error_body(error)
        self.facts["error"] = type(error).__name__


class Service:
    """A model that answers events."""

    def __init__(self, classifier: Classifier, name: str):
        """Answer by `classifier`, whose model is called `name`."""
        self.classifier, self.name = classifier, name
        self._cold = True

    def handle(self, event: object, context: object = None) -> dict | list:
        """Return the answer to `event`; whatever happens, it is one that JSON can hold.

        `context` is Lambda's, of which the remaining time and the request's id are used.
        """
        started = time.monotonic()
        request_id = getattr(context, "aws_request_id", None)
        facts: dict = {"request_id": request_id, "cold_start": self._cold}
        self._cold = False
        http = http_events.read_event(event)
        try:
            if http is None:
                facts["event"] = "direct"
                answer, error = self._direct(event, deadline(context, started), facts)
            else:
                facts |= {"event": f"http {http.payload_format}", "method": http.method[:16]}
                answer, error = self._http(http, deadline(context, started), facts)
        except Exception as defect:
            # The caller learns nothing of our insides; the log keeps all of it.
            log.log_exception(request_id, defect)
            error = InternalError("The service failed on this request; its log says why.")
            answer = error_body(error)
            if http is not None:
                answer = http_events.answer(http, error.status, answer, cors())
        facts.setdefault("errors", int(error is not None))
        if error:
            facts["error"] = type(error).__name__
        facts["ms"] = milliseconds(started)
        log.write_request(**facts)
        return answer

    def _direct(
        self, event: object, end: float, facts: dict
    ) -> tuple[dict | list, ServingError | None]:
        try:
            request = events.parse(event)
        except ServingError as error:
            return error_body(error), error
        return self._classify(request, end, facts)

    def _http(self, http: HttpRequest, end: float, facts: dict) -> tuple[dict, ServingError | None]:
        error, headers = None, cors()
        try:
            status, payload, error = self._route(http, end, facts)
        except ServingError as refused:
            status, payload, error = refused.status, error_body(refused), refused
            if isinstance(refused, MethodError):
                headers["Allow"] = ", ".join((*ROUTES.get(http.route, ("POST",)), "OPTIONS"))
        facts["status"] = status
        return http_events.answer(http, status, payload, headers), error

    def _route(
        self, http: HttpRequest, end: float, facts: dict
    ) -> tuple[int, object, ServingError | None]:
        """Return (status, what to answer, the error that it tells of)."""
        if http.method == "OPTIONS":
            return 204, None, None
        method = "GET" if http.method == "HEAD" else http.method
        if method not in ROUTES.get(http.route, ("POST",)):
            if method == "GET" and http.route not in ROUTES:
                raise NotFoundError(
                    "Expected GET /health, GET /openapi.json or POST /. "
                    "Received: another path. See /openapi.json."
                )
            raise MethodError(
                f"Expected {' or '.join(ROUTES.get(http.route, ('POST',)))} at this path. "
                "Received: another method. See /openapi.json."
            )
        if http.route == "health":
            return 200, self.health(), None
        if http.route == "openapi.json":
            return 200, json.loads(OPENAPI.read_text(encoding="utf-8")), None
        answer, error = self._classify(http_events.parse_body(http), end, facts)
        return error.status if error else 200, answer, error

    def health(self) -> dict:
        """Return that the service is ready, and with what."""
        return {
            "status": "ready",
            "model": self.name,
            "runtime": self.classifier.runtime,
            "classes": list(self.classifier.labels),
        }

    def _classify(
        self, request: Request, end: float, facts: dict
    ) -> tuple[dict | list, ServingError | None]:
        """Return the answer to `request`, due at `end` (of time.monotonic), and the error of it.

        A list of several has no error of its own. `facts` get what the log says of the images.
        """
        images = [ImageResult(source) for source in request.sources]
        latest = end - INFERENCE_RESERVE_S
        self._fetch(images, latest, facts)
        for image in images:
            if image.error is None:
                self._predict(image, latest, request.top, facts["request_id"])
        facts["images"] = [image.facts for image in images]
        facts["errors"] = sum(image.error is not None for image in images)
        for name in ("decode_ms", "infer_ms"):
            facts[name] = round(sum(image.facts.get(name, 0) for image in images), 1)
        if request.is_batch:
            return [image.answer for image in images], None
        [image] = images
        return image.answer, image.error

    def _fetch(self, images: list[ImageResult], latest: float, facts: dict) -> None:
        """Give each of `images` its bytes, the ones with addresses at the same time."""
        started = time.monotonic()
        remote = []
        for image in images:
            if isinstance(image.source, ServingError):
                image.fail(image.source)
            elif image.source.url is not None:
                image.facts |= {"source": "url", "url": loggable(image.source.url)}
                remote.append(image)
            else:
                image.facts["source"] = "image"
                image.data = image.source.image
                if len(image.data) > MAX_BYTES:
                    image.fail(too_large())
        fetched = fetch_all([image.source.url for image in remote], latest) if remote else []
        for image, found in zip(remote, fetched, strict=True):
            if isinstance(found, ServingError):
                image.fail(found)
            else:
                image.data = found
        facts["fetch_ms"] = milliseconds(started)

    def _predict(
        self, image: ImageResult, latest: float, top: int | None, request_id: str | None
    ) -> None:
        """Decode `image` and ask the model, unless it is later than `latest`."""
        facts, size = image.facts, self.classifier.input_size
        facts["bytes"] = len(image.data)
        started = time.monotonic()
        try:
            if started > latest:
                raise DeadlineError(
                    "Expected to be done within the invocation's time. Received: no time left "
                    "for this image. Send fewer at once, or raise the function's timeout."
                )
            opened = open_image(image.data, size)
            facts["format"] = opened.info["format"]
            facts["width"], facts["height"] = opened.info["size"]
            inputs = preprocess(opened, size)
            facts["decode_ms"] = milliseconds(started)
            started = time.monotonic()
            probabilities = self.classifier.probabilities(inputs)
            facts["infer_ms"] = milliseconds(started)
            image.answer = top_k(self.classifier.labels, probabilities, top)
        except ServingError as error:
            image.fail(error)
        except Exception as defect:  # of this image only
            log.log_exception(request_id, defect)
            image.fail(InternalError("The service failed on this image; its log says why."))
        finally:
            image.data = None  # several large ones would add up


def top_k(labels: tuple[str, ...], probabilities: np.ndarray, top: int | None) -> dict[str, float]:
    """Return {label: score}: of all `labels` in their order, or of the `top` best ones by score."""
    scores = named_scores(labels, probabilities)
    if top is None:
        return scores
    return dict(sorted(scores.items(), key=lambda item: -item[1])[:top])


def deadline(context: object, started: float) -> float:
    """Return when Lambda ends an invocation that `started`, both of time.monotonic."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return started + remaining() / 1000 if remaining else float("inf")


def loggable(url: str) -> str:
    """Return `url` without what may be secret: user info, query, fragment, and what is no URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "unreadable"
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return "unreadable"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]


def cors() -> dict[str, str]:
    """Return the headers that let pages of other origins ask; CORS_ORIGIN names one, not all."""
    origin = os.environ.get("CORS_ORIGIN") or "*"
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type",
        "Access-Control-Max-Age": "86400",  # seconds that a browser remembers it: a day
    }
    return headers if origin == "*" else headers | {"Vary": "Origin"}


def milliseconds(started: float) -> float:
    """Return the milliseconds since `started` (of time.monotonic), with one decimal."""
    return round((time.monotonic() - started) * 1000, 1)
