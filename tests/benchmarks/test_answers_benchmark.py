"""benchmarks/answers.py: both tables have a row for each case, and the steps add up."""

import re
import sys

import pytest

from benchmarks import answers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CPU time is read in /proc")


def rows(out, columns):
    """Return the cells of the rows of `columns` columns below the heads of tables."""
    found = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    return [row for row in found if len(row) == columns and re.search(r"\d$", row[-1])]


def test_answers_and_events_are_measured(telling, drawn, capsys):
    flags = ["--data", str(drawn), "--pairs", "3", "--rounds", "2", "--threads", "2"]
    assert answers.main([str(telling.int8), *flags, "--runtimes", "openvino"]) == 0
    out = capsys.readouterr().out
    first, second = rows(out, 4 + len(answers.ANSWERS)), rows(out, 4 + len(answers.EVENTS))
    names = ["in the event", "small, by URL", "12 MP, by URL"]
    assert [row[:4] for row in first if row[3] in names] == [
        ["telling.int8.tflite", "openvino", "2", name] for name in names
    ]
    assert [row[3] for row in second if row[3] not in names] == ["small", "12 MP"]
    for row in first + second:
        assert min(float(cell) for cell in row[4:]) > 0
    assert all(float(row[6]) > 1 and float(row[9]) > 1 for row in first if row[3] in names)


def test_the_steps_are_parts_of_the_whole(telling, drawn, capsys):
    flags = ["--data", str(drawn), "--pairs", "5", "--rounds", "0", "--threads", "1"]
    assert answers.main([str(telling.int8), *flags, "--runtimes", "openvino"]) == 0
    steps = {name: list(map(float, cells)) for name, *cells in rows(capsys.readouterr().out, 4)}
    assert list(steps) == [*answers.STEPS, "the decoder's process"]
    for place, fetched in enumerate((False, True, True)):
        *parts, whole, decoder = (cells[place] for cells in steps.values())
        assert 0 < sum(parts) < whole + 0.1 * len(parts)
        assert (steps["fetch"][place] > 0) == fetched
        assert decoder > 0
    assert steps["the decoder's process"][2] > 5 * steps["the decoder's process"][0]


def test_a_wrong_answer_is_no_measurement():
    answers.check({"rose": 1.0})
    answers.check([{"rose": 1.0}] * 2)
    with pytest.raises(answers.LoadError, match="ImageError"):
        answers.check([{"rose": 1.0}, {"error": {"type": "ImageError"}}])
