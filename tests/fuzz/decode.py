"""Decodes a file as the service does, here or in its worker process, and measures what it costs."""

import contextlib
import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from serving import resources
from serving.errors import DeadlineError, ServingError, UserError

STOPPED = "stopped"  # the outcome of a file whose worker was ended
DEADLINE_S = 15.0  # for an image, of which its worker may compute for 4
LATE_S = 3.0  # seconds behind the deadline that an answer may come, on a busy machine
PARENT_CPU_S = 0.5  # for the service itself
PARENT_MEMORY = 50_000_000  # bytes for the service itself, beside those of the file
SENTENCE = re.compile(r"Expected (?:[^.]|\.\d)+\. Received: (?:[^.]|\.\d)+\. [A-Z].+\.")


class FuzzError(UserError):
    """A file was neither opened nor refused correctly; `str(error)` says how."""


class Cost(NamedTuple):
    """What a file took.

    Attributes:
        seconds: of CPU time.
        memory: bytes at most, beyond those before.
    """

    seconds: float
    memory: int


Decode = Callable[[bytes, "tuple[int, int] | None"], tuple[str, Cost]]


class Meter:
    """Measures a process, this one by default."""

    def __init__(self, process: int = 0):
        """Begin with `process`, which has to be alive until `cost`."""
        self._clock = ~process << 3 | 2 if process else time.CLOCK_PROCESS_CPUTIME_ID
        self._folder = Path(f"/proc/{process or 'self'}")
        with contextlib.suppress(FileNotFoundError):  # only Linux counts the memory
            (self._folder / "clear_refs").write_text("5")  # forgets the peak
        self._idle = self._status("VmRSS")
        self._begun = time.clock_gettime(self._clock)

    def cost(self) -> Cost:
        """Return what the process took since."""
        seconds = time.clock_gettime(self._clock) - self._begun
        return Cost(seconds, max(0, self._status("VmHWM") - self._idle))

    def _status(self, name: str) -> int:
        """Return a number of bytes of the process's status; 0 elsewhere than on Linux."""
        with contextlib.suppress(FileNotFoundError):
            text = (self._folder / "status").read_text()
            return int(text.partition(f"{name}:")[2].split()[0]) * 1024
        return 0


def decode_here(data: bytes, size: tuple[int, int] | None) -> tuple[str, Cost]:
    """Open `data` in this process, for `size` (height, width).

    Returns:
        "RGB" or the error's type, and what it took.

    Raises:
        FuzzError: the result is another one.
    """
    # Imported late, because atheris instruments only modules that are imported after it.
    from serving.image import open_image

    meter = Meter()
    try:
        image = open_image(data, size, resources.MOST)
    except ServingError as error:
        outcome = _named(error)
    except Exception as error:
        raise FuzzError(f"Expected an error of the service's own. Received: {error!r}.") from error
    else:
        outcome = "RGB"
        if image.mode != "RGB" or min(image.size) < 1 or set(image.info) != {"format", "size"}:
            raise FuzzError(f"Expected upright RGB. Received: {image} with {image.info}.")
    return outcome, meter.cost()


class ServiceDecoder:
    """The service's decoder, with what its worker takes for a file.

    Attributes:
        cpu_s: seconds of CPU time after which a worker is ended.
    """

    def __init__(self) -> None:
        """Start the worker."""
        # Imported late, as in `decode_here`.
        from serving import decoder

        self.cpu_s = decoder.MAX_CPU_S
        self._stopped = (decoder.CpuLimitError, DeadlineError)
        self._decoder = decoder.Decoder()

    def __call__(self, data: bytes, size: tuple[int, int] | None) -> tuple[str, Cost]:
        """Decode `data` for `size` (height, width).

        Returns:
            "RGB", the error's type or `STOPPED`, and what the worker took, if it is still there.

        Raises:
            FuzzError: it defended itself badly: the answer was late, or cost this process much.
        """
        channel, meter, own = self._decoder._channel, Meter(self._worker()), Meter()
        begun = time.monotonic()
        try:
            self._decoder.decode(
                data,
                size or (299, 299),
                memory=resources.MOST,
                cpu_s=self.cpu_s,
                deadline=begun + DEADLINE_S,
            )
            outcome = "RGB"
        except self._stopped:
            outcome = STOPPED
        except ServingError as error:
            outcome = _named(error)
        except Exception as error:
            raise FuzzError(
                f"Expected an error of the service's own. Received: {error!r}."
            ) from error
        late, cost = time.monotonic() - begun - DEADLINE_S, own.cost()
        if late > LATE_S or cost.seconds > PARENT_CPU_S or cost.memory > PARENT_MEMORY:
            raise FuzzError(
                f"Expected little for the service itself. Received: {cost.seconds:.1f} s of CPU "
                f"time, {cost.memory / 1e6:.0f} MB, {late:.1f} s after the deadline."
            )
        if self._decoder._channel is not channel:  # a new worker, so the former was ended
            return STOPPED, Cost(0, 0)
        return outcome, meter.cost()

    def close(self) -> None:
        """End the worker."""
        self._decoder.close()

    def _worker(self) -> int:
        """Return the worker's number, when the one before has ended."""
        server = self._decoder._server
        path = Path(f"/proc/{server}/task/{server}/children")
        while len(workers := path.read_text().split()) != 1:
            time.sleep(0.001)
        return int(workers[0])


def _named(error: ServingError) -> str:
    """Return the type of `error`, whose message has to be a sentence."""
    if not SENTENCE.fullmatch(str(error)):
        raise FuzzError(f"Expected a sentence. Received: {error}. Correct it.") from error
    return type(error).__name__


def return_memory() -> None:
    """Return to the kernel what malloc keeps, with glibc."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
