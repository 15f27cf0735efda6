"""Commands outside their environment end in a sentence, not in a traceback."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = ("train.py", "convert_to_tflite.py", "predict.py")
MODULES = ("training.dataset", "training.evaluation", "experiments.tune", "benchmarks.serving")


def run(*arguments, cwd=ROOT):
    """Return the finished process of a Python without any package."""
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [*((script, "--help") for script in SCRIPTS), *(("-m", name, "--help") for name in MODULES)],
    ids=" ".join,
)
def test_a_missing_package_is_told_with_the_environment_to_activate(command):
    done = run(*command)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("Expected the packages of Pipfile.lock. Received: no package ")
    assert f" in {sys.executable}. Activate their environment: source .venv/bin/activate." in line
    assert line.endswith(f"Or run: .venv/bin/python -S {' '.join(command)}")


def test_without_an_environment_it_says_how_to_make_one(tmp_path):
    shutil.copytree(ROOT / "training", tmp_path / "training")
    shutil.copy(ROOT / "train.py", tmp_path)
    done = run("train.py", cwd=tmp_path)
    assert done.stderr.endswith("activate it: make setup && source .venv/bin/activate\n")


def test_other_errors_keep_their_traceback():
    for code in ("import training.no_such_module", "import training; 1 / 0"):
        assert "Traceback" in run("-c", code).stderr


def test_a_python_that_is_too_old_is_told():
    code = "import sys; sys.version_info = (3, 9, 2); import training"
    done = run("-c", code)
    assert done.returncode == 1
    assert "Received: Python 3.9 in " in done.stderr
    assert "Traceback" not in done.stderr
