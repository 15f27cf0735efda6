"""training.feature_store: what the files of a table hold, and when, and what is refused."""

import hashlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from training import feature_store
from training.errors import CacheError
from training.feature_store import FeatureStore

KEY = {"weights": "abc", "input_size": [71, 71]}


def table(folder):
    return FeatureStore(folder, KEY, (2, 3), "float16")


def rows(*values):
    return np.stack([np.full((2, 3), value, np.float32) for value in values])


def file(table, name):
    return (table.folder / name).read_bytes()


def test_a_table_says_in_a_file_what_its_rows_are_and_is_named_after_that(tmp_path):
    opened = table(tmp_path / "a" / "b")
    text = file(opened, "key.json").decode()
    expected = KEY | {"shape": [2, 3], "dtype": "float16"}
    assert text == json.dumps(expected, sort_keys=True, indent=1) + "\n"
    assert opened.folder.parent == tmp_path / "a" / "b"
    assert opened.folder.name == hashlib.sha256(text[:-1].encode()).hexdigest()[:16]
    assert (opened.shape, opened.dtype, opened.row_bytes) == ((2, 3), np.float16, 12)


def test_the_order_of_keys_makes_no_other_table(tmp_path):
    turned = FeatureStore(tmp_path, dict(reversed(KEY.items())), [2, 3], "float16")
    assert turned.folder == table(tmp_path).folder
    assert turned.shape == (2, 3)


def test_the_files_hold_rows_and_names_one_after_another(tmp_path):
    opened = table(tmp_path)
    with opened.writer() as writer:
        writer.append(["a/1", "é"], rows(1, 2))
        writer.append(["c"], np.full((1, 3, 2), 3.0).swapaxes(1, 2))
    assert file(opened, "rows.bin") == rows(1, 2, 3).astype(np.float16).tobytes()
    assert file(opened, "index.txt").decode() == "a/1\né\nc\n"
    assert np.array_equal(opened.read(["c", "é"]), rows(3, 2))
    assert not isinstance(opened.read(["c"]), np.memmap)


def test_names_appear_once_enough_bytes_have_come(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "FLUSHED_BYTES", 24)  # two rows
    opened = table(tmp_path)
    with opened.writer() as writer:
        writer.append(["a"], rows(1))
        assert file(opened, "index.txt") == b""
        assert opened.missing(["a"]) == ["a"]
        writer.append(["b"], rows(2))
        assert file(opened, "index.txt") == b"a\nb\n"
        assert np.array_equal(opened.read(["a", "b"]), rows(1, 2))
        writer.append(["c"], rows(3))
        assert file(opened, "index.txt") == b"a\nb\n"
    assert file(opened, "index.txt") == b"a\nb\nc\n"
    assert np.array_equal(opened.read(["c", "a"]), rows(3, 1))


def test_rows_reach_the_disk_before_their_names(tmp_path, monkeypatch):
    opened = table(tmp_path)
    sync, seen = os.fsync, []

    def note(descriptor):
        sync(descriptor)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append((name, len(file(opened, "rows.bin")), file(opened, "index.txt")))

    monkeypatch.setattr(os, "fsync", note)
    with opened.writer() as writer:
        writer.append(["a"], rows(1))
    assert seen == [("rows.bin", 12, b""), ("index.txt", 12, b"a\n")]


def test_a_table_that_is_filled_twice_goes_on_behind_what_it_holds(tmp_path):
    opened = table(tmp_path)
    for name, value in (("a", 1), ("bb", 2), ("c", 3)):
        with opened.writer() as writer:
            writer.append([name], rows(value))
    assert file(opened, "index.txt") == b"a\nbb\nc\n"
    assert len(file(opened, "rows.bin")) == 36
    assert np.array_equal(table(tmp_path).read(["c", "bb", "a"]), rows(3, 2, 1))


def test_what_stands_behind_the_last_whole_row_is_cut_off(tmp_path):
    opened = table(tmp_path)
    with opened.writer() as writer:
        writer.append(["a"], rows(1))
    with open(opened.folder / "rows.bin", "ab") as more:
        more.write(b"x" * 30)
    with open(opened.folder / "index.txt", "ab") as more:
        more.write(b"half a na")
    with table(tmp_path).writer():
        pass
    assert file(opened, "rows.bin") == rows(1).astype(np.float16).tobytes()
    assert file(opened, "index.txt") == b"a\n"


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 2, 3), (1, 6)])
def test_rows_of_another_shape_are_told_with_theirs(tmp_path, shape):
    with table(tmp_path).writer() as writer, pytest.raises(ValueError, match="rows") as caught:
        writer.append(["a"], np.zeros(shape))
    assert str(caught.value) == f"Expected rows of shape (1, 2, 3). Received: {shape}."
    assert table(tmp_path).missing(["a"]) == ["a"]


def test_a_gigabyte_is_left_free_for_others(tmp_path, monkeypatch):
    opened = FeatureStore(tmp_path, KEY, (1000, 1000), "float16")  # 2 MB a row
    asked = []

    def disk_usage(folder):
        asked.append(folder)
        return SimpleNamespace(free=1.6e9)

    monkeypatch.setattr(feature_store.shutil, "disk_usage", disk_usage)
    assert opened.check_room(300) is None
    assert asked == [tmp_path]
    with pytest.raises(CacheError) as caught:
        opened.check_room(301)
    assert str(caught.value) == (
        f"Expected 1.6 GB of free disk space for features in {tmp_path}. Received: 1.6 GB. "
        "Free some, name another folder with --cache, or train without a cache: --no-cache."
    )
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert opened.check_room(0) is None
    with pytest.raises(CacheError, match=r"Expected 1\.0 GB .* Received: 0\.0 GB"):
        opened.check_room(1)
