"""Puts a queue and HTTP in front of AWS's Lambda emulator, which takes one event at a time.

    python3 emulator_queue.py PORT EMULATOR ARGUMENT...

The emulator ends for good when a second request comes before the first is answered, even if the
client of the first has left. Here requests wait for each other, and one that has begun is always
finished. Requests in Lambda's own protocol reach the emulator as they are; all others are turned
into events, as a Function URL does. Never used on Lambda (entrypoint.sh), and runs without any
package.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import cast

if __name__ == "__main__":  # with -I, Python looks for modules in its standard library only
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from serving.function_url import (
    HOP_BY_HOP,
    INVOCATIONS,
    MAX_PAYLOAD,
    TOO_LONG,
    AnswerError,
    Response,
    framed,
    parse_answer,
    to_event,
    to_response,
)

LAMBDA_API = re.compile(r"/20\d\d-\d\d-\d\d/")  # how paths of Lambda's protocol begin
ORIGIN = re.compile(r"https?://[^/?]*", re.IGNORECASE)  # before the path, as proxies are asked
MAX_BODY = MAX_PAYLOAD  # bytes; the emulator cuts off what is beyond
MAX_DISCARDED = 16 * MAX_BODY  # bytes of a larger body that are read before the answer
MAX_CONNECTIONS = 32  # at once; further ones wait to be accepted, so bodies have bounded memory
CLIENT_SECONDS = 30.0  # without a byte from a client that is still sending
STOP_SECONDS = 1.0  # for the emulator to end
ENDING = (signal.SIGTERM, signal.SIGINT)  # signals that end this process
Connection = socket.socket | tuple[bytes, socket.socket]  # as socketserver has it
http.client._MAXHEADERS = 1000  # ty: ignore[missing-attribute]  # http.server takes 100


class BodyError(Exception):
    """The body of a request is malformed."""


class TooLargeError(Exception):
    """The body of a request has more bytes than Lambda takes."""


def read_body(headers: Message, file: BufferedIOBase) -> bytes:
    """Return the body of a request with `headers` from `file`.

    Raises:
        BodyError: it is malformed.
        TooLargeError: it is larger than `MAX_BODY`.
        OSError: the client has left or is silent.
    """
    pieces, total = [], 0
    for piece in body_pieces(headers, file):
        total += len(piece)
        if total > MAX_BODY:
            pieces.clear()
        else:
            pieces.append(piece)
        if total > MAX_DISCARDED:
            break
    if total > MAX_BODY:
        raise TooLargeError(f"Expected at most {MAX_BODY} bytes, Lambda's limit. Received: more.")
    return b"".join(pieces)


def body_pieces(headers: Message, file: BufferedIOBase) -> Iterator[bytes]:
    """Yield the body of a request in pieces of bounded size.

    Raises:
        BodyError: its length or its chunks are malformed.
        OSError: the client has left or is silent.
    """
    encodings, lengths = headers.get_all("Transfer-Encoding", []), body_lengths(headers)
    if encodings:
        if lengths or [value.strip().lower() for value in encodings] != ["chunked"]:
            raise BodyError("Expected Transfer-Encoding: chunked, without Content-Length.")
        while size := chunk_size(file):
            yield from exactly(file, size)
            file.readline(3)
        while file.readline(65536).strip():  # trailers
            pass
    elif lengths:
        yield from exactly(file, int(lengths.pop()))


def body_lengths(headers: Message) -> set[str]:
    """Return the one value of Content-Length, or none; raise `BodyError` for any other."""
    lengths = {value.strip() for value in headers.get_all("Content-Length", [])}
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", value) for value in lengths):
        raise BodyError(f"Expected a Content-Length in bytes. Received: {lengths}.")
    return lengths


def chunk_size(file: BufferedIOBase) -> int:
    """Return the size of the next chunk; 0 is the last."""
    line = file.readline(1024)
    if not (match := re.match(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?\r?\n", line)):
        raise BodyError("Expected the size of a chunk. Received: something else.")
    return int(match[1], 16)


def exactly(file: BufferedIOBase, size: int) -> Iterator[bytes]:
    """Yield `size` bytes of `file`; raise ConnectionError if it ends before."""
    while size:
        piece = file.read(min(size, 65536))
        if not piece:
            raise ConnectionError("the client has left")
        size -= len(piece)
        yield piece


class QueueServer(ThreadingHTTPServer):
    """Passes requests to the emulator on another port, one at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, emulator_port: int):
        """Listen on `port`; the emulator is on `emulator_port` of this machine."""
        super().__init__(("", port), _Handler)
        self.emulator_port = emulator_port
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        """Return the emulator's response.

        Raises:
            OSError, HTTPException: there is none.
        """
        with self._lock:
            connection = http.client.HTTPConnection("127.0.0.1", self.emulator_port)
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return response.status, response.getheaders(), response.read()
            finally:
                connection.close()

    def invoke(self, payload: bytes) -> object:
        """Return the function's answer to an event as JSON.

        Raises:
            AnswerError: it is no JSON.
            OSError, HTTPException: there is none.
        """
        headers = {"Content-Type": "application/json"}
        _, _, body = self.ask("POST", INVOCATIONS, headers, payload)
        return parse_answer(body.decode(errors="replace"), "the function")

    def process_request(self, request: Connection, client_address: tuple) -> None:
        """Start a thread for a connection, once there are fewer than `MAX_CONNECTIONS`."""
        self._slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Connection, client_address: tuple) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Connection, client_address: tuple) -> None:
        """Print defects, but nothing about clients that have left."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = CLIENT_SECONDS

    def _handle(self) -> None:
        self.close_connection = True  # an idle connection would keep its place
        response = self._pass_on() if LAMBDA_API.match(self.path) else self._convert()
        self._write(*framed(self.command, response))

    def _pass_on(self) -> Response:
        """Return the emulator's response to a request in Lambda's protocol."""
        try:
            body = read_body(self.headers, self.rfile)
            return self._ask(body)
        except (BodyError, ValueError) as error:
            return refusal(400, "BadRequest", str(error))
        except TooLargeError as error:
            return refusal(413, "RequestTooLargeException", str(error))

    def _ask(self, body: bytes) -> Response:
        headers = {name: value for name, value in self.headers.items() if forwarded(name)}
        try:
            return cast(QueueServer, self.server).ask(self.command, self.path, headers, body)
        except (OSError, http.client.HTTPException) as error:
            return refusal(502, "BadGateway", unanswered(error))

    def _convert(self) -> Response:
        """Return the function's response to any other HTTP request."""
        try:
            body = read_body(self.headers, self.rfile)
        except (BodyError, ValueError) as error:
            return message(400, str(error))
        except TooLargeError:
            return TOO_LONG
        headers = {n: ", ".join(self.headers.get_all(n, [])) for n in self.headers}
        target = ORIGIN.sub("", self.path, count=1) if ORIGIN.match(self.path) else self.path
        event = to_event(self.command, target or "/", headers, body, self.client_address[0])
        payload = json.dumps(event).encode()
        if len(payload) > MAX_PAYLOAD:
            return TOO_LONG
        try:
            return to_response(cast(QueueServer, self.server).invoke(payload))
        except (OSError, http.client.HTTPException) as error:
            return message(502, unanswered(error))
        except AnswerError as error:
            print(f"emulator_queue: {error}", file=sys.stderr, flush=True)
            return error.response

    def _write(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def __getattr__(self, name: str) -> object:
        if name.startswith("do_"):  # any method: the emulator decides
            return self._handle
        raise AttributeError(name)


def refusal(status: int, kind: str, sentence: str) -> Response:
    """Return a response in the form of Lambda's own errors."""
    body = json.dumps({"errorType": kind, "errorMessage": sentence}).encode()
    return status, [("Content-Type", "application/json")], body


def message(status: int, sentence: str) -> Response:
    """Return a response in the form of a Function URL's own errors."""
    return (
        status,
        [("Content-Type", "application/json")],
        json.dumps({"message": sentence}).encode(),
    )


def unanswered(error: Exception) -> str:
    """Return a sentence about an `error` of the connection to the emulator."""
    return f"The Lambda emulator did not answer: {error}"


def forwarded(name: str) -> bool:
    """Return whether the header `name` is passed on."""
    return name.lower() not in HOP_BY_HOP


def main(port: int, emulator: list[str]) -> int:
    """Run the command `emulator` behind a queue on `port`; return its exit code once it ends."""
    for number in ENDING:
        signal.signal(number, stop)
    try:
        server = QueueServer(port, free_port())
    except OSError as error:
        print(f"Expected port {port} to be free. Received: {error.strerror}.", file=sys.stderr)
        return 1
    address = f"127.0.0.1:{server.emulator_port}"
    command = [emulator[0], "--runtime-interface-emulator-address", address, *emulator[1:]]
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until there is a process to end
    process = subprocess.Popen(command, preexec_fn=take_signals)
    try:
        take_signals()
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        return wait_for(process.pid)
    finally:
        end(process)


def take_signals() -> None:
    """Let signals that end this process arrive, also those that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def stop(number: int, _frame: object) -> None:
    """End this process, and with it the emulator, upon a signal."""
    sys.exit(128 + number)


def serve(server: QueueServer) -> None:
    """Answer requests as soon as the emulator listens."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.emulator_port)).close()
            break
        except OSError:
            time.sleep(0.01)
    server.serve_forever()


def wait_for(process_id: int) -> int:
    """Return the exit code of a child, and reap others, as the first process has to."""
    while True:
        ended, status = os.wait()
        if ended == process_id:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def end(process: subprocess.Popen) -> None:
    """End the emulator if it still runs."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
