"""experiments.tune: every tuner ends, goes on and shares; the command it prints is train.py's."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

import train
from experiments import tune
from training.dataset import scan, split

# KerasTuner asks threads for their names in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:(currentThread|getName):DeprecationWarning")
QUICK = "--epochs 1 --repeats 1 --weights none --seed 3"


@pytest.fixture(scope="module")
def flags(drawn, tmp_path_factory):
    """Of quick searches; the features of the drawn flowers are there after the first one."""
    return ["--data", str(drawn), "--cache", str(tmp_path_factory.mktemp("cache")), *QUICK.split()]


@pytest.fixture(scope="module")
def task(flags):
    """What the trials of `flags` learn from."""
    return tune.prepare(tune.parse_arguments(flags))


@pytest.fixture
def pretend(monkeypatch, task):
    """Trials that take no time: the loss tells how far from learning rate 0.03, momentum 0.9.

    Returns the list of (setting, epochs) that were fitted.
    """
    fitted = []

    def fit(setting, epochs, seed, task):
        fitted.append((setting, epochs))
        loss = abs(np.log(setting.learning_rate / 0.03)) + abs(setting.momentum - 0.9)
        return None, {"val_loss": float(loss), "val_accuracy": 0.5, "epoch": 1}

    monkeypatch.setattr(tune, "fit", fit)
    return fitted


def search(task, folder, *words):
    options = tune.parse_arguments([*QUICK.split(), *words])
    return tune.search(task, folder, options)


def count_finished(folder):
    states = [json.loads(path.read_text()) for path in folder.glob("search/trial_*/trial.json")]
    return sum(state["status"] == "COMPLETED" for state in states)


def test_the_grid_tries_the_originals_pairs_and_prints_the_command_of_the_best(
    flags, tmp_path, capsys
):
    assert tune.main([*flags, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    pairs = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| 512 128 32 \| 0\.0 \|", printed, re.M)
    assert {tuple(map(float, pair)) for pair in pairs} == set(tune.PAIRS)
    assert len(pairs) == 3
    best = tuple(map(float, pairs[0]))
    [command] = re.findall(r"^python train.py (.+)$", printed, re.M)
    options = train.parse_arguments(shlex.split(command))
    assert (options.learning_rate, options.momentum) == best
    assert (options.seed, options.epochs, options.weights) == (3, 1, "none")
    summary = json.loads((tmp_path / "grid" / tune.SUMMARY).read_text())
    losses = [trial["val_loss"] for trial in summary["trials"]]
    assert losses == sorted(losses)
    page = (tmp_path / "grid" / "index.html").read_text(encoding="utf-8")
    assert len(re.findall('<img src="data:image/png;base64,', page)) == 1
    assert command.split(" --data")[0] in page
    assert (tmp_path / "grid" / "trials.png").stat().st_size < 200_000


def test_what_is_reported_was_never_trained_on_nor_used_to_pick(task, drawn, monkeypatch):
    parts = split(scan(drawn), 0.2, 3, 0.125)
    seen = {}
    for name in ("TrainingBatches", "Batches"):
        kind = getattr(tune, name)

        def watch(source, names, *positional, kind=kind, name=name, **named):
            seen[name] = set(names)
            return kind(source, names, *positional, **named)

        monkeypatch.setattr(tune, name, watch)
    tune.fit(tune.ORIGINAL, 1, 0, task)
    assert seen == {"TrainingBatches": set(parts.train), "Batches": set(parts.selection)}
    assert not set(parts.validation) & {*parts.train, *parts.selection}


def test_the_head_that_is_reported_is_that_of_its_best_epoch(task):
    head, facts = tune.fit(tune.Setting(0.05, 0.9, (16,), 0.3), 4, 0, task)
    assert [type(layer).__name__ for layer in head.layers[1:]] == ["Dense", "Dropout", "Dense"]
    selection = tune.Batches(task.judged, task.parts.selection, 32)
    head.compile(loss="categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = head.evaluate(selection, verbose=0)
    assert loss == pytest.approx(facts["val_loss"], rel=1e-5)
    assert accuracy == pytest.approx(facts["val_accuracy"])
    again, _ = tune.fit(tune.Setting(0.05, 0.9, (16,), 0.3), 4, 0, task)
    assert all(map(np.allclose, head.get_weights(), again.get_weights()))


def test_a_setting_that_diverges_loses_and_ends_nothing(task):
    _, facts = tune.fit(tune.Setting(1e30, 0.9, ()), 1, 0, task)
    assert 1 < facts["val_loss"] <= tune.DIVERGED


@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_a_search_ends_after_its_trials_and_gives_the_best_first(
    tuner, task, pretend, tmp_path, capsys
):
    trials = search(task, tmp_path, "--tuner", tuner, "--trials", "7", "--epochs", "9")
    told = int(re.search(rf"Search: {tuner}, (\d+) trials", capsys.readouterr().out)[1])
    assert len(pretend) == len(trials) == told == count_finished(tmp_path)
    if tuner == "hyperband":
        assert {epochs for _, epochs in pretend} == {1, 3, 9}
    else:
        assert told == 7 > tune.RANDOM_FIRST
        assert {epochs for _, epochs in pretend} == {1}  # what the task says
    losses = [facts["val_loss"] for _, facts in trials]
    assert losses == sorted(losses)
    for setting, _ in pretend:
        assert tune.LEARNING_RATES[0] <= setting.learning_rate <= tune.LEARNING_RATES[1]
        assert setting.momentum in tune.MOMENTUMS
        assert len(setting.head) <= tune.LAYERS[1]
        assert all(b == a // 4 for a, b in zip(setting.head, setting.head[1:], strict=False))
        assert tune.DROPOUTS[0] <= setting.dropout <= tune.DROPOUTS[1]


def test_a_finished_search_goes_on_with_more_trials_and_only_with_them(task, pretend, tmp_path):
    first = search(task, tmp_path, "--tuner", "random", "--trials", "3")
    assert search(task, tmp_path, "--tuner", "random", "--trials", "3") == first
    assert len(pretend) == 3
    more = search(task, tmp_path, "--tuner", "random", "--trials", "5")
    assert len(pretend) == len(more) == 5
    assert all(trial in more for trial in first)


def test_a_search_of_other_settings_is_refused(flags, task, pretend, tmp_path, capsys):
    search(task, tmp_path / "random", "--tuner", "random", "--trials", "1")
    other = [*flags, "--tuner", "random", "--epochs", "2", "--out", str(tmp_path)]
    assert tune.main(other) == 1
    assert "(epochs 1). Received: epochs 2." in capsys.readouterr().err


def test_a_fault_of_the_machine_is_no_bad_setting(task, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tune, "fit", fail)
    with pytest.raises(OSError, match="No space left"):
        search(task, tmp_path)
    assert count_finished(tmp_path) == 0


def test_a_killed_search_goes_on_where_it_was(flags, task, pretend, tmp_path):
    arguments = [*flags, "--epochs", "6", "--out", str(tmp_path)]
    folder = tmp_path / "grid"
    command = [sys.executable, "-m", "experiments.tune", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 180
        while len(list(folder.glob("search/trial_*/trial.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert count_finished(folder) == 1
    common = task.common | {"epochs": 6}
    trials = tune.search(
        tune.Task(task.parts, task.learned, task.judged, common),
        folder,
        tune.parse_arguments(arguments),
    )
    assert len(trials) == 3
    assert len(pretend) == 2


def test_two_workers_share_one_search(flags, task, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    arguments = [*flags, "--tuner", "random", "--trials", "4", "--out", str(tmp_path)]
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "experiments.tune", *arguments],
            cwd=ROOT,
            env=os.environ | where | {"KERASTUNER_TUNER_ID": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("chief", "worker0", "worker1")
    }
    try:
        said = {name: process.communicate(timeout=300)[0] for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    assert [process.returncode for process in processes.values()] == [0, 0, 0], said
    assert count_finished(tmp_path / "random") == 4
    assert "Look at it" in said["chief"]
    for name in ("worker0", "worker1"):
        assert "runs the trials that the chief hands out" in said[name]
        assert "Look at it" not in said[name]
        assert (tmp_path / "random" / "search" / f"{name}.json").exists()


def test_what_train_py_has_no_flag_for_is_told():
    assert tune.beyond_flags(tune.ORIGINAL) == []
    lines = tune.beyond_flags(tune.Setting(0.1, 0.9, (64,), 0.2))
    assert lines == ["train.py has no dropout; 0.2 of it was best here"]


@pytest.mark.parametrize("head", [(), (64,), (512, 128)])
def test_the_command_gives_train_py_what_was_best(head):
    words = tune.command(tune.Setting(0.1, 0.9, head, 0.0), tune.parse_arguments([])).split()
    assert words[:2] == ["python", "train.py"]
    options = train.parse_arguments(words[2:])
    assert (options.learning_rate, options.momentum, options.head) == (0.1, 0.9, head)


def test_the_originals_setting_stays_where_the_search_found_none_better():
    best = tune.Setting(0.1, 0.9, (64,), 0.2)
    rows = {
        s: [{"hits": 9, "n": 10, "val_loss": loss}]
        for s, loss in ((best, 0.4), (tune.ORIGINAL, 0.3))
    }
    assert "which stays" in tune.describe(best, tune.ORIGINAL, rows)
    assert "0.400 against 0.300." in tune.describe(best, best, rows)
    assert tune.describe(tune.ORIGINAL, tune.ORIGINAL, rows).startswith(
        "The original's setting won"
    )
