"""Ends a tool upon a signal, with all removed that it has started."""

import contextlib
import signal
import sys
from collections.abc import Generator

# Of kill, and of a terminal that is closed. By default they end Python where it is.
END = (signal.SIGTERM, signal.SIGHUP)


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit, so that what runs is stopped first.

    One that is ignored, as nohup lets SIGHUP be, stays so.
    """
    for number in END:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _frame: sys.exit(128 + received))


@contextlib.contextmanager
def undisturbed() -> Generator[None]:
    """Ignore Ctrl-C and requests to end, so that all is removed that is being removed."""
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *END)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed_exit() -> Generator[contextlib.ExitStack]:
    """Return a stack of contexts whose end nothing disturbs."""
    contexts = contextlib.ExitStack()
    try:
        yield contexts
    finally:
        with undisturbed():
            contexts.close()
