"""What the tests of large jobs share: images, a slow job, and the processes that label it."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT
from PIL import Image
from test_predict import environment

COLOURS = {"red": (230, 20, 10), "green": (10, 220, 30), "blue": (20, 10, 240)}


class SlowJob(NamedTuple):
    """A job of 24 shards of an image each, which its host takes a moment to send.

    Attributes:
        command: starts it.
        out: where its results are written.
        urls: of its images.
        asked: the paths that were fetched.
    """

    command: list[str]
    out: Path
    urls: list[str]
    asked: list[str]


def draw_images(folder):
    """Draw seven images, of which one is truncated."""
    (folder / "more").mkdir(parents=True)
    for number, colour in zip(range(6), itertools.cycle(COLOURS), strict=False):
        Image.new("RGB", (60, 40), COLOURS[colour]).save(folder / f"{number}-{colour}.png")
    (folder / "more" / "6 ü\n.png").write_bytes((folder / "0-red.png").read_bytes()[:80])
    return folder


def make_slow_job(images, folder, model, http_server):
    body = (images / "0-red.png").read_bytes()
    asked = []

    def answer(request):
        asked.append(request.path)
        time.sleep(0.1)
        return 200, {}, body

    routes = {f"/{number:02}.png": answer for number in range(24)}
    url = http_server(routes)
    (folder / "list.txt").write_text("\n".join(url + path for path in routes))
    command = [
        *(sys.executable, str(ROOT / "predict.py"), "--from", str(folder / "list.txt")),
        *("--out", str(folder / "out"), "--shard-size", "1", "--processes", "2"),
        *("--model", str(model)),
    ]
    return SlowJob(command, folder / "out", [url + path for path in routes], asked)


def start(command, **settings):
    environ = environment(**settings)
    return subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)


def paths(images):
    return sorted(str(path) for path in images.rglob("*.png"))


def results_in(out):
    """Return the files of results, without what a kill may have left unfinished."""
    folder = out / "results"
    return [p for p in folder.iterdir() if p.suffix == ".jsonl"] if folder.exists() else []


def version_of(path):
    """Return what changes when a file is written, and not when it is read, as its time of access.

    How often that changes depends on how fine the system counts time.
    """
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def rows_of(out):
    """Return all rows, in the order of the files and lines."""
    files = sorted(results_in(out))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def descendants(pid):
    """Return the processes below `pid`."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [int(child) for child in children] + [
        below for child in children for below in descendants(int(child))
    ]


def interrupt(pids):
    """Send the processes what Ctrl-C sends them in a terminal; the first may end the others."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
