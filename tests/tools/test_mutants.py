"""tools/mutants.py: sample, report, and whether the paths in pyproject.toml exist."""

import json
import subprocess
import tomllib
from types import SimpleNamespace

import pytest
from conftest import ROOT

from tools import mutants

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Start nothing: notes the names that mutmut would have been given, and returns code 3."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(mutants, "FOLDER", tmp_path / "mutants")
    started = []

    def run(command, env):
        assert env["OPENBLAS_NUM_THREADS"] == "1"
        assert command[1:4] == ["-m", "mutmut", "run"]
        started.append(command[6:])
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", run)
    return started


def test_every_mutant_of_a_named_file_is_tried(started):
    assert mutants.main(["serving/log.py"]) == 3
    [names] = started
    assert "serving.log.x_write__mutmut_1" in names
    assert len(names) == len(set(names)) > 50
    assert all(name.startswith("serving.log.") for name in names)


def test_a_sample_is_the_same_every_time_and_from_all_over(started):
    for _ in range(2):
        mutants.main(["serving/log.py", "serving/m*.py", "--sample", "60"])
    first, second = started
    assert first == second
    assert len(set(first)) == 60
    assert {name.split(".")[1] for name in first} >= {"log", "model_files"}


@pytest.mark.parametrize("flag", ["--sample=-1", "--sample=0", "--jobs=0"])
def test_a_number_below_one_is_refused(started, capsys, flag):
    with pytest.raises(SystemExit):
        mutants.main(["serving/log.py", flag])
    name, _, number = flag.partition("=")
    assert f"argument {name}: expected 1 or more. Received: {number}" in capsys.readouterr().err
    assert started == []


def test_a_file_without_mutants_is_an_error(started, capsys):
    assert mutants.main(["train.py", "a.py"]) == 1
    assert capsys.readouterr().err == (
        "tools.mutants: Expected files of only_mutate in pyproject.toml. Received: train.py, a.py. "
        "Name one of those, such as serving/log.py.\n"
    )
    assert started == []


def test_ctrl_c_ends_it_in_one_line(started, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    assert mutants.main(["serving/log.py"]) == 130
    assert capsys.readouterr().err == "\ntools.mutants: Stopped.\n"


def test_the_report_counts_by_file_and_names_what_nobody_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mutants, "FOLDER", tmp_path)
    (tmp_path / "a").mkdir()
    codes = {
        "a/b.py": {"b.1": 1, "b.2": 0, "b.3": 36, "b.4": None},
        "a/c.py": {"c.1": 33, "c.2": 255},
    }
    for file, results in codes.items():
        (tmp_path / f"{file}.meta").write_text(json.dumps({"exit_code_by_key": results}))
    mutants.report({"b.1", "b.2", "b.3", "c.1", "c.2"}, 10)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Not noticed:",
        "b.2 (survived)",
        "c.1 (no tests)",
        "c.2 (not run)",
        "",
        "                           mutants  noticed survived  no test   share",
        "a/b.py                           3        2        1        0   66.7%",
        "a/c.py                           2        0        0        1    0.0%",
        "all                              5        2        1        1   40.0%",
        "5 of 10 mutants. Look at one with: mutmut show NAME",
    ]


def test_all_that_is_configured_is_there():
    for pattern in SETTINGS["only_mutate"]:
        assert list(ROOT.glob(pattern)), pattern
    for path in (
        *SETTINGS["source_paths"],
        *SETTINGS["also_copy"],
        *SETTINGS["pytest_add_cli_args_test_selection"],
    ):
        assert (ROOT / path).exists(), path
    for flag in SETTINGS["pytest_add_cli_args"]:
        if flag.startswith("--deselect="):
            path, name = flag.removeprefix("--deselect=").split("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), flag
