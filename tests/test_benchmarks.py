"""benchmarks/: every path runs, and the tables say what was measured."""

import re
import shutil

import pytest
from conftest import ROOT

from benchmarks import serving, training
from serving.models import best_model


@pytest.fixture
def small(monkeypatch):
    """Small pictures: quick, and nothing here asks for a number."""
    monkeypatch.setattr(training, "SIZE", (71, 71))
    return str(best_model(ROOT / "models", ".h5"))


def test_every_path_is_measured_beside_the_others(small, drawn, capsys):
    flags = ["--data", str(drawn), "--weights", small, "--pictures", "10", "--rounds", "1"]
    assert training.main(flags) == 0
    rows = re.findall(
        r"^\| (.+) \| (.+) \| ([\d.]+) \| ([\d.]+) \|$", capsys.readouterr().out, re.M
    )
    ratios = {}
    for what, _how, pictures_a_second, ratio in rows:
        assert float(pictures_a_second) > 0
        ratios.setdefault(what, []).append(float(ratio))
    assert len(ratios) == 4
    assert all(group[0] == 1 and len(group) > 1 for group in ratios.values())
    assert "from the cache" in [how for _, how, _, _ in rows]


def test_the_time_to_an_accuracy_is_measured_cold_and_warm(small, drawn, capsys, tmp_path):
    flags = ["--data", str(drawn), "--weights", small, "--reach", "0.3"]
    quick = ["--epochs", "3", "--steps-per-epoch", "10", "--batch-size", "8", "--views", "1"]
    options = training.parse_arguments([*flags, "--", *quick])
    training.show_times(options)
    out = capsys.readouterr().out
    [cold], [warm] = (
        re.findall(rf"\| {name} cache \| (\d+) s \| (\d+) s \| ([\d.]+) \|", out)
        for name in ("cold", "warm")
    )
    assert int(cold[1]) < int(cold[0])
    assert int(warm[0]) < int(cold[0])
    assert float(cold[2]) == float(warm[2]) >= 0.3


def test_a_folder_without_pictures_is_one_sentence(tmp_path, capsys):
    assert training.main(["--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("benchmarks.training: Expected")


@pytest.fixture
def converted(small_checkpoint, small_tflite, monkeypatch, tmp_path):
    """The small model as what the benchmark has converted before."""
    monkeypatch.setattr(serving, "MADE", tmp_path)
    (tmp_path / "none").mkdir()
    for path in (small_checkpoint, small_tflite):
        shutil.copy(path, tmp_path / "none")
    return str(small_checkpoint)


def test_every_handler_is_measured_beside_the_originals(converted, drawn, capsys):
    flags = ["--data", str(drawn), "--checkpoint", converted, "--kinds", "none", "float16"]
    assert serving.main([*flags, "--rounds", "2", "--starts", "1", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    rows = re.findall(
        r"^\| (.+), (.+) \| (.+) \| 1 \| \d+, \d+ \| ([\d.]+) \| \d+, \d+ \| ([\d.]+) \| (\d+) \|$",
        out,
        re.M,
    )
    assert [row[:3] for row in rows] == [
        ("original", "tflite-runtime", "float32"),
        ("ours", "tflite-runtime", "float32"),
        ("ours", "tflite-runtime", "float16"),
        ("ours", "ai-edge-litert", "float32"),
        ("ours", "ai-edge-litert", "float16"),
        ("ours", "openvino", "float32"),
        ("ours", "openvino", "float16"),
        ("ours", "ONNX Runtime", "float32"),
    ]
    assert rows[0][3:5] == ("1.0", "1.0")
    # A process with NumPy and a runtime has more than this, and this test's own far more.
    assert all(20 < int(row[5]) < 400 for row in rows)
    starts = re.findall(r"^\| .+ \| .+ \| 1 \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", out, re.M)
    assert len(starts) == len(rows)
    assert all(int(total) > sum(map(int, parts)) for total, *parts in starts)


def test_a_handler_that_fails_is_told(converted, drawn, capsys, monkeypatch):
    monkeypatch.setitem(serving.KINDS, "tflite-runtime", ("none",))
    (serving.MADE / "none" / "xception_fin_07_0.750.tflite").write_bytes(b"no model")
    flags = ["--data", str(drawn), "--checkpoint", converted, "--kinds", "none", "--starts", "1"]
    assert serving.main(flags) == 1
    assert capsys.readouterr().err.startswith("benchmarks.serving: Expected an answer of ")
