"""Serve HTTP in front of a running container, like a Function URL.

    python -m tools.function_url    # http://localhost:9000 in front of `make run`
    curl --data-binary @rose.jpg -H "Content-Type: image/jpeg" http://localhost:9000

On AWS, a Function URL or an API Gateway converts HTTP requests to events, and answers to HTTP
responses. This does the same, in payload format 2.0. Like the emulator in the container, it
handles one request at a time.
"""

import contextlib
import http.client
import json
import logging
import sys
import threading
import urllib.request
from collections.abc import Callable, Generator

import waitress

from serving.function_url import (
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
from training.cli import make_parser, port, run_command

ENDPOINT = f"http://localhost:8080{INVOCATIONS}"
PORT = 9000
MAX_BODY = 16 * MAX_PAYLOAD  # bytes of a body that is read before it is refused
TIMEOUT = 60.0  # seconds for an answer
Invoke = Callable[[dict], object]  # from an event to the function's answer
# Containers on this machine are not behind the proxy that the environment may name.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class UnreachableError(AnswerError):
    """No container answers."""

    def __init__(self, sentence: str):
        """Take a sentence, which is the response's body, too."""
        super().__init__(sentence)
        self.body = sentence


def invoker(endpoint: str) -> Invoke:
    """Return a function that posts an event to the emulator at `endpoint`.

    It raises `AnswerError` where that gives no JSON.
    """

    def invoke(event: dict) -> object:
        request = urllib.request.Request(endpoint, json.dumps(event).encode())
        try:
            with OPENER.open(request, timeout=TIMEOUT) as response:
                text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"Expected the container's answer from {endpoint}. Received: {describe(error)}. "
                "Start it with `make run`, or pass its address with --endpoint."
            ) from None
        return parse_answer(text, endpoint)

    return invoke


def describe(error: Exception) -> str:
    """Return the reason in `error`, to be used inside a sentence."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"none within {TIMEOUT:g} seconds"
    return (getattr(reason, "strerror", None) or str(reason) or type(reason).__name__).rstrip(".")


class FunctionApp:
    """A WSGI application that answers through a function, one request at a time."""

    def __init__(self, invoke: Invoke):
        """Call `invoke` with each event."""
        self._invoke, self._lock = invoke, threading.Lock()

    def __call__(self, environ: dict, start_response: Callable) -> list[bytes]:
        """Answer one HTTP request."""
        status, headers, body = framed(environ["REQUEST_METHOD"], self._answer(environ))
        start_response(f"{status} {http.client.responses.get(status, 'Unknown')}", headers)
        return [body] if body else []

    def _answer(self, environ: dict) -> Response:
        event = event_of(environ)
        if event is None:
            return TOO_LONG
        try:
            with self._lock:
                answer = self._invoke(event)
            return to_response(answer)
        except AnswerError as error:
            print(f"tools.function_url: {error}", file=sys.stderr, flush=True)
            return error.response


def event_of(environ: dict) -> dict | None:
    """Return AWS's event for a request in WSGI's `environ`, None if it exceeds Lambda's limit."""
    if int(environ.get("CONTENT_LENGTH") or 0) > MAX_PAYLOAD:
        return None
    names = {name: name.removeprefix("HTTP_") for name in environ if name.startswith("HTTP_")}
    names |= {name: name for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if name in environ}
    headers = {name.replace("_", "-").lower(): environ[key] for key, name in names.items()}
    body, peer = environ["wsgi.input"].read(), environ["REMOTE_ADDR"]
    event = to_event(environ["REQUEST_METHOD"], environ["REQUEST_URI"], headers, body, peer)
    return event if len(json.dumps(event)) <= MAX_PAYLOAD else None


@contextlib.contextmanager
def serving(invoke: Invoke, port: int = 0) -> Generator[int]:
    """Serve HTTP on 127.0.0.1 through `invoke` while the context lasts; yield the port.

    Port 0 stands for a free one.
    """
    sockets: dict = {}  # of the server, which runs while there are any
    server = waitress.create_server(
        FunctionApp(invoke),
        map=sockets,
        host="127.0.0.1",
        port=port,
        ident=None,
        max_request_body_size=MAX_BODY,
    )
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # waiting is normal here
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server.effective_port
    finally:
        opened = list(sockets.values())
        server.trigger.pull_trigger(sockets.clear)
        thread.join()
        server.task_dispatcher.shutdown()
        for each in opened:
            each.close()


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
