"""Runs a distributed script twice: a parent that watches, and a child that trains.

JAX's runtime aborts when another process is lost, without a chance to say so. So the process that
a person starts only watches (`launch`). Its child (`child_main`) trains; there `KERAS_BACKEND` is
set before Keras is imported. This module imports neither Keras nor JAX before it has to.
"""

import argparse
import importlib.util
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

from training import streams
from training.distribute.cluster import Cluster, Flags, add_flags, find_cluster, read_flags
from training.errors import DistributeError

WORKER = "FLOWERS_WORKER"  # environment variable that the child has and its parent has not
ROOT = Path(__file__).resolve().parents[2]
CHILD = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    f"from {__name__} import child_main; child_main()"
)
HEARTBEAT_SECONDS = 20  # a process that is silent for so long counts as lost
SHOWN_CHARACTERS = 10_000  # of an error; JAX's may print whole weights
STOP_SECONDS = 30  # from Ctrl-C until a child that does not end is killed


def is_worker() -> bool:
    """Return whether this is the process that trains, not the one that a person started."""
    return WORKER in os.environ


# The process that a person starts


def relaunch() -> None:
    """Run this script again on JAX and exit with its code, if --distribute is given.

    Must come before Keras is imported. In the child that this starts it does nothing.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    options, _ = parser.parse_known_args()
    if is_worker() or not options.distribute:
        return
    try:
        sys.exit(launch(read_flags(options), sys.argv[1:]))
    except DistributeError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def launch(flags: Flags, arguments: list[str]) -> int:
    """Run this script with `arguments` in a child, on JAX, and return its exit code.

    Raises:
        DistributeError: the flags are wrong, JAX is missing, another process was lost, or the
            child was killed.
    """
    cluster = find_cluster(flags, os.environ)
    if cluster.coordinator and cluster.index == 0:
        _check_free(cluster.coordinator)
    if importlib.util.find_spec("jax") is None:
        raise DistributeError(
            "Expected JAX, which --distribute trains on. Received: no module named jax. "
            'Install it: pip install "jax[cuda12]<0.8", or jax alone without a GPU.'
        )
    with tempfile.TemporaryFile() as notes, tempfile.TemporaryDirectory() as scratch:
        code = _run_child([sys.argv[0], *arguments], notes, scratch)
        notes.seek(0)
        written = notes.read().decode(errors="replace")
    if code < 0:
        raise DistributeError(_reason(written, signal.Signals(-code), cluster))
    return code


def _check_free(coordinator: str) -> None:
    # JAX's runtime says so too, but on its way out it may crash.
    port = int(coordinator.rsplit(":", 1)[1])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except (OSError, OverflowError) as error:
        raise DistributeError(
            f"Expected port {port} of this machine to be free. Received: {error}. "
            "Choose another in --coordinator, in all processes."
        ) from error


def _run_child(arguments: list[str], notes: IO[bytes], scratch: str) -> int:
    """Run `arguments` in a child and return its exit code, negative for a signal.

    What C++ writes to standard error goes into `notes`, temporary files into the folder `scratch`.
    """
    shown = os.dup(2)
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, str(shown), *arguments],
            stdin=subprocess.PIPE,  # closes when this process ends, whatever ends it
            stderr=notes,
            pass_fds=[shown],
            env=os.environ | {"KERAS_BACKEND": "jax", WORKER: "1", "TMPDIR": scratch},
            process_group=0,  # a terminal's Ctrl-C would reach it twice
        )
    finally:
        os.close(shown)
    with child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                return child.wait(STOP_SECONDS)
            return 130
        finally:
            child.kill()


def _reason(notes: str, killed_by: signal.Signals, cluster: Cluster) -> str:
    """Return a sentence for a child that ended by a signal; `notes` has what C++ wrote."""
    lost = sorted({int(n) for part in re.findall(LOST, notes) for n in re.findall(TASK, part)})
    if COORDINATOR_LOST in notes:
        lost = [0]
    if lost:
        processes = f"Process{'es' * (len(lost) > 1)} {', '.join(map(str, lost))}"
        return f"{processes} stopped answering. Rerun all processes with --resume."
    if NOT_MET in notes:
        place = cluster.coordinator or f"the address that {cluster.launcher} gave"
        return (
            f"The processes could not connect to each other at {place} in time. Check that all "
            "were started, that --coordinator names the machine of process 0, and that no "
            "firewall blocks its port."
        )
    last = "".join(f": {line[:300]}" for line in notes.strip().splitlines()[-1:])
    if killed_by == signal.SIGKILL:
        return (
            f"Training was killed (SIGKILL{last}), usually for lack of memory. "
            "Train anew with a smaller --batch-size."
        )
    return f"Training crashed ({killed_by.name}{last}). Rerun with --resume."


# What JAX's runtime writes before it aborts.
LOST = r"stopped sending heartbeats\):\n((?:/job:\S+\n)+)"
TASK = r"task:(\d+)"
COORDINATOR_LOST = "Failed to send RPC to coordination service"
NOT_MET = "CoordinationService/RegisterTask"


# Its child


def child_main() -> NoReturn:
    """Run the script that `launch` was given as `__main__`, and exit with its code."""
    stream = open(int(sys.argv[1]), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    sys.stderr = stream
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        error = traceback.format_exc()
        # A lost connection is seen before JAX knows whose it was, and then it aborts us.
        time.sleep(HEARTBEAT_SECONDS + 5 if _met() else 0)
        print(error[:SHOWN_CHARACTERS], end="", file=sys.stderr)
    streams.flush_or_drop()
    if code:
        os._exit(code)  # as JAX would now wait for the others to end, who wait for us
    sys.exit()


def _exit_code(end: SystemExit) -> int:
    """Return the exit code of `end`, and print its message, as Python does."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _end_with_parent() -> NoReturn:
    os.read(0, 1)  # returns when the pipe closes
    os._exit(1)


def _met() -> bool:
    """Return whether this process is one of several that have found each other."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
