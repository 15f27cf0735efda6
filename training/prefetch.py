"""Reading batches ahead on threads, and a progress bar."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

WORKERS = os.cpu_count() or 1  # threads; decoding and augmenting release the interpreter lock
PROGRESS_SECONDS = 30  # between two lines of progress in a log

Batch = TypeVar("Batch")
Inputs = TypeVar("Inputs")


def prefetch(
    batches: Iterable[Batch], read: Callable[[Batch], Inputs], workers: int = WORKERS
) -> Iterator[tuple[Batch, Inputs]]:
    """Yield (batch, read(batch)) for each of `batches`, reading ahead on `workers` threads."""
    with ThreadPoolExecutor(workers) as pool:
        reading: deque = deque()
        try:
            for batch in batches:
                reading.append((batch, pool.submit(read, batch)))
                if len(reading) > 2 * workers:
                    batch, inputs = reading.popleft()
                    yield batch, inputs.result()
            while reading:
                batch, inputs = reading.popleft()
                yield batch, inputs.result()
        finally:
            for _, inputs in reading:
                inputs.cancel()


def progress(
    total: int, what: str, unit: str = "images", initial: int = 0, delay: float = 0
) -> tqdm:
    """Return a progress bar titled `what` over `total` of `unit`; it is silent for a total of 0.

    `initial` were done before; the time left is by the speed of the others. It appears after
    `delay` seconds, if it is not complete by then.
    """
    on_terminal = os.isatty(2)
    return tqdm(
        total=total,
        initial=initial,
        delay=delay,
        desc=what,
        unit=f" {unit}",
        disable=total == 0,
        mininterval=0.1 if on_terminal else PROGRESS_SECONDS,
        ncols=None if on_terminal else 80,
    )
