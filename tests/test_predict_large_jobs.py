"""predict.py --out: each image is labelled once, whatever ends the run."""

import itertools
import json
import os
import re
import signal
from pathlib import Path
from unittest.mock import MagicMock

import object_storage
import obstore
import pytest
from conftest import is_running, wait_until
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
from obstore.store import MemoryStore
from PIL import Image
from test_predict import predict

import predict as script
from serving import stores
from serving.runtimes import RUNTIMES
from serving.shards import Manifest
from serving.stores import Folder
from training import large_job, shard_workers
from training.shard_workers import Failed, Finished, Setup, Summary

ODD = {"6 ü\n.png": "6 ü+%41#?&.png"}  # buckets allow no line breaks


@pytest.fixture
def images(tmp_path):
    return draw_images(tmp_path / "images")


@pytest.fixture
def label(small_tflite, images, tmp_path):
    """Run predict.py with --out."""

    def run(*arguments, **settings):
        words = arguments or (images,)
        return predict(*words, "--out", tmp_path / "out", "--model", small_tflite, **settings)

    return run


def test_a_folder_is_labelled_shard_by_shard(label, images, tmp_path):
    done = label(images, "--shard-size", "3")
    assert (done.returncode, done.stdout) == (0, "")
    assert "Label: 7 of 7 images left, in 3 shards.\n" in done.stderr
    assert done.stderr.endswith(f"Wrote: 7 rows, 1 with an error, in {tmp_path}/out.\n")
    rows = rows_of(tmp_path / "out")
    assert [row["image"] for row in rows] == paths(images)
    assert all(row["image"].endswith(f"-{row['label']}.png") for row in rows[:6])
    assert rows[6]["error"]["type"] == "ImageError"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("lists", "manifest.json", "results")
    ]


def test_the_scores_are_those_without_out(label, images, tmp_path, small_tflite):
    label()
    lines = predict("--json", images, "--model", small_tflite).stdout.splitlines()
    alone = {line["image"]: line for line in map(json.loads, lines)}
    for row in rows_of(tmp_path / "out"):
        expected = alone[row["image"]]
        assert row["scores"] == expected.get("scores")
        assert row["error"] == expected.get("error")


def test_what_has_results_is_left_alone_and_later_images_are_not_in_it(label, images, tmp_path):
    label(images, "--shard-size", "3")
    (tmp_path / "out/results/00001.jsonl").unlink()
    kept = version_of(tmp_path / "out/results/00000.jsonl")
    Image.new("RGB", (9, 9)).save(images / "0-later.png")
    done = label()
    assert "Label: 3 of 7 images left, in 1 shard.\n" in done.stderr
    assert version_of(tmp_path / "out/results/00000.jsonl") == kept
    assert [row["image"] for row in rows_of(tmp_path / "out")] == [
        path for path in paths(images) if "later" not in path
    ]
    done = label()
    assert done.returncode == 0
    assert done.stderr.endswith("Label: nothing is left, since all 3 shards have results.\n")


def test_parts_for_several_machines(label, images, tmp_path):
    words = ("--shard-size", "2", "--shard")
    for part, files in (("1/3", ["00001"]), ("0/3", ["00000", "00001", "00003"])):
        assert label(images, *words, part).returncode == 0
        found = sorted(path.stem for path in (tmp_path / "out/results").iterdir())
        assert found == files
    assert label(images, *words, "2/3").returncode == 0
    assert [row["image"] for row in rows_of(tmp_path / "out")] == paths(images)
    done = label(images, *words, "9/10")
    assert (done.returncode, "no shard is in this part." in done.stderr) == (0, True)


def test_images_are_only_listed(label, images, tmp_path):
    done = label(images, "--shard-size", "3", "--list-only")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"List: {tmp_path}/out lists 7 images, in 3 shards." in done.stderr
    assert "run the same command without --list-only, or on several machines with" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lists", "manifest.json"]
    kept = version_of(tmp_path / "out/manifest.json")
    Image.new("RGB", (9, 9)).save(images / "0-later.png")
    again = label(images, "--list-only")
    assert again.stderr == done.stderr.replace("List: finding the images ...\n", "")
    assert label(images, "--shard-size", "3").returncode == 0
    assert version_of(tmp_path / "out/manifest.json") == kept
    assert len(rows_of(tmp_path / "out")) == 7


def test_one_image_in_one_shard_is_told_in_the_singular(label, images, monkeypatch, capsys):
    one = [str(images / "1-green.png")]
    listed, labelled, again = label(*one, "--list-only"), label(*one), label(*one)
    assert "out lists 1 image, in 1 shard. To label" in listed.stderr
    assert "Label: 1 of 1 image left, in 1 shard.\n" in labelled.stderr
    assert "Wrote: 1 row, 0 with an error, in" in labelled.stderr
    assert again.stderr.endswith("Label: nothing is left, since the only shard has results.\n")
    assert large_job._report(Summary(1), 1, "out") == 1
    assert "Expected results of 1 shard. Received: 1 without." in capsys.readouterr().err


def test_images_are_listed_for_a_runtime_that_is_not_installed_here(
    images, small_tflite, monkeypatch, capsys
):
    monkeypatch.setitem(RUNTIMES, "openvino", "no_such_module")
    bucket = MemoryStore()
    monkeypatch.setattr(stores, "connect", lambda root: bucket)
    words = [str(images), "--out", "s3://b/jobs/my job/", "--runtime", "openvino"]
    words += ["--model", str(small_tflite)]
    assert script.main([*words, "--list-only"]) == 0
    error = capsys.readouterr().err
    assert error.endswith('state machine of docs/aws.md with --input \'{"job": "my job"}\'.\n')
    assert f"Model: {small_tflite} (openvino), 3 classes: " in error
    manifest = json.loads(obstore.get(bucket, "jobs/my job/manifest.json").bytes().to_bytes())
    assert (manifest["runtime"], manifest["images"]) == ("openvino", 7)
    assert script.main(words) == 1
    assert "Expected openvino to be installed." in capsys.readouterr().err


def test_a_list_of_files_and_urls(label, images, tmp_path, http_server):
    url = http_server({"/a.png": (200, {}, (images / "0-red.png").read_bytes())})
    listed = [f"{url}/a.png", "images/1-green.png", f"{url}/gone.png", "images/more", ""]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    done = label("--from", tmp_path / "list.txt", cwd=tmp_path)
    assert done.returncode == 0
    rows = {row["image"]: row for row in rows_of(tmp_path / "out")}
    assert set(rows) == {
        *(str(images / "1-green.png"), str(images / "more/6 ü\n.png")),
        *(f"{url}/a.png", f"{url}/gone.png"),
    }
    assert rows[f"{url}/a.png"]["label"] == "red"
    assert rows[f"{url}/gone.png"]["error"]["type"] == "FetchError"


@pytest.mark.parametrize(
    ("words", "settings", "expected"),
    [
        (["images/more"], {}, r"Expected the images that .*/out is for: .*/images\. Received: "),
        (["images", "--shard-size", "4"], {}, "Expected --shard-size to be 3, .* Received: 4"),
        (["images"], {"UNKNOWN_BELOW": "0.5"}, "Expected UNKNOWN_BELOW to be 0.02, .*: 0.5"),
        (["images", "--runtime", "openvino"], {}, "Expected --runtime to be .* Received: openvino"),
        (["images", "--model", "other.tflite"], {}, "Expected the model that .* another file"),
    ],
)
def test_a_place_is_for_one_job(label, images, tmp_path, small_tflite, words, settings, expected):
    label(images, "--shard-size", "3")
    (tmp_path / "other.tflite").write_bytes(small_tflite.read_bytes() + b"\0")
    out, model = ("--out", tmp_path / "out"), ("--model", small_tflite)
    model = () if "--model" in words else model
    done = predict(*words, *out, *model, cwd=tmp_path, **settings)
    assert done.returncode == 1
    assert re.search(rf"^predict\.py: {expected}", done.stderr, re.MULTILINE), done.stderr


def test_no_images(label, tmp_path):
    (tmp_path / "empty").mkdir()
    done = label(tmp_path / "empty")
    assert done.returncode == 1
    assert f"predict.py: Expected images in {tmp_path}/empty. Received: none." in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_wrong(label, images, tmp_path):
    done = label(f"{images}s")
    assert done.returncode == 1
    assert f"Expected a file or folder. Received: {images}s, which does not exist." in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_list(label, tmp_path):
    (tmp_path / "list.txt").write_text("\n\n")
    done = label("--from", tmp_path / "list.txt")
    assert done.returncode == 1
    assert "predict.py: Expected images. Received: none." in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_place_among_the_images(images, small_tflite):
    """A first run that was killed before the manifest has left lists there."""
    words = (images, "--out", images / "labels", "--model", small_tflite, "--shard-size", "3")
    for _ in range(2):
        assert predict(*words).returncode == 0
        (images / "labels/manifest.json").unlink()
    before = [path for path in paths(images) if "labels" not in path]
    assert [row["image"] for row in rows_of(images / "labels")] == before


def test_a_checkpoint_is_converted_first(images, small_checkpoint, tmp_path, capsys):
    words = [str(images), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert script.main(words) == 1
    assert "Expected a .tflite model for --out." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "out"], "required: IMAGE_OR_URL"),
        (["a.jpg", "--shard", "0/2"], "--shard needs --out"),
        (["--from", "list.txt"], "--from needs --out"),
        (["a.jpg", "--list-only"], "--list-only needs --out"),
        (["a.jpg", "--out", "out", "--list-only", "--shard", "0/2"], "leave out --shard"),
        (["a.jpg", "--out", "out", "--csv"], "leave out --json, --csv"),
        (["a.jpg", "--out", "out", "--shard", "2/2"], "I from 0 to N - 1, such as 0/4. Received"),
        (["a.jpg", "--out", "out", "--shard", "1"], "such as 0/4. Received: 1"),
    ],
)
def test_flags_that_do_not_go_together(words, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(words)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.fixture
def slow_job(images, tmp_path, small_tflite, http_server):
    return make_slow_job(images, tmp_path, small_tflite, http_server)


def workers_of(pid):
    """Return the processes that label, which have decoders below them."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if descendants(child)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_killed_in_the_middle_and_run_again_each_image_is_labelled_once(slow_job):
    command, out, urls, asked = slow_job
    killed = 0
    for enough in (3, 9):
        with start(command) as process:
            wait_until(lambda enough=enough: len(results_in(out)) >= enough)
            below = descendants(process.pid)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        wait_until(lambda below=below: not any(map(is_running, below)))
        kept = {path: version_of(path) for path in results_in(out)}
        assert len(kept) < len(urls)
    assert killed == 2
    with start(command) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert all(version_of(path) == before for path, before in kept.items())
    rows = rows_of(out)
    assert [row["image"] for row in rows] == urls
    assert {row["label"] for row in rows} == {"red"}
    assert len(asked) < 2 * len(urls)  # what had results was not fetched again


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_process_that_is_killed_costs_its_shard_only(slow_job):
    command, out, urls, _ = slow_job
    with start(command) as process:
        wait_until(lambda: len(results_in(out)) >= 3)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "predict.py: A process was killed (SIGKILL), usually for lack of memory." in error
    assert "Expected results of 24 shards. Received: 1 without. Run the same command" in error
    with start(command) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert [row["image"] for row in rows_of(out)] == urls


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_ctrl_c_says_what_is_written(slow_job):
    command, out, urls, _ = slow_job
    with start([*command]) as process:
        wait_until(lambda: len(results_in(out)) >= 3)
        below = descendants(process.pid)
        for pid in workers_of(process.pid):  # also while they start
            status = Path(f"/proc/{pid}/status").read_text()
            blocked = int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16)
            assert blocked & 1 << signal.SIGINT - 1
        interrupt([process.pid, *below])
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    written = len(results_in(out))
    assert f"predict.py: Stopped, with results of {written} of 24 shards. Run the" in error
    wait_until(lambda: not any(map(is_running, below)))
    with start(command) as process:
        process.communicate(timeout=60)
    assert [row["image"] for row in rows_of(out)] == urls


def test_two_runs_at_once_label_each_image_once(slow_job):
    command, out, urls, _ = slow_job
    processes = [start(command) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert [row["image"] for row in rows_of(out)] == urls


def test_a_disk_that_fails_is_no_row(label, images, tmp_path):
    """Nothing is written for a shard of which no image can be read, and the run fails."""
    label(images, "--shard-size", "3", "--shard", "1/3")
    images.rename(tmp_path / "elsewhere")
    done = label(images, "--shard-size", "3")
    assert done.returncode == 1
    assert "Received: none of 3; the first error: " in done.stderr
    (tmp_path / "elsewhere").rename(images)
    assert label(images).returncode == 0
    assert [row["image"] for row in rows_of(tmp_path / "out")] == paths(images)


def test_from_a_bucket_to_a_bucket(images, small_tflite):
    with object_storage.serve_storage() as storage:
        for path in paths(images):
            storage[f"b/in/{ODD.get(Path(path).name, Path(path).name)}"] = Path(path).read_bytes()
        storage["b/in/.hidden.png"] = storage["b/in/folder/"] = b""
        storage["b/inside.png"] = b"not below in/"
        storage["b/in/0-red.png.json"] = b"{}"  # the stack's labels, and what another job wrote
        storage["b/in/jobs/a/manifest.json"] = storage["b/in/jobs/a/lists/0a/00000.jsonl"] = b"{}"
        storage["b/in/jobs/a/results/00000.jsonl"] = b"{}"
        storage.denied = {"b/in/3-red.png"}
        words = ("s3://b/in", "--out", "s3://b/out", "--model", small_tflite, "--shard-size", "4")
        settings = object_storage.environment(storage)
        done = predict(*words, **settings)
        assert done.returncode == 0, done.stderr
        kept = dict(storage)
        again = predict(*words, **settings)
        assert (again.returncode, dict(storage)) == (0, kept)
    rows = [
        json.loads(line)
        for name in ("00000", "00001")
        for line in storage[f"b/out/results/{name}.jsonl"].splitlines()
    ]
    names = ["0-red", "1-green", "2-blue", "3-red", "4-green", "5-blue", "6 ü+%41#?&"]
    assert [row["image"] for row in rows] == [f"s3://b/in/{name}.png" for name in names]
    assert [row["label"] for row in rows] == ["red", "green", "blue", None, "green", "blue", None]
    assert "access denied" in rows[3]["error"]["message"]


def test_a_list_of_objects_takes_no_request_for_each(images, tmp_path, small_tflite):
    listed = [f"s3://b/in/{Path(path).name}" for path in paths(images)[:6]]
    twice = listed[0].replace("s3:", "S3:")
    lines = [*listed, "s3://b/in/gone.JPG", "s3://b/more", twice]
    (tmp_path / "list.txt").write_text("\r\n".join(lines), encoding="utf-16")
    with object_storage.serve_storage() as storage:
        for address, path in zip(listed, paths(images), strict=False):
            storage[address.removeprefix("s3://")] = Path(path).read_bytes()
        storage["b/more/7.png"] = storage["b/in/0-red.png"]
        words = ("--from", tmp_path / "list.txt", "--out", tmp_path / "out")
        settings = object_storage.environment(storage)
        assert predict(*words, "--model", small_tflite, **settings).returncode == 0
        asked = storage.requests
    rows = {row["image"]: row["label"] for row in rows_of(tmp_path / "out")}
    assert list(rows) == sorted([*listed, "s3://b/in/gone.JPG", "s3://b/more/7.png"])
    assert rows["s3://b/in/gone.JPG"] is None
    assert sum("list-type" in request for request in asked) == 1
    assert len(asked) == 1 + len(rows)


def test_without_out_a_bucket_says_what_to_do(small_tflite):
    done = predict("s3://b/in", "--model", small_tflite)
    assert "To label images in a bucket, add --out" in done.stderr


def test_after_three_failures_no_shard_is_started(monkeypatch, tmp_path):
    """The place is at fault then, and each try may take minutes."""
    sent = []

    class Pipes(shard_workers.Workers):
        def __enter__(self):
            self.working = {"pipe": None}
            return self

        def __exit__(self, *_):
            pass

        def send(self, pipe, waiting):
            sent.append(len(waiting))
            if waiting:
                waiting.popleft()
            else:
                self.working.clear()

        def reports(self):
            numbers = itertools.count()
            while self.working:
                yield "pipe", Failed(f"error {next(numbers) % 2}")

    monkeypatch.setattr(shard_workers, "Workers", Pipes)
    manifest = Manifest(
        ["in"], "d1", 5, 2, 3, "lists/d2", "m.tflite", "d3", "r", 0.02, "2026-11-26"
    )
    setup = Setup(tmp_path, str(tmp_path), manifest)
    summary = shard_workers.label(setup, range(10), 1, lambda _: None)
    assert (summary.missing, summary.failures) == (10, ["error 0", "error 1"])
    assert sent == [10, 9, 8, 0]


def test_a_worker_ends_quietly_when_its_parent_was_killed(monkeypatch):
    class Pipe:
        def recv(self):
            raise ConnectionResetError

        send = None  # not reached

    for name in ("Decoder", "Classifier", "open_store", "Labeler"):
        monkeypatch.setattr(shard_workers, name, lambda *_: None)
    shard_workers.work(Pipe(), MagicMock(), 1)


def test_progress_counts_each_image_of_a_shard_once():
    reports = []
    reporter = shard_workers.Reporter(reports.append)
    for _ in range(3):
        reporter.count()
    reporter.finish(3)
    reporter.finish(5)  # another process has labelled it
    reporter.count()
    reporter.finish(0)  # it failed
    assert sum(reports) == 8


def test_a_success_between_failures_says_that_the_place_is_not_at_fault():
    summary = Summary(9)
    for report in (Failed("a"), Failed("b"), Finished(None), Failed("a")):
        summary.add(report)
    assert (summary.failed, summary.missing, summary.failures) == (1, 8, ["a", "b"])


def test_shards_are_labelled_in_any_order():
    numbers = list(range(100))
    shuffled = large_job._shuffle(numbers)
    assert sorted(shuffled) == numbers
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(shuffled)) < 20


def test_a_shard_of_another_process_has_results_but_no_rows_of_ours():
    summary = Summary(2)
    summary.add(Finished(None))
    assert (summary.missing, summary.images) == (1, 0)


def test_the_manifest_says_what_was_labelled(label, images, tmp_path):
    label()
    manifest = Manifest.read(Folder(tmp_path / "out"))
    assert manifest is not None
    assert (manifest.inputs, manifest.images, manifest.shards) == ([str(images)], 7, 1)
