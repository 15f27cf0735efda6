"""tools.environments: programs of the lock in environments of their own, with a pip that notes."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import ROOT

from tools import environments

PACKAGE = {"a": {"version": "==1.0", "hashes": ["sha256:0"]}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose lock has one package for each program."""

    def lock(**categories):
        found = dict.fromkeys(environments.PROGRAMS, PACKAGE) | categories
        (tmp_path / "Pipfile.lock").write_text(json.dumps(found))

    lock()
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "CACHE", tmp_path / ".cache")
    return lock


@pytest.fixture
def pip(monkeypatch):
    """The commands that ran, and what they answer."""
    found = SimpleNamespace(commands=[], code=0, output="")

    def run(command, **_):
        found.commands.append([str(word) for word in command])
        return SimpleNamespace(returncode=found.code, stdout=found.output)

    monkeypatch.setattr(environments.subprocess, "run", run)
    monkeypatch.setattr(environments.venv, "create", lambda path, with_pip: path.mkdir())
    return found


def test_an_environment_is_made_once(project, pip, tmp_path, capsys):
    program = environments.find_program("sam")
    assert program == tmp_path / ".cache" / "sam" / "bin" / "sam"
    [command] = pip.commands
    assert command[0] == str(tmp_path / ".cache" / "sam" / "bin" / "python")
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(command)
    listed = (tmp_path / ".cache" / "sam" / "requirements.txt").read_text()
    assert "a==1.0" in listed
    assert "sha256:0" in listed
    assert environments.find_program("sam") == program
    assert len(pip.commands) == 1
    assert capsys.readouterr().err == "Installing sam into .cache/sam ...\n"


def test_another_lock_makes_it_anew(project, pip, tmp_path):
    environments.find_program("sam")
    (tmp_path / ".cache" / "sam" / "old").touch()
    project(ministack={"b": {"version": "==2.0", "hashes": ["sha256:1"]}})
    environments.find_program("sam")
    assert len(pip.commands) == 1
    project(sam={"b": {"version": "==2.0", "hashes": ["sha256:1"]}})
    environments.find_program("sam")
    assert len(pip.commands) == 2
    assert not (tmp_path / ".cache" / "sam" / "old").exists()


def test_what_was_not_finished_is_made_again(project, pip):
    pip.code, pip.output = 1, "Looking\nERROR: No matching distribution\n"
    with pytest.raises(
        environments.EnvironmentsError, match=r"install \[sam\] of .* ERROR: No mat"
    ):
        environments.find_program("sam")
    pip.code = 0
    environments.find_program("sam")
    assert len(pip.commands) == 2


def test_two_at_once_make_one(project, pip, tmp_path):
    (tmp_path / ".cache").mkdir()
    with open(tmp_path / ".cache" / "sam.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=environments.find_program, args=("sam",))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert pip.commands == []
    waiting.join(10)
    assert len(pip.commands) == 1


def test_other_programs_are_told():
    with pytest.raises(
        environments.EnvironmentsError, match="one of sam, ministack. Received: aws"
    ):
        environments.find_program("aws")


def test_the_lock_has_a_category_for_each_program():
    lock = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
    assert set(environments.PROGRAMS) <= set(lock)


def test_the_program_gets_the_other_words_and_sends_nothing_home(project, pip, monkeypatch):
    ran = []
    monkeypatch.setattr(environments.os, "execv", lambda path, words: ran.append((path, words)))
    monkeypatch.setattr(environments.os, "environ", {})
    environments.main(["sam", "validate", "--lint"])
    [(path, words)] = ran
    assert words == [str(path), "validate", "--lint"]
    assert environments.os.environ == {"SAM_CLI_TELEMETRY": "0"}


def test_without_a_word_it_says_what_it_takes():
    process = subprocess.run(
        [sys.executable, "-m", "tools.environments"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.endswith("Expected one of sam, ministack. Received: none.\n")
