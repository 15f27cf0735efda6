"""training.feature_store: right rows or none, whatever happens while they are written."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, wait_until

from training import feature_store
from training.errors import CacheError
from training.feature_store import FeatureStore

KEY = {"weights": "abc", "input_size": [71, 71]}


def table(folder, key=KEY, dtype="float16", shape=(2, 3)):
    return FeatureStore(folder, key, shape, dtype)


def rows(*values):
    return np.stack([np.full((2, 3), value, np.float32) for value in values])


def fill(table, names, values):
    with table.writer() as writer:
        writer.append(names, rows(*values))


def test_rows_come_back_by_name(tmp_path):
    fill(table(tmp_path), ["a", "b/1"], [1, 2])
    opened = table(tmp_path)
    assert opened.missing(["b/1", "c", "a", "c"]) == ["c"]
    taken = opened.read(["b/1", "a", "b/1"])
    assert taken.dtype == np.float16
    assert np.array_equal(taken, rows(2, 1, 2))


def test_a_table_grows(tmp_path):
    growing = table(tmp_path)
    fill(growing, ["a"], [1])
    assert np.array_equal(growing.read(["a"]), rows(1))
    fill(growing, ["b"], [2])
    assert np.array_equal(growing.read(["b", "a"]), rows(2, 1))


@pytest.mark.parametrize(
    "other",
    [
        {"key": KEY | {"weights": "xyz"}},
        {"key": {**KEY, "view": 1}},
        {"dtype": "float32"},
        {"shape": (3, 2)},
    ],
)
def test_another_key_is_another_table(tmp_path, other):
    fill(table(tmp_path), ["a"], [1])
    assert table(tmp_path, **other).missing(["a"]) == ["a"]
    assert table(tmp_path).missing(["a"]) == []


def test_a_missing_row_is_an_error(tmp_path):
    with pytest.raises(KeyError, match="nobody"):
        table(tmp_path).read(["nobody"])


def test_rows_of_another_shape_are_refused(tmp_path):
    with table(tmp_path).writer() as writer, pytest.raises(ValueError, match="Expected rows"):
        writer.append(["a"], np.zeros((1, 3, 2)))
    assert table(tmp_path).missing(["a"]) == ["a"]


def test_what_was_appended_before_an_error_stays(tmp_path):
    def append_and_fail():
        with table(tmp_path).writer() as writer:
            writer.append(["a"], rows(1))
            raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        append_and_fail()
    assert np.array_equal(table(tmp_path).read(["a"]), rows(1))


@pytest.mark.parametrize("kept", ["", "a\nb", "a\nb/", "a\nb/12345"])
def test_a_torn_index_names_whole_rows_only(tmp_path, kept):
    fill(table(tmp_path), ["a", "b/1"], [1, 2])
    [index] = tmp_path.glob("*/index.txt")
    index.write_text(kept)  # as if the rest had not reached the disk
    torn = table(tmp_path)
    known = ["a"] if kept else []
    assert torn.missing(["a", "b", "b/", "b/1"]) == [
        name for name in ("a", "b", "b/", "b/1") if name not in known
    ]
    fill(torn, ["c"], [3])
    assert np.array_equal(table(tmp_path).read([*known, "c"]), rows(*[1] * len(known), 3))
    assert index.read_text().split() == [*known, "c"]


@pytest.mark.parametrize("is_append_done", [False, True])
def test_an_interrupt_while_names_are_written_repeats_none(tmp_path, monkeypatch, is_append_done):
    interrupted = table(tmp_path)
    append = feature_store.LineLog.append

    def append_and_interrupt(log, names):
        names = list(names)
        if not names or is_append_done:
            append(log, names)
        if names:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(feature_store.LineLog, "append", append_and_interrupt)

    def fill_until_interrupted():
        with interrupted.writer() as writer:
            writer.append(["a", "b"], rows(1, 2))
            writer.flush()

    with pytest.raises(KeyboardInterrupt):
        fill_until_interrupted()
    opened = table(tmp_path)
    assert opened.missing(["a", "b"]) == ([] if is_append_done else ["a", "b"])
    fill(opened, ["c"], [3])
    if not is_append_done:
        fill(opened, ["a", "b"], [1, 2])
    assert np.array_equal(table(tmp_path).read(["c", "b", "a"]), rows(3, 2, 1))


def test_names_that_were_written_twice_are_not_believed(tmp_path):
    fill(table(tmp_path), ["a", "b"], [1, 2])
    [index] = tmp_path.glob("*/index.txt")
    index.write_text("a\nb\na\nb\nc\n")  # as earlier versions left it, interrupted
    opened = table(tmp_path)
    assert opened.missing(["a", "b", "c"]) == ["c"]
    assert np.array_equal(opened.read(["a", "b"]), rows(1, 2))
    fill(opened, ["c"], [3])
    assert np.array_equal(table(tmp_path).read(["c", "b", "a"]), rows(3, 2, 1))
    assert index.read_text() == "a\nb\nc\n"


def test_rows_are_on_the_disk_before_their_names_are(tmp_path, monkeypatch):
    synced = []

    def record(descriptor):
        file = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append((file.name, file.stat().st_size, (file.parent / "index.txt").read_text()))

    monkeypatch.setattr(feature_store.os, "fsync", record)
    fill(table(tmp_path), ["a", "b"], [1, 2])
    assert synced == [("rows.bin", 24, ""), ("index.txt", 4, "a\nb\n")]


def test_rows_count_before_the_end_where_they_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "FLUSHED_BYTES", 24)  # two rows
    with table(tmp_path).writer() as writer:
        for number, missing in enumerate((4, 2, 2, 0)):
            writer.append([str(number)], rows(number))
            assert len(table(tmp_path).missing(list("0123"))) == missing
    assert np.array_equal(table(tmp_path).read(list("0123")), rows(0, 1, 2, 3))


def test_a_table_is_filled_by_one_at_a_time_who_knows_what_the_other_wrote(tmp_path):
    one, other = table(tmp_path), table(tmp_path)
    is_filling, found = threading.Event(), []

    def wait_and_fill():
        with other.writer() as writer:
            is_filling.set()
            found.extend(other.missing(["a", "b"]))
            writer.append(["b"], rows(2))

    waiting = threading.Thread(target=wait_and_fill)
    with one.writer() as writer:
        waiting.start()
        assert not is_filling.wait(0.3)
        writer.append(["a"], rows(1))
    waiting.join()
    assert found == ["b"]
    assert np.array_equal(table(tmp_path).read(["a", "b"]), rows(1, 2))


WRITER = """
import sys, numpy as np
from pathlib import Path
from training import feature_store
feature_store.FLUSHED_BYTES = 1000
table = feature_store.FeatureStore(Path(sys.argv[1]), {"weights": "abc"}, (64, 64), "float16")
with table.writer() as writer:
    first = len(table._row_of)
    print("ready", flush=True)
    for n in range(first, 10**6):
        writer.append([str(n)], np.full((1, 64, 64), n % 2000))
"""


def test_killed_at_any_moment_every_named_row_is_right(tmp_path):
    named = 0
    for _ in range(4):
        size = sum(path.stat().st_size for path in tmp_path.glob("*/index.txt"))
        command = [sys.executable, "-c", WRITER, tmp_path]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        [index] = tmp_path.glob("*/index.txt")
        wait_until(lambda index=index, size=size: index.stat().st_size > size)
        time.sleep(0.15)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        opened = FeatureStore(tmp_path, {"weights": "abc"}, (64, 64), "float16")
        names = [str(n) for n in range(len(opened._row_of))]
        assert len(names) > named
        named = len(names)
        taken = opened.read(names)
        expected = (np.arange(named) % 2000).astype(np.float16)
        assert (taken == expected[:, None, None]).all()


NAMED_WRITER = """
import sys, numpy as np
from pathlib import Path
from training import feature_store
folder, name, value = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
table = feature_store.FeatureStore(folder, {"weights": "abc"}, (64, 64), "float16")
print("ready", flush=True)
sys.stdin.readline()
feature_store.FLUSHED_BYTES = 1000
with table.writer() as writer:
    for n in range(100):
        writer.append([f"{name}{n}"], np.full((1, 64, 64), value + n))
"""


def test_two_processes_fill_one_after_the_other(tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", NAMED_WRITER, tmp_path, name, value],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name, value in (("a", "0"), ("b", "1000"))
    ]
    for process in both:
        assert process.stdout.readline() == b"ready\n"
    for process in both:  # at once
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in both:
        process.communicate()
        assert process.returncode == 0
    opened = FeatureStore(tmp_path, {"weights": "abc"}, (64, 64), "float16")
    values = {
        f"{name}{n}": value + n for name, value in (("a", 0), ("b", 1000)) for n in range(100)
    }
    [index] = tmp_path.glob("*/index.txt")
    assert sorted(index.read_text().split()) == sorted(values)
    taken = opened.read(list(values))
    assert (taken == np.array(list(values.values()))[:, None, None]).all()


def test_no_room_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        feature_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5e9)
    )
    small = FeatureStore(tmp_path, KEY, (1000, 1000), "float16")
    small.check_room(100)
    with pytest.raises(CacheError, match=r"Expected 1\.6 GB .* Received: 1\.5 GB\. .*--no-cache"):
        small.check_room(300)


def test_a_full_disk_does_not_matter_where_all_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    FeatureStore(tmp_path, KEY, (1000, 1000), "float16").check_room(0)
