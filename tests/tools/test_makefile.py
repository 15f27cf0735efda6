"""The Makefile: the targets it lists, the programs it calls, the files it keeps."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

MAKEFILE = ROOT / "Makefile"
TARGETS = re.search(r"^\.PHONY: (.+)$", MAKEFILE.read_text(encoding="utf-8"), re.M)[1].split()

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with our Makefile and a set-up that does nothing."""
    shutil.copy(MAKEFILE, tmp_path)
    write_program(tmp_path / "tools" / "setup.sh", "")
    (tmp_path / "models").mkdir()
    return tmp_path


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def make(folder: Path, *arguments: str) -> str:
    """Return what `make` prints in `folder`."""
    environment = dict(os.environ)
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"):
        environment.pop(name, None)
    done = subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_make_alone_lists_every_target_and_variable() -> None:
    text = make(ROOT)
    listed = re.findall(r"^  make (\w+) +\S", text, re.M)
    assert listed == TARGETS
    assert re.findall(r"^  ([A-Z]+) ", text, re.M) == [
        "ARGS",
        "IMAGE",
        "MODELS",
        "PORT",
        "RUNTIME",
        "TAG",
    ]


def test_the_promised_targets_are_there() -> None:
    promised = "help setup demo test train convert predict build run data sample lock clean"
    assert set(promised.split()) <= set(TARGETS)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "-m tools.demo --here"),
        ("test", "-m pytest -n 2 --dist loadfile --here"),
        ("train", "train.py --here"),
        ("convert", "convert_to_tflite.py --here"),
        ("predict", 'predict.py "a b.jpg" --here'),
        ("build", "-m tools.container build -- --here"),
        ("run", "-m tools.container run -- --here"),
        ("http", "-m tools.function_url --here"),
        ("fuzz", "-m tests.fuzz.events --here"),
        ("fuzz", "-m tests.fuzz.images --here"),
        ("fuzz", "-m tests.fuzz.hosts --here"),
        ("data", "-m training.dataset.download --here"),
        ("sample", "-m training.sample --here"),
        ("explore", "-m experiments.explore --here"),
        ("compare", "-m experiments.compare --here"),
        ("tune", "-m experiments.tune --here"),
        ("mutants", "-m tools.mutants --here"),
        ("lock", "-m tools.lock"),
    ],
)
def test_targets_call_programs_with_arguments(target: str, command: str) -> None:
    printed = make(ROOT, "-n", target, "ARGS=--here", "IMAGE=a b.jpg")
    assert command in " ".join(printed.replace("\\\n", "").split())


def test_test_checks_the_code_before_it_tests() -> None:
    commands = make(ROOT, "-n", "test").splitlines()
    assert [line.split(" -m ")[-1].strip() for line in commands[-6:]] == [
        "ruff format --check .",
        "ruff check .",
        "ty check",
        ".venv/bin/lint-imports",
        "vulture",
        "pytest -n 2 --dist loadfile",
    ]


def test_the_variables_of_the_container_image_reach_the_tool() -> None:
    named = ("MODELS=models/my own/", "RUNTIME=openvino", "TAG=mine", "PORT=8081")
    texts = [make(ROOT, "-n", target, *named) for target in ("build", "run")]
    printed = [" ".join(text.replace("\\\n", "").split()) for text in texts]
    assert '--models "models/my own/" --runtime "openvino" --tag "mine" --' in printed[0]
    assert '--port "8081" --tag "mine" --' in printed[1]


def test_clean_leaves_images_checkpoints_and_packages(project: Path) -> None:
    kept = [
        "flowers/rose/1.jpg",
        "models/xception_fin_01_0.900.h5",
        "models/xception_fin_01_0.900.tflite",
        ".venv/lib/__pycache__/a.pyc",
    ]
    gone = [
        ".cache/demo/flowers/rose/1.jpg",
        ".ruff_cache/a",
        ".pytest_cache/a",
        "models/demo/a.h5",
        "mutants/serving/a.py",
        "serving/__pycache__/a.pyc",
    ]
    for name in kept + gone:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make(project, "clean")
    assert [name for name in kept if not (project / name).exists()] == []
    assert [name for name in gone if (project / name).exists()] == []
