"""serving.decoder: whatever a decoder does, it ends, and the next image is decoded."""

import array
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import termios
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from serving import decoder as module
from serving import decoder_process
from serving.decoder import CpuLimitError, Decoder
from serving.errors import DeadlineError, ImageError, TooLargeError, UnsupportedTypeError
from serving.image import open_image
from serving.preprocess import resize
from tests.serving.test_tiff import SHAPE, written

SIZE = (9, 12)  # (height, width)
MEMORY = 200_000_000
LINUX = Path("/proc/self/statm").exists()
GLIBC = hasattr(ctypes.CDLL(None), "mallopt")


def encoded(color="red", size=(60, 40), kind="PNG"):
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


RED = encoded()


def decode(decoder, data=RED, **limits):
    return decoder.decode(data, SIZE, **{"memory": MEMORY} | limits)


def spin(*_):
    while True:
        pass


def sleep(*_):
    time.sleep(60)


def fill_memory(*_):
    return bytes(4 * MEMORY)


def fill_memory_slowly(*_):
    kept = []
    while True:
        kept.append(bytes(1_000_000))


def crash(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(*_):
    os._exit(0)


def be_killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*_):
    raise KeyError("of ours")


@pytest.fixture
def planted(monkeypatch):
    """A function that returns a decoder in which `defect` opens the images that begin so."""
    made = []

    def plant(defect):
        def opened(data, size, memory):
            return defect(data, size) if data.startswith(b"defect") else open_image(data, size)

        monkeypatch.setattr(decoder_process, "open_image", opened)
        made.append(Decoder())
        return made[-1]

    yield plant
    for decoder in made:
        decoder.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_pixels_are_those_of_this_process(decoder, kind):
    data = encoded("teal", (640, 480), kind)
    decoded = decoder.decode(data, (30, 50), memory=MEMORY)
    np.testing.assert_array_equal(decoded.pixels, resize(open_image(data, (30, 50)), (30, 50)))
    assert (decoded.format, decoded.size) == (kind, (640, 480))
    assert 0 <= decoded.cpu_s < 1


@pytest.mark.parametrize(
    ("data", "error"),
    [(RED[:60], ImageError), (b"text", UnsupportedTypeError), (b"", UnsupportedTypeError)],
    ids=["broken", "text", "nothing"],
)
def test_errors_are_those_of_this_process(decoder, data, error):
    with pytest.raises(error) as expected:
        open_image(data, SIZE)
    with pytest.raises(error) as found:
        decode(decoder, data)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("defect", "error"),
    [
        (spin, CpuLimitError),
        pytest.param(fill_memory, TooLargeError, marks=pytest.mark.skipif(not LINUX, reason="")),
        pytest.param(
            fill_memory_slowly, TooLargeError, marks=pytest.mark.skipif(not LINUX, reason="")
        ),
        (crash, ImageError),
        (leave, TooLargeError),
        (be_killed, TooLargeError),
        (fail, RuntimeError),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_decoder_that_fails_costs_its_own_image_only(planted, defect, error):
    decoder = planted(defect)
    cpu_s = 0.2 if error is CpuLimitError else 10.0  # to fill memory takes a while
    for _ in range(2):
        with pytest.raises(error):
            decode(decoder, b"defect", cpu_s=cpu_s)
        assert decode(decoder).size == (60, 40)


def test_a_defect_of_ours_says_where_it_was(planted):
    with pytest.raises(RuntimeError, match="KeyError: 'of ours'") as raised:
        decode(planted(fail), b"defect")
    assert "in fail" in str(raised.value)


def test_at_the_deadline_it_is_stopped(planted):
    decoder = planted(sleep)
    started = time.monotonic()
    with pytest.raises(DeadlineError, match="no time left"):
        decode(decoder, b"defect", deadline=started + 0.3)
    assert 0.3 <= time.monotonic() - started < 3
    with pytest.raises(DeadlineError):
        decode(decoder, deadline=started)
    assert decode(decoder, deadline=time.monotonic() + 60).size == (60, 40)


def test_it_is_stopped_after_its_cpu_time_not_that_of_all_images(planted):
    decoder, large, used = planted(spin), encoded("red", (2000, 2000)), 0.0
    while used < 1:
        used += decode(decoder, large, cpu_s=0.5).cpu_s
    before = children_cpu()
    with pytest.raises(CpuLimitError):
        decode(decoder, b"defect", cpu_s=0.3)
    decoder.close()
    assert children_cpu() - before < 2 * used + 1  # what it took for all, 0.3 and a little


def children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.skipif(not LINUX, reason="other systems have no such limit")
def test_memory_is_what_an_image_takes_not_what_was_freed(planted):
    """Worker after worker would be lost, if memory that malloc keeps counted."""
    decoder = planted(be_killed)
    large = encoded("red", (8000, 5000))
    for _ in range(5):
        decode(decoder, large, memory=MEMORY)
    with pytest.raises(TooLargeError, match="what fits into memory"):
        decode(decoder, large, memory=MEMORY // 20)
    assert decode(decoder, memory=10_000_000).size == (60, 40)


@pytest.mark.skipif(not LINUX, reason="processes are read in /proc")
def test_an_image_has_another_worker_if_the_idle_one_was_killed(decoder):
    for _ in range(3):
        end(worker_of(decoder))
        assert decode(decoder).size == (60, 40)


@pytest.mark.skipif(not LINUX, reason="processes are read in /proc")
def test_an_image_has_another_worker_if_both_processes_were_killed(decoder):
    end(worker_of(decoder))
    end(decoder._server)
    assert decode(decoder).size == (60, 40)


def test_an_image_whose_worker_ends_while_receiving_it_is_tried_once_more(monkeypatch):
    """Where memory is short, that may happen again and again."""
    answer, taken = decoder_process._answer, []

    def killed(channel, request, idle):
        if request.length > len(RED):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(channel, request, idle)

    monkeypatch.setattr(decoder_process, "_answer", killed)
    decoder = Decoder()
    restart = decoder._restart
    monkeypatch.setattr(decoder, "_restart", lambda: taken.append(1) or restart())
    with pytest.raises(TooLargeError, match="what fits into memory"):
        decode(decoder, encoded("red", (2000, 2000), "BMP"))
    assert len(taken) == 2
    assert decode(decoder).size == (60, 40)
    decoder.close()


def worker_of(decoder):
    path = Path(f"/proc/{decoder._server}/task/{decoder._server}/children")
    until = time.monotonic() + 10
    while not (found := path.read_text().split()):  # it is being forked
        assert time.monotonic() < until
    return int(found[0])


def end(process):
    """Kill a process and wait until it has no files open any more."""
    os.kill(process, signal.SIGKILL)
    until = time.monotonic() + 10
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until


@pytest.mark.skipif(not LINUX, reason="page faults are read in /proc")
def test_memory_is_kept_for_the_next_image(decoder):
    """To have it zeroed again took a fifth of an image's time."""
    large = encoded("red", (4000, 3000), "JPEG")
    for _ in range(3):
        decoder.decode(large, (299, 299), memory=MEMORY)
    before = page_faults(decoder)
    for _ in range(5):
        decoder.decode(large, (299, 299), memory=MEMORY)
    assert page_faults(decoder) - before < 5 * 100  # of some thousand


@pytest.mark.skipif(not GLIBC, reason="another malloc cannot be asked for it")
@pytest.mark.parametrize("side", [1024, 1500])
def test_pixels_that_a_tiff_lacks_are_none_of_an_earlier_image(decoder, side):
    """libtiff accepts a strip of CCITT Group 4 that ends early, and fills no rows."""
    data, found = fax_that_ends_early(side, 8), set()
    for color in ((12, 34, 56), "white", "black", (200, 1, 77)):
        for kind in ("PNG", "WEBP"):
            large = encoded(color, (side, side), kind)
            decoder.decode(large, (side, side), memory=4 * MEMORY)
        found.add(decoder.decode(data, (128, 128), memory=MEMORY).pixels[8:].tobytes())
    [missing] = found
    assert len(set(missing)) == 1


def fax_that_ends_early(side, rows):
    """Return a TIFF of `side` by `side` pixels with the first `rows` of them."""
    tags = {257: (4, [side]), 258: (3, [1]), 259: (3, [4]), 278: (4, [side])}
    strip = b"\xff" * (rows // 8) + bytes.fromhex("001001")  # white rows of one bit each; the end
    return written(SHAPE | tags | {256: (4, [side]), 279: (4, [len(strip)])}, strip)


@pytest.mark.skipif(not LINUX, reason="other systems' sockets hold less")
def test_pixels_are_sent_in_one_piece():
    """Otherwise a worker waits until some of them are read, and its reader for the rest."""
    decoder = Decoder()
    request = decoder_process.REQUEST.pack(len(RED), 299, 299, MEMORY, 5.0)
    decoder._channel.sendall(request + RED)
    until = time.monotonic() + 10
    while unread(decoder._channel) < 299 * 299 * 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    decoder.close()


def unread(channel):
    """Return how many bytes have arrived at a socket."""
    count = array.array("i", [0])
    fcntl.ioctl(channel, termios.FIONREAD, count)
    return count[0]


def page_faults(decoder):
    status = Path(f"/proc/{worker_of(decoder)}/stat").read_text()
    return int(status.rpartition(")")[2].split()[7])


def test_an_interruption_leaves_no_half_answer_behind(planted, monkeypatch):
    decoder = planted(sleep)
    receive = module.receive

    def interrupted(*arguments):
        monkeypatch.setattr(module, "receive", receive)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(decoder, encoded("red", kind="JPEG"))
    assert decode(decoder).format == "PNG"


def test_when_its_server_is_killed_it_starts_another(decoder, planted):
    decoder = planted(be_killed)
    os.kill(decoder._server, signal.SIGKILL)
    with pytest.raises(TooLargeError):
        decode(decoder, b"defect")
    assert decode(decoder).size == (60, 40)


def test_an_answer_of_a_wrong_length_ends_the_worker(planted, monkeypatch):
    monkeypatch.setattr(decoder_process, "resize", lambda *_: np.zeros(5, np.uint8))
    decoder = planted(fail)
    with pytest.raises(TooLargeError):
        decode(decoder)


@pytest.mark.skipif(not LINUX, reason="processes are read in /proc")
def test_its_processes_have_no_files_of_ours_and_end_with_us(tmp_path):
    code = """
import os, sys
from serving.decoder import Decoder
kept = open(sys.argv[1], "w")
decoder = Decoder()
children = lambda pid: open(f"/proc/{pid}/task/{pid}/children").read().split()
import io
from PIL import Image
file = io.BytesIO(); Image.new("RGB", (9, 9)).save(file, "PNG")
decoder.decode(file.getvalue(), (9, 9), memory=10**8)
[server] = children(os.getpid())
[worker] = children(server)
files = [os.readlink(f"/proc/{pid}/fd/{n}") for pid in (server, worker)
         for n in os.listdir(f"/proc/{pid}/fd")]
print(server, worker, sum("kept" in name for name in files), len(files), flush=True)
os.kill(os.getpid(), 9)
"""
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "kept")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    server, worker, kept, files = map(int, process.stdout.split())
    assert (kept, files) == (0, 2 * 4)  # the standard streams and a socket
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in (server, worker)):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_socket_that_ends_early_is_an_error():
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(b"half")
        with pytest.raises(EOFError):
            decoder_process.receive(ours, 8)
        assert decoder_process.receive(ours, 8) == b""


def test_a_reply_is_json_and_pixels(monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(RED)
        request = decoder_process.Request(len(RED), *SIZE, MEMORY, 5.0)
        reply = decoder_process._answer(theirs, request, decoder_process._address_space())
    text, pixels = decoder_process.REPLY.unpack_from(reply)
    place = decoder_process.REPLY.size
    assert len(reply) == place + text + pixels
    assert pixels == 9 * 12 * 3
    answer = json.loads(reply[place : place + text])
    assert answer.pop("cpu_s") >= 0
    assert answer == {"format": "PNG", "size": [60, 40]}
