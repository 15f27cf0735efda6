"""benchmarks/: every path runs, and the tables say what was measured."""

import re

import pytest
from conftest import ROOT

from benchmarks import training
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
