"""Labels shards in several processes, each with a model of its own.

The processes ask for one shard after the other through a pipe each, so one that is killed takes no
lock with it, and the others go on. All end with the process that started them, however that ends.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from serving.classifier import Classifier
from serving.decoder import Decoder
from serving.errors import UserError
from serving.resources import thread_count
from serving.shards import Counts, Labeler, Manifest, label_shard, read_shard
from serving.stores import open_store
from training.streams import without_info_lines

MOST_FAILURES = 3  # shards that fail in a row before no more are started: the place is at fault
PROGRESS_S = 0.5  # seconds between two reports


class Setup(NamedTuple):
    """What each process needs.

    Attributes:
        model: a .tflite file.
        out: address of the job.
        manifest: of the job.
    """

    model: Path
    out: str
    manifest: Manifest


class Labelled(NamedTuple):
    """A report: this many more images are labelled, or fewer where a shard has failed."""

    images: int


class Finished(NamedTuple):
    """A report: a shard has results, of this process or, if `counts` is None, of another."""

    counts: Counts | None


class Failed(NamedTuple):
    """A report: a shard has no results, and why."""

    sentence: str


Report = Labelled | Finished | Failed


@dataclass
class Summary:
    """What came of the shards.

    Attributes:
        missing: shards without results.
        failed: those that were tried last, since one succeeded.
        images: rows that were written.
        errors: those with an error.
        failures: sentences on why.
    """

    missing: int
    failed: int = 0
    images: int = 0
    errors: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, report: Finished | Failed) -> None:
        """Count a shard."""
        if isinstance(report, Failed):
            self.failed += 1
            if report.sentence not in self.failures:
                self.failures.append(report.sentence)
            return
        self.missing, self.failed = self.missing - 1, 0
        if report.counts:
            self.images += report.counts.images
            self.errors += report.counts.errors


def label(
    setup: Setup, numbers: Sequence[int], processes: int | None, progress: Callable[[int], object]
) -> Summary:
    """Label the shards `numbers` in several processes and return what came of them.

    `processes` are by default one a processor. `progress` is called with how many more images are
    labelled.
    """
    summary, waiting = Summary(len(numbers)), deque(numbers)
    with Workers(setup, min(processes or thread_count(), len(numbers))) as workers:
        for pipe in list(workers.working):
            workers.send(pipe, waiting)
        for pipe, report in workers.reports():
            if isinstance(report, Labelled):
                progress(report.images)
                continue
            summary.add(report)
            if summary.failed >= MOST_FAILURES:
                waiting.clear()
            workers.send(pipe, waiting)
    return summary


class Workers:
    """The processes that label shards; a context manager that ends them.

    Attributes:
        working: those that have a shard, by the pipes to them.
    """

    def __init__(self, setup: Setup, count: int):
        """Have `count` processes, each ready for `setup`."""
        self.working: dict[Connection, BaseProcess] = {}
        self._setup, self._count = setup, count

    def __enter__(self) -> "Workers":
        """Start the processes."""
        for _ in range(self._count):
            pipe, process = _start(self._setup, self._count)
            self.working[pipe] = process
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes that still have a shard."""
        for process in self.working.values():
            process.kill()
            process.join()

    def send(self, pipe: Connection, waiting: deque[int]) -> None:
        """Send the next shard to a process, or let it end if there is none."""
        process = self.working[pipe]
        if waiting and process.is_alive():
            with suppress(OSError):  # it has just ended: its next report says so
                pipe.send(waiting.popleft())
            return
        del self.working[pipe]
        pipe.close()
        process.join()

    def reports(self) -> Iterator[tuple[Connection, Report]]:
        """Yield each report and the pipe to the process that sent it."""
        while self.working:
            for pipe in wait(list(self.working)):
                if isinstance(pipe, Connection) and pipe in self.working:
                    yield pipe, _receive(pipe, self.working[pipe])


def _start(setup: Setup, count: int) -> tuple[Connection, BaseProcess]:
    """Start one of `count` processes, and return the pipe to it as well."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # when it starts, it unblocks signals
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, setup, count), daemon=True)
    # Blocked in the process for good: Ctrl-C is for this one, which ends the others.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with theirs:
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return ours, process


def _receive(pipe: Connection, process: BaseProcess) -> Report:
    """Return the next report of a process, or its end as one."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        process.join()
    if process.exitcode == -signal.SIGKILL:
        return Failed(
            "A process was killed (SIGKILL), usually for lack of memory. Use fewer --processes."
        )
    return Failed(f"A process ended with exit code {process.exitcode}.")


def work(pipe: Connection, setup: Setup, count: int) -> None:
    """Label the shards that arrive through `pipe` until it is closed, as one of `count`."""
    decoder = Decoder()  # before there are threads
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with without_info_lines():
        threads = max(1, thread_count() // count)
        classifier = Classifier(setup.model, threads, setup.manifest.runtime)
    labeler = Labeler(classifier, decoder, setup.manifest.unknown_below, count)
    shards = ShardLabeler(setup, labeler, lambda images: pipe.send(Labelled(images)))
    with suppress(EOFError, ConnectionError):
        while True:
            pipe.send(shards.label(pipe.recv()))


class ShardLabeler:
    """Labels shards of a job, one after the other."""

    def __init__(self, setup: Setup, labeler: Labeler, progress: Callable[[int], object]):
        """Use `labeler` for the job of `setup`; see `Reporter` for `progress`."""
        self._manifest, self._labeler = setup.manifest, labeler
        self._store, self._reporter = open_store(setup.out), Reporter(progress)

    def label(self, number: int) -> Finished | Failed:
        """Label shard `number` and return what came of it."""
        try:
            shard = read_shard(self._store, self._manifest, number)
            counts = label_shard(self._labeler, shard, self._reporter.count)
        except UserError as error:
            self._reporter.finish(0)
            return Failed(str(error))
        self._reporter.finish(len(shard.images))
        return Finished(counts)


class Reporter:
    """Reports how many images have a row, not more often than is useful."""

    def __init__(self, progress: Callable[[int], object]):
        """Call `progress` with how many more images have a row, or fewer than 0."""
        self._progress = progress
        self._counted = self._reported = 0  # images of the shard
        self._next = 0.0  # of time.monotonic

    def count(self) -> None:
        """Count an image."""
        self._counted += 1
        if time.monotonic() >= self._next:
            self._report()

    def finish(self, images: int) -> None:
        """Count `images` for the whole shard, however many were counted, and begin another."""
        self._counted = images
        self._report()
        self._counted = self._reported = 0

    def _report(self) -> None:
        self._progress(self._counted - self._reported)
        self._reported, self._next = self._counted, time.monotonic() + PROGRESS_S


def _end_with_parent() -> None:
    """End this process when the one that started it has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
