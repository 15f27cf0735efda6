"""Labels many images: shards of their list, and a file of results for each.

A job is a folder or bucket with

    manifest.json                  what is labelled, by which model, in how many shards
    lists/DIGEST/00000.jsonl       the addresses of a shard's images, one JSON string a line
    results/00000.jsonl            one JSON object a line for each of them, in the same order

A file of results is written when its shard is done, as a whole, and only if there is none. So a job
that was killed at any moment goes on where it was, on any number of machines at once, and answers
each image once.
"""

import json
import math
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import NamedTuple

import numpy as np

from serving.answers import describe, require_finite
from serving.classifier import Classifier
from serving.decoder import CpuLimitError, Decoder, too_slow
from serving.errors import (
    FetchError,
    InternalError,
    ServingError,
    StoreError,
    TooLargeError,
    UserError,
    error_body,
)
from serving.fetch import MAX_BYTES, OTHER_STATUS
from serving.limits import too_large
from serving.preprocess import scale
from serving.resources import decoding_memory
from serving.stores import Store, find_image

MANIFEST = "manifest.json"
RESULTS = "results"
LISTS = re.compile(r"lists/\w+")  # folders
JOB_FILE = re.compile(rf"{re.escape(MANIFEST)}|({LISTS.pattern}|{RESULTS})/\d{{5,}}\.jsonl")
READERS = 8  # images that are fetched at the same time while the model runs
AHEAD = 16  # images that are read, decoded or waiting for the model
READ_BYTES = 64_000_000  # of files in memory; a larger one is read when there is no other
FETCHES = READ_BYTES // MAX_BYTES  # URLs that are fetched at the same time
LEAST_FETCH_S = 2.0  # seconds for a URL, however short time is
# Seconds before the end of an invocation, from which on no further image is begun: a tenth of its
# time, or this. Fetching is planned to end as long before that, since the model takes time as well.
END_S = 30.0
# The kernel ends decoders where memory is short, also for the sake of other programs.
DECODE_TRIES = 2
DECODER_COPIES = 2  # of a file, in the memory of what decodes it: as received, and as bytes
ANSWERED = ("label", "scores", "known", "unknown", "prediction_set")


@dataclass(frozen=True)
class Manifest:
    """What a job is about.

    Attributes:
        inputs: what was listed, as the user named it; the first few of many.
        inputs_digest: of all of them.
        images: how many there are.
        shards: into how many lists they are divided.
        shard_size: images of each list but the last.
        lists: folder of the lists, named by the digest of their content.
        model: name of the model's file.
        model_digest: of that file.
        runtime: package that runs it; others round differently.
        unknown_below: the p-value below which an image is unknown.
        made: when the images were listed, in UTC.
    """

    inputs: list[str]
    inputs_digest: str
    images: int
    shards: int
    shard_size: int
    lists: str
    model: str
    model_digest: str
    runtime: str
    unknown_below: float
    made: str

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError for what no job has."""
        counts = (self.images, self.shards, self.shard_size)
        texts = (self.inputs_digest, self.lists, self.model, self.model_digest, self.runtime)
        if not all(isinstance(text, str) for text in (*texts, self.made, *self.inputs)):
            raise TypeError
        if any(type(count) is not int or count < 1 for count in counts):
            raise ValueError
        if self.shards != -(-self.images // self.shard_size) or not LISTS.fullmatch(self.lists):
            raise ValueError
        if not 0 <= self.unknown_below <= 1:
            raise ValueError

    def to_bytes(self) -> bytes:
        """Return the content of `MANIFEST`."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def read(cls, store: Store) -> "Manifest | None":
        """Return the manifest in `store`, or None if there is none.

        Raises:
            StoreError: it cannot be read, or is none of ours.
        """
        content = store.read(MANIFEST)
        if content is None:
            return None
        try:
            found = json.loads(content)
            return cls(**{field.name: found[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StoreError(
                f"Expected {MANIFEST} to be of a job of ours. Received: another file of that "
                "name, or a damaged one. Name another place for the results."
            ) from None

    def size_of(self, number: int) -> int:
        """Return how many images shard `number` has."""
        return min(self.shard_size, self.images - number * self.shard_size)


class Shard(NamedTuple):
    """A part of a job.

    Attributes:
        images: addresses.
        store: where its results are written.
        name: of their file.
    """

    images: list[str]
    store: Store
    name: str


class Counts(NamedTuple):
    """What came of a shard's images: how many there were, and how many have an error."""

    images: int
    errors: int


@dataclass(frozen=True)
class Labeler:
    """What labels images.

    Attributes:
        classifier: a model.
        decoder: a process that decodes images.
        unknown_below: the p-value below which an image is unknown.
        processes: how many share the memory of this machine.
    """

    classifier: Classifier
    decoder: Decoder
    unknown_below: float
    processes: int = 1

    def read(self, address: str, budget: "Budget", clock: "Clock") -> np.ndarray:
        """Return the image at `address` as the model's input, (1, height, width, 3), -1 to 1.

        Raises:
            ServingError: it cannot be read or decoded; what is too large is not read.
            StoreError: its disk or bucket fails.
        """
        found = find_image(address, clock.latest)
        with budget.take(found.most):
            if DECODER_COPIES * found.most > decoding_memory(self.processes):
                received = f"a file of {found.most / 1e6:.0f} MB"
                raise too_large("what fits into memory", received)
            pixels = self._decode(found.read(), DECODE_TRIES)
        return scale(pixels)[np.newaxis]

    def _decode(self, content: bytes, tries: int) -> np.ndarray:
        """Return the pixels of the image in the file `content`, uint8 (height, width, 3)."""
        memory = decoding_memory(self.processes)
        try:
            return self.decoder.decode(content, self.classifier.input_size, memory=memory).pixels
        except CpuLimitError:
            raise too_slow() from None
        except TooLargeError:
            if tries == 1:
                raise
        return self._decode(content, tries - 1)

    def answer(self, inputs: np.ndarray) -> dict:
        """Return what the model tells of an image, as `serving.answers.describe` without heat map.

        Raises:
            InternalError: its scores are no numbers.
        """
        prediction = self.classifier.predict(inputs)
        require_finite(prediction)
        labels, details = self.classifier.labels, self.classifier.details
        answer = describe(labels, details, prediction, self.unknown_below)
        return {name: answer[name] for name in ANSWERED}


class Budget:
    """Bytes that files may take in memory."""

    def __init__(self, limit: int):
        """Let files take `limit` bytes together."""
        self._limit, self._used = limit, 0
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def take(self, count: int) -> Generator[None]:
        """Take `count` bytes while the block runs; wait until they are free, or all are."""
        # One waits at a time: small files would never let a large one begin.
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + count <= self._limit)
            self._used += count
        try:
            yield
        finally:
            with self._changed:
                self._used -= count
                self._changed.notify_all()


class Clock:
    """Shares the time until the end of an invocation among a shard's images."""

    def __init__(self, deadline: float, images: int):
        """Let `images` be labelled before `deadline` (of time.monotonic)."""
        end = min(END_S, (deadline - time.monotonic()) / 10)
        self._labelled, self._fetched = deadline - end, deadline - 2 * end
        self._images, self._left = images, images

    def latest(self) -> float:
        """Return when to give up the host of a URL that is fetched now (of time.monotonic).

        It leaves `LEAST_FETCH_S` to each later one, and has that itself.
        """
        now = time.monotonic()
        later = LEAST_FETCH_S * self._left / FETCHES
        return max(now + LEAST_FETCH_S, self._fetched - later)

    def count(self) -> None:
        """Note that an image has a row.

        Raises:
            StoreError: there is no time for those that have none.
        """
        self._left -= 1
        if self._left and time.monotonic() > self._labelled:
            done = self._images - self._left
            raise StoreError(
                f"Expected the {self._images} images of a shard to be labelled in the function's "
                f"time. Received: {done} by its end. Nothing was written; start a new job with "
                f"--shard-size {max(1, done // 2)}, or run its predict.py command again without "
                "--list-only, where time has no limit."
            )


def list_name(lists: str, number: int) -> str:
    """Return the name of the list of shard `number`, in the folder `lists`."""
    return f"{lists}/{number:05d}.jsonl"


def result_name(number: int) -> str:
    """Return the name of the results of shard `number`."""
    return f"{RESULTS}/{number:05d}.jsonl"


def is_job_file(store: Store, address: str) -> bool:
    """Return whether the file at `address` is one that a job in `store` writes."""
    return JOB_FILE.fullmatch(store.name_of(address) or "") is not None


def read_shard(store: Store, manifest: Manifest, number: int) -> Shard:
    """Return shard `number` of the job in `store`.

    Raises:
        StoreError: its list cannot be read, is missing or damaged.
    """
    name = list_name(manifest.lists, number)
    content = store.read(name)
    try:
        images = [json.loads(line) for line in (content or b"").splitlines()]
    except (ValueError, RecursionError):
        images = []
    if len(images) != manifest.size_of(number) or not all(isinstance(i, str) for i in images):
        raise StoreError(
            f"Expected {name} to list as many images as {MANIFEST} says: "
            f"{manifest.size_of(number)}. "
            f"Received: {'a damaged list' if content else 'no such list'}. "
            "Name another place for the results, to list them again."
        )
    return Shard(images, store, result_name(number))


def label_shard(
    labeler: Labeler,
    shard: Shard,
    progress: Callable[[], object] = lambda: None,
    deadline: float = math.inf,
) -> Counts | None:
    """Write the results of `shard` before `deadline`, and return what came of its images.

    Returns None if there are results already, also of a process that did the same meanwhile. Each
    row has the keys image, label, scores, known, unknown, prediction_set and error; what is missing
    is null. `progress` is called after each image.

    Raises:
        StoreError: a disk or bucket fails, none of several images can be read, or time runs out;
            nothing is written.
    """
    if shard.store.exists(shard.name):
        return None
    rows = label_images(labeler, shard.images, progress, deadline)
    errors = [row["error"] for row in rows if row["error"]]
    _require_readable(shard.images, errors)
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    return Counts(len(rows), len(errors)) if shard.store.create(shard.name, content) else None


def label_images(
    labeler: Labeler,
    images: Sequence[str],
    progress: Callable[[], object] = lambda: None,
    deadline: float = math.inf,
) -> list[dict]:
    """Return a row for each of `images`, in their order; see `label_shard`.

    Raises:
        StoreError: a disk or bucket fails, or time runs out.
    """
    rows: list[dict] = [{}] * len(images)
    budget, clock = Budget(READ_BYTES), Clock(deadline, len(images))
    with ThreadPoolExecutor(READERS) as pool:
        for index, reading in read_ahead(pool, lambda a: labeler.read(a, budget, clock), images):
            row: dict = {"image": images[index]} | dict.fromkeys((*ANSWERED, "error"))
            try:
                row |= labeler.answer(reading.result())
            except ServingError as error:
                row |= error_body(error)
            except UserError:  # a disk, bucket or setting, so not this image alone
                raise
            except Exception as defect:  # on one image is no reason to lose the others
                row |= error_body(_defect(defect))
            rows[index] = row
            clock.count()
            progress()
    return rows


def read_ahead(
    pool: Executor, read: Callable[[str], np.ndarray], images: Sequence[str]
) -> Iterator[tuple[int, Future]]:
    """Yield the index and what came of reading each of `images`, in the order they are done.

    At most `AHEAD` are being read, or were read and not yet yielded.
    """
    numbered = iter(enumerate(images))
    waiting: dict[Future, int] = {}
    try:
        while True:
            for index, image in islice(numbered, AHEAD - len(waiting)):
                waiting[pool.submit(read, image)] = index
            if not waiting:
                return
            future = next(iter(wait(waiting, return_when=FIRST_COMPLETED).done))
            yield waiting.pop(future), future
    finally:
        for future in waiting:
            future.cancel()


def _require_readable(images: Sequence[str], errors: Sequence[dict]) -> None:
    """Raise StoreError if none of several `images` could be read: then it is not the images.

    An image whose host says that it has none counts as read.
    """
    names = {kind.__name__ for kind in (FetchError, *FetchError.__subclasses__())}
    unread = (e["type"] in names and not e["message"].startswith(OTHER_STATUS) for e in errors)
    if 1 < len(images) == sum(unread):
        raise StoreError(
            f"Expected images that can be read. Received: none of {len(images)}; the first error: "
            f"{errors[0]['message']} Nothing was written; run the same command again."
        )


def _defect(defect: Exception) -> InternalError:
    """Return the error of an image on which our code failed."""
    if isinstance(defect, MemoryError):
        return InternalError("Memory ran out on this image. Make it smaller.")
    return InternalError(f"Unexpected error on this image ({type(defect).__name__}).")
