"""Classifies the images of a request: fetch, decode, preprocess, predict."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from serving import log
from serving.classifier import Classifier, named_scores
from serving.errors import DeadlineError, InternalError, ServingError, error_body
from serving.events import Request, Source
from serving.fetch import MAX_BYTES, fetch_all, too_large
from serving.image import open_image
from serving.log import ImageLog
from serving.preprocess import preprocess

INFERENCE_RESERVE_S = 1.0  # seconds kept free to decode a fetched image and run the model


@dataclass
class ImageResult:
    """The result of one image."""

    data: bytes = b""  # of its file, until it is decoded
    answer: dict = field(default_factory=dict)  # {label: score}, or the body of the error
    error: ServingError | None = None
    log: ImageLog = field(default_factory=ImageLog)

    def fail(self, error: ServingError) -> None:
        """Answer `error`, but drop its traceback, which keeps images in memory."""
        self.error, self.answer = type(error)(str(error)), error_body(error)
        self.log.error = type(error).__name__


@dataclass
class Result:
    """The answer to a request; a batch has no error of its own."""

    body: dict | list
    error: ServingError | None = None
    images: list[ImageResult] | None = None  # None if it was refused before any was read
    fetch_ms: float | None = None  # milliseconds to fetch all images

    @classmethod
    def failed(cls, error: ServingError) -> "Result":
        """Return the result of a request that `error` refused."""
        return cls(error_body(error), error)


class Service:
    """Classifies images with one model."""

    def __init__(self, classifier: Classifier, name: str):
        """Use `classifier`, whose model is called `name`."""
        self.classifier, self.name = classifier, name

    def health(self) -> dict:
        """Return the service's status, model, runtime and classes."""
        return {
            "status": "ready",
            "model": self.name,
            "runtime": self.classifier.runtime,
            "classes": list(self.classifier.labels),
        }

    def classify(self, request: Request, deadline: float, request_id: str | None = None) -> Result:
        """Return the scores of the images of `request`, or their errors.

        Images that are not decoded `INFERENCE_RESERVE_S` before `deadline` (of time.monotonic)
        get a DeadlineError. Unexpected errors are logged with `request_id`.
        """
        latest = deadline - INFERENCE_RESERVE_S
        started = time.monotonic()
        images = fetch_images(request.sources, latest)
        fetch_ms = log.milliseconds(started)
        for image in images:
            if image.error is None:
                self._predict(image, latest, request.top, request_id)
        if request.is_batch:
            return Result([image.answer for image in images], None, images, fetch_ms)
        [image] = images
        return Result(image.answer, image.error, images, fetch_ms)

    def _predict(
        self, image: ImageResult, latest: float, top: int | None, request_id: str | None
    ) -> None:
        """Decode `image` and run the model, unless `latest` has passed."""
        size = self.classifier.input_size
        image.log.bytes = len(image.data)
        started = time.monotonic()
        try:
            if started > latest:
                raise DeadlineError(
                    "Expected to be done within the invocation's time. Received: no time left "
                    "for this image. Send fewer at once, or raise the function's timeout."
                )
            opened = open_image(image.data, size)
            image.log.format = opened.info["format"]
            image.log.width, image.log.height = opened.info["size"]
            inputs = preprocess(opened, size)
            image.log.decode_ms = log.milliseconds(started)
            started = time.monotonic()
            probabilities = self.classifier.probabilities(inputs)
            image.log.infer_ms = log.milliseconds(started)
            image.answer = top_k(self.classifier.labels, probabilities, top)
        except ServingError as error:
            image.fail(error)
        except Exception as defect:  # the other images are still classified
            log.log_exception(request_id, defect)
            image.fail(InternalError("The service failed on this image; its log says why."))
        finally:
            image.data = b""  # a batch of large images would add up


def fetch_images(sources: Sequence[Source | ServingError], latest: float) -> list[ImageResult]:
    """Return a result for each source, with its bytes or error.

    URLs are fetched at the same time, until `latest` (of time.monotonic).
    """
    images = [ImageResult() for _ in sources]
    remote: list[tuple[ImageResult, str]] = []
    for image, source in zip(images, sources, strict=True):
        if isinstance(source, ServingError):
            image.fail(source)
        elif source.url is not None:
            image.log.source, image.log.url = "url", log.loggable(source.url)
            remote.append((image, source.url))
        else:
            image.log.source, image.data = "image", source.image or b""
            if len(image.data) > MAX_BYTES:
                image.fail(too_large())
    fetched = fetch_all([url for _, url in remote], latest) if remote else []
    for (image, _), data in zip(remote, fetched, strict=True):
        if isinstance(data, ServingError):
            image.fail(data)
        else:
            image.data = data
    return images


def top_k(labels: tuple[str, ...], probabilities: np.ndarray, top: int | None) -> dict[str, float]:
    """Return {label: score}, all in order or the `top` best first."""
    scores = named_scores(labels, probabilities)
    if top is None:
        return scores
    return dict(sorted(scores.items(), key=lambda item: -item[1])[:top])
