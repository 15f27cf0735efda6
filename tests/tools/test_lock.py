"""The Pipfile names what we import; its lock names no index and fits the container images."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from serving.runtimes import RUNTIMES

LOCK = json.loads((ROOT / "Pipfile.lock").read_text())
CATEGORIES = [category for name, category in LOCK.items() if name != "_meta"]
PACKAGES = [package for category in CATEGORIES for package in category.values()]
# Per category: the Python of AWS's image, and the minor version of its glibc 2. A stand-in image
# is newer, so that building on it does not show whether the wheels fit.
IMAGES = {
    "tflite-runtime": ("3.11", 26),
    "ai-edge-litert": ("3.13", 34),
    "openvino": ("3.13", 34),
}
RUNTIME_CATEGORIES = tuple(IMAGES)
PIPFILE = tomllib.loads((ROOT / "Pipfile").read_text(encoding="utf-8"))
# {module: package} where the names differ by more than "-" and "_".
DISTRIBUTIONS = {
    "PIL": "pillow",
    "_pytest": "pytest",
    "absl": "absl-py",
    "cyclonedx": "cyclonedx-python-lib",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
PROVIDED = {"snapshot_restore_py"}  # by AWS's runtime for Python
# Folders whose programs only developers run, so that [dev-packages] will do.
FOR_DEVELOPERS = ("benchmarks", "tests", "tools")
OLD_NAMES = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


def pipenv(*arguments):
    """Return the finished process of pipenv, which is to make no virtual environment."""
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "PIPENV_IGNORE_VIRTUALENVS": "0"}
    return subprocess.run(
        [sys.executable, "-m", "pipenv", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def platforms(glibc):
    """Return the platform tags of wheels that x86-64 Linux with glibc 2.`glibc` takes."""
    tags = [f"manylinux_2_{minor}" for minor in range(glibc, 4, -1)]
    tags += [name for minor, name in OLD_NAMES.items() if minor <= glibc]
    return [f"{tag}_x86_64" for tag in [*tags, "linux"]]


def pip_install(requirements, python, glibc):
    """Return pip's finished dry run of installing `requirements` on another machine."""
    tags = [f"--platform={tag}" for tag in platforms(glibc)]
    tags += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    machine = [f"--python-version={python}", "--implementation=cp", *tags]
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:"]
    options += ["--require-hashes", "--target=unused", "--disable-pip-version-check"]
    return subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *machine, "-r", requirements],
        capture_output=True,
        text=True,
    )


def printed_requirements(category):
    """Return the lines that the Dockerfile and `make setup` give to pip."""
    command = [sys.executable, "tools/requirements.py", category]
    with (ROOT / "Pipfile.lock").open() as lock:
        done = subprocess.run(command, cwd=ROOT, stdin=lock, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def requirements(tmp_path):
    """Write a category of the lock, all of it or some packages, as the Dockerfile has pip read it.

    Skips the test where no package index answers.
    """

    def write(category, names=None):
        lines = printed_requirements(category)
        path = tmp_path / "requirements.txt"
        path.write_text("\n".join(line for line in lines if names in (None, line.split("=")[0])))
        return path

    probe = write("tflite-runtime", "certifi")
    process = pip_install(probe, "3.11", 26)
    if process.returncode:
        pytest.skip(f"no package index answers: {process.stderr.strip().splitlines()[-1]}")
    return write


@pytest.mark.parametrize("category", ["tflite-runtime", "openvino", "develop", "python"])
def test_requirements_are_those_that_pipenv_would_print(category):
    names = {"develop": "dev-packages"}
    options = ("--categories", names.get(category, category), "--hash", "--exclude-index")
    theirs = [line for line in pipenv("requirements", *options).stdout.splitlines() if line]
    assert printed_requirements(category) == theirs
    assert len(theirs) == len(LOCK[category])


@pytest.mark.parametrize("category", IMAGES)
def test_every_serving_package_has_a_wheel_for_the_image(requirements, category):
    process = pip_install(requirements(category), *IMAGES[category])
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith("Would install ")


def test_a_wheel_for_a_newer_glibc_is_refused(requirements):
    process = pip_install(requirements("tflite-runtime", "numpy"), "3.11", 5)
    assert process.returncode != 0
    assert "No matching distribution found for numpy" in process.stderr


def test_the_lock_names_no_index():
    assert LOCK["_meta"]["sources"] == []
    assert len(PACKAGES) > 50
    assert not [package for package in PACKAGES if "index" in package]
    assert "[[source]]" not in (ROOT / "Pipfile").read_text()


def test_every_package_is_pinned_and_has_hashes():
    for package in PACKAGES:
        assert package["version"].startswith("==")
        assert package["hashes"]
        assert all(digest.startswith("sha256:") for digest in package["hashes"])


def test_the_lock_is_that_of_the_pipfile():
    process = pipenv("verify")
    assert process.returncode == 0, process.stderr


def our_files():
    """Return our Python files, relative to the root; not those of mutation runs and caches."""
    paths = list(ROOT.glob("*.py"))
    for folder in ROOT.glob("[!.]*/"):
        if folder.name != "mutants":
            paths += folder.rglob("*.py")
    return [path.relative_to(ROOT) for path in paths]


def imported_packages(path, ours):
    """Return the packages of the third-party modules that the file at `path` imports."""
    modules = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.split(".")[0])
    modules -= sys.stdlib_module_names | ours | PROVIDED
    return {DISTRIBUTIONS.get(module, module.replace("_", "-")) for module in modules}


@pytest.fixture(scope="module")
def imports():
    """{file: packages that it imports} of all our Python files."""
    paths = our_files()
    ours = {path.parts[0].removesuffix(".py") for path in paths}
    ours |= {path.stem for path in paths if path.parts[0] == "tests"}
    return {path: imported_packages(path, ours) for path in paths}


def test_every_imported_package_is_in_the_pipfile(imports):
    assert len(imports) > 100
    packages, dev_packages = set(PIPFILE["packages"]), set(PIPFILE["dev-packages"])
    for path, imported in imports.items():
        developers = path.parts[0] in FOR_DEVELOPERS
        named = packages | dev_packages if developers else packages
        assert imported <= named, path


@pytest.mark.parametrize("category", RUNTIME_CATEGORIES)
def test_what_serving_imports_is_in_each_container_image(imports, category):
    served = {path for path in imports if path.parts[0] in ("serving", "lambda_function.py")}
    needed = set().union(*(imports[path] for path in served))
    assert needed >= {"numpy", "pillow", "requests", "urllib3"}
    assert needed | {category} == set(PIPFILE[category])
    assert RUNTIMES[category].split(".")[0] == category.replace("-", "_")


def test_the_script_that_tests_a_container_needs_no_package(imports):
    assert imports[Path("docker_test.py")] == set()
