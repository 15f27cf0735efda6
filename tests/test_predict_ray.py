"""predict.py --out --engine ray: the same rows by Ray Data, whatever ends the run."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import object_storage
import pytest
from conftest import ROOT, is_running, wait_until
from large_jobs import (
    descendants,
    draw_images,
    interrupt,
    make_slow_job,
    paths,
    results_in,
    rows_of,
    start,
    version_of,
)
from test_predict import predict

import predict as script
from serving.classifier import Classifier
from serving.handler import Handler
from serving.runtimes import find_runtime
from serving.service import Service
from serving.shards import Manifest
from training import ray_engine
from training.ray_engine import FOLDER, PREFIX, LabelingActor, Monitor
from training.shard_workers import Setup

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pipenv sync --categories ray"),
]
RAY = ("--engine", "ray")
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
MANIFEST = Manifest(["in"], "d1", 5, 2, 3, "lists/d2", "m.tflite", "d3", "r", 0.02, "2026-11-26")


@pytest.fixture
def images(tmp_path):
    return draw_images(tmp_path / "images")


@pytest.fixture
def slow_job(images, tmp_path, small_tflite, http_server):
    return make_slow_job(images, tmp_path, small_tflite, http_server)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Settings with which a cluster's processes start sooner; see `_spare_grammar`."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def cluster(quick):
    """A cluster of one machine with two processors, and the settings that name it."""
    settings = quick | LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    folder = tempfile.mkdtemp(prefix="ray-", dir=FOLDER)
    command = [
        *(Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0"),
        *("--node-ip-address=127.0.0.1", "--num-cpus=2", "--num-gpus=0"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"),
        "--object-store-memory=100000000",
    ]
    output = Path(folder, "output.txt")
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd="/", env=os.environ | settings, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: b"--block" in output.read_bytes() or process.poll() is not None, 120)
        assert process.poll() is None, output.read_text()
        address = Path(folder, "ray_current_cluster").read_text()
        yield SimpleNamespace(pid=process.pid, settings=settings | {"RAY_ADDRESS": address})
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # Ray itself takes half a minute
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def listened_on(pids):
    """Return the addresses at which processes accept connections."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(link.readlink().name)
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    found = [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in inodes]
    assert found
    return {
        "127.0.0.1" if re.search("(^|FFFF0000)0100007F:", address) else address for address in found
    }


def test_all_engines_write_the_same_rows(images, small_tflite, decoder, quick, monkeypatch):
    runtime = find_runtime()[0]
    words = ("--model", small_tflite, "--runtime", runtime, "--shard-size", "3")
    with object_storage.serve_storage() as storage:
        for path in paths(images):
            storage[f"all-engines/in/{Path(path).stem.strip()}.png"] = Path(path).read_bytes()
        settings = quick | object_storage.environment(storage)

        def label(job, *flags):
            place = f"s3://all-engines/jobs/{job}"
            done = predict("s3://all-engines/in", "--out", place, *words, *flags, **settings)
            assert done.returncode == 0, done.stderr
            return done.stderr

        label("processes", "--processes", "2")
        said = label("ray", *RAY, "--processes", "2")
        assert said.endswith("7 rows, 1 with an error, in s3://all-engines/jobs/ray.\n")
        assert not re.search(r"ray (?!.)|WARN|ERROR|\] ", said.partition("left, in")[2])
        label("map", "--list-only")
        for name, value in (settings | {"LABEL_BUCKET": "all-engines"}).items():
            monkeypatch.setenv(name, value)
        handler = Handler(Service(Classifier(small_tflite, runtime=runtime), "small", decoder))
        for key in [key for key in storage if key.startswith("all-engines/jobs/map/lists/")]:
            handler.handle({"list": key.removeprefix("all-engines/")})
    results = {
        engine: {
            key.rpartition("/")[2]: content
            for key, content in storage.items()
            if key.startswith(f"all-engines/jobs/{engine}/results/")
        }
        for engine in ("processes", "ray", "map")
    }
    assert sorted(results["map"]) == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    assert results["processes"] == results["ray"] == results["map"]


def test_killed_or_stopped_each_image_is_labelled_once(slow_job, quick, tmp_path):
    command, out, urls, asked = slow_job
    settings = quick | {"HOME": str(tmp_path)}
    with start([*command, *RAY], **settings) as process:
        wait_until(lambda: len(results_in(out)) >= 3, 120)
        below = {pid: command_of(pid) for pid in descendants(process.pid)}
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    # Two that have no part in labelling notice it a minute later.
    labelling = [pid for pid, name in below.items() if "Agent" not in name]
    assert len(labelling) > 5
    wait_until(lambda: not any(map(is_running, labelling)))
    kept = {path: version_of(path) for path in results_in(out)}
    assert len(kept) < len(urls)
    [left] = set(re.findall(rf"{FOLDER}/{PREFIX}\w+", " ".join(below.values())))
    assert Path(left).exists()

    with start([*command, *RAY], **settings) as process:
        wait_until(lambda: len(results_in(out)) >= len(kept) + 3, 120)
        below = {pid: command_of(pid) for pid in descendants(process.pid)}
        addresses = listened_on([process.pid, *below])
        interrupt([process.pid, *below])
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    written = len(results_in(out))
    assert f"predict.py: Stopped, with results of {written} of 24 shards. Run the" in error
    wait_until(lambda: not any(map(is_running, below)))
    [own] = set(re.findall(rf"{FOLDER}/{PREFIX}\w+", " ".join(below.values())))
    assert not Path(left).exists()
    assert not Path(own).exists()
    assert addresses == {"127.0.0.1"}
    assert not (tmp_path / ".ray").exists()

    with start(command) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert all(version_of(path) == before for path, before in kept.items())
    assert [row["image"] for row in rows_of(out)] == urls
    assert len(asked) < 2 * len(urls)  # what had results was not fetched again


def test_a_killed_actor_of_a_cluster_is_replaced(slow_job, cluster):
    command, out, urls, _ = slow_job
    with start([*command, *RAY], **cluster.settings) as process:
        wait_until(lambda: len(results_in(out)) >= 3, 120)
        actors = [pid for pid in descendants(cluster.pid) if "MapWorker" in command_of(pid)]
        [first, *_] = (pid for pid in actors if descendants(pid))  # they have decoders
        os.kill(first, signal.SIGKILL)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    # One fewer if it was killed between writing its results and saying so.
    assert re.search("Wrote: 2[34] rows, 0 with an error", error)
    assert [row["image"] for row in rows_of(out)] == urls
    assert {row["label"] for row in rows_of(out)} == {"red"}


def test_a_disk_that_fails_is_no_row(images, small_tflite, tmp_path, cluster):
    words = (images, "--out", tmp_path / "out", "--model", small_tflite, "--shard-size", "2")
    assert predict(*words, "--list-only").returncode == 0
    images.rename(tmp_path / "elsewhere")
    (tmp_path / "images").mkdir()
    done = predict(*words, *RAY, **cluster.settings)
    assert done.returncode == 1
    assert "Received: none of 2; the first error: " in done.stderr
    assert re.search("Expected results of 4 shards. Received: [34] without", done.stderr)
    (tmp_path / "images").rmdir()
    (tmp_path / "elsewhere").rename(images)
    assert predict(*words, *RAY, **cluster.settings).returncode == 0
    assert [row["image"] for row in rows_of(tmp_path / "out")] == paths(images)


def test_a_folder_that_other_machines_do_not_see_is_refused(tmp_path, small_tflite):
    setup = Setup(small_tflite, str(tmp_path / "out"), MANIFEST)
    actor = LabelingActor(setup, 1, [None], None)
    [sentence] = actor({"number": np.array([0])})["failure"]
    assert f"Expected {tmp_path}/out to be the same on all machines of the cluster." in sentence


def test_the_model_reaches_machines_without_its_file(tmp_path, small_tflite, monkeypatch):
    ray = SimpleNamespace(get=lambda reference: reference)
    monkeypatch.setattr(ray_engine, "import_module", lambda name: ray)
    manifest = dataclasses.replace(MANIFEST, runtime=find_runtime()[0])
    setup = Setup(tmp_path / "gone.tflite", str(tmp_path), manifest)
    classifier = ray_engine.load_classifier(setup, small_tflite.read_bytes())
    inputs = np.zeros((1, *classifier.input_size, 3), np.float32)
    expected = Classifier(small_tflite, runtime=manifest.runtime).probabilities(inputs)
    assert np.array_equal(classifier.probabilities(inputs), expected)


def test_a_shard_that_kills_each_actor_is_given_up():
    monitor = Monitor()
    assert [monitor.begin(7) for _ in range(3)] == [1, 2, 3]
    monitor.begin(8)
    monitor.add(7, 5)
    monitor.add(8, 2)
    assert monitor.images() == 7
    monitor.begin(7)  # the images of the actor that was killed have no row
    assert monitor.images() == 2


def test_without_ray_a_sentence_says_how_to_install_it(
    images, small_tflite, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    words = [str(images), "--out", str(tmp_path / "out"), "--model", str(small_tflite)]
    assert script.main([*words, *RAY]) == 1
    assert (
        "Expected the package ray with its extra data, for --engine ray." in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", "Expected a Ray cluster at RAY_ADDRESS=127.0.0.1:1. Received: Connection"),
        ("ray://127.0.0.1:1", "Expected RAY_ADDRESS to be HOST:PORT. Received: ray://127.0.0.1:1."),
    ],
)
def test_an_address_where_no_cluster_is(images, small_tflite, tmp_path, quick, address, expected):
    words = (images, "--out", tmp_path / "out", "--model", small_tflite, *RAY)
    done = predict(*words, RAY_ADDRESS=address, **quick, **LOOPBACK)
    assert done.returncode == 1
    assert f"predict.py: {expected}" in done.stderr
    assert "Traceback" not in done.stderr
