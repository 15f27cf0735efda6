"""training.distribute without processes: flags, launchers, sentences, a simulated JAX."""

import argparse
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from training.backend import keras  # before any test puts another module in JAX's place
from training.distribute import cluster, launcher, workers
from training.distribute.cluster import Cluster
from training.distribute.workers import Workers
from training.errors import DistributeError


def options(*flags):
    parser = argparse.ArgumentParser(prog="a")
    cluster.add_flags(parser)
    return parser.parse_args(flags)


def refusal(function, *arguments, **named):
    with pytest.raises(DistributeError) as caught:
        function(*arguments, **named)
    return str(caught.value)


def together(coordinator, count, index):
    return ["--coordinator", coordinator, "--processes", count, "--process", index]


# Flags.


def test_the_flags_are_read_under_their_names():
    given = options("--distribute", *together("one:1", "3", "2"))
    assert cluster.read_flags(given) == cluster.Flags(True, "one:1", 3, 2)


def test_the_flags_have_these_names_and_types():
    given = options("--distribute", *together("one:1", "3", "2"))
    assert vars(given) == {
        "distribute": True,
        "coordinator": "one:1",
        "processes": 3,
        "process": 2,
    }
    assert vars(options()) == {
        "distribute": False,
        "coordinator": None,
        "processes": None,
        "process": None,
    }


def test_the_help_says_what_they_are_for():
    parser = argparse.ArgumentParser(
        prog="a", formatter_class=lambda prog: argparse.HelpFormatter(prog, width=200)
    )
    cluster.add_flags(parser)
    text = " ".join(parser.format_help().split())
    for part in (
        "several GPUs or machines: Slurm, Open MPI and Kubernetes tell --distribute the rest; "
        "elsewhere start the same command on each machine, with its own --process.",
        "--distribute train over all GPUs of this machine, on JAX",
        "--coordinator HOST:PORT where process 0 runs, and a free port there",
        "--processes N how many there are in all",
        "--process K which one this is, from 0",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], Cluster()),
        (["--distribute"], Cluster()),
        (["--distribute", "--processes", "1"], Cluster()),
        (["--distribute", "--processes", "1", "--process", "0"], Cluster()),
        (["--distribute", *together("one:1", "2", "0")], Cluster("one:1", 2, 0)),
        (["--distribute", *together("[::1]:65535", "2", "1")], Cluster("[::1]:65535", 2, 1)),
        (["--distribute", *together("one:1", "1", "0")], Cluster("one:1", 1, 0)),
    ],
)
def test_flags_that_fit_together(flags, expected):
    assert cluster.find_cluster(options(*flags), {}) == expected


BESIDE = (
    "Expected --distribute beside --coordinator, --processes and --process. "
    "Received: these alone. Add it."
)
ALL_THREE = (
    "Expected --coordinator, --processes and --process together. "
    "Received: {}. Give all three, on each machine."
)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--process", "0"], BESIDE),
        (["--processes", "1"], BESIDE),
        (["--coordinator", "one:1"], BESIDE),
        (["--distribute", "--process", "0"], ALL_THREE.format("None, None and 0")),
        (["--distribute", "--processes", "2"], ALL_THREE.format("None, 2 and None")),
        (
            ["--distribute", "--processes", "1", "--process", "1"],
            ALL_THREE.format("None, 1 and 1"),
        ),
        (
            ["--distribute", "--processes", "1", "--coordinator", "one:1"],
            ALL_THREE.format("one:1, 1 and None"),
        ),
        (
            ["--distribute", *together("one:1", "2", "2")],
            "Expected --process from 0 to 1, as there are 2. Received: 2. Number them from 0.",
        ),
        (
            ["--distribute", *together("one:123456", "2", "0")],
            "Expected --coordinator as HOST:PORT of the machine that process 0 runs on. "
            "Received: one:123456. Name any free port there, such as one:123456:7890.",
        ),
    ],
)
def test_flags_that_do_not_fit_together_are_told(flags, sentence):
    assert refusal(cluster.find_cluster, options(*flags), {}) == sentence


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "1"}, Cluster()),
        ({"SLURM_STEP_NODELIST": "a"}, Cluster()),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "2"}, Cluster(None, 2, None, "slurm")),
        (
            {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "3"},
            Cluster(None, 3, None, "slurm"),
        ),
    ],
)
def test_a_launcher_of_one_process_is_none(environment, expected):
    assert cluster.find_cluster(options("--distribute"), environment) == expected
    assert cluster.find_cluster(options(), environment) == Cluster()


def test_a_launcher_that_says_no_number_is_told():
    environment = {"OMPI_COMM_WORLD_SIZE": "two"}
    assert refusal(cluster.find_cluster, options("--distribute"), environment) == (
        "Expected the launcher to say how many processes there are. "
        "Received: invalid literal for int() with base 10: 'two'. "
        "Say so with --coordinator, --processes and --process."
    )


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, []),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, []),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}, None),
        (
            {
                "SLURM_NTASKS": "2",
                "SLURM_STEP_NUM_NODES": "2",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            None,
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0"}, []),
        ({"OMPI_COMM_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, None),
    ],
)
def test_who_takes_all_gpus_that_it_sees(environment, devices):
    assert workers._local_devices(environment) == devices


# The process that a person starts.


@pytest.fixture
def child(monkeypatch):
    """Stands for the child: notes how it was started, and ends with `code`, having written."""
    child = SimpleNamespace(code=0, written=b"", started=None)

    def run(arguments, notes, scratch):
        child.started = (arguments, os.path.isdir(scratch))
        notes.write(child.written)
        return child.code

    monkeypatch.setattr(launcher, "_run_child", run)
    monkeypatch.setattr(sys, "argv", ["some/train.py", "--distribute", "--epochs", "1"])
    monkeypatch.delenv(launcher.WORKER, raising=False)
    return child


@pytest.mark.parametrize("code", [0, 3, 130])
def test_the_script_runs_once_more_and_its_exit_code_is_passed_on(child, code):
    child.code = code
    with pytest.raises(SystemExit) as end:
        launcher.relaunch()
    assert end.value.code == code
    assert child.started == (["some/train.py", "--distribute", "--epochs", "1"], True)


def test_a_child_that_was_killed_is_told_after_the_scripts_name(child):
    child.code, child.written = -signal.SIGKILL, b"note\n\xfflast note\n"
    with pytest.raises(SystemExit) as end:
        launcher.relaunch()
    assert end.value.code == (
        "train.py: Training was killed (SIGKILL: \ufffdlast note), usually for lack of memory. "
        "Train anew with a smaller --batch-size."
    )


def test_without_the_flag_and_in_the_child_nothing_is_started(child, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "1"])
    assert launcher.relaunch() is None
    monkeypatch.setattr(sys, "argv", ["train.py", "--distribute"])
    monkeypatch.setenv(launcher.WORKER, "1")
    assert launcher.relaunch() is None
    assert child.started is None


def test_a_port_in_use_is_told_by_process_0_alone(child):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ["--distribute", *together(f"localhost:{port}", "2", "1")]
        assert launcher.launch(options(*flags), []) == 0
        flags = ["--distribute", *together(f"[::1]:{port}", "2", "0")]
        sentence = refusal(launcher.launch, options(*flags), [])
    assert sentence.startswith(f"Expected port {port} of this machine to be free. Received: [Errno")
    assert sentence.endswith(". Choose another in --coordinator, in all processes.")
    assert launcher.launch(options(*flags), []) == 0  # free again, and left so
    assert "port 70000" in refusal(
        launcher.launch, options("--distribute", *together("localhost:70000", "2", "0")), []
    )


def test_without_jax_it_says_how_to_install_it(child, monkeypatch):
    looked_for = []
    monkeypatch.setattr(launcher.importlib.util, "find_spec", looked_for.append)
    assert refusal(launcher.launch, options("--distribute"), []) == (
        "Expected JAX, which --distribute trains on. Received: no module named jax. "
        'Install it: pip install "jax[cuda12]<0.8", or jax alone without a GPU.'
    )
    assert looked_for == ["jax"]
    assert child.started is None


def test_the_child_is_started_this_way(monkeypatch, tmp_path):
    started = {}

    class Child:
        def __init__(self, command, **options):
            started.update(options, command=command)
            assert os.path.sameopenfile(options["pass_fds"][0], 2)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            return 7

        def kill(self):
            started["killed"] = True

    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setenv("SOMETHING", "else")
    notes = io.BytesIO()
    assert launcher._run_child(["train.py", "--a"], notes, str(tmp_path)) == 7
    [shown] = started.pop("pass_fds")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(shown)
    environment = started.pop("env")
    assert started == {
        "command": [sys.executable, "-P", "-c", launcher.CHILD, str(shown), "train.py", "--a"],
        "stdin": subprocess.PIPE,
        "stderr": notes,
        "process_group": 0,
        "killed": True,
    }
    assert environment == os.environ | {
        "KERAS_BACKEND": "jax",
        "FLOWERS_WORKER": "1",
        "TMPDIR": str(tmp_path),
    }


@pytest.mark.parametrize(
    ("after", "code"),
    [(5, 5), (subprocess.TimeoutExpired("train.py", 30), 130), (KeyboardInterrupt(), 130)],
)
def test_ctrl_c_is_passed_on_once_and_waited_for(monkeypatch, after, code):
    ends, done = [KeyboardInterrupt(), after], []

    class Child:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self, timeout=None):
            done.append(("wait", timeout))
            end = ends.pop(0)
            if isinstance(end, BaseException):
                raise end
            return end

        def send_signal(self, number):
            done.append(("send", number))

        def kill(self):
            done.append("kill")

    monkeypatch.setattr(subprocess, "Popen", Child)
    assert launcher._run_child(["train.py"], io.BytesIO(), ".") == code
    assert done == [("wait", None), ("send", signal.SIGINT), ("wait", 30), "kill"]


SILENT = "stopped sending heartbeats):\n/job:jax_worker/replica:0/task:{}\n"


@pytest.mark.parametrize(
    ("notes", "sentence"),
    [
        (
            SILENT.format(2),
            "Process 2 stopped answering. Rerun all processes with --resume.",
        ),
        (
            SILENT.format(3) + SILENT.format(1),
            "Processes 1, 3 stopped answering. Rerun all processes with --resume.",
        ),
        (
            SILENT.format(3) + "Failed to send RPC to coordination service",
            "Process 0 stopped answering. Rerun all processes with --resume.",
        ),
        (
            "CoordinationService/RegisterTask",
            "The processes could not connect to each other at one:1 in time. Check that all "
            "were started, that --coordinator names the machine of process 0, and that no "
            "firewall blocks its port.",
        ),
        (
            "\nfirst\n" + "x" * 301 + "\n\n",
            "Training crashed (SIGABRT: " + "x" * 300 + "). Rerun with --resume.",
        ),
    ],
)
def test_the_end_of_a_child_becomes_this_sentence(notes, sentence):
    assert launcher._reason(notes, signal.SIGABRT, Cluster("one:1", 4, 2)) == sentence


def test_where_a_launcher_gave_the_address_it_is_named():
    sentence = launcher._reason(launcher.NOT_MET, signal.SIGABRT, Cluster(launcher="slurm"))
    assert "connect to each other at the address that slurm gave in time" in sentence


# Its child.


@pytest.mark.parametrize(
    ("given", "code", "shown"),
    [(None, 0, ""), (0, 0, ""), (3, 3, ""), ("a word", 1, "a word\n"), (("a", 1), 1, "('a', 1)\n")],
)
def test_exit_is_what_python_makes_of_it(given, code, shown, capsys):
    assert launcher._exit_code(SystemExit(given)) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", shown)


def test_processes_have_met_once_jax_says_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    assert launcher._met() is False
    for met in (False, True):
        jax = SimpleNamespace(distributed=SimpleNamespace(is_initialized=lambda met=met: met))
        monkeypatch.setitem(sys.modules, "jax", jax)
        assert launcher._met() is met


def test_of_an_error_the_first_line_is_told():
    assert workers._first_line(ValueError("\none line.\nanother")) == "one line"
    assert workers._first_line(ValueError()) == "ValueError"


# Several processes, as one of them sees them.


@pytest.fixture
def jax(monkeypatch):
    """Pretend to be process 1 of 2, on 4 devices; notes how it was initialized."""
    jax = SimpleNamespace(index=1, count=2, local=2, devices_=4, initialized=[], fails=None)

    def initialize(*arguments, **named):
        if jax.fails:
            raise jax.fails
        jax.initialized.append((arguments, named))

    jax.distributed = SimpleNamespace(initialize=initialize)
    jax.process_index = lambda: jax.index
    jax.process_count = lambda: jax.count
    jax.device_count = lambda: jax.devices_
    jax.local_device_count = lambda: jax.local
    jax.devices = lambda: [SimpleNamespace(device_kind="H100")]
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setenv(launcher.WORKER, "1")
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which joining may replace
    return jax


def test_process_0_says_what_trains(jax, capsys):
    jax.index = 0
    given = options("--distribute", *together("one:1", "2", "0"))
    assert workers.initialize(given) == Workers(0, 2, 4, True)
    assert capsys.readouterr().out == "Distribute: 4 devices (H100) of 2 processes.\n"
    assert jax.initialized == [
        (
            ("one:1", 2, 0),
            {
                "local_device_ids": None,
                "cluster_detection_method": "deactivate",
                "initialization_timeout": 150,
                "heartbeat_timeout_seconds": 20,
            },
        )
    ]


def test_one_process_on_one_device_need_not_meet_anybody(jax, capsys):
    jax.index, jax.count, jax.local, jax.devices_ = 0, 1, 1, 1
    assert workers.initialize(options("--distribute")) == Workers(0, 1, 1, True)
    assert capsys.readouterr().out == "Distribute: 1 device (H100) of 1 process.\n"
    assert jax.initialized == []


def test_one_process_may_have_several_devices(jax, capsys):
    jax.index, jax.count, jax.local, jax.devices_ = 0, 1, 2, 2
    assert workers.initialize(options("--distribute")) == Workers(0, 1, 2, True)
    assert capsys.readouterr().out == "Distribute: 2 devices (H100) of 1 process.\n"


def test_the_others_say_nothing(jax, capsys):
    given = options("--distribute", *together("one:1", "2", "1"))
    assert workers.initialize(given) == Workers(1, 2, 4, True)
    print("nor what comes later")
    assert capsys.readouterr().out == ""


def test_a_launcher_tells_jax_the_rest(jax, monkeypatch, capsys):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NODELIST", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    jax.index = 0
    workers.initialize(options("--distribute"))
    [(arguments, named)] = jax.initialized
    assert arguments == (None, None, None)
    assert (named["local_device_ids"], named["cluster_detection_method"]) == ([], "k8s")


def test_processes_that_are_not_found_are_told(jax):
    jax.fails = RuntimeError("no answer.\nand more")
    given = options("--distribute", *together("one:1", "2", "1"))
    assert refusal(workers.initialize, given) == (
        "Expected to find the other processes (one:1). Received: no answer. Choose another port "
        "if that is taken; or say where they are with --coordinator, --processes and --process."
    )


def test_machines_with_different_numbers_of_devices_are_told(jax):
    jax.devices_ = 3
    given = options("--distribute", *together("one:1", "2", "1"))
    assert refusal(workers.initialize, given) == (
        "Expected as many devices on each machine. Received: 2 of 3 here, among 2 processes. "
        "Hide some with CUDA_VISIBLE_DEVICES."
    )


def test_a_call_outside_a_script_is_told(jax, monkeypatch):
    monkeypatch.delenv(launcher.WORKER)
    assert refusal(workers.initialize, options("--distribute")) == (
        "Expected --distribute on the command line of a script. Received: a call. "
        "Run python train.py --distribute."
    )
    assert workers.initialize(options()) == Workers()


def test_a_batch_that_does_not_divide_is_told_with_one_that_does():
    assert refusal(Workers(0, 2, 4).rows, 9) == (
        "Expected a batch that 4 devices can share. Received: 9 images. Try --batch-size 12."
    )
    assert [Workers(k, 3, 3).rows(12) for k in range(3)] == [
        slice(0, 4),
        slice(4, 8),
        slice(8, 12),
    ]
    assert Workers().rows(5) == slice(0, 5)


def test_one_process_alone_has_nobody_to_agree_with(tmp_path):
    alone = Workers()
    assert alone.check_same({"a": 1}) is None
    assert alone.broadcast_file(tmp_path / "a") == tmp_path / "a"
    assert alone.shutdown() is None
    assert alone.release() is None
    assert alone.broadcast(7) == 7
    assert alone.replicate("model", 0) == "model"
    assert Workers(1, 2, 2).main_process_callbacks("callback") == []
    assert not Workers(1, 2, 2).is_main


@pytest.fixture
def gathered(jax, monkeypatch):
    """What all processes sent, from this one's: `gathered(other)` makes the other's of it."""

    def start(other):
        utils = SimpleNamespace(
            process_allgather=lambda mine: [mine, other(mine.copy())],
        )
        experimental = SimpleNamespace(multihost_utils=utils)
        monkeypatch.setitem(sys.modules, "jax.experimental", experimental)
        monkeypatch.setitem(sys.modules, "jax.experimental.multihost_utils", utils)

    return start


def test_flags_that_differ_between_processes_are_named(gathered):
    settings = {"seed": 1, "epochs": 2, "images": {"b": 1, "a": 2}}
    workers = Workers(0, 2, 2, True)
    gathered(lambda mine: mine)
    assert workers.check_same(settings) is None

    def change(digests):
        digests[0, -1] += 1
        digests[2, 0] += 1
        return digests

    gathered(change)
    assert refusal(workers.check_same, settings) == (
        "Expected the same flags and images in all processes. "
        "Received: different seed, images. Start the same command everywhere, with equal "
        "copies of the images."
    )


def test_the_order_of_keys_makes_no_difference(gathered, monkeypatch):
    sent = []
    for settings in ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, {"a": {"x": 1, "y": 3}}):
        gathered(lambda mine: sent.append(mine.tolist()) or mine)
        Workers(0, 2, 2, True).check_same(settings)
    assert sent[0] == sent[1] != sent[2]
    assert len(sent[0][0]) == 8  # all of a SHA-256


@pytest.fixture
def broadcast(jax, monkeypatch):
    """What process 0 sends, which all get: `broadcast.sent` has what each call gave."""
    broadcast = SimpleNamespace(from_chief=[], sent=[])

    def broadcast_one_to_all(value):
        broadcast.sent.append(value)
        return broadcast.from_chief.pop(0) if broadcast.from_chief else value

    utils = SimpleNamespace(broadcast_one_to_all=broadcast_one_to_all)
    monkeypatch.setitem(sys.modules, "jax.experimental", SimpleNamespace(multihost_utils=utils))
    monkeypatch.setitem(sys.modules, "jax.experimental.multihost_utils", utils)
    return broadcast


def test_the_chief_sends_its_file_and_reads_it_where_it_is(broadcast, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(b"\0rose")
    assert Workers(0, 2, 2, True).broadcast_file(path) == path
    size, content = broadcast.sent
    assert (size, size.dtype) == (5, np.int32)
    assert (content.tobytes(), content.dtype) == (b"\0rose", np.uint8)


def test_the_chief_says_where_it_has_no_file(broadcast, tmp_path):
    path = tmp_path / "a.h5"
    assert Workers(0, 2, 2, True).broadcast_file(path) == path
    assert broadcast.sent == [-1]


def test_the_others_get_a_copy_under_the_same_name(broadcast, tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("not the chief's")
    broadcast.from_chief = [np.int32(4), np.frombuffer(b"rose", np.uint8)]
    copy = Workers(1, 2, 2, True).broadcast_file(path)
    assert copy != path
    assert (copy.name, copy.read_bytes()) == ("a.h5", b"rose")
    assert broadcast.sent[0] == -1
    assert (broadcast.sent[1].shape, broadcast.sent[1].dtype) == ((4,), np.uint8)
    broadcast.from_chief = [np.int32(0), np.zeros(0, np.uint8)]
    assert Workers(1, 2, 2, True).broadcast_file(path).read_bytes() == b""


def test_the_others_find_nothing_where_the_chief_has_nothing(broadcast, tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("not the chief's")
    broadcast.from_chief = [np.int32(-1)]
    none = Workers(1, 2, 2, True).broadcast_file(path)
    assert none.name == "a.h5"
    assert not none.exists()
    assert none.parent.is_dir()
    assert none.parent not in {path.parent, Path()}  # not where it could find another's


# The child's own work.


class Ended(BaseException):
    """Stands for the end of the process, with the code in its arguments."""


@pytest.fixture
def child_main(monkeypatch, tmp_path):
    """Run a script as the child does; returns (its exit code, what it wrote, seconds waited)."""

    def end(code):
        raise Ended(code)

    def thread(*, target, daemon):
        assert (target, daemon) == (launcher._end_with_parent, True)
        return SimpleNamespace(start=lambda: threads.append(target))

    waited, threads = [], []
    monkeypatch.setattr(launcher.threading, "Thread", thread)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(launcher.time, "sleep", waited.append)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.delitem(sys.modules, "jax", raising=False)

    def run(code):
        script, shown = tmp_path / "script.py", tmp_path / "shown.txt"
        script.write_text(code)
        monkeypatch.setattr(sys, "argv", ["distribute.py", "0", str(script), "--flag"])
        with open(shown, "w") as file:
            sys.argv[1] = str(os.dup(file.fileno()))
        with pytest.raises((Ended, SystemExit)) as ended:
            launcher.child_main()
        sys.stderr.close()
        assert len(threads) == 1, "nothing watches for the parent's end"
        return ended.value.args, shown.read_text(), waited

    return run


def test_the_child_runs_the_script_as_if_it_had_been_started_itself(child_main, tmp_path):
    code = "import sys\nprint(__name__, sys.argv, sys.path[0], file=sys.stderr)"
    arguments = [str(tmp_path / "script.py"), "--flag"]
    assert child_main(code) == ((), f"__main__ {arguments} {tmp_path}\n", [])


@pytest.mark.parametrize(
    ("code", "ended", "shown"),
    [
        ("raise SystemExit", (), ""),
        ("raise SystemExit(3)", (3,), ""),
        ("raise SystemExit('a word')", (1,), "a word\n"),
        ("raise KeyboardInterrupt", (130,), ""),
    ],
)
def test_the_child_ends_with_the_scripts_code(child_main, code, ended, shown):
    assert child_main(code) == (ended, shown, [])


def test_an_error_of_the_child_is_shown_at_once_and_cut(child_main):
    ended, shown, waited = child_main("raise ValueError('x' * 20_000)")
    assert ended == (1,)
    assert shown.startswith("Traceback (most recent call last):\n")
    assert len(shown) == 10_000
    assert waited == [0]


def test_of_several_processes_an_error_waits_for_jax_to_say_whose_it_was(child_main, monkeypatch):
    met = SimpleNamespace(distributed=SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "jax", met)
    ended, shown, waited = child_main("raise ValueError('odd')")
    assert (ended, shown.splitlines()[-1], waited) == ((1,), "ValueError: odd", [25])


def test_a_child_ends_when_its_parent_has(monkeypatch):
    read = []

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "read", lambda *of: read.append(of) or b"")
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended) as ended:
        launcher._end_with_parent()
    assert (read, ended.value.args) == ([(0, 1)], (1,))


# Models and callbacks of several processes.


@pytest.fixture
def distributions(monkeypatch):
    """What Keras was told to distribute over, in order, beginning with "all devices"."""
    told = ["all devices"]
    monkeypatch.setattr(keras.distribution, "distribution", lambda: told[-1])
    monkeypatch.setattr(keras.distribution, "set_distribution", told.append)
    monkeypatch.setattr(keras.distribution, "DataParallel", lambda **options: options)
    return told


def test_a_spread_model_is_a_copy_with_the_chiefs_weights(broadcast, distributions):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    chief_weights = [np.full((2, 1), 5.0, np.float32), np.full(1, 7.0, np.float32)]
    drawn = []
    for _ in range(2):
        broadcast.from_chief = [chief_weights]
        copy = Workers(1, 2, 2, True).replicate(model, 3)
        drawn.append(np.random.random())
    assert copy is not model
    for one, other, mine in zip(copy.get_weights(), chief_weights, broadcast.sent[0], strict=True):
        assert np.array_equal(one, other)
        assert one.shape == mine.shape
    assert not copy.compiled
    assert drawn[0] == drawn[1]  # all draw the same from here on
    assert distributions[1:] == [{"auto_shard_dataset": False}] * 2


def test_the_chiefs_callbacks_end_an_epoch_by_themselves(distributions):
    class Callback:
        def on_epoch_end(self, epoch, logs=None):
            self.ended = (epoch, logs, distributions[-1])

    callback = Callback()
    assert Workers(0, 2, 2, True).main_process_callbacks(callback) == [callback]
    callback.on_epoch_end(3, {"loss": 1.0})
    assert callback.ended == (3, {"loss": 1.0}, None)
    assert distributions[-1] == "all devices"
