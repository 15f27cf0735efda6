"""Classifies the images of a request: fetch, decode, preprocess, predict."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple, TypeVar

import numpy as np

from serving import log, resources
from serving.answers import (
    describe,
    is_unknown,
    known,
    read_unknown_below,
    require_finite,
    top_k,
)
from serving.classifier import Classifier
from serving.decoder import MAX_CPU_S, CpuLimitError, Decoder, out_of_time, too_slow
from serving.errors import DeadlineError, InternalError, ServingError, error_body
from serving.events import Request, Source
from serving.fetch import MAX_BYTES, fetch_all, too_large
from serving.log import ImageLog
from serving.preprocess import scale
from serving.runtimes import Prediction

# Seconds of CPU time for each image of several at first, so that none keeps the others from being
# answered. A photo of 12 megapixels takes 0.1.
QUICK_CPU_S = 0.5
# Seconds kept free to run the model on the last image and to write the answer: before it has run
# for the first time, of CPU time; later, more than the longest run so far by this factor.
FIRST_RESERVE_S = 1.0
ANSWER_RESERVE_S = 0.3
RESERVE_FACTOR = 1.5


@dataclass
class ImageResult:
    """The result of one image."""

    data: bytes = b""  # of its file, until it is decoded
    answer: dict = field(default_factory=dict)  # scores, details, or the body of the error
    error: ServingError | None = None
    log: ImageLog = field(default_factory=ImageLog)

    def fail(self, error: ServingError) -> None:
        """Answer `error`, but drop its traceback, which keeps images in memory."""
        self.error, self.answer = type(error)(str(error)), error_body(error)
        self.data = b""
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


T = TypeVar("T")


class Limits(NamedTuple):
    """How long an image may take.

    Attributes:
        latest: when it has to be decoded, of time.monotonic.
        cpu_s: seconds of CPU time to decode it.
        is_last: whether it is not tried again.
    """

    latest: float
    cpu_s: float = MAX_CPU_S
    is_last: bool = True


Turns = Iterator[tuple[ImageResult, Limits]]  # images in their order


class Service:
    """Classifies images with one model."""

    def __init__(self, classifier: Classifier, name: str, decoder: Decoder):
        """Use `decoder` and `classifier`, whose model is called `name`.

        Raises:
            SettingError: UNKNOWN_BELOW is malformed.
        """
        self.classifier, self.name, self.decoder = classifier, name, decoder
        self._unknown_below = read_unknown_below()
        self._longest_run = 0.0  # of the model, in seconds
        self._overlaps = resources.thread_count() > 1  # decoding and the model, of several images
        self._decoding, self._running = threading.Lock(), threading.Lock()

    def health(self) -> dict:
        """Return the service's status and facts about its model."""
        card = self.classifier.card
        return {
            "status": "ready",
            "model": self.name,
            "runtime": self.classifier.runtime,
            "classes": list(self.classifier.labels),
            "input_size": list(self.classifier.input_size),
            "details": not self.classifier.details.is_empty,
            "unknown_below": self._unknown_below,
            "card": card and card.to_json(),
        }

    def classify(self, request: Request, deadline: float, request_id: str | None = None) -> Result:
        """Return the scores of the images of `request`, or their errors.

        Of several images, fetching may take half of the time, and those that take long to decode
        come after the others. Images for which no time is left before `deadline` (of
        time.monotonic) get a DeadlineError. Unexpected errors are logged with `request_id`.
        """
        started = time.monotonic()
        several = len(request.sources) > 1
        latest = deadline - self._reserve(deadline - started, several)
        images = fetch_images(request.sources, (started + latest) / 2 if several else latest)
        fetch_ms = log.milliseconds(started)
        waiting = [image for image in images if image.error is None]
        if several:
            self._predict(waiting, shares(len(waiting), latest), request, request_id)
            waiting = [image for image in waiting if not image.answer]
        self._predict(waiting, repeat(Limits(latest)), request, request_id)
        if request.is_batch:
            return Result([image.answer for image in images], None, images, fetch_ms)
        [image] = images
        return Result(image.answer, image.error, images, fetch_ms)

    def _reserve(self, left: float, several: bool) -> float:
        """Return how many of the `left` seconds the last image and the answer need."""
        # Beside the last image, the model may still run on the one before.
        runs = RESERVE_FACTOR + (several and self._overlaps)
        run = self._longest_run * runs or FIRST_RESERVE_S / resources.cpu_share()
        return min(ANSWER_RESERVE_S + run, left / 2)

    def _predict(
        self,
        images: Sequence[ImageResult],
        limits: Iterator[Limits],
        request: Request,
        request_id: str | None,
    ) -> None:
        """Answer each of `images` within its `limits`; what takes longer but is tried again, not.

        With two processors, one is decoded while the model runs on the one before. But its first
        run is waited for: it takes memory that a decoder would count on.
        """
        turns = zip(images, limits, strict=False)

        def work() -> None:
            while self._predict_next(turns, request, request_id):
                pass

        while not (self._overlaps and self._longest_run and len(images) > 1):
            if not self._predict_next(turns, request, request_id):
                return
        with ThreadPoolExecutor(2, thread_name_prefix="predict") as threads:
            for done in [threads.submit(work) for _ in range(2)]:
                done.result()

    def _predict_next(self, turns: Turns, request: Request, request_id: str | None) -> bool:
        """Decode the next image and run the model; return False if there is none.

        Of several threads, one decodes, and one runs the model.
        """
        with self._decoding:
            image, limits = next(turns, (None, None))
            if image is None or limits is None:
                return False
            inputs = _attempt(image, request_id, lambda: self._decode(image, limits))
        if inputs is not None:
            with self._running:
                _attempt(image, request_id, lambda: self._run(image, inputs, request))
        return True

    def _run(self, image: ImageResult, inputs: np.ndarray, request: Request) -> None:
        """Give `image` the answer of the model to `inputs`.

        Raises:
            InternalError: the model's scores are no numbers.
        """
        started = time.monotonic()
        prediction = self.classifier.predict(inputs)
        self._longest_run = max(self._longest_run, time.monotonic() - started)
        image.log.infer_ms = log.milliseconds(started)
        require_finite(prediction)
        image.log.known = known(self.classifier.details, prediction)
        image.log.unknown = is_unknown(image.log.known, self._unknown_below)
        image.answer = self._answer(prediction, request)

    def _answer(self, prediction: Prediction, request: Request) -> dict:
        labels, details = self.classifier.labels, self.classifier.details
        if request.details:
            return describe(labels, details, prediction, self._unknown_below, request.top)
        return top_k(labels, prediction.probabilities, request.top)

    def _decode(self, image: ImageResult, limits: Limits) -> np.ndarray | None:
        """Return `image` as the model's input, float32 (1, height, width, 3), -1 to 1.

        Returns None if it takes longer than `limits` allow, but is tried again.

        Raises:
            ServingError: it cannot be decoded, not in time, or not in the memory that is left.
        """
        started = time.monotonic()
        image.log.bytes = len(image.data)
        try:
            if started >= limits.latest:
                raise out_of_time()
            decoded = self.decoder.decode(
                image.data,
                self.classifier.input_size,
                memory=resources.decoding_memory(),
                cpu_s=limits.cpu_s,
                deadline=limits.latest,
            )
        except (CpuLimitError, DeadlineError) as error:
            if not limits.is_last:
                return None
            raise error if isinstance(error, DeadlineError) else too_slow() from None
        image.data = b""  # a batch of large images would add up
        image.log.format = decoded.format
        image.log.width, image.log.height = decoded.size
        inputs = scale(decoded.pixels)[np.newaxis]
        image.log.decode_ms = log.milliseconds(started)
        return inputs


def _attempt(image: ImageResult, request_id: str | None, step: Callable[[], T]) -> T | None:
    """Return what `step` returns; its error becomes that of `image`, so others are answered."""
    try:
        return step()
    except ServingError as error:
        if isinstance(error, InternalError):  # of a message, nobody reads the answer
            log.log_exception(request_id, error)
        image.fail(error)
    except Exception as defect:
        log.log_exception(request_id, defect)
        image.fail(InternalError("The service failed on this image; its log says why."))
    return None


def shares(count: int, latest: float) -> Iterator[Limits]:
    """Yield the limits of each of `count` images at its turn, for the first time of two.

    Each has an equal share of the time that is left until `latest`, so one that is slow leaves
    the others theirs.
    """
    for left in range(count, 0, -1):
        now = time.monotonic()
        yield Limits(now + (latest - now) / left, QUICK_CPU_S, is_last=False)


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
