"""A server on this machine that speaks as much of S3's protocol as labelling needs."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 3  # keys in an answer to a listing, so that a few objects have several
EPOCH = "1970-01-01T00:00:00.000Z"


class Storage(dict[str, bytes]):
    """Objects by "bucket/key".

    Attributes:
        url: of the server.
        denied: keys that nobody may read.
        denial: the code of the error for these.
        busy: how many of the next requests are refused.
        conditional: whether If-None-Match counts.
        requests: methods and paths, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.url = ""
        self.denied: set[str] = set()
        self.denial = "AccessDenied"
        self.busy = 0
        self.conditional = True
        self.requests: list[str] = []

    def listed(self, bucket: str, query: dict[str, list[str]]) -> str:
        """Return a page of the listing of `bucket`, as ListObjectsV2."""
        prefix = f"{bucket}/{query.get('prefix', [''])[0]}"
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        keys = sorted(key for key in self if key.startswith(prefix) and key > after)
        page, more = keys[:PAGE], len(keys) > PAGE
        items = "".join(
            f"<Contents><Key>{escape(key.partition('/')[2])}</Key><LastModified>{EPOCH}"
            f'</LastModified><ETag>"1"</ETag><Size>{len(self[key])}</Size></Contents>'
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return f"<ListBucketResult>{truncated}{token}{items}</ListBucketResult>"


class Handler(BaseHTTPRequestHandler):
    """Answers requests for the objects of `storage`."""

    protocol_version = "HTTP/1.1"
    storage = Storage()
    lock = threading.Lock()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        key = unquote(url.path[1:])
        if "/" not in key.rstrip("/"):
            listed = self.storage.listed(key.rstrip("/"), parse_qs(url.query))
            self.answer(200, listed.encode())
        elif key in self.storage.denied:
            error = f"<Error>\n<Code>{self.storage.denial}</Code><Message>No.</Message></Error>"
            self.answer(403, f'<?xml version="1.0"?>\n{error}'.encode())
        elif key in self.storage:
            self.answer(200, self.storage[key])
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        key = unquote(urlsplit(self.path).path[1:])
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            condition = self.storage.conditional and self.headers["If-None-Match"] == "*"
            refused = condition and key in self.storage
            if not refused:
                self.storage[key] = content
        self.answer(412 if refused else 200, b"")

    def parse_request(self) -> bool:
        """Read a request; answer it at once while the server is busy."""
        if not super().parse_request():
            return False
        self.storage.requests.append(f"{self.command} {self.path}")
        with self.lock:
            busy, self.storage.busy = self.storage.busy, max(0, self.storage.busy - 1)
        if busy:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(503, b"<Error><Code>SlowDown</Code></Error>")
        return not busy

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve_storage() -> Iterator[Storage]:
    """Serve objects, which buckets reach by `environment`."""
    storage = Storage()
    handler = type("StorageHandler", (Handler,), {"storage": storage, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    storage.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()


def environment(storage: Storage) -> dict[str, str]:
    """Return the variables with which buckets are those of `storage`."""
    return {
        "AWS_ENDPOINT_URL": storage.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "eu-central-1",
    }
