"""A Function URL on this machine: plain HTTP in front of a running container.

    python -m tools.function_url    # http://localhost:9000 in front of `make run`
    curl --data-binary @rose.jpg -H "Content-Type: image/jpeg" http://localhost:9000

On AWS a Function URL or an API Gateway turns HTTP into events and answers into HTTP; this does
the same, in payload format 2.0. One request at a time, as the emulator in the container does.
"""

import argparse
import base64
import contextlib
import json
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tools.emulator import INVOCATIONS

ENDPOINT = f"http://localhost:8080{INVOCATIONS}"
PORT = 9000
MAX_PAYLOAD = 6 * 1024 * 1024  # bytes of an event: Lambda's limit
TIMEOUT = 60.0  # seconds for an answer
Invoke = Callable[[dict], dict]  # from an event to the function's answer
# What a proxy of the environment could make of a container on this machine is not wanted.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def to_event(method: str, target: str, headers: dict[str, str], body: bytes, peer: str) -> dict:
    """Return the event that AWS makes of an HTTP request for `target` (path and query)."""
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
        # AWS encodes what is no text; that it always may is allowed for.
        **({"body": base64.b64encode(body).decode()} if body else {}),
        "isBase64Encoded": bool(body),
    }


def invoker(endpoint: str) -> Invoke:
    """Return a function that posts events to the emulator at `endpoint`."""

    def invoke(event: dict) -> dict:
        request = urllib.request.Request(endpoint, json.dumps(event).encode())
        with OPENER.open(request, timeout=TIMEOUT) as response:
            return json.load(response)

    return invoke


@contextlib.contextmanager
def serving(invoke: Invoke, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """Serve HTTP on 127.0.0.1:`port` (0: a free one) through `invoke` while the context lasts."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            event = to_event(
                self.command, self.path, dict(self.headers), body, self.client_address[0]
            )
            try:
                if len(json.dumps(event)) > MAX_PAYLOAD:
                    answer = {"statusCode": 413, "body": '{"message":"Request Too Long"}'}
                else:
                    with one_at_a_time:
                        answer = invoke(event)
                    if not isinstance(answer.get("statusCode"), int):
                        raise ValueError("no HTTP answer")
            except (OSError, ValueError, AttributeError):
                # What AWS says where the function crashed or its answer is no HTTP.
                answer = {"statusCode": 502, "body": "Internal Server Error"}
            self._write(answer)

        def _write(self, answer: dict) -> None:
            body = answer.get("body") or ""
            data = base64.b64decode(body) if answer.get("isBase64Encoded") else body.encode()
            self.send_response(answer["statusCode"])
            for name, value in (answer.get("headers") or {}).items():
                self.send_header(name, value)
            if answer["statusCode"] != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def __getattr__(self, name: str) -> Callable[[], None]:
            if name.startswith("do_"):  # whatever the method is, the function answers it
                return self._answer
            raise AttributeError(name)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoint", default=ENDPOINT, help="[%(default)s]")
    parser.add_argument("--port", type=int, default=PORT, help="to listen on [%(default)s]")
    options = parser.parse_args(arguments)
    try:
        with serving(invoker(options.endpoint), options.port):
            print(f"http://localhost:{options.port} in front of {options.endpoint}; Ctrl-C ends.")
            threading.Event().wait()
    except OSError as error:
        print(
            f"tools.function_url: Expected port {options.port} to be free. "
            f"Received: {error.strerror}. Choose another with --port.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
