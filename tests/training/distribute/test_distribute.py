"""training/distribute.py: two real processes against one, a lost one, and what the flags say."""

import argparse
import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import ROOT, is_running

import train
from training.batches import Batches, PaddedBatches, TrainingBatches
from training.dataset.scan import scan
from training.distribute import cluster, launcher, workers
from training.distribute.cluster import Cluster
from training.distribute.workers import Workers
from training.errors import DistributeError
from training.fit import REFIT
from training.images import ImageSource

jax = pytest.importorskip("jax")
from jax.experimental import multihost_utils  # noqa: E402

# train.py with small images and a network that is compiled in a second.
SMALL = f"""
import os, sys, time
from dataclasses import replace

sys.path.insert(0, {str(ROOT)!r})
from training.distribute import launcher

if __name__ == "__main__":
    launcher.relaunch()

import train
from training.backend import keras
from training.batches import TrainingBatches
from training.recipes import ORIGINAL, RECIPES

def build(size, head, classes):
    inputs = keras.Input((*size, 3))
    x = keras.layers.Conv2D(8, 5, 4, activation="relu", name="conv")(inputs)
    base = keras.Model(inputs, keras.layers.Conv2D(8, 3, 2, activation="relu")(x), name="xception")
    x = keras.layers.GlobalAveragePooling2D()(base(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(x))

train.build_model = build
RECIPES["original"] = replace(
    ORIGINAL, input_size=71, batch_size=8, steps_per_epoch=2, epochs=2, learning_rate=0.1,
    head_epochs=1, ema_momentum=0.7,
)
RECIPES["fine-tune"] = replace(RECIPES["original"], test_fraction=0.2, refit=True)
if "HOLD" in os.environ:
    TrainingBatches.begin_epoch = lambda batches, epoch, logs=None: epoch and time.sleep(1000)
if __name__ == "__main__":
    sys.exit(train.main())
"""
PATIENCE = 300  # seconds; everything here takes a fraction of it, also on a busy machine


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The path of that script."""
    path = tmp_path_factory.mktemp("script") / "small.py"
    path.write_text(SMALL)
    return path


@pytest.fixture
def start(small, drawn):
    """Start training into a folder; returns the process."""
    started = []

    def run(models, *flags, **environment):
        command = [sys.executable, small, "--data", drawn, "--models", models, "--weights", "none"]
        process = subprocess.Popen(
            [*command, *flags],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start_two(start, tmp_path, reserve_port):
    """Start two processes that train as one; the first writes into `models`, the other nowhere."""

    def run(models, *flags, **environment):
        where = f"127.0.0.1:{reserve_port()}"
        cluster = ["--distribute", "--coordinator", where, "--processes", "2", "--process"]
        return [
            start(folder, *cluster, str(index), *flags, **environment)
            for index, folder in enumerate([models, tmp_path / "no such folder"])
        ]

    return run


@pytest.fixture(scope="module")
def alone(small, drawn, tmp_path_factory):
    """The folder of a run of two epochs in one process, without --distribute."""
    return run_alone(small, drawn, tmp_path_factory.mktemp("alone"))


def run_alone(small, drawn, models, *flags):
    command = [sys.executable, small, "--data", drawn, "--models", models, "--weights", "none"]
    environment = os.environ | {"KERAS_BACKEND": "jax", launcher.WORKER: "1"}
    subprocess.run([*command, "--no-cache", *flags], env=environment, check=True, timeout=PATIENCE)
    return models


def finish(*processes):
    """Wait, and return the exit codes and what was printed."""
    said = [process.communicate(timeout=PATIENCE) for process in processes]
    return [process.returncode for process in processes], said


def read_weights(models):
    values = {}
    with h5py.File(models / train.STATE) as file:
        file.visititems(
            lambda name, item: values.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return values


def history(models):
    with open(models / train.HISTORY, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(v) for name, v in row.items() if v != "NA"} for row in rows]


def assert_same_run(models, alone):
    """Weights, optimizer and history are those of one process, but for float32's rounding."""
    expected, found = read_weights(alone), read_weights(models)
    assert len(expected) > 10
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.allclose(found[name], values, rtol=1e-4, atol=1e-6), name
    for row, other in zip(history(alone), history(models), strict=True):
        assert other == pytest.approx(row, rel=1e-4)
    assert {p.name for p in models.glob("*.h5")} == {p.name for p in alone.glob("*.h5")}


def test_two_devices_of_one_process_train_as_one(start, alone, tmp_path):
    flags = "--xla_force_host_platform_device_count=2"
    [code], [(out, err)] = finish(start(tmp_path, "--distribute", XLA_FLAGS=flags))
    assert code == 0, err
    assert out.startswith("Distribute: 2 devices (cpu) of 1 process")
    assert_same_run(tmp_path, alone)


def test_a_killed_process_ends_the_other_and_both_can_resume(start_two, alone, tmp_path):
    models = tmp_path / "models"
    chief, other = start_two(models, HOLD="in the second epoch")
    wait_for((models / train.STATE).exists)
    trainer = child_of(other)
    other.kill()
    killed = time.monotonic()
    [code], [(out, err)] = finish(chief)
    assert time.monotonic() - killed < 60
    assert code == 1
    assert err.endswith(
        "\nsmall.py: Process 1 stopped answering. Rerun all processes with --resume.\n"
    )
    assert out.startswith("Distribute: 2 devices (cpu) of 2 processes")
    assert not is_running(trainer)
    assert list(models.glob("xception_fin_*.h5"))
    assert not list(models.glob(".*"))

    codes, [(out, err), other_said] = finish(*start_two(models, "--resume"))
    assert (codes, other_said) == ([0, 0], ("", "")), err
    assert "Fit: epochs 2 to 2" in out
    assert_same_run(models, alone)


def test_two_processes_train_twice_as_one(start_two, small, drawn, tmp_path):
    models, flags = tmp_path / "models", ["--recipe", "fine-tune"]
    codes, [(out, err), other_said] = finish(*start_two(models, *flags))
    assert (codes, other_said) == ([0, 0], ("", "")), err
    assert "Refit: from the start again" in out
    alone = run_alone(small, drawn, tmp_path / "alone", *flags)
    assert_same_run(models, alone)
    assert_same_run(models / REFIT, alone / REFIT)


def test_two_processes_train_as_one(start_two, alone, tmp_path):
    models = tmp_path / "models"
    codes, [(out, err), other_said] = finish(*start_two(models))
    assert (codes, other_said) == ([0, 0], ("", "")), err
    assert out.splitlines()[-1].startswith("Use it: python convert_to_tflite.py")
    assert_same_run(models, alone)


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def child_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return children.read_text().strip()


# The watching process, with a script that is no training

SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from training.distribute import launcher
launcher.relaunch()
print("ready", flush=True)
exec(sys.argv[2])
"""


@pytest.fixture
def watched(tmp_path):
    """Start a script in a child that does what the argument says; returns the process."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    started = []

    def run(do):
        process = subprocess.Popen(
            [sys.executable, path, "--distribute", do],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("do", "code", "error"),
    [
        ("sys.exit(3)", 3, ""),
        ("print('a word', file=sys.stderr)", 0, "a word\n"),
        ("import os; os.write(2, b'a note of C++'); sys.exit('a word')", 1, "a word\n"),
        ("raise KeyboardInterrupt", 130, ""),
        (
            "import os; os.write(2, b'no memory'); os.kill(os.getpid(), 9)",
            1,
            "script.py: Training was killed (SIGKILL: no memory), usually for lack of memory. "
            "Train anew with a smaller --batch-size.\n",
        ),
    ],
)
def test_the_end_of_the_child_is_passed_on(watched, do, code, error):
    [found], [(_, err)] = finish(watched(do))
    assert (found, err) == (code, error)


def test_an_error_of_the_child_is_shown(watched):
    [code], [(_, err)] = finish(watched("raise ValueError('odd')"))
    assert code == 1
    assert err.startswith("Traceback")
    assert err.endswith("ValueError: odd\n")


def test_ctrl_c_reaches_the_child(watched):
    process = watched(f"time.sleep({2 * PATIENCE})")
    child = child_of(process)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == [130]
    assert not Path(f"/proc/{child}").exists()


def test_the_child_does_not_outlive_its_parent(watched):
    process = watched(f"time.sleep({2 * PATIENCE})")
    child = child_of(process)
    process.kill()
    wait_for(lambda: not is_running(child))


WENT_SILENT = """
E coordination_service.cc:1868] UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
/job:jax_worker/replica:0/task:1
/job:jax_worker/replica:0/task:3
The tasks have crashed. [type.googleapis.com/tensorflow.CoordinationServiceError='']
"""  # noqa: E501


@pytest.mark.parametrize(
    ("notes", "sentence"),
    [
        (WENT_SILENT, "Processes 1, 3 stopped answering. Rerun all processes with --resume."),
        (
            "absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either",
            "Process 0 stopped answering. Rerun all processes with --resume.",
        ),
        (WENT_SILENT.replace("3", "12").replace("task:1\n", "task:9\n"), "Processes 9, 12 stopped"),
        (WENT_SILENT.replace("task:3", "task:1") * 2, "Process 1 stopped answering."),
        (
            WENT_SILENT
            + "CoordinationService/RegisterTask\nFailed to send RPC to coordination service",
            "Process 0 stopped answering.",
        ),
        (WENT_SILENT + "CoordinationService/RegisterTask", "Processes 1, 3 stopped"),
        (
            "a\n\nthe last" + "." * 400 + "\n\n",
            f"Training crashed (SIGABRT: the last{'.' * 292}). Rerun with --resume.",
        ),
        (
            "DEADLINE_EXCEEDED\n\nRPC: /tensorflow.CoordinationService/RegisterTask",
            "at one:7890 in time. Check that all were started",
        ),
        ("", "Training crashed (SIGABRT). Rerun with --resume."),
    ],
)
def test_what_jax_writes_before_it_aborts_becomes_a_sentence(notes, sentence):
    cluster = Cluster("one:7890", 4, 2)
    assert sentence in launcher._reason(notes, signal.SIGABRT, cluster)


def test_where_the_processes_did_not_meet_the_launcher_is_named():
    cluster, notes = Cluster(None, 4, None, "slurm"), launcher.NOT_MET
    sentence = launcher._reason(notes, signal.SIGABRT, cluster)
    assert "connect to each other at the address that slurm gave in time." in sentence


def test_train_py_refuses_wrong_flags_at_once():
    command = [sys.executable, ROOT / "train.py", "--distribute", "--process", "1"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert process.returncode == 1
    assert process.stderr.startswith("train.py: Expected --coordinator, --processes and --process")
    assert process.stderr.count("\n") == 1


def test_distribute_is_for_the_command_line():
    with pytest.raises(DistributeError, match="Run python train.py --distribute"):
        workers.initialize(options("--distribute"))


# Flags and launchers


def options(*flags):
    parser = argparse.ArgumentParser()
    cluster.add_flags(parser)
    return parser.parse_args(flags)


def find(*flags, **environment):
    return cluster.find_cluster(options("--distribute", *flags), environment)


def flags(coordinator, count, index):
    return ["--coordinator", coordinator, "--processes", count, "--process", index]


def test_flags_say_where_the_processes_meet():
    assert find() == Cluster()
    assert find(*flags("one:7890", "2", "1")) == Cluster("one:7890", 2, 1)
    assert find(*flags("[::1]:7890", "2", "0")) == Cluster("[::1]:7890", 2, 0)
    assert find("--processes", "1", "--process", "0") == Cluster()
    assert find(*flags("one:7890", "1", "0")) == Cluster("one:7890", 1, 0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (flags("one:7890", "2", "2"), "--process from 0 to 1, as there are 2. Received: 2."),
        (flags("one:7890", "2", "-1"), "--process from 0 to 1, as there are 2. Received: -1."),
        (flags("one", "2", "0"), "as HOST:PORT of .* Received: one. Name .* such as one:7890"),
        (flags("one:7890x", "2", "0"), "as HOST:PORT of .* Received: one:7890x."),
        (flags("one:123456", "2", "0"), "as HOST:PORT of .* Received: one:123456."),
        (flags(":7890", "2", "0"), "as HOST:PORT of .* Received: :7890."),
        (["--processes", "2"], "together. Received: None, 2 and None. Give all three"),
        (["--process", "0"], "together. Received: None, None and 0. Give all three"),
        (["--processes", "1", "--process", "1"], "together. Received: None, 1 and 1."),
    ],
)
def test_contradicting_flags_are_refused(given, sentence):
    with pytest.raises(DistributeError, match=re.compile(sentence)):
        find(*given)


@pytest.mark.parametrize("given", [flags("one:7890", "2", "1"), ["--process", "0"]])
def test_flags_without_distribute_are_refused(given):
    with pytest.raises(DistributeError, match=r"Expected --distribute beside .*\. Add it"):
        cluster.find_cluster(options(*given), {})


def test_a_launcher_is_not_asked_without_distribute():
    assert cluster.find_cluster(options(), SLURM) == Cluster()


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"])
def test_a_launcher_that_gives_no_number_is_an_error(name):
    with pytest.raises(
        DistributeError, match=r"to say how many .* Received: .*'two'\. Say so with"
    ):
        find(**SLURM | {name: "two"})


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-4]", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        (SLURM, Cluster(None, 4, None, "slurm")),
        (SLURM | {"SLURM_NTASKS": "1"}, Cluster()),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, Cluster()),  # a shell in an allocation
        ({"OMPI_COMM_WORLD_SIZE": "2"}, Cluster(None, 2, None, "ompi")),
        ({"OMPI_COMM_WORLD_SIZE": "2"} | SLURM, Cluster(None, 2, None, "ompi")),
        ({"OMPI_COMM_WORLD_SIZE": "1"} | SLURM, Cluster(None, 4, None, "slurm")),
        ({"SLURM_STEP_NODELIST": "node1"}, Cluster()),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, Cluster()),  # a notebook's pod
        ({"JOB_COMPLETION_INDEX": "0"}, Cluster(None, 0, None, "k8s")),
    ],
)
def test_launchers_say_where_the_processes_meet(environment, cluster):
    assert find(**environment) == cluster
    assert find("--processes", "1", **environment) == Cluster()
    assert find(*flags("one:7890", "2", "1"), **environment).launcher is None


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        (SLURM | {"SLURM_STEP_NUM_NODES": "4"}, []),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "3"}, []),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, None),
        (
            {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
            | SLURM
            | {"SLURM_STEP_NUM_NODES": "4"},
            None,
        ),
        ({"JOB_COMPLETION_INDEX": "0"}, []),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_a_process_alone_on_its_machine_takes_all_gpus(environment, devices):
    assert workers._local_devices(environment) == devices


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (Cluster("one:7890", 2, 1), ("one:7890", 2, 1, None, "deactivate")),
        (Cluster(None, 4, None, "slurm"), (None, 4, None, [], "slurm")),
        (Cluster(None, 0, None, "k8s"), (None, None, None, [], "k8s")),
    ],
)
def test_jax_is_told_where_the_processes_meet(cluster, expected, monkeypatch):
    told = []

    def initialize(*where, local_device_ids, cluster_detection_method, **seconds):
        told.extend([*where, local_device_ids, cluster_detection_method, seconds])

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    workers._initialize(cluster, {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    assert tuple(told[:-1]) == expected
    assert told[-1] == {"initialization_timeout": 150, "heartbeat_timeout_seconds": 20}


@pytest.fixture
def joined(monkeypatch):
    """Join as process `index` of two, of which it has one device and both together `devices`."""

    def initialize(index, devices, *flags):
        monkeypatch.setenv(launcher.WORKER, "1")
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # given back afterwards
        kind = SimpleNamespace(device_kind="toaster")
        for name, value in {
            "process_index": index,
            "process_count": 2,
            "device_count": devices,
            "local_device_count": 1,
            "devices": [kind],
        }.items():
            monkeypatch.setattr(jax, name, lambda value=value: value)
        return workers.initialize(options("--distribute", *flags))

    return initialize


def test_the_chief_says_what_is_trained_on_and_the_others_are_silent(joined, capsys):
    assert joined(0, 2) == Workers(0, 2, 2, True)
    assert capsys.readouterr().out == "Distribute: 2 devices (toaster) of 2 processes.\n"
    other = joined(1, 2)
    assert (other.is_main, other.rows(6)) == (False, slice(3, 6))
    print("of the other")
    assert capsys.readouterr().out == ""


def test_machines_of_different_sizes_are_refused(joined):
    with pytest.raises(DistributeError, match=r"Received: 1 of 3 here, among 2 processes\. Hide"):
        joined(0, 3)


def test_why_the_processes_do_not_meet_is_one_sentence(joined, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Port taken.\nStack trace")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    sentence = r"other processes \(one:7890\)\. Received: Port taken\. Choose another port"
    with pytest.raises(DistributeError, match=sentence):
        joined(0, 2, *flags("one:7890", "2", "0"))


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as taken:
        where = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(DistributeError, match=r"to be free\. .* Choose another in --coord"):
            launcher.launch(options("--distribute", *flags(where, "2", "0")), [])


def test_without_jax_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DistributeError, match=r'no module .* pip install "jax\[cuda12\]<0.8"'):
        launcher.launch(options("--distribute"), [])


# Rows


def test_without_distribute_one_process_has_it_all():
    alone = workers.initialize(options())
    assert alone == Workers()
    assert alone.is_main
    assert alone.rows(7) == slice(0, 7)
    assert alone.replicate("a model", 0) == "a model"
    assert alone.main_process_callbacks("a callback") == ["a callback"]


def test_only_the_chief_has_callbacks_to_itself():
    assert Workers(1, 2, 2, True).main_process_callbacks("a callback") == []


class WaitingError(Exception):
    """A process waits for the settings of the others."""


@pytest.fixture
def compare(monkeypatch):
    """Let processes compare their settings, one after another; the last one has all of them."""

    def check(*settings):
        told = []

        def gather(digests):
            told.append(digests)
            if len(told) < len(settings):
                raise WaitingError
            return np.stack(told)

        monkeypatch.setattr(multihost_utils, "process_allgather", gather)
        for index, given in enumerate(settings):
            with suppress(WaitingError):
                Workers(index, len(settings), len(settings), True).check_same(given)
        return len(told)

    return check


def test_equal_settings_are_the_same_in_whatever_order(compare):
    nested = {"a": 1, "b": [2]}
    assert compare({"x": nested}, {"x": dict(reversed(nested.items()))}, {"x": nested}) == 3
    assert compare({"x": 1}) == 0, "one process asks nobody"


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_settings_that_differ_are_named_whoever_has_them(compare, odd):
    settings = [{"seed": 1, "images": "abc", "momentum": 0.5} for _ in range(3)]
    settings[odd] |= {"seed": 2, "momentum": 0.6}
    with pytest.raises(DistributeError, match=r"Received: different seed, momentum\. Start the"):
        compare(*settings)


def test_a_batch_has_to_divide():
    assert [Workers(k, 2, 4).rows(8) for k in (0, 1)] == [slice(0, 4), slice(4, 8)]
    with pytest.raises(DistributeError, match="Received: 10 images. Try --batch-size 12"):
        Workers(0, 2, 4).rows(10)


@pytest.fixture(scope="module")
def images(drawn):
    return ImageSource(scan(drawn), (32, 32), {"rotation_range": 40})


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.4])
def test_the_processes_rows_are_the_batch(images, mixup_alpha):
    def batch(rows):
        names = images.dataset.images
        return TrainingBatches(
            images, names, 6, steps=2, seed=1, mixup_alpha=mixup_alpha, rows=rows
        )[1]

    whole = batch(slice(None))
    split = [batch(Workers(k, 3, 3).rows(6)) for k in range(3)]
    for one, other in zip(whole, zip(*split, strict=True), strict=True):
        assert np.array_equal(one, np.concatenate(other))


def test_even_batches_weigh_each_image_the_same(images):
    names = images.dataset.images[:10]
    whole = Batches(images, names, 10)[0]
    split = [PaddedBatches(images, names, 4, Workers(k, 2, 2).rows(4)) for k in range(2)]
    batches = [part[index] for index in range(len(split[0])) for part in split]
    inputs, targets, weights = (np.concatenate(values) for values in zip(*batches, strict=True))
    assert np.allclose(weights, [1.2] * 10 + [0] * 2)
    assert np.array_equal(inputs[:10], whole[0])
    assert np.array_equal(targets[:10], whole[1])
