"""What the commands have in common: flags, and one place that turns errors into an exit code."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from serving.errors import UserError
from training import streams

FREE_SPACE = "Free disk space or fix the permissions."
SMALLER_BATCH = "Close other programs, or use a smaller --batch-size if the command has one."
FULL_OUTPUT = "Free disk space, or send the output elsewhere."
READER_GONE = 128 + 13  # what a shell reports of a program that SIGPIPE ended
OUT_OF_MEMORY = ("ResourceExhaustedError", "XlaRuntimeError", "JaxRuntimeError")  # TensorFlow, JAX


def run_command(
    command: Callable[[], object],
    name: str,
    *,
    paths: str = "read and write files",
    advice: str = FREE_SPACE,
    memory_advice: str = SMALLER_BATCH,
    stopped: str = "Stopped.",
) -> int:
    """Run `command` and return the exit code of the process.

    What a person can put right becomes a sentence on standard error that begins with `name`, and
    exit code 1; any other error is a defect and is raised. Ctrl-C prints `stopped`, or what the
    KeyboardInterrupt says, and gives 130. If the reader of the output ends (`| head`), nothing
    more is printed, and the code is 141.

    Args:
        command: takes nothing; may return an exit code.
        name: such as "train.py".
        paths: what an OSError prevented, such as "read flowers and write to models".
        advice: what to do about an OSError.
        memory_advice: what to do where memory ran out.
        stopped: what Ctrl-C leaves behind.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as error:
        sentence = str(error)
    except KeyboardInterrupt as interrupt:
        streams.print_error(f"\n{name}: {interrupt if interrupt.args else stopped}")
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError) and streams.is_reader_gone():
            return READER_GONE
        if streams.is_output_full():
            paths, advice = "write to standard output", FULL_OUTPUT
        sentence = f"Expected to {paths}. Received: {reason_of(error)}. {advice}"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sentence = f"Memory ran out. {memory_advice}"
    streams.print_error(f"{name}: {sentence}")
    return 1


def reason_of(error: OSError) -> str:
    """Return what went wrong, and with which file, on one line; HDF5 writes a page."""
    text = os.strerror(error.errno) if error.errno else str(error).split("\n", 1)[0]
    return f"{text} ({streams.printable(error.filename)})" if error.filename else text


def first_line(error: Exception) -> str:
    """Return the type of `error` and the first line of what it says."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(": ")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is how Python, TensorFlow or JAX report that memory ran out."""
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == OUT_OF_MEMORY[0]:
        return True
    return name in OUT_OF_MEMORY and "RESOURCE_EXHAUSTED" in str(error)


def make_parser(description: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser that prints `description` (a module's docstring) as it is written.

    Arguments of `type=Path` may begin with ~: shells leave that in --data=~/images to us.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.register("type", Path, path)
    return parser


def path(text: str) -> Path:
    """Return `text` as a path, in which a ~ at its beginning is one's home."""
    return Path(os.path.expanduser(text))


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add --data and --exclude to `parser`."""
    parser.add_argument(
        "--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]"
    )
    parser.add_argument(
        "--exclude", type=Path, metavar="FILE", help="images to leave out, one class/file a line"
    )


def add_audit_flag(parser: argparse.ArgumentParser) -> None:
    """Add --audit to `parser`."""
    parser.add_argument(
        "--audit",
        type=Path,
        metavar="FILE",
        help="images whose labels are wrong, one class/file a line; they stay, and the accuracy is "
        "also reported without them",
    )


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return an argparse type for `kind` (int or float) that takes only numbers above 0."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above 0. Received: {text}")
        return value

    parse.__name__ = getattr(kind, "__name__", "number")  # argparse names it in its own messages
    return parse


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `least` on."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more. Received: {text}")
        return value

    parse.__name__ = "int"
    return parse


def port(text: str) -> int:
    """Return `text` as the number of a TCP port, 1 to 65535."""
    value = int(text)
    if not 0 < value < 65_536:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535. Received: {text}")
    return value


def fraction(text: str) -> float:
    """Return `text` as a number from 0 up to, but without, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1. Received: {text}")
    return value
