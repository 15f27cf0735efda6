"""serving.log: one JSON line each, with these fields and no others, written out at once."""

import contextlib
import io
import json

import pytest

from serving import log


class Output(io.StringIO):
    """A standard output that notes what had been written when it was last flushed."""

    flushed = ""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def written(function, *args, **facts) -> str:
    """Return what `function` has brought to standard output by the time it returns."""
    with contextlib.redirect_stdout(Output()) as output:
        function(*args, **facts)
    return output.flushed


def test_a_line_has_its_level_and_message_first_and_is_flushed():
    line = written(log.write, "INFO", "hello", count=2, what="é\n")
    assert line.startswith('{"level": "INFO", "message": "hello", "count": 2, ')
    assert line.count("\n") == 1
    assert json.loads(line)["what"] == "é\n"


def test_a_request_is_logged_as_it_was_told(monkeypatch):
    monkeypatch.delenv("METRICS_NAMESPACE", raising=False)
    line = written(log.write_request, ms=1.5, errors=0, event="direct")
    assert json.loads(line) == {
        "level": "INFO",
        "message": "request",
        "ms": 1.5,
        "errors": 0,
        "event": "direct",
    }


def test_metrics_follow_cloudwatchs_embedded_metric_format(monkeypatch):
    monkeypatch.setenv("METRICS_NAMESPACE", "flowers")
    monkeypatch.setattr(log.time, "time", lambda: 1_700_000_000.1239)
    line = written(log.write_request, errors=1, ms=1.5, event="direct")
    assert json.loads(line) == {
        "level": "INFO",
        "message": "request",
        "errors": 1,
        "ms": 1.5,
        "event": "direct",
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
    ],
)
def test_a_query_is_cut_up_to_the_next_space(text, shown):
    assert log.without_query(text) == shown
