"""Decodes images in another process, which is stopped where one costs too much.

A decoder in C can be made to take any time and memory by a file of a few kilobytes, whatever is
checked before. So the service hands images to a worker (serving/decoder_process.py), and takes the
reduced pixels back. When a worker was stopped or has crashed, the next image has a new one.
"""

import contextlib
import json
import math
import os
import signal
import socket
import threading
import time
import warnings
from dataclasses import dataclass

import numpy as np

from serving import decoder_process
from serving.decoder_process import (
    NEW_WORKER,
    REPLY,
    REQUEST,
    STATUS,
    receive,
    seconds_left,
)
from serving.errors import DeadlineError, ImageError, TooLargeError, UnsupportedTypeError
from serving.limits import damaged, too_large

MAX_CPU_S = 4.0  # seconds of CPU time for an image; the worst of those within the limits takes 2
ENDING_S = 5.0  # seconds to wait for a process that is being ended
MAX_JSON = 65_536  # bytes
# What a socket is asked to hold, so that the pixels are sent in one piece. Linux holds what is
# usual there at most, 425,984 bytes: enough for images of 350 pixels a side.
SOCKET_BYTES = 1_000_000
ERRORS = {error.__name__: error for error in (ImageError, TooLargeError, UnsupportedTypeError)}


class CpuLimitError(Exception):
    """Decoding took all the CPU time that it was allowed."""


@dataclass(frozen=True)
class Decoded:
    """An image that was decoded and resized.

    Attributes:
        pixels: uint8 (height, width, 3), 0 to 255, upright RGB.
        format: one of `serving.image.FORMATS`.
        size: (width, height) as stored.
        cpu_s: seconds of CPU time that it took.
    """

    pixels: np.ndarray
    format: str
    size: tuple[int, int]
    cpu_s: float


class Decoder:
    """A worker process that decodes images, one at a time."""

    def __init__(self) -> None:
        """Fork the processes; early, since they share this one's memory."""
        self._lock = threading.Lock()
        self._start()

    def decode(
        self,
        data: bytes,
        size: tuple[int, int],
        *,
        memory: int,
        cpu_s: float = MAX_CPU_S,
        deadline: float = math.inf,
    ) -> Decoded:
        """Return the image in the file `data`, resized to `size` (height, width).

        Takes at most `memory` bytes beyond what an idle worker has and `cpu_s` seconds of CPU time.

        Raises:
            UnsupportedTypeError, ImageError, TooLargeError: as `serving.image.open_image`, also
                where the decoder crashed or there was not enough memory.
            CpuLimitError: it took more than `cpu_s`.
            DeadlineError: `deadline` (of time.monotonic) has passed.
        """
        request = REQUEST.pack(len(data), *size, memory, cpu_s)
        with self._lock:
            try:
                text, pixels = self._ask(request, data, math.prod(size) * 3, deadline)
            except (EOFError, ConnectionError):
                raise _reason(self._restart()) from None
            except TimeoutError:
                self._restart()
                raise out_of_time() from None
            except BaseException:  # half an answer may still be on its way
                self._restart()
                raise
        reply = json.loads(text)
        if "defect" in reply:
            raise RuntimeError(reply["defect"])
        if "error" in reply:
            raise ERRORS[reply["error"]](reply["message"])
        array = np.frombuffer(pixels, np.uint8).reshape(*size, 3)
        return Decoded(array, reply["format"], tuple(reply["size"]), reply["cpu_s"])

    def close(self) -> None:
        """End the processes."""
        self._channel.close()
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._server, 0)

    def _start(self) -> None:
        """Fork the process that forks the workers, and let it fork one."""
        self._control, theirs = socket.socketpair()
        with warnings.catch_warnings():
            # Other threads of this process, if there are any, do nothing in the new one.
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
            self._server = os.fork()
        if not self._server:
            decoder_process.serve(theirs)
        theirs.close()
        self._channel = self._new_worker()

    def _new_worker(self) -> socket.socket:
        """Return the socket of a new worker, without waiting for it."""
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            socket.send_fds(self._control, [NEW_WORKER], [theirs.fileno()])
        return ours

    def _restart(self) -> int:
        """End the worker, start another and return the status of the former."""
        self._channel.close()
        try:
            self._channel = self._new_worker()
            status = receive(self._control, STATUS.size, time.monotonic() + ENDING_S)
            return STATUS.unpack(status)[0] if status else signal.SIGKILL
        except OSError:  # the process that forks was ended by someone else
            with contextlib.suppress(OSError):
                os.kill(self._server, signal.SIGKILL)
            self.close()
            self._start()
            return signal.SIGKILL

    def _ask(
        self, request: bytes, data: bytes, count: int, deadline: float
    ) -> tuple[bytearray, bytearray]:
        """Return what `_exchange` does, by a new worker if the one before has ended meanwhile.

        It is the first process that the kernel ends if memory is short, also while it is idle.
        """
        try:
            return self._exchange(request, data, count, deadline)
        except ConnectionError:  # it has not received all of the image, whose fault it thus is not
            self._restart()
            return self._exchange(request, data, count, deadline)

    def _exchange(
        self, request: bytes, data: bytes, count: int, deadline: float
    ) -> tuple[bytearray, bytearray]:
        """Return the JSON and the pixels, `count` bytes or none, that answer `request`.

        Raises:
            ConnectionError: the worker ended before it had received the image.
            EOFError: it ended later.
            TimeoutError: `deadline` has passed.
        """
        for content in (request, data):
            self._channel.settimeout(seconds_left(deadline))
            self._channel.sendall(content)
        head = receive(self._channel, REPLY.size, deadline)
        if not head:
            raise EOFError
        lengths = REPLY.unpack(head)
        if lengths[0] > MAX_JSON or lengths[1] not in (0, count):
            raise EOFError
        text, pixels = (receive(self._channel, length, deadline) for length in lengths)
        return text, pixels


def out_of_time() -> DeadlineError:
    """Return the error of an image for which the invocation has no time left."""
    return DeadlineError(
        "Expected to be done within the invocation's time. Received: no time left "
        "for this image. Send fewer at once, or raise the function's timeout."
    )


def too_slow() -> TooLargeError:
    """Return the error of an image that takes more than `MAX_CPU_S`."""
    return TooLargeError(
        f"Expected an image that is decoded in at most {MAX_CPU_S:.0f} seconds. "
        "Received: one that takes longer. Use a smaller image, or save it again as JPEG."
    )


def _reason(status: int) -> Exception:
    """Return the error of an image whose worker ended with `status`, as of os.waitpid."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return CpuLimitError()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return damaged()  # the decoder crashed
    return too_large("what fits into memory", "more")  # so the kernel ended it, or it itself did
