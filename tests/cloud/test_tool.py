"""`make cloud`, as a person runs it: nothing is left, however it ends."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cloud.steps import ROOT
from tools import ministack
from tools.container import docker
from tools.ministack import INSTANCE, PATIENCE


@pytest.fixture
def start(image):
    """Start it on a free port, and return its process once it has printed some text.

    In the end it is killed. The image is a fixture for Docker's cache only.
    """
    processes = []

    def run(text, *arguments):
        port = ministack.require_port(ministack.bridge(), 0)
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.cloud", "--port", str(port), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append((process, port))
        alarm = threading.Timer(2 * PATIENCE, process.terminate)
        alarm.start()
        lines = []
        while not lines or (lines[-1] and text not in lines[-1]):
            lines.append(process.stdout.readline())
        alarm.cancel()
        assert lines[-1], "".join(lines)
        return process, "".join(lines)

    yield run
    for process, port in processes:
        process.terminate()
        process.wait(PATIENCE)
        label = f"label=ministack.instance={INSTANCE}:{port}"
        assert docker("ps", "--all", "--quiet", "--filter", label).stdout == ""
        assert docker("image", "inspect", f"flowers-cloud-{process.pid}").returncode
        ministack.require_port(ministack.bridge(), port)


def children(number):
    """Return the ids of the processes that a process has started."""
    return [
        int(each) for each in Path(f"/proc/{number}/task/{number}/children").read_text().split()
    ]


def test_it_tries_all_and_stays_until_ctrl_c(start):
    process, printed = start("Press Ctrl-C", "--stay")
    assert "tags: label=rose, score=0.99610, unknown=false\n" in printed
    assert "21 rows: 4 daisy, 4 dandelion, 4 rose, 4 sunflower, 4 tulip; " in printed
    assert "text.jpg: Expected an image" in printed
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE)[0] == "\nTaking it down ...\n"
    assert process.returncode == 0


def test_it_says_that_ministack_was_killed(start):
    process, _ = start("Bucket:")
    [number] = children(process.pid)
    os.kill(number, signal.SIGKILL)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert "tools.cloud: Expected MiniStack to go on. Received: it ended (SIGKILL)." in printed
    assert process.returncode == 1


def test_it_takes_all_down_where_it_is_terminated(start):
    process, _ = start("what is docs/rose.jpg", "--stay")
    process.terminate()
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM
