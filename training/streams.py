"""Standard input, output and error of the commands, whatever they lead to.

Names of files may be no text, a pipe's reader may end (`| head`), a stream may be closed (`>&-`).
"""

import atexit
import os
import re
import select
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from io import TextIOWrapper
from types import TracebackType

# What moves a terminal's cursor or reverses its text, and the halves of characters that stand for
# bytes of a file name that are no UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

INFORMATION = re.compile(rb"INFO: |\[[-0-9:, ]+ I [0-9 ]+\] ")  # as TFLite and Ray write it


def prepare() -> None:
    """Make printing safe: no name of a file, and no reader that ends, causes a traceback.

    Streams that were closed lead to /dev/null: the next file to be opened would get their number,
    and C++ would write its messages into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    atexit.register(flush_or_drop)
    sys.excepthook = partial(_print_exception, sys.excepthook)


def printable(text: object) -> str:
    """Return `text` on one line, with escapes for what a terminal would obey or cannot show."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def print_error(text: str) -> None:
    """Print `text` to standard error, if that can be written to."""
    with suppress(OSError):
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def is_reader_gone() -> bool:
    """Return whether the process that read standard output or standard error has ended."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # it has no descriptor, or is closed
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def is_output_full() -> bool:
    """Return whether standard output takes nothing more; what it took not yet is still there."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def flush_or_drop() -> None:
    """Write what is buffered, or drop it where that fails: at its end Python prints a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
        except ValueError:  # it is closed
            continue


@contextmanager
def without_info_lines() -> Generator[None]:
    """Hide lines of mere information that C++ writes to standard error; others follow the block."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            lines = [line for line in held if not INFORMATION.match(line)]
            with suppress(OSError):
                os.write(2, b"".join(lines))


def _print_exception(
    previous: Callable,
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Print an uncaught error as `previous` does, but of Ctrl-C during imports only a word."""
    if issubclass(kind, KeyboardInterrupt):
        print_error("\nStopped.")
    else:
        previous(kind, error, traceback)


def counted(count: int, noun: str) -> str:
    """Return how many there are of a `noun`, such as "1 epoch" or "2,000 epochs"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
