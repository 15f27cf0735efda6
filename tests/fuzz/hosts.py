"""Fuzz the fetching of images with malicious hosts.

    python -m tests.fuzz.hosts                           # 10,000 hosts: half an hour
    python -m tests.fuzz.hosts --runs 500 --seed 7       # the same hosts each time
    python -m tests.fuzz.hosts --first 123 --runs 1      # repeat a host that failed

A process of its own plays the hosts: HTTP that is malformed, endless or slow, and TLS whose records
are so before, in and after the handshake. Each fetch must return bytes or one of the service's
errors by its deadline, within limits of CPU time and memory, and receive no more than it may.
"""

import contextlib
import multiprocessing
import random
import re
import resource
import select
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import requests

from serving import connection as sockets
from serving.errors import ServingError, UserError
from serving.fetch import MAX_BYTES, MAX_OVERHEAD, fetch, prepare
from tests.certificates import rsa_key, write_certificate
from tests.fuzz import tls
from tests.fuzz.tls import (
    ALERT,
    CHANGE_CIPHER_SPEC,
    DATA,
    HANDSHAKE,
    LARGEST,
    alert,
    message,
    record,
)
from training.cli import make_parser, run_command

LATE = 0.5  # seconds after the deadline in which a fetch has to end
CPU_SECONDS = 2.0  # of a fetch
GROWTH = 100_000  # kB by which memory may grow: a body of 10 MB is held twice while it grows
BUFFERS = 2_000_000  # bytes that were sent but are still in buffers of the operating system
SOCKET_BUFFER = 262_144  # bytes
BATCH = 100  # records that are sealed at once
SHORT, LONG = 0.3, 5.0  # seconds that a fetch has from a slow host and from others
SENTENCE = re.compile(r"Expected [^.]+\. Received: [^.]+\.( [A-Z].+\.)?")

Steps = Iterator[bytes | float]  # what a host sends, and how many seconds it pauses


class FuzzError(UserError):
    """A host was not fetched from correctly; `str(error)` says how."""


# HTTP

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
STATUSES = (
    *(OK,) * 12,
    *(b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200\r\n", b"HTTP/0.9 200 OK\r\n", b"HTTP/2 200\r\n"),
    *(b"HTTP/1.1 302 Found\r\n", b"HTTP/1.1 404 No\r\n", b"HTTP/1.1 206 Part\r\n", b"\r\n"),
    *(b"HTTP/1.1 999 OK\r\n", b"HTTP/1.1 -1 OK\r\n", b"HTTP/1.1 20\xc2\xb2\r\n", b"ICY 200 OK\r\n"),
    *(b"HTTP/1.1 101 Switch\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1  200  OK\r\n", b"HTTP/1.1 200 OK\n"),
)
HEADERS = (
    *(b"Content-Length: %d\r\n" % n for n in (0, 4, 5, 1000, 10**7, 10**7 + 1, 2**63, 10**30)),
    *(b"Content-Length: " + n + b"\r\n" for n in (b"-1", b"4, 4", b"4, 5", b"0x4", b"", b"4;")),
    *(CHUNKED, CHUNKED, CHUNKED, b"Transfer-Encoding: gzip, chunked\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding: chunked, chunked\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Content-Encoding: identity\r\n", b"Connection: close\r\n"),
    *(b"Location: " + to + b"\r\n" for to in (b"/", b"/a", b"//", b"http://[", b"?a", b"\xff\0")),
    *(b"Location: http://user:pw@127.0.0.1/\r\n", b"Location: http://10.0.0.1/\r\n"),
    *(b": empty\r\n", b"no colon\r\n", b" folded\r\n", b"a: \0\x80\r\n", b"a\r\n\r\n", b"a:b\n"),
    *(b"a: " + b"b" * 60_000 + b"\r\n", b"a: " + b"b" * 70_000 + b"\r\n", b"a: b\r\n" * 120),
)
CHUNKS = (
    *(b"4\r\nrose\r\n",) * 4,
    *(b"0\r\n\r\n", b"0\r\na: b\r\n\r\n", b"4;a=b\r\nrose\r\n", b"00004\r\nrose\r\n", b"4\nrose\n"),
    *(b"-4\r\nrose\r\n", b"ffffffffffffffffff\r\nrose\r\n", b"x\r\n", b"\r\n", b"4\r\nroses\r\n"),
    *(b"5\r\nrose", b"+4\r\nrose\r\n", b"0x4\r\nrose\r\n", b"4_0\r\n", b"4" + b";" * 70_000),
)
FLOODS = (  # of what follows a request, a status line, headers and a chunked answer's headers
    *((b"", piece) for piece in (b"\r\n", b"\0", b"HTTP/1.1 100 Go\r\n\r\n", b"x" * 60_000)),
    *((OK, piece) for piece in (b"a: b\r\n", b" \r\n", b"a" * 60_000 + b": b\r\n", b"a", b"a:\n")),
    *((OK + b"\r\n", piece) for piece in (b"x", b"x" * 60_000)),
    *((OK + b"Content-Length: 9000000\r\n\r\n", piece) for piece in (b"x", b"x" * 1400)),
    *(
        (OK + CHUNKED + b"\r\n", piece)
        for piece in (b"1\r\nx\r\n", b"a\r\nxxxxxxxxxx\r\n", b"32\r\n" + b"x" * 50 + b"\r\n", b"0")
    ),
    *((OK + CHUNKED + b"\r\n1", piece) for piece in (b";", b" ", b";a=b")),
    *((OK + CHUNKED + b"\r\n0\r\n", piece) for piece in (b"a: b\r\n", b"a\n", b"a" * 60_000)),
    (b"HTTP/1.1 302 Found\r\nLocation: /a\r\n\r\n", b"x" * 60_000),
    (b"HTTP/1.1 404 No\r\n\r\n", b"x" * 60_000),
)


def draw_answer(rng: random.Random) -> bytes:
    """Return an answer that is nearly right, or right."""
    pick = rng.choice
    if rng.random() < 0.4:
        return OK + b"Content-Length: 4\r\n\r\nrose"
    answer = pick((b"",) * 5 + (b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n",)) * pick((1, 1, 99, 101))
    headers = b"".join(pick(HEADERS) for _ in range(pick((0, 1, 1, 1, 2, 3, 5))))
    answer += pick(STATUSES) + headers + b"\r\n"
    chunks = CHUNKED in headers and rng.random() < 0.9
    answer += b"".join(pick(CHUNKS) if chunks else b"rose" for _ in range(pick((0, 1, 2, 9))))
    if chunks and rng.random() < 0.5:
        answer += b"0\r\n\r\n"
    if rng.random() < 0.05:
        answer += bytes(pick((100_000, MAX_BYTES, MAX_BYTES + 1)))
    return mutate(answer, rng) if rng.random() < 0.3 else answer


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with a few bytes changed, cut out, repeated or added."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(changed) + 1)
        end = place + rng.choice((0, 1, 1, 4, 50))
        piece = rng.choice((b"", rng.randbytes(end - place), bytes(changed[place:end]) * 2))
        changed[place:end] = piece
    return bytes(changed)


# TLS

PLAIN = (  # records that need no keys
    record(HANDSHAKE, message(tls.HELLO_REQUEST)),
    *(record(kind) for kind in (CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA, 24, 0, 255)),
    record(CHANGE_CIPHER_SPEC, b"\1"),
    record(CHANGE_CIPHER_SPEC, b"\1" * 100),
    *(record(ALERT, alert(1, n)) for n in (0, 10, 90, 100, 255)),
    record(ALERT, alert(2, 40)),
    record(DATA, b"x" * 100),
    record(HANDSHAKE, message(2, b"\3\3" + bytes(70))),
    record(HANDSHAKE, message(tls.CERTIFICATE, bytes(3))),
    record(HANDSHAKE, message(tls.CERTIFICATE, b"\1\0\0" + bytes(9000))),
    record(HANDSHAKE, message(tls.FINISHED, bytes(12))),
    record(HANDSHAKE, bytes([tls.CERTIFICATE]) + b"\xff" * 3),
    record(HANDSHAKE, b"\0", length=LARGEST),
    record(DATA, b"x", length=0xFFFF),
    record(24, b"\1\x40\0"),  # a heartbeat that asks for more than it has
    b"\x80\x2e\1\0\2",  # SSL 2
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
)
SEALED = (  # what is encrypted
    (HANDSHAKE, tls.ticket()),
    (HANDSHAKE, tls.ticket(9000)),
    (HANDSHAKE, message(tls.KEY_UPDATE, b"\0")),
    (HANDSHAKE, message(tls.KEY_UPDATE, b"\1")),  # asks for one in return
    (HANDSHAKE, message(tls.KEY_UPDATE, b"\2")),
    (HANDSHAKE, message(tls.HELLO_REQUEST)),
    (HANDSHAKE, message(tls.REQUEST, b"\0\0\0")),
    (HANDSHAKE, message(tls.EXTENSIONS, b"\0\0")),
    (HANDSHAKE, message(tls.FINISHED, bytes(32))),
    (HANDSHAKE, message(99, b"?")),
    (HANDSHAKE, b"\x0b\xff\xff\xff"),
    (HANDSHAKE, b""),
    (DATA, b""),
    (DATA, b"x"),
    (ALERT, alert(1, 90)),
    (ALERT, alert(1, 0)),
    (ALERT, alert(1, 100)),
    (ALERT, alert(2, 80)),
    (CHANGE_CIPHER_SPEC, b"\1"),
    (0, b""),
    (99, b"?"),
)


def draw_handshake(rng: random.Random, session: tls.Session, many: int) -> Steps:
    """Yield a server's records up to the end of the handshake, nearly right, or right."""
    odd = rng.choice(("",) * 8 + ("plain", "sealed", "flight", "bytes", "one byte a record"))
    hello, flight = session.server_hello, list(session.flight)
    if odd == "one byte a record":
        hello = b"".join(record(HANDSHAKE, hello[n : n + 1]) for n in range(5, len(hello)))
    yield hello
    if odd == "plain":
        yield rng.choice(PLAIN) * many
    if odd == "flight":
        place = rng.randrange(len(flight))
        flight[place : place + 1] = rng.choice(([], [flight[place]] * 2, [mutate(flight[0], rng)]))
    said = b"".join(flight)
    size = 1 if odd == "one byte a record" and len(said) < 5000 else LARGEST
    records = [(HANDSHAKE, said[n : n + size]) for n in range(0, len(said), size)]
    if odd == "sealed":
        place = rng.randrange(len(records))
        records[place:place] = [rng.choice(SEALED)] * many
    sealed = session.handshake.seal(*records)
    yield mutate(sealed, rng) if odd == "bytes" else sealed


def draw_data(rng: random.Random, session: tls.Session, answer: bytes, many: int) -> Steps:
    """Yield `answer` in records, and others among them."""
    size = rng.choice((1, 10, 1400, LARGEST)) if len(answer) < 5000 else LARGEST
    records = [(DATA, answer[n : n + size]) for n in range(0, len(answer), size)]
    if rng.random() < 0.5:
        place = rng.randrange(len(records) + 1)
        records[place:place] = [rng.choice(SEALED)] * many
    padding = rng.choice((0, 0, 0, 9, 200)) if size < LARGEST else 0
    place = rng.randrange(len(records)) if records and rng.random() < 0.2 else -1
    for start in range(0, len(records), BATCH):
        sealed = session.data.seal(*records[start : start + BATCH], padding=padding)
        if start <= place < start + BATCH:
            cut = rng.randrange(len(sealed))
            odd = rng.choice((rng.choice(PLAIN) * many, rng.randbytes(50), sealed[:100]))
            sealed = sealed[:cut] + odd + sealed[cut:]
        yield sealed


def flood_sealed(rng: random.Random, session: tls.Session) -> Steps:
    """Yield one kind of record for as long as the client reads."""
    odd = rng.choice(SEALED)
    while True:
        yield session.data.seal(*[odd] * BATCH)


# Hosts


class Host:
    """What one host does, drawn from the seed and its number."""

    def __init__(self, seed: int, number: int, connection: int = 0):
        """Draw its kind, and what it does to its first `connection` or a later one."""
        self.rng = random.Random(f"{seed} {number}")  # noqa: S311
        self.kind = self.rng.choice(("answer", "answer", "flood", "records", "tls 1.3", "tls 1.3"))
        self.scheme = "https" if self.kind in ("records", "tls 1.3") else "http"
        self.slow = self.rng.random() < 0.2
        self.seconds = SHORT if self.slow else LONG
        self.end = self.rng.choice(("close", "close", "close", "reset"))
        if self.slow:
            self.end = self.rng.choice(("close", "hold"))
        self.rng.seed(f"{seed} {number} {connection}")

    def steps(self, heard: bytes, chain: list[bytes], key: tuple[int, ...]) -> Steps:
        """Yield what it sends to a client that began with `heard`."""
        draw = {"answer": self._answer, "flood": self._flood, "records": self._records}
        steps = draw[self.kind]() if self.kind in draw else self._tls(heard, chain, key)
        if self.rng.random() < 0.05:
            steps = (step for step in (self._cut(next(steps, b"")),))
        for step in steps:
            yield from self._slowly(step) if self.slow and isinstance(step, bytes) else (step,)

    def _cut(self, data: bytes | float) -> bytes:
        data = data if isinstance(data, bytes) else b""
        return data[: self.rng.randrange(len(data) + 1)]

    def _slowly(self, data: bytes) -> Steps:
        size = self.rng.choice((1, 1, 10, 1000, 10_000))
        start = self.rng.choice((0, 0, 9, 100, max(0, len(data) - 20)))
        yield data[:start]
        for place in range(start, len(data), size):
            yield data[place : place + size]
            yield self.rng.choice((0.001, 0.01, 0.05))

    def _answer(self) -> Steps:
        yield draw_answer(self.rng)

    def _flood(self) -> Steps:
        start, piece = self.rng.choice(FLOODS)
        yield start
        pieces = piece * (65_536 // len(piece) + 1)
        for _ in range(300):
            yield pieces

    def _records(self) -> Steps:
        kinds = self.rng.choice((PLAIN, PLAIN[:1]))  # OpenSSL reads any number of the first
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            odd = self.rng.choice(kinds)
            yield odd * self.rng.choice((1, 1, 5, 33, 4_000_000 // len(odd)))

    def _tls(self, heard: bytes, chain: list[bytes], key: tuple[int, ...]) -> Steps:
        rng = self.rng
        longer = chain * rng.choice((1,) * 12 + (100, 1000))
        session = tls.Session(heard, longer, key, rng.randbytes(32))
        many = rng.choice((1, 1, 5, 33, 300, 3000))
        if rng.random() < 0.1:
            yield rng.choice(PLAIN) * many
        yield from draw_handshake(rng, session, many)
        if rng.random() < 0.05:
            yield from flood_sealed(rng, session)
        yield from draw_data(rng, session, draw_answer(rng), many)


class Player:
    """Plays hosts, in a process of its own, and counts what it sends."""

    def __init__(self, listener: socket.socket, pem: str, key: tuple[int, ...]):
        """Accept connections at `listener`, with the certificate in `pem` and its `key`."""
        self.listener, self.key = listener, key
        self.chain = [ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") :])]
        self.sent = 0

    def play_all(self, pipe: Connection) -> None:
        """Play each host whose seed and number `pipe` says, until it says that it is over."""
        while True:
            told, self.sent, threads = pipe.recv(), 0, []
            pipe.send("ready")
            while pipe not in (ready := select.select([self.listener, pipe], [], [])[0]):
                if ready:
                    connection, _ = self.listener.accept()
                    host = Host(*told, len(threads))
                    threads.append(threading.Thread(target=self.play, args=(connection, host)))
                    threads[-1].start()
            pipe.recv()
            for thread in threads:
                thread.join()
            pipe.send(self.sent)

    def play(self, connection: socket.socket, host: Host) -> None:
        """Be `host` to one connection."""
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            heard = connection.recv(65_536)
            for step in host.steps(heard, self.chain, self.key):
                if isinstance(step, float):
                    time.sleep(step)
                rest = memoryview(step if isinstance(step, bytes) else b"")
                while rest:
                    count = connection.send(rest[:SOCKET_BUFFER])
                    self.sent, rest = self.sent + count, rest[count:]
            if host.end == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                if host.end == "close":
                    connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass


def play(listener: socket.socket, pem: str, key: tuple[int, ...], pipe: Connection) -> None:
    """Play hosts for ever."""
    Player(listener, pem, key).play_all(pipe)


@contextlib.contextmanager
def playing() -> Iterator[tuple[int, Connection]]:
    """Yield the port of a process that plays hosts, and the pipe that says which."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        pem = write_certificate(Path(folder) / "host.pem", "127.0.0.1")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        arguments = (listener, pem.read_text(), rsa_key()[1], theirs)
        process = spawn.Process(target=play, args=arguments, daemon=True)
        process.start()
        stack.callback(process.join)
        stack.callback(process.terminate)
        stack.enter_context(mock.patch.dict("os.environ", FETCH_ALLOW="127.0.0.1"))
        stack.enter_context(mock.patch.object(requests.certs, "where", return_value=str(pem)))
        stack.enter_context(mock.patch.object(sockets, "_Socket", _SmallSocket))
        stack.callback(sockets.tls_context.cache_clear)
        sockets.tls_context.cache_clear()
        prepare()
        yield listener.getsockname()[1], ours


class _SmallSocket(sockets._Socket):
    """A socket whose buffer in the operating system is small, so that little is in it."""

    def connect(self, address: tuple) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        super().connect(address)


@dataclass
class Report:
    """What a run has seen so far."""

    outcomes: Counter = field(default_factory=Counter)  # "bytes" or the error's type, by kind
    cpu: float = 0.0  # seconds, the most for a fetch
    late: float = -LONG  # seconds after the deadline, the most
    sent: int = 0  # bytes, the most from a host

    def __str__(self) -> str:
        """Return it as one line."""
        outcomes = ", ".join(f"{name} {times}" for name, times in sorted(self.outcomes.items()))
        return (
            f"{self.outcomes.total()} hosts: {outcomes}; at most {self.cpu:.2f} s of CPU time, "
            f"{self.late:.2f} s after the deadline, {self.sent / 1e6:.1f} MB sent"
        )

    def check(self, host: Host, port: int) -> None:
        """Fetch from `host`, which is played at `port`.

        Raises:
            FuzzError: the result is neither bytes nor an error of ours, or too late or expensive.
        """
        begun, deadline = time.thread_time(), time.monotonic() + host.seconds
        outcome = "bytes"
        try:
            body = fetch(f"{host.scheme}://127.0.0.1:{port}/", deadline)
        except ServingError as error:
            outcome = type(error).__name__
            if not SENTENCE.fullmatch(str(error)):
                raise FuzzError(f"Expected a sentence. Received: {error}") from error
        except Exception as error:
            raise FuzzError(f"Expected an error of ours. Received: {error!r}.") from error
        else:
            if not 0 < len(body) <= MAX_BYTES:
                raise FuzzError(f"Expected 1 to {MAX_BYTES} bytes. Received: {len(body)}.")
        late, cpu = time.monotonic() - deadline, time.thread_time() - begun
        if late > LATE:
            raise FuzzError(f"Expected an end at the deadline. Received: {late:.1f} s later.")
        if cpu > CPU_SECONDS:
            raise FuzzError(f"Expected at most {CPU_SECONDS} s of CPU. Received: {cpu:.1f} s.")
        self.outcomes[f"{host.kind} {outcome}"] += 1
        self.cpu, self.late = max(self.cpu, cpu), max(self.late, late)

    def check_sent(self, host: Host, sent: int) -> None:
        """Check how many bytes `host` sent.

        Raises:
            FuzzError: they are more than may be received.
        """
        most = MAX_OVERHEAD + BUFFERS + (0 if host.kind == "records" else MAX_BYTES)
        if sent > most:
            raise FuzzError(f"Expected at most {most} bytes. Received: {sent}.")
        self.sent = max(self.sent, sent)


def run(runs: int, seconds: float, seed: int, first: int = 0) -> str:
    """Fetch from `runs` hosts from number `first` on, for at most `seconds`; return a summary.

    Raises:
        FuzzError: a fetch failed, or memory grew.
    """
    report, memory, started = Report(), 0, time.monotonic()
    with playing() as (port, pipe):
        for count in range(1, runs + 1):
            host = Host(seed, first + count - 1)
            pipe.send((seed, first + count - 1))
            pipe.recv()
            try:
                report.check(host, port)
                pipe.send("over")
                report.check_sent(host, pipe.recv())
            except FuzzError as error:
                again = f"--seed {seed} --first {first + count - 1} --runs 1"
                raise FuzzError(
                    f"{error} Repeat with: python -m tests.fuzz.hosts {again}"
                ) from error
            if count == -(-runs // 5):
                memory = _peak()
            if time.monotonic() - started > seconds:
                break
    growth = _peak() - memory if memory else 0
    taken = time.monotonic() - started
    line = f"{report}, in {taken:.0f} s; memory grew by {growth / 1000:.0f} MB."
    if growth > GROWTH:
        raise FuzzError(f"Expected memory not to grow. Received: {line} Repeat with --seed {seed}.")
    return line


def _peak() -> int:
    """Return the most memory that this process has had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: list[str] | None = None) -> int:
    """Fuzz as the command line says and return the exit code."""
    parser = make_parser(__doc__, "python -m tests.fuzz.hosts")
    parser.add_argument("--runs", type=int, default=10_000, help="number of hosts [%(default)s]")
    parser.add_argument("--seconds", type=float, default=86_400, help="time limit [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of what hosts do [%(default)s]")
    parser.add_argument("--first", type=int, default=0, help="number of the first [%(default)s]")
    flags = parser.parse_args(arguments)
    return run_command(
        lambda: print(run(flags.runs, flags.seconds, flags.seed, flags.first)),
        "tests.fuzz.hosts",
    )


if __name__ == "__main__":
    sys.exit(main())
