"""Batches read ahead on threads, and a progress bar."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from training.images import Sample

WORKERS = os.cpu_count() or 1  # decoding and augmenting leave Python, so threads go side by side


PROGRESS_SECONDS = 30  # between two lines of progress where they are not on a terminal


def prefetch(
    batches: Sequence[Sequence[Sample]],
    read: Callable[[Sequence[Sample]], np.ndarray],
    workers: int = WORKERS,
) -> Iterator[tuple[Sequence[Sample], np.ndarray]]:
    """Yield (batch, read(batch)) of each of `batches`, read ahead on `workers` threads."""
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


def progress(total: int, what: str, unit: str = "images") -> tqdm:
    """Return a progress bar over `total` of `unit`; nothing where there is nothing to do."""
    on_terminal = os.isatty(2)
    return tqdm(
        total=total,
        desc=what,
        unit=f" {unit}",
        disable=total == 0,
        mininterval=0.1 if on_terminal else PROGRESS_SECONDS,
        ncols=None if on_terminal else 80,
    )
