"""serving.log: one JSON line each, flushed, with these fields and no others, and no secrets."""

import contextlib
import io
import json

import pytest

from serving import log
from serving.log import ImageLog, RequestLog, loggable, milliseconds, without_secrets


class Output(io.StringIO):
    """A standard output that notes what had been written when it was last flushed."""

    flushed = ""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def written(function, *args, **fields) -> str:
    """Return what `function` has flushed to standard output when it returns."""
    with contextlib.redirect_stdout(Output()) as output:
        function(*args, **fields)
    return output.flushed


def test_a_line_has_its_level_and_message_first_and_is_flushed():
    line = written(log.write, "INFO", "hello", count=2, what="é\n")
    assert line.startswith('{"level": "INFO", "message": "hello", "count": 2, ')
    assert line.count("\n") == 1
    assert json.loads(line)["what"] == "é\n"


def test_a_line_is_written_in_one_piece(monkeypatch):
    """Or those of two threads would mix."""
    output, pieces = Output(), []
    monkeypatch.setattr(output, "write", pieces.append)
    with contextlib.redirect_stdout(output):
        log.write("INFO", "hello")
    assert [piece for piece in pieces if piece] == ['{"level": "INFO", "message": "hello"}\n']


def test_a_request_is_one_line_of_its_fields(monkeypatch):
    monkeypatch.delenv("METRICS_NAMESPACE", raising=False)
    line = written(log.write_request, RequestLog("id-1", True, ms=1.5))
    assert json.loads(line) == {
        "level": "INFO",
        "message": "request",
        "request_id": "id-1",
        "cold_start": True,
        "event": "direct",
        "ms": 1.5,
        "errors": 0,
    }


def test_metrics_follow_cloudwatchs_embedded_metric_format(monkeypatch):
    monkeypatch.setenv("METRICS_NAMESPACE", "flowers")
    monkeypatch.setattr(log.time, "time", lambda: 1_700_000_000.1239)
    line = written(log.write_request, RequestLog(None, False, ms=1.5, error="ImageError"))
    assert json.loads(line) == {
        "level": "INFO",
        "message": "request",
        "request_id": None,
        "cold_start": False,
        "event": "direct",
        "ms": 1.5,
        "error": "ImageError",
        "errors": 1,
        "_aws": {
            "Timestamp": 1_700_000_000_123,  # whole milliseconds
            "CloudWatchMetrics": [
                {
                    "Namespace": "flowers",
                    "Dimensions": [[]],
                    "Metrics": [
                        {"Name": "ms", "Unit": "Milliseconds"},
                        {"Name": "errors", "Unit": "Count"},
                    ],
                }
            ],
        },
    }


def test_a_defect_is_logged_with_its_trace_and_without_what_is_secret():
    def break_down(url):
        raise KeyError(url)

    with pytest.raises(KeyError) as raised:
        break_down("https://example.com/a.jpg?token=secret")
    line = json.loads(written(log.log_exception, "id-1", raised.value))
    trace = line.pop("exception")
    assert line == {"level": "ERROR", "message": "defect", "request_id": "id-1"}
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in break_down\n" in trace
    assert {line[:2] for line in trace.splitlines()} == {"Tr", "  ", "Ke"}
    assert trace.endswith("KeyError: 'https://example.com/a.jpg?...\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /a?b=c HTTP/1.1", "GET /a?... HTTP/1.1"),
        ("/a?b\n/c?d", "/a?...\n/c?..."),
        ("why? because", "why?... because"),
        ("/a", "/a"),
        (
            "KeyError: 'https://host.test/a?secret=1&b=2' in line 3? yes",
            "KeyError: 'https://host.test/a?... in line 3?... yes",
        ),
    ],
)
def test_a_query_is_cut_up_to_the_next_space(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("KeyError: 'http://rose:thorn@a/b' there\n", "KeyError: ... there\n"),
        ("KeyError: 'HTTPS://rose:tho rn@a/b'\n", "KeyError: ...\n"),
        ("KeyError: 'http:rose:tho\nrn@x@a/b'\n", "KeyError: ...\n"),
        ("a@b http://c/d e@f", "... ..."),
        ("http://a/ and rose:thorn%40a/b", "..."),
        ("no scheme: rose:thorn@a/b c", "no scheme: ... c"),
        ("rose:th\uff20a", "..."),
        ("http://rose:t?h#o@a/", "..."),
        ('  File "/var/task/a.py", line 1, in b\n', '  File "/var/task/a.py", line 1, in b\n'),
        ("KeyError: " + "x" * 1990, "KeyError: " + "x" * 1990),
        ("KeyError: " + "x" * 1991, "KeyError: ... (2001 characters)\n"),
        ("x" * 2001, "... (2001 characters)\n"),
        ("KeyError: 'http://rose:a@b thorn c@d/'\n", "KeyError: ...\n"),
        ("http:" * 400, "http:" * 400),
    ],
    ids=range(14),
)
def test_of_a_text_neither_passwords_nor_images_are_logged(text, shown):
    assert without_secrets(text) == shown


def test_of_a_chain_of_errors_each_is_logged_without_what_is_secret():
    def break_down():
        try:
            raise KeyError("http://rose:thorn@a/")
        except KeyError as error:
            error.add_note("thorn@a")
            raise ValueError("https://a/?thorn") from error

    with pytest.raises(ValueError, match="thorn") as raised:
        break_down()
    trace = json.loads(written(log.log_exception, None, raised.value))["exception"]
    messages = [line for line in trace.splitlines() if line and not line.startswith(" ")]
    assert messages == [
        "Traceback (most recent call last):",
        "KeyError: ...",
        "...",
        "The above exception was the direct cause of the following exception:",
        "Traceback (most recent call last):",
        "ValueError: https://a/?...",
    ]


def request_log(**fields):
    return RequestLog(request_id=None, cold_start=False, ms=0.5, **fields)


def test_fields_without_a_value_are_left_out_except_the_request_id():
    assert request_log().to_json() == {
        "request_id": None,
        "cold_start": False,
        "event": "direct",
        "ms": 0.5,
        "errors": 0,
    }
    assert ImageLog(bytes=0, decode_ms=0.0).to_json() == {"bytes": 0, "decode_ms": 0.0}


def test_a_refused_request_is_one_error():
    assert request_log(error="InvalidRequestError").to_json()["errors"] == 1


def test_times_and_errors_are_summed_over_the_images():
    images = [
        ImageLog(decode_ms=1.25, infer_ms=20.0),
        ImageLog(decode_ms=2.5, error="ImageError"),
        ImageLog(error="FetchError"),
    ]
    line = request_log(images=images, fetch_ms=3.0).to_json()
    assert (line["fetch_ms"], line["decode_ms"], line["infer_ms"]) == (3.0, 3.8, 20.0)
    assert line["errors"] == 2
    assert line["images"] == [image.to_json() for image in images]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.b:8080/c/d?e=f#g", "https://a.b:8080/c/d"),
        ("HTTPS://A.b/C", "https://A.b/C"),
        ("http://a/" + "b" * 300, "http://a/" + "b" * 191),
        ("http://a", "http://a"),
        ("http://a:/", "http://a:/"),
        ("http://[::1]:80/b", "http://[::1]:80/b"),
        ("http://blüte.test/ü b", "http://blüte.test/ü b"),
        ("http://a/b;jsessionid=secret", "http://a/b"),
        ("http://a/b;secret/c", "http://a/b"),
        ("http://a/b%3Fsecret", "http://a/b"),
        ("http://a/b%253fsecret", "http://a/b"),
        ("http://a/b%23secret\nsecret", "http://a/b"),
        ("http://a/b%20c", "http://a/b%20c"),
        *(
            (url, "unreadable")
            for url in (
                "http:///a",
                "ftp://a/b",
                "http://[a",
                "http://[secret",
                "http://[secret]/",
                "ftp://secret/",
                "secret",
                "",
                "http:secret",
                "https://user:secret@host.test:8080/a/b.jpg?secret#secret",
                "http://user:s3cr/et@host.test/",
                "http://user:s3cr?et@host.test/",
                "http://user:s3cr#et@host.test/",
                "http://user:123/secret@host.test/",
                "http://user/secret@host.test/",
                "http://user:12?secret@host.test/",
                "http://user:12/secret%40host.test/",
                "http://user:12/secret%2540host.test/",
                "http://user:12/secret\uff20host.test/",
                "http://user:secret%40host.test/",
                "http://user%3Asecret%40host.test/",
                "http://user:secret host.test/",
                "http://user secret/",
                "http://user:secret\\@host.test/",
                "http://user\\secret/",
                "http:\\\\user:secret@host.test/",
                "http:/user:secret@host.test/",
                "http:user:secret@host.test/",
                "HTTP:user:secret@host.test/",
                "user:secret@host.test/",
                "http://a@secret@host.test/",
                "http://host.test/go/http://user:secret@host.test/",
                "See http://user:secret@host.test/",
                "http://user:12/" + "secret" * 500 + "@host.test/",
            )
        ),
    ],
)
def test_of_a_url_only_what_is_no_secret_is_logged(url, shown):
    assert loggable(url) == shown


def test_milliseconds_have_one_decimal(monkeypatch):
    monkeypatch.setattr(log.time, "monotonic", lambda: 10.01234)
    assert milliseconds(10) == 12.3


def test_timings_are_of_the_steps_that_were_taken():
    request = RequestLog("id", cold_start=False, ms=12.34, fetch_ms=0.0)
    assert request.timings() == {"total": 12.3}
    request.images = []
    assert request.timings() == {"total": 12.3}
    request.images = [ImageLog("image", decode_ms=1.5, infer_ms=7.0), ImageLog("image")]
    assert request.timings() == {"decode": 1.5, "infer": 7.0, "total": 12.3}
    request.images.append(ImageLog("url", decode_ms=0.25))
    request.fetch_ms = 41.7
    assert list(request.timings().items()) == [
        ("fetch", 41.7),  # of all images together
        ("decode", 1.8),
        ("infer", 7.0),
        ("total", 12.3),
    ]
    request.images, request.fetch_ms = [ImageLog("url"), ImageLog("url")], None
    assert request.timings() == {"total": 12.3}
