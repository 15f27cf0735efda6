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
    listed = re.findall(r"^  make ([\w-]+) +\S", text, re.M)
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
        ("test", "-m pytest -n 2 --dist loadfile --max-worker-restart 0 --here"),
        ("train", "train.py --here"),
        ("convert", "convert_to_tflite.py --here"),
        ("predict", 'predict.py --here -- "$IMAGE"'),
        ("build", "-m tools.container build -- --here"),
        ("run", "-m tools.container run -- --here"),
        ("cloud", "-m tools.cloud --here"),
        ("deploy", "-m tools.deploy up --here"),
        ("undeploy", "-m tools.deploy down --here"),
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
        ("test-cloud", "TEST_CLOUD=1 .venv/bin/python -m pytest tests/cloud --here"),
        ("lock", "-m tools.lock"),
        ("sbom", "-m tools.sbom --here"),
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
        "pytest -n 2 --dist loadfile --max-worker-restart 0",
    ]


HOSTILE = {
    "quotes": 'it\'s a "rose".jpg',
    "command of the shell": "$(touch pwned).jpg",
    "backticks": "`touch pwned`.jpg",
    "second command": "rose.jpg; touch pwned & touch pwned | touch pwned > pwned",
    "function of make": "$(shell touch pwned)$(error stopped)",
    "variables": "$HOME ${PATH} $(MAKE) $@ $$ $",
    "flag": "--help",
    "lines": "rose.jpg\n\ttouch pwned\n",
    "special characters": "\\ # % * ~ ! a=b a:b a,b) {c,d} [e] \\",
    "spaces": "two  spaces.jpg ",
    "no UTF-8": "caf\udce9.jpg",
}


def calls(project: Path, *arguments: str) -> list[str]:
    """Return the arguments with which `make` calls Python in `project`."""
    python = "#!/bin/sh\nprintf '%s\\0' \"$@\" >> called\n"
    path = project / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(python, encoding="utf-8")
    path.chmod(0o755)
    make(project, *arguments)
    return os.fsdecode((project / "called").read_bytes()).split("\0")[:-1]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_any_name_of_an_image_is_only_a_name(project: Path, name: str) -> None:
    assert calls(project, "predict", f"IMAGE={name}", "ARGS=--json") == [
        "predict.py",
        "--json",
        "--",
        name,
    ]
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    ("target", "variables"),
    [
        ("train", ["models"]),
        ("convert", ["models"]),
        ("build", ["models", "runtime", "tag"]),
        ("run", ["port", "tag"]),
        ("cloud", ["models", "runtime", "port"]),
        ("deploy", ["models", "runtime"]),
        ("sbom", ["models"]),
    ],
)
def test_any_value_of_a_variable_is_only_a_value(
    project: Path, target: str, variables: list[str], name: str
) -> None:
    called = calls(project, target, *(f"{variable.upper()}={name}" for variable in variables))
    assert [word for word in called if word.startswith("--") and word != "--"] == [
        f"--{variable}={name}" for variable in variables
    ]
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("variable", ["IMAGE", "MODELS", "PORT", "RUNTIME", "TAG", "ARGS"])
def test_a_variable_that_a_target_does_not_use_does_nothing(project: Path, variable: str) -> None:
    make(project, "help", f"{variable}=$(shell touch pwned)$(error stopped)`touch pwned`")
    assert not (project / "pwned").exists()


def test_more_arguments_are_words_for_the_shell_and_not_for_make(project: Path) -> None:
    called = calls(project, "train", "ARGS=--data 'my own' $(printf '%s' a-b) ${UNSET-c}")
    assert called == ["train.py", "--data", "my own", "a-b", "c"]


def test_a_folder_of_models_classifies(project: Path) -> None:
    called = calls(project, "predict", "MODELS=models/my own", "IMAGE=a.jpg")
    assert called == ["predict.py", "--model=models/my own", "--", "a.jpg"]


def test_without_variables_the_tools_take_their_defaults(project: Path) -> None:
    assert calls(project, "build") == ["-m", "tools.container", "build", "--"]
    (project / "called").unlink()
    assert calls(project, "run", "TAG=", "PORT=") == ["-m", "tools.container", "run", "--"]


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
        "sbom/openvino.cdx.json",
        "serving/__pycache__/a.pyc",
    ]
    for name in kept + gone:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make(project, "clean")
    assert [name for name in kept if not (project / name).exists()] == []
    assert [name for name in gone if (project / name).exists()] == []
