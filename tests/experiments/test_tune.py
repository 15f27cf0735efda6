"""experiments.tune: every tuner ends, continues and shares; the command it prints is train.py's."""

import contextlib
import json
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import ROOT
from optuna.trial import TrialState

import train
from experiments import search, tune, tune_report
from experiments.search import Candidate
from training.batches import TrainingBatches
from training.dataset.scan import scan
from training.dataset.split import split_dataset
from training.errors import DataError
from training.recipes import ORIGINAL

QUICK = "--epochs 1 --repeats 1 --weights none --split-seed 4 --seed 3"


@pytest.fixture(scope="module")
def flags(drawn, tmp_path_factory):
    """Of quick searches; the features of the drawn flowers are there after the first one."""
    return ["--data", str(drawn), "--cache", str(tmp_path_factory.mktemp("cache")), *QUICK.split()]


@pytest.fixture(scope="module")
def data(flags):
    """What the trials of `flags` are trained on."""
    return tune.prepare(tune.parse_arguments(flags))


@pytest.fixture
def split(drawn):
    return split_dataset(scan(drawn), 4, validation_fraction=0.125, test_fraction=0.2)


class PretendHead:
    """Names the class of every image, or always the first one."""

    def __init__(self, right):
        self.right = right

    def predict(self, batches, verbose):
        return batches.targets if self.right else np.eye(5)[[0] * len(batches.targets)]


@pytest.fixture
def pretend(monkeypatch):
    """Trials that take no time: the loss tells how far from learning rate 0.03, momentum 0.9.

    Returns the list of (candidate, epochs that were trained).
    """
    fitted = []

    def fit(candidate, epochs, seed, data, trial=None):
        loss = abs(np.log(candidate.learning_rate / 0.03)) + abs(candidate.momentum - 0.9)
        for epoch in range(1, epochs + 1):
            if trial:
                trial.report(loss, epoch)
                if trial.should_prune():
                    break
        fitted.append((candidate, epoch))
        metrics = {"val_loss": float(loss), "val_accuracy": 0.5, "epoch": 1, "epochs": epoch}
        return PretendHead(right=True), metrics

    monkeypatch.setattr(tune, "fit", fit)
    return fitted


@pytest.fixture
def prepared(monkeypatch, data):
    """Commands have their features at once, of the images of `data`."""

    def prepare(options):
        settings = data.settings | {"epochs": options.epochs, "seed": options.seed}
        return replace(data, settings=settings)

    monkeypatch.setattr(tune, "prepare", prepare)


@pytest.fixture
def impatient(monkeypatch):
    """Trials of killed processes count as lost after a second."""
    monkeypatch.setattr(search, "LOST", 1)


def run_search(data, out, *words):
    out.mkdir(exist_ok=True)
    options = tune.parse_arguments([*QUICK.split(), *words, "--out", str(out)])
    return tune.search(data, options)


def all_trials(out, study="grid", states=None):
    return optuna.load_study(
        study_name=study, storage=f"sqlite:///{out / tune.DATABASE}"
    ).get_trials(states=states)


def count_finished(out, study="grid"):
    return len(all_trials(out, study, (TrialState.COMPLETE, TrialState.PRUNED)))


def states_on_disk(out):
    """Return the states of all trials, also of a database that is being made."""
    with contextlib.suppress(sqlite3.OperationalError):
        database = sqlite3.connect(f"file:{out / tune.DATABASE}?mode=ro", uri=True)
        with contextlib.closing(database):
            return [state for (state,) in database.execute("SELECT state FROM trials")]
    return []


def test_the_grid_tries_the_originals_pairs_and_prints_the_command_of_the_best(
    flags, tmp_path, capsys
):
    assert tune.main([*flags, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "the best candidate and the original's, from 1 seed each.\n" in printed
    pairs = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| 512 128 32 \| 0\.0 \|", printed, re.M)
    assert {tuple(map(float, pair)) for pair in pairs} == set(search.PAIRS)
    assert len(pairs) == 3
    summary = json.loads((tmp_path / "grid" / tune_report.SUMMARY).read_text())
    losses = [trial["val_loss"] for trial in summary["trials"]]
    assert losses == sorted(losses)
    [command] = re.findall(r"^python train.py (.+)$", printed, re.M)
    assert summary["command"] == f"python train.py {command}"
    options = train.parse_arguments(shlex.split(command))
    winner = min(summary["repeats"], key=lambda repeat: repeat["rows"][0]["val_loss"])
    assert options.learning_rate == winner["learning_rate"]
    assert options.momentum == winner["momentum"]
    assert (options.seed, options.epochs, options.weights) == (3, 1, "none")
    page = (tmp_path / "grid" / "index.html").read_text(encoding="utf-8")
    assert len(re.findall('<img src="data:image/png;base64,', page)) == 1
    assert command.split(" --data")[0] in page
    assert (tmp_path / "grid" / "trials.png").stat().st_size < 200_000


def test_what_is_reported_was_never_trained_on_nor_used_to_pick(
    data, split, flags, tmp_path, monkeypatch
):
    seen = {"TrainingBatches": [], "Batches": []}
    for name in seen:
        kind = getattr(tune, name)

        def watch(source, names, *positional, kind=kind, name=name, **named):
            seen[name].append(set(names))
            return kind(source, names, *positional, **named)

        monkeypatch.setattr(tune, name, watch)
    tune.fit(search.ORIGINAL, 1, 3, data)
    assert seen == {"TrainingBatches": [set(split.train)], "Batches": [set(split.validation)]}
    assert not set(split.evaluated) & {*split.train, *split.validation}
    options = tune.parse_arguments([*flags, "--out", str(tmp_path)])
    [row] = tune.repeat(search.ORIGINAL, data, options)
    assert seen["TrainingBatches"] == [set(split.train)] * 2
    assert seen["Batches"][1:] == [set(split.validation), set(split.evaluated)]
    # What is said of the test images is what the head says of them.
    head, _ = tune.fit(search.ORIGINAL, 1, 3, data)
    test = tune.Batches(data.evaluation, split.evaluated, 32)
    answers = head.predict(test, verbose=0).argmax(axis=1)
    assert row["test_accuracy"] == (answers == test.targets.argmax(axis=1)).mean()


def test_a_trial_is_trained_as_train_py_trains(data, monkeypatch):
    given = {}

    def watch(source, names, batch_size, **named):
        given.update(named, batch_size=batch_size)
        return TrainingBatches(source, names, batch_size, **named)

    monkeypatch.setattr(tune, "TrainingBatches", watch)
    tune.fit(search.ORIGINAL, 1, 5, data)
    assert given == {
        "batch_size": ORIGINAL.batch_size,
        "steps": ORIGINAL.steps_per_epoch,
        "seed": 5,
        "views": ORIGINAL.views,
    }
    assert data.training.images.settings == ORIGINAL.augmentation
    assert data.training.images.size == ORIGINAL.image_size


def test_the_head_that_is_reported_is_that_of_its_best_epoch(data):
    candidate = Candidate(0.05, 0.9, (16,), 0.3)
    head, metrics = tune.fit(candidate, 4, 0, data)
    assert [type(layer).__name__ for layer in head.layers[1:]] == ["Dense", "Dropout", "Dense"]
    assert head.layers[1].units == 16
    assert head.layers[2].rate == 0.3
    optimizer = head.optimizer.get_config()
    assert (optimizer["learning_rate"], optimizer["momentum"]) == pytest.approx((0.05, 0.9))
    validation = tune.Batches(data.evaluation, data.split.validation, 32)
    head.compile(loss="categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = head.evaluate(validation, verbose=0)
    assert loss == pytest.approx(metrics["val_loss"], rel=1e-5)
    assert accuracy == pytest.approx(metrics["val_accuracy"])
    assert 1 <= metrics["epoch"] <= metrics["epochs"] == 4
    again, _ = tune.fit(candidate, 4, 0, data)
    assert all(map(np.allclose, head.get_weights(), again.get_weights()))
    other, _ = tune.fit(candidate, 4, 1, data)
    assert not all(map(np.allclose, head.get_weights(), other.get_weights()))


def test_trials_that_diverge_lose_and_end_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "LEARNING_RATES", (1e29, 1e30))
    monkeypatch.setattr(search, "MOMENTUMS", (0.9,))
    trials = run_search(data, tmp_path, "--tuner", "random", "--trials", "2")
    assert len(trials) == 2
    assert all(1 < metrics["val_loss"] <= tune.DIVERGED for _, metrics in trials)


@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_a_search_ends_after_its_trials_and_gives_the_best_first(
    tuner, data, pretend, tmp_path, capsys
):
    total = 12 if tuner == "hyperband" else 7
    words = ("--tuner", tuner, "--trials", str(total), "--epochs", "9")
    trials = run_search(data, tmp_path, *words)
    assert f"Search: {tuner}, {total} trials, 0 of them finished." in capsys.readouterr().out
    assert len(pretend) == len(trials) == total == count_finished(tmp_path, tuner)
    if tuner == "hyperband":
        # Bad candidates end at a rung, and none that is better than all before it.
        assert {epochs for _, epochs in pretend} >= {1, 9}
        assert {epochs for _, epochs in pretend} <= {1, 3, 9}
        assert trials[0][1]["epochs"] == 9
        assert len(all_trials(tmp_path, tuner, (TrialState.PRUNED,))) > 1
    else:
        assert total > search.RANDOM_FIRST
        assert {epochs for _, epochs in pretend} == {9}
    losses = [metrics["val_loss"] for _, metrics in trials]
    assert losses == sorted(losses)
    assert {candidate for candidate, _ in trials} == {candidate for candidate, _ in pretend}
    for candidate, _ in pretend:
        assert search.LEARNING_RATES[0] <= candidate.learning_rate <= search.LEARNING_RATES[1]
        assert candidate.momentum in search.MOMENTUMS
        assert len(candidate.head) <= search.LAYERS[1]
        assert set(candidate.head[:1]) <= set(search.UNITS)
        assert all(b == a // 4 for a, b in zip(candidate.head, candidate.head[1:], strict=False))
        assert search.DROPOUTS[0] <= candidate.dropout <= search.DROPOUTS[1]
    assert len({candidate.learning_rate for candidate, _ in pretend}) == total


def test_bayesian_learns_from_its_trials(data, pretend, tmp_path):
    run_search(data, tmp_path, "--tuner", "bayesian", "--trials", "24")
    distances = [abs(np.log(candidate.learning_rate / 0.03)) for candidate, _ in pretend]
    first = search.RANDOM_FIRST
    assert np.mean(distances[-8:]) < 0.7 * np.mean(distances[:first])


@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_a_seed_always_tries_the_same_whether_it_was_stopped_or_not(
    tuner, data, pretend, tmp_path, monkeypatch
):
    words = ("--tuner", tuner, "--trials", "8", "--epochs", "3")
    whole = {candidate for candidate, _ in run_search(data, tmp_path / "whole", *words)}
    fit, calls = tune.fit, []

    def fit_until_stopped(*arguments):
        calls.append(arguments)
        if len(calls) in (3, 5):
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(tune, "fit", fit_until_stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_search(data, tmp_path / "stopped", *words)
    stopped = {candidate for candidate, _ in run_search(data, tmp_path / "stopped", *words)}
    assert len(calls) == 8 + 2
    assert stopped == whole
    other = {
        candidate for candidate, _ in run_search(data, tmp_path / "other", *words, "--seed", "4")
    }
    assert not other & whole


def test_a_finished_search_continues_with_more_trials_and_only_with_them(data, pretend, tmp_path):
    first = run_search(data, tmp_path, "--tuner", "random", "--trials", "3")
    assert run_search(data, tmp_path, "--tuner", "random", "--trials", "3") == first
    assert len(pretend) == 3
    more = run_search(data, tmp_path, "--tuner", "random", "--trials", "5")
    assert len(pretend) == len(more) == 5
    assert all(trial in more for trial in first)
    assert run_search(data, tmp_path, "--tuner", "random", "--trials", "2") == more


def test_a_search_of_other_settings_is_refused(flags, data, prepared, pretend, tmp_path, capsys):
    run_search(data, tmp_path, "--tuner", "random", "--trials", "1")
    other = [*flags, "--tuner", "random", "--epochs", "2", "--out", str(tmp_path)]
    assert tune.main(other) == 1
    error = capsys.readouterr().err
    assert "the study 'random' (epochs 1). Received: epochs 2. Give the same, or another" in error
    assert count_finished(tmp_path, "random") == 1
    # Another search of the same folder is none of its business.
    assert tune.main([*flags, "--epochs", "2", "--out", str(tmp_path)]) == 0


def test_a_fault_of_the_machine_is_no_bad_candidate(data, pretend, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tune, "fit", fail)
        with pytest.raises(OSError, match="No space left"):
            run_search(data, tmp_path)
    assert count_finished(tmp_path) == 0
    tried = {(c.learning_rate, c.momentum) for c, _ in run_search(data, tmp_path)}
    assert tried == set(search.PAIRS)


def test_ctrl_c_loses_nothing_that_is_finished(
    flags, prepared, pretend, tmp_path, capsys, monkeypatch
):
    fit = tune.fit

    def stop_at_the_second(*arguments):
        if len(pretend) == 1:
            raise KeyboardInterrupt
        return fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "fit", stop_at_the_second)
        assert tune.main([*flags, "--out", str(tmp_path)]) == 130
    assert "experiments.tune: Stopped. Rerun to continue" in capsys.readouterr().err
    assert count_finished(tmp_path) == 1
    assert tune.main([*flags, "--out", str(tmp_path)]) == 0
    assert "Search: grid, 3 trials, 1 of them finished." in capsys.readouterr().out
    assert [(c.learning_rate, c.momentum) for c, _ in pretend[:3]] == list(search.PAIRS)


def test_a_killed_search_continues_where_it_was(flags, data, pretend, impatient, tmp_path):
    arguments = [*flags, "--epochs", "6", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "experiments.tune", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while states_on_disk(tmp_path) != ["COMPLETE", "RUNNING"]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # it claims its slot
        process.send_signal(signal.SIGKILL)
    [before, killed] = all_trials(tmp_path)
    settings = data.settings | {"epochs": 6}
    options = tune.parse_arguments(arguments)
    trials = tune.search(replace(data, settings=settings), options)
    assert len(trials) == 3
    assert {(c.learning_rate, c.momentum) for c, _ in trials} == set(search.PAIRS)
    assert len(pretend) == 2  # what was running is run again, what was finished is not
    [kept] = [metrics for _, metrics in trials if metrics["trial"] == before.number]
    assert kept == {"trial": before.number} | before.user_attrs["metrics"]
    if "slot" in killed.user_attrs:
        assert all_trials(tmp_path)[killed.number].state == TrialState.FAIL


def test_the_trial_of_a_killed_process_is_run_again_and_that_of_a_slow_one_is_not(tmp_path):
    url, ran = f"sqlite:///{tmp_path / 'trials.db'}", []
    search.open_study(url, "shared", {})

    def slow(trial):  # longer than LOST in all
        for epoch in range(20):
            time.sleep(0.2)
            trial.report(1.0, epoch)
        ran.append(("slow", trial.number))
        return 1.0

    def quick(trial):
        ran.append(("quick", trial.number))
        return 2.0

    def work():
        search.run_trials(search.open_study(url, "shared", {}), slow, 1, "slow")

    killed = search.open_study(url, "shared", {}).ask()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "LOST", 3)  # far longer than an epoch, also on a busy machine
        worker = threading.Thread(target=work)
        worker.start()
        study = search.open_study(url, "shared", {})
        while not any("slot" in trial.user_attrs for trial in study.get_trials()):
            time.sleep(0.01)
        killed.set_user_attr("slot", 1)
        trials = search.run_trials(study, quick, 2, "quick")
        worker.join()
    assert [what for what, _ in ran] == ["slow", "quick"]
    assert sorted(trial.value for trial in trials) == [1, 2]
    assert study.trials[killed.number].state == TrialState.FAIL


def test_two_processes_share_one_search(flags, data, tmp_path):
    arguments = [*flags, "--tuner", "random", "--trials", "4", "--out", str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.tune", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        said = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert count_finished(tmp_path, "random") == 4
    summaries = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / tune.DATABASE}")
    repeated = [summary.study_name for summary in summaries if "repeated" in summary.study_name]
    assert len(repeated) == 2
    assert [count_finished(tmp_path, name) for name in repeated] == [1, 1]
    # Both wait for what the other one still does, and say the same.
    results = [text[text.index("| learning rate |") :] for text in said]
    assert results[0] == results[1]
    assert "Traceback" not in said[0] + said[1]


def test_no_trial_is_run_twice_however_many_share_it(tmp_path):
    url, total, ran = f"sqlite:///{tmp_path / 'trials.db'}", 24, []
    search.open_study(url, "shared", {})

    def work(worker):
        def objective(trial):
            slot = trial.user_attrs["slot"]
            if worker not in {other for other, _ in ran}:
                barrier.wait(60)  # until each has one: the others might run all
            time.sleep(0.02)
            ran.append((worker, slot))
            return float(slot)

        study = search.open_study(url, "shared", {})
        barrier.wait()
        finished[worker] = search.run_trials(study, objective, total, "shared")

    barrier, finished = threading.Barrier(3), {}
    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(slot for _, slot in ran) == list(range(total))
    assert {worker for worker, _ in ran} == {0, 1, 2}
    for trials in finished.values():
        assert sorted(trial.value for trial in trials) == list(range(total))


def test_a_trial_that_was_taken_for_lost_is_run_again_and_its_result_not_counted(tmp_path):
    url, ran = f"sqlite:///{tmp_path / 'trials.db'}", []
    study = search.open_study(url, "slept", {})

    def objective(trial):
        ran.append(trial.user_attrs["slot"])
        if len(ran) in (2, 3):  # this machine sleeps, and another process waits in vain
            search.open_study(url, "slept", {}).tell(trial.number, state=TrialState.FAIL)
        if len(ran) % 2:  # it may notice while it runs, or when it ends
            trial.set_user_attr("metrics", {})
        return float(len(ran))

    finished = search.run_trials(study, objective, 3, "slept")
    assert ran == [0, 1, 1, 1, 2]
    assert sorted(trial.value for trial in finished) == [1, 4, 5]

    def fail(trial):
        raise ValueError("Expected what it is. Received: something else.")

    with pytest.raises(ValueError, match="something else"):
        search.run_trials(search.open_study(url, "wrong", {}), fail, 1, "wrong")


def test_the_lower_mean_validation_loss_wins_whatever_the_test_images_say(
    flags, prepared, pretend, tmp_path, capsys, monkeypatch
):
    search_fit = tune.fit
    best = search.PAIRS[1]
    # The second pair is the best trial. Repeated, its first seed is better than the original's,
    # its mean is not, or is; and the worse one names more test images.
    for out, losses, winner in (
        ("loses", {best: [0.1, 0.9], search.PAIRS[0]: [0.3, 0.4]}, search.PAIRS[0]),
        ("wins", {best: [0.35, 0.1], search.PAIRS[0]: [0.3, 0.4]}, best),
    ):

        def fit(candidate, epochs, seed, data, trial=None, losses=losses, winner=winner):
            pair = (candidate.learning_rate, candidate.momentum)
            head, metrics = search_fit(candidate, epochs, seed, data, trial)
            if "repeated" not in trial.study.study_name:
                return head, metrics | {"val_loss": 0.2 if pair == best else 0.5}
            return PretendHead(pair != winner), metrics | {"val_loss": losses[pair][seed - 3]}

        monkeypatch.setattr(tune, "fit", fit)
        arguments = [*flags, "--repeats", "2", "--out", str(tmp_path / out)]
        assert tune.main(arguments) == 0
        printed = capsys.readouterr().out
        *_, last = printed.splitlines()
        options = train.parse_arguments(shlex.split(last)[2:])
        assert (options.learning_rate, options.momentum) == winner
        rows = {
            (r["learning_rate"], r["momentum"]): r["rows"]
            for r in json.loads((tmp_path / out / "grid" / tune_report.SUMMARY).read_text())[
                "repeats"
            ]
        }
        assert {pair: [row["val_loss"] for row in r] for pair, r in rows.items()} == losses
        assert [[row["seed"] for row in r] for r in rows.values()] == [[3, 4], [3, 4]]
        assert {row["test_accuracy"] for row in rows[winner]} == {0.2}
        # Both have the interval of ten test images.
        assert "| 0.200 (0.057–0.510) | 0.200, 0.200 |" in printed
        assert "| 1.000 (0.722–1.000) | 1.000, 1.000 |" in printed


def wait_for(url, process):
    """Return what is at `url` as soon as `process` serves it."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return response.read()
        except urllib.error.URLError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_optuna_dashboard_shows_the_trials_with_the_command_that_is_printed(
    flags, prepared, pretend, tmp_path, capsys, reserve_port
):
    out, port = tmp_path / "my results", reserve_port()
    assert tune.main([*flags, "--out", str(out)]) == 0
    [watch] = re.findall(r"^Watch: (.+)$", capsys.readouterr().out, re.M)
    program, *arguments = shlex.split(watch)
    assert program == "optuna-dashboard"
    program = Path(sys.executable).parent / program
    with subprocess.Popen(
        [program, *arguments, "--port", str(port), "--server", "wsgiref"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            studies = json.loads(wait_for(f"http://127.0.0.1:{port}/api/studies", process))
        finally:
            process.kill()
    studies = studies["study_summaries"]
    assert "grid" in [study["study_name"] for study in studies]


def test_a_database_elsewhere_is_shared_by_all_that_name_it(data, pretend, tmp_path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    first = run_search(data, tmp_path / "a", "--storage", url)
    assert run_search(data, tmp_path / "b", "--storage", url) == first
    assert len(pretend) == 3
    assert not list(tmp_path.glob("*/*.db"))


@pytest.mark.parametrize(
    ("url", "received"),
    [
        ("nonsense", "Could not parse"),
        ("postgresql://me:secret@127.0.0.1:9/trials", "Received: "),
        ("sqlite:////no/such/folder/trials.db", "unable to open database file"),
        ("sqlite:///{}/text.db", "file is not a database"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_sentence(url, received, data, tmp_path):
    (tmp_path / "text.db").write_text("a" * 4096)
    with pytest.raises(DataError) as caught:
        run_search(data, tmp_path, "--storage", url.format(tmp_path))
    message = str(caught.value)
    assert message.startswith("Expected a database for the trials at ")
    assert message.endswith("Give another --storage or --out.")
    assert received in message
    assert "\n" not in message
    assert "secret" not in message


def test_a_database_that_fails_on_the_way_is_one_sentence(
    flags, prepared, pretend, tmp_path, capsys, monkeypatch
):
    fit = tune.fit

    def fit_and_lose_it(*arguments):
        for path in tmp_path.glob("trials.db*"):
            path.write_text("gone")
        return fit(*arguments)

    monkeypatch.setattr(tune, "fit", fit_and_lose_it)
    assert tune.main([*flags, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    [sentence] = [line for line in error.splitlines() if line and "  search:" not in line]
    assert sentence.startswith("experiments.tune: Expected to read ")
    assert "file is not a database" in sentence


def test_what_train_py_has_no_flag_for_is_reported():
    assert tune_report.beyond_flags(search.ORIGINAL) == []
    lines = tune_report.beyond_flags(Candidate(0.1, 0.9, (64,), 0.2))
    assert lines == ["train.py has no dropout; 0.2 of it was best here"]


@pytest.mark.parametrize("head", [(), (64,), (512, 128)])
def test_the_command_gives_train_py_what_was_best(head):
    flags = ["--data", "my flowers", "--exclude", "not these.txt", "--weights", "none"]
    flags += ["--epochs", "7", "--seed", "5", "--split-seed", "6"]
    chosen = tune.parse_arguments(flags)
    words = shlex.split(tune_report.command(Candidate(0.1234, 0.9, head, 0.0), chosen))
    assert words[:2] == ["python", "train.py"]
    options = train.parse_arguments(words[2:])
    assert (options.learning_rate, options.momentum, options.head) == (0.1234, 0.9, head)
    for name in ("data", "exclude", "weights", "epochs", "seed", "split_seed"):
        assert getattr(options, name) == getattr(chosen, name)


def test_what_is_tried_is_what_the_command_can_say(data, pretend, tmp_path):
    run_search(data, tmp_path, "--tuner", "random", "--trials", "4")
    options = tune.parse_arguments([])
    for candidate, _ in pretend:
        words = shlex.split(tune_report.command(candidate, options))
        given = train.parse_arguments(words[2:])
        assert (given.learning_rate, given.momentum) == (
            candidate.learning_rate,
            candidate.momentum,
        )
        assert (given.head or ()) == candidate.head or candidate.head == search.ORIGINAL.head


def test_the_originals_hyperparameters_stay_where_the_search_found_none_better():
    best = Candidate(0.1, 0.9, (64,), 0.2)
    rows = {
        candidate: [{"test_accuracy": accuracy, "val_loss": loss}]
        for candidate, accuracy, loss in ((best, 0.9, 0.4), (search.ORIGINAL, 0.8, 0.3))
    }
    assert "which stay" in tune_report.describe(best, search.ORIGINAL, rows)
    sentence = tune_report.describe(best, best, rows)
    assert "whose place they take, +10.0 points of test accuracy" in sentence
    assert "0.400 against 0.300." in sentence
    assert tune_report.describe(search.ORIGINAL, search.ORIGINAL, rows).startswith(
        "The original's hyperparameters won"
    )
