"""The processes that decode strangers' images, where an image can be stopped.

`serve` is forked once, before the model is loaded, and forks the workers: at first, and after each
one that was stopped. So a worker takes little time and memory to start, whatever the service
holds. It decodes one image after the other, within a limit of memory and one of CPU time for each;
the kernel ends it at either. Its parent, serving/decoder.py, ends it at the deadline.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import struct
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from serving.errors import ServingError
from serving.image import open_image
from serving.preprocess import resize

REQUEST = struct.Struct("!4Qd")  # as `Request`
# Of a reply: bytes of the JSON and of the pixels, which follow it.
REPLY = struct.Struct("!2Q")
STATUS = struct.Struct("!i")  # of a worker that ended, as os.waitpid returns it
NEW_WORKER = b"w"
OUT_OF_MEMORY = 3  # a worker's exit code
RETAINED_BYTES = 50_000_000  # of memory that malloc may keep for the next image
# With glibc, malloc keeps blocks up to the first size, and as much as the second at a time.
# Otherwise most of an image's memory is returned and zeroed anew for the next one.
MALLOC_OPTIONS = {-3: 8_000_000, -1: 32_000_000}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
# It overwrites what is freed with this byte, and new blocks with its inverse, zeros. libtiff leaves
# pixels that a file lacks as they were in memory: those of an earlier image, of another client.
# From the start, since a block that grows takes in what was freed beside it. Of blocks below 1 kB,
# malloc reuses some as they are.
MALLOC_OPTIONS |= {-6: 0xFF}  # M_PERTURB
LONGEST_WAIT_S = 86_400.0  # without a deadline
STATM = Path("/proc/self/statm")


class Request(NamedTuple):
    """What comes before a file.

    Attributes:
        length: bytes of the file.
        height: of the image that is returned, in pixels.
        width: the same.
        memory: bytes that decoding may take.
        cpu_s: seconds of CPU time that it may take.
    """

    length: int
    height: int
    width: int
    memory: int
    cpu_s: float


def serve(control: socket.socket) -> None:
    """Fork a worker for each socket that arrives through `control`; never return.

    Ends the worker before, and sends its status back. Ends when `control` is closed.
    """
    worker = 0
    with contextlib.suppress(OSError):
        _close_files(control.fileno())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which closes us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while (received := socket.recv_fds(control, 1, 1))[0]:
            [descriptor] = received[1]
            if worker:
                control.sendall(STATUS.pack(_end(worker)))
            worker = os.fork()
            if not worker:
                control.close()
                work(socket.socket(fileno=descriptor))
            os.close(descriptor)
    if worker:
        _end(worker)
    os._exit(0)


def _close_files(kept: int) -> None:
    """Close what the service had open, except `kept` and the standard streams."""
    gc.freeze()  # its objects would close what has their numbers later
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and int(name) != kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _end(worker: int) -> int:
    """End `worker`, our child, and return its status."""
    os.kill(worker, signal.SIGKILL)  # its number is not reused before waitpid
    return os.waitpid(worker, 0)[1]


def work(channel: socket.socket) -> None:
    """Decode the images that arrive through `channel`; never return."""
    code = 0
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
        with contextlib.suppress(OSError):  # if memory is short, better the worker than the model
            Path("/proc/self/oom_score_adj").write_text("1000")
        _set_malloc_options()
        idle = _address_space()
        while head := receive(channel, REQUEST.size):
            channel.sendall(_answer(channel, Request(*REQUEST.unpack(head)), idle))
            if _address_space() > idle + RETAINED_BYTES:
                _return_memory()
    except MemoryError:
        code = OUT_OF_MEMORY
    except OSError:  # the service is gone
        pass
    finally:
        os._exit(code)


def _answer(channel: socket.socket, request: Request, idle: int) -> bytes:
    """Return the reply to `request`, whose file comes next.

    `idle` is the address space that this process has without an image.
    """
    size, reply, pixels = (request.height, request.width), {}, b""
    _limit_address_space(idle + request.memory)
    try:
        data = receive(channel, request.length)
        signal.setitimer(signal.ITIMER_PROF, request.cpu_s)
        started = time.process_time()
        image = open_image(bytes(data), size, request.memory)
        reply["format"], reply["size"] = image.info["format"], image.info["size"]
        pixels = resize(image, size).tobytes()
        reply["cpu_s"] = time.process_time() - started
    except ServingError as error:
        reply = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        raise
    except Exception:
        reply = {"defect": traceback.format_exc()}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _limit_address_space(resource.RLIM_INFINITY)
    text = json.dumps(reply).encode()
    return REPLY.pack(len(text), len(pixels)) + text + pixels


def _address_space() -> int:
    """Return the bytes of this process's address space; 0 elsewhere than on Linux."""
    if not STATM.exists():
        return 0
    return int(STATM.read_text().split()[0]) * resource.getpagesize()


def _limit_address_space(count: int) -> None:
    """Let this process's address space have `count` bytes, on Linux."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if STATM.exists():
        lower = count if hard == resource.RLIM_INFINITY or 0 <= count < hard else hard
        resource.setrlimit(resource.RLIMIT_AS, (lower, hard))


def _set_malloc_options() -> None:
    """Let malloc keep what the next image needs, and clear what it holds, with glibc."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


def _return_memory() -> None:
    """Return to the kernel what malloc has kept for the next image, with glibc."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def receive(channel: socket.socket, count: int, deadline: float | None = None) -> bytearray:
    """Return the next `count` bytes of `channel`, none at its end.

    Raises:
        EOFError: it ends before.
        TimeoutError: `deadline` (of time.monotonic) has passed.
    """
    content = bytearray(count)
    view, place = memoryview(content), 0
    while place < count:
        if deadline is not None:
            channel.settimeout(seconds_left(deadline))
        arrived = channel.recv_into(view[place:])
        if not arrived and not place:
            return bytearray()
        if not arrived:
            raise EOFError
        place += arrived
    return content


def seconds_left(deadline: float) -> float:
    """Return the seconds until `deadline` (of time.monotonic), as a socket's timeout.

    Raises:
        TimeoutError: none are left.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return min(seconds, LONGEST_WAIT_S)
