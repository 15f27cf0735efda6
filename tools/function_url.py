"""Serve HTTP in front of a running container, like a Function URL.

    python -m tools.function_url    # http://localhost:9000 in front of `make run`
    curl --data-binary @rose.jpg -H "Content-Type: image/jpeg" http://localhost:9000

On AWS, a Function URL or an API Gateway converts HTTP requests to events, and answers to HTTP
responses. This does the same, in payload format 2.0. Like the emulator in the container, it
handles one request at a time.
"""

import base64
import contextlib
import json
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import parse_qs, urlsplit

from tools.emulator import INVOCATIONS
from training.cli import make_parser, port, run_command

ENDPOINT = f"http://localhost:8080{INVOCATIONS}"
PORT = 9000
MAX_PAYLOAD = 6 * 1024 * 1024  # bytes of an event: Lambda's limit
TIMEOUT = 60.0  # seconds for an answer
Invoke = Callable[[dict], dict]  # from an event to the function's answer
# Containers on this machine are not behind the proxy that the environment may name.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def to_event(method: str, target: str, headers: dict[str, str], body: bytes, peer: str) -> dict:
    """Return AWS's event for an HTTP request from the address `peer`.

    `target` is the path with the query.
    """
    parts = urlsplit(target)
    query = {name: ",".join(v) for name, v in parse_qs(parts.query, True).items()}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": parts.path,
        "rawQueryString": parts.query,
        "headers": {name.lower(): value for name, value in headers.items()},
        **({"queryStringParameters": query} if query else {}),
        "requestContext": {
            "http": {
                "method": method,
                "path": parts.path,
                "protocol": "HTTP/1.1",
                "sourceIp": peer,
                "userAgent": headers.get("User-Agent", ""),
            },
            "requestId": str(uuid.uuid4()),
            "routeKey": "$default",
            "stage": "$default",
            "timeEpoch": int(time.time() * 1000),
        },
        # AWS encodes binary bodies only, but an event may have any body encoded.
        **({"body": base64.b64encode(body).decode()} if body else {}),
        "isBase64Encoded": bool(body),
    }


def invoker(endpoint: str) -> Invoke:
    """Return a function that posts an event to the emulator at `endpoint`."""

    def invoke(event: dict) -> dict:
        request = urllib.request.Request(endpoint, json.dumps(event).encode())
        with OPENER.open(request, timeout=TIMEOUT) as response:
            return json.load(response)

    return invoke


class FunctionServer(ThreadingHTTPServer):
    """Serves HTTP on 127.0.0.1 through a function, one request at a time."""

    def __init__(self, invoke: Invoke, port: int):
        """Listen on `port` and call `invoke` with each event."""
        super().__init__(("127.0.0.1", port), _Handler)
        self._invoke, self._lock = invoke, threading.Lock()

    def answer(self, event: dict) -> dict:
        """Return the function's answer to `event`, or AWS's answer if that fails."""
        if len(json.dumps(event)) > MAX_PAYLOAD:
            return {"statusCode": 413, "body": '{"message":"Request Too Long"}'}
        try:
            with self._lock:
                answer = self._invoke(event)
            if isinstance(answer.get("statusCode"), int):
                return answer
        except (OSError, ValueError, AttributeError):
            pass  # the function crashed, or its answer is not HTTP
        return {"statusCode": 502, "body": "Internal Server Error"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers, peer = dict(self.headers), self.client_address[0]
        event = to_event(self.command, self.path, headers, body, peer)
        self._write(cast(FunctionServer, self.server).answer(event))

    def _write(self, answer: dict) -> None:
        body = answer.get("body") or ""
        data = base64.b64decode(body) if answer.get("isBase64Encoded") else body.encode()
        self.send_response(answer["statusCode"])
        for name, value in (answer.get("headers") or {}).items():
            self.send_header(name, value)
        if answer["statusCode"] != 204 and "Content-Length" not in (answer.get("headers") or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # any method: the function decides
            return self._handle
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(invoke: Invoke, port: int = 0) -> Generator[FunctionServer]:
    """Serve HTTP on 127.0.0.1 through `invoke` while the context lasts.

    Port 0 stands for a free one.
    """
    server = FunctionServer(invoke, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C and return the exit code."""
    parser = make_parser(__doc__, "python -m tools.function_url")
    parser.add_argument("--endpoint", default=ENDPOINT, help="[%(default)s]")
    parser.add_argument("--port", type=port, default=PORT, help="to listen on [%(default)s]")
    flags = parser.parse_args(arguments)
    return run_command(
        lambda: serve(flags.endpoint, flags.port),
        "tools.function_url",
        paths=f"listen on port {flags.port}",
        advice="Choose another with --port.",
    )


def serve(endpoint: str, port: int) -> None:
    """Serve HTTP in front of the emulator at `endpoint` until Ctrl-C."""
    with serving(invoker(endpoint), port):
        print(f"http://localhost:{port} in front of {endpoint}; press Ctrl-C to stop.")
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
