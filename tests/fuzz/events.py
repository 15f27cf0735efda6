"""Fuzz the service with malformed events.

    python -m tests.fuzz.events --runs 100000    # minutes; stops at the first failure and shows it

Each event needs an answer, as JSON and in time. Hypothesis generates direct invocations and HTTP
events, many of them nearly valid, and shrinks failing ones. URLs lead to this machine only, which
the service refuses to connect to, so no other host is contacted.
"""

import base64
import contextlib
import gzip
import io
import json
import resource
import sys
import time
import zlib
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serving import page
from serving.classifier import Classifier
from serving.decoder import Decoder
from serving.errors import EventSourceError, UserError
from serving.handler import Handler
from serving.model_files import best_model
from serving.resources import thread_count
from serving.service import Service
from training.cli import make_parser, run_command

SECONDS = 15.0  # limit for an event; a fetch may take ten
GROWTH = 100_000  # kB by which memory may grow after the first tenth
# A one-pixel GIF, the smallest image file, to be mutated.
IMAGE = base64.b64decode("R0lGODlhAQABAIAAAP8AAAAAACwAAAAAAQABAAACAkQBADs=")

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    """Draw `IMAGE`, unchanged or with some bytes changed, cut off or added."""
    data = bytearray(IMAGE)
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)
    ):
        data[place] = value
    return bytes(data[: draw(st.integers(0, 60))]) + draw(st.binary(max_size=20))


hosts = st.one_of(
    st.sampled_from(
        [
            *("127.0.0.1", "localhost", "[::1]", "0", "2130706433", "0x7f.1", "0177.1"),
            *("[::ffff:127.0.0.1]", "169.254.169.254", "[64:ff9b::a9fe:a9fe]"),
            *("[2002:7f00:1::]", "127.0.0.1.", "①②⑦.⓪.⓪.①", "a..b", "[::1"),
        ]
    ),
    st.ip_addresses(network="127.0.0.0/8").map(str),
    st.ip_addresses(network="fc00::/7").map("[{}]".format),
)
urls = st.one_of(
    st.builds(
        "{}{}{}{}{}".format,
        st.sampled_from(
            ["http://", "https://", "HTTP://", "file://", "//", "", "http:", " http://"]
        ),
        st.sampled_from(["", "", "user@", "user:secret@", "@"]),
        hosts,
        st.sampled_from(["", ":80", ":443", ":22", ":0", ":99999", ":", ":x"]),
        st.sampled_from(["", "/", "/a.jpg?secret", "\\@b", "#", "/\x00", "/\r\nHost: b"]),
    ),
    st.text().map(lambda text: text.replace("://", ":")),
)
images = st.one_of(image_files().map(lambda data: base64.b64encode(data).decode()), st.text())
tops = st.one_of(st.none(), st.integers(-1, 9), st.text(max_size=3), anything)
details = st.one_of(st.none(), st.booleans(), st.sampled_from(["true", "1", "OFF", ""]), anything)
options = {"top": tops, "details": details}


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    """Return mostly `strategy`, and sometimes anything."""
    return st.one_of(strategy, strategy, strategy, anything)


direct = st.one_of(
    st.fixed_dictionaries({"url": maybe(urls)}, optional=options),
    st.fixed_dictionaries({"image": maybe(images)}, optional=options),
    st.fixed_dictionaries({"urls": maybe(st.lists(maybe(urls), max_size=4))}, optional=options),
    st.fixed_dictionaries(
        {"images": maybe(st.lists(maybe(images), max_size=18))}, optional=options
    ),
    st.dictionaries(st.sampled_from(["url", "image", "urls", "images", *options]), anything),
    st.dictionaries(
        st.sampled_from(["Records", "eventSource", "source", "detail-type", "awslogs", "warmup"]),
        anything | st.lists(st.dictionaries(st.just("eventSource"), anything), max_size=2),
    ),
    anything.map(lambda body: {"body": json.dumps(body)}),
    anything,
)
types = st.sampled_from(
    [
        "application/json",
        "image/png",
        "IMAGE/GIF;x",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "multipart/form-data",
        "",
        "text/html",
        ";",
    ]
)
PART = b'Content-Disposition: form-data; name="%s"; filename="%s"\r\n'
forms = st.builds(
    b"".join,
    st.lists(
        st.one_of(
            st.just(b"--b\r\n"),
            st.builds(
                PART.__mod__, st.tuples(st.sampled_from([b"image", b"urls"]), st.binary(max_size=3))
            ),
            st.just(b'Content-Disposition: form-data; name="details"\r\n\r\non\r\n'),
            st.sampled_from([b"\r\n", b"\r\n--b--\r\n", b"Content-Transfer-Encoding: base64\r\n"]),
            image_files(),
            urls.map(lambda url: b"url=" + url.encode("utf-8", "replace")),
        ),
        max_size=8,
    ),
)
packed = st.sampled_from([bytes, gzip.compress, zlib.compress, lambda data: data[1:]])
bodies = st.one_of(
    st.builds(lambda form, pack: base64.b64encode(pack(form)).decode(), forms, packed),
    direct.map(json.dumps),
    direct.map(lambda event: base64.b64encode(json.dumps(event).encode()).decode()),
    image_files().map(lambda data: base64.b64encode(data).decode()),
    st.text(),
)
methods = st.sampled_from(["POST", "POST", "GET", "HEAD", "OPTIONS", "PUT", "get", ""])
paths = st.sampled_from(["/", "/health", "/openapi.json", "/prod/health", "", "//", "/x", "/prod"])
accepts = st.sampled_from(["text/html", "text/*;q=0.5, */*;q=0.1", "*/*", "text/html;q=x", ""])
headers = st.builds(
    lambda kind, accept, coding, more: (
        more | {"Content-Type": kind, "Accept": accept, "If-None-Match": accept} | coding
    ),
    types,
    accepts | st.text(st.sampled_from("*/;q=.0123,texhml "), max_size=30),
    st.sampled_from([{}, {}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}]),
    st.dictionaries(st.text(max_size=8), anything, max_size=3),
)
queries = st.none() | st.fixed_dictionaries({}, optional=options) | anything
common = {
    "headers": maybe(headers),
    "queryStringParameters": queries,
    "body": maybe(bodies),
    "isBase64Encoded": maybe(st.booleans()),
}
http = st.one_of(
    st.fixed_dictionaries(
        {
            "version": st.just("2.0"),
            "rawPath": maybe(paths),
            "requestContext": maybe(
                st.fixed_dictionaries({"http": maybe(st.fixed_dictionaries({"method": methods}))})
            ),
            **common,
        }
    ),
    st.fixed_dictionaries(
        {
            "httpMethod": maybe(methods),
            "path": maybe(paths),
            "requestContext": st.sampled_from(
                [{}, {"elb": {}}, {"elb": None}, {"stage": "prod"}, {"stage": 1}, None, []]
            ),
            **common,
        },
        optional={"multiValueHeaders": maybe(st.dictionaries(st.text(), st.lists(st.text())))},
    ),
)
events = st.one_of(direct, http)


def check(handler: Handler, event: object) -> None:
    """Assert that `event` is answered in time, with valid JSON, without leaks."""
    log = io.StringIO()
    started = time.monotonic()
    with contextlib.redirect_stdout(log):
        try:
            answer = handler.handle(event)
        except EventSourceError as error:  # it fails the invocation on purpose
            answer = {"error": {"type": "EventSourceError", "message": str(error)}}
    assert time.monotonic() - started < SECONDS, "too slow"
    json.dumps(answer, allow_nan=False)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["request"], lines
    if isinstance(event, dict) and isinstance(event.get("requestContext"), dict):
        assert 200 <= answer["statusCode"] < 600
        assert isinstance(answer["body"], str)
        answer = json.loads(answer["body"]) if answer["body"] and not is_page(answer) else {}
    for part in answer if isinstance(answer, list) else [answer]:
        error = part.get("error")
        if isinstance(error, dict):
            assert error["type"] != "InternalError", lines
            assert error["message"].startswith("Expected "), error
    for secret in ("Traceback", "secret", "/serving/"):
        assert secret not in json.dumps([answer, lines]), secret


def is_page(response: dict) -> bool:
    """Return whether a `response` is the page for browsers, which is a fixed file."""
    return response["body"] == page.read_page().text


def run(handler: Handler, examples: int, seed: int | None = None) -> None:
    """Check `examples` events; show the smallest that fails and raise its error."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(events)
    def every_event(event: object) -> None:
        check(handler, event)

    (every_event if seed is None else hypothesis.seed(seed)(every_event))()


def main(arguments: list[str] | None = None) -> int:
    """Fuzz as the command line says and return the exit code."""
    parser = make_parser(__doc__, "python -m tests.fuzz.events")
    parser.add_argument("--runs", type=int, default=100_000, help="events [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the first part [%(default)s]")
    parser.add_argument("--model", type=Path, help="a .tflite file [the best in models/]")
    flags = parser.parse_args(arguments)
    return run_command(
        lambda: fuzz(flags.model or best_model("models", ".tflite"), flags.runs, flags.seed),
        "tests.fuzz.events",
    )


def fuzz(model: Path, runs: int, seed: int) -> None:
    """Check `runs` events on a .tflite file in ten parts.

    Raises:
        ModelError: the model cannot be loaded.
        UserError: memory grew.
    """
    handler = Handler(Service(Classifier(model, thread_count()), model.stem, Decoder()))
    parts = 10
    started, used = time.monotonic(), []
    for part in range(parts):
        run(handler, max(1, runs // parts), seed + part)
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(
            f"{part + 1} of {parts} parts: {(part + 1) * runs // parts} events in "
            f"{time.monotonic() - started:.0f} s, {used[-1] / 1000:.0f} MB at most.",
            flush=True,
        )
    if used[-1] - used[0] > GROWTH:
        raise UserError(
            f"Expected memory not to grow. Received: {(used[-1] - used[0]) / 1000:.0f} MB more "
            "than after the first part. Look for a leak."
        )


if __name__ == "__main__":
    sys.exit(main())
