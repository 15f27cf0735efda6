"""benchmarks.load: a short run against the real handler behind AWS's emulator."""

import re

import pytest

from benchmarks import load
from tools.function_url import UnreachableError

PART = re.compile(
    r"^\| (\d+) \| (\d+) \| ([\d.]+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", re.M
)


def test_requests_are_counted_timed_and_weighed(drawn, small_tflite, capsys):
    flags = ["--data", str(drawn), "--model", str(small_tflite), "--requests", "30"]
    assert load.main(flags) == 0
    out = capsys.readouterr().out
    rows = PART.findall(out)
    assert [int(row[0]) for row in rows] == [3 * part for part in range(1, 11)]
    assert all(row[1] == "0" and float(row[2]) > 0 and float(row[6]) > 20 for row in rows)
    assert re.search(r"^0 of 30 failed; memory [+-][\d.]+% since request 100.$", out, re.M)


def test_late_images_show_in_the_tail(drawn, small_tflite, capsys, monkeypatch):
    monkeypatch.setattr(load, "LATE", 0.6)
    flags = ["--data", str(drawn), "--model", str(small_tflite), "--requests", "20"]
    assert load.main([*flags, "--slow", "0.5"]) == 0
    longest = [int(row[5]) for row in PART.findall(capsys.readouterr().out)]
    assert max(longest) >= 600


def test_a_failure_is_counted_and_reported(drawn, small_tflite, capsys, monkeypatch):
    monkeypatch.setattr(load, "ALLOW", {})  # so that addresses of this machine are refused
    flags = ["--data", str(drawn), "--model", str(small_tflite), "--requests", "10"]
    assert load.main(flags) == 1
    out, err = capsys.readouterr()
    assert "5 of 10 failed" in out
    assert err.startswith("benchmarks.load: Expected no failure")


def test_a_service_that_starts_late_is_waited_for_and_one_that_ends_has_failed(capsys, monkeypatch):
    calls = []

    def post(*_):
        calls.append(len(calls))
        if len(calls) <= 3 or len(calls) > 8:
            raise UnreachableError("Expected the service. Received: Connection refused.")
        return {"rose": 1.0}

    monkeypatch.setattr(load, "post", post)
    monkeypatch.setattr(load, "WAIT_S", 0)
    with pytest.raises(load.LoadError, match="Received: 6 failures"):
        load.measure("", [{}], 10, lambda: 1000)
    assert len(calls) == 3 + 1 + 10
    monkeypatch.setattr(load, "TRIES", 0)
    with pytest.raises(load.LoadError, match="Expected the service to answer within"):
        load.measure("", [{}], 10, lambda: 1000)


def test_growing_memory_is_an_error(capsys, monkeypatch):
    sizes = iter([1000, *range(1000, 2000, 100)])
    monkeypatch.setattr(load, "post", lambda *_: {"rose": 1.0})
    expected = "Expected no failure, and memory to grow by at most 5%. Received: 0 failures, and"
    with pytest.raises(load.LoadError, match=expected):
        load.measure("", [{}], 10, lambda: next(sizes))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--data", "none"], "Expected JPEG files in the sub-folders of none. Received: none."),
        (["--image", "no-such-image:here"], "Expected docker run to work. Received: "),
    ],
)
def test_without_what_it_needs_it_says_so(drawn, flags, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load.main(["--data", str(drawn), *flags]) == 1
    assert capsys.readouterr().err.startswith(f"benchmarks.load: {sentence}")
