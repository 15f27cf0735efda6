"""training.files.claim_folder: a folder that one run at a time writes to."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from training import files
from training.errors import DataError
from training.files import claim_folder

HOLD = """
import sys, time
from pathlib import Path
from training.files import claim_folder
with claim_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "models" / "mine"
    with claim_folder(folder):
        with (
            pytest.raises(DataError, match=f"no other run to write to {folder}. Received: one"),
            claim_folder(folder),
        ):
            pytest.fail("both have it")
        with claim_folder(tmp_path / "models" / "others"):
            pass
        (folder / "a.h5").touch()
    with claim_folder(folder):
        assert [path.name for path in folder.iterdir()] == ["a.h5"]


def test_a_killed_process_leaves_no_claim(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(DataError, match="Wait for it, stop it, or name"),
            claim_folder(tmp_path),
        ):
            pass
        process.kill()
    with claim_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_a_folder_made_for_nothing_is_removed(tmp_path, error):
    def fail(folder):
        with claim_folder(folder):
            assert folder.is_dir()
            raise error

    (tmp_path / "models").mkdir()
    with pytest.raises(error):
        fail(tmp_path / "models" / "a" / "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["models"]
    with pytest.raises(error):
        fail(tmp_path / "models")
    assert (tmp_path / "models").exists(), "it was there before"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "models").touch()
    with (
        pytest.raises(DataError, match="models, which is a file"),
        claim_folder(tmp_path / "models"),
    ):
        pass


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir / "tmp1234"))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError) as caught, claim_folder(tmp_path / "models"):
        pass
    assert caught.value.filename == str(tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_file_system_without_locks_is_used_all_the_same(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with claim_folder(tmp_path):
        pass


def test_the_sentence_is_one(tmp_path):
    with claim_folder(tmp_path), pytest.raises(DataError) as caught, claim_folder(Path(tmp_path)):
        pass
    assert re.fullmatch(r"Expected [^\n]+\. Received: [^\n]+\. [^\n]+\.", str(caught.value))
