"""The Dockerfile's two steps, without Docker; tests/test_container.py has them in a build."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


def step(folder, *arguments):
    """Return the finished process of a step in `folder`."""
    command = [sys.executable, "-m", "serving.image_build", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def found(tmp_path):
    """The folder that the Dockerfile copies models/ into."""
    for name in ("models/xception_fin_02_0.875.tflite", "models/my own.v2/a_01_0.500.tflite"):
        path = tmp_path / "found" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (path.parent / "a_02_0.400.tflite").touch()
    return tmp_path / "found"


@pytest.mark.parametrize("models", ["models/my own.v2", "./models//my own.v2/"])
def test_the_best_model_of_the_folder_is_copied_and_named(found, models):
    done = step(found, "pick", models)
    assert (done.returncode, done.stdout) == (0, "Model: models/my own.v2/a_01_0.500.tflite\n")
    assert [path.name for path in (found.parent / "models").iterdir()] == ["a_01_0.500.tflite"]


@pytest.mark.parametrize("name", ["a_02_0.400.tflite", ""])
def test_a_model_that_is_named_is_copied_though_another_is_better(found, name):
    done = step(found, "pick", "models/my own.v2", name)
    picked = name or "a_01_0.500.tflite"
    assert (done.returncode, done.stdout) == (0, f"Model: models/my own.v2/{picked}\n")
    assert [path.name for path in (found.parent / "models").iterdir()] == [picked]


@pytest.mark.parametrize(
    "name",
    ["none.tflite", "a.h5", "link.tflite", ".", "..", "../xception_fin_02_0.875.tflite"],
)
def test_a_name_of_no_model_of_the_folder_is_refused(found, name):
    (found / "models" / "my own.v2" / "a.h5").touch()
    (found / "models" / "my own.v2" / "link.tflite").symlink_to("/elsewhere/a.tflite")
    done = step(found, "pick", "models/my own.v2", name)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "ModelError: Expected MODEL to be a .tflite file in models/my own.v2. "
        f"Received: {name}. Check its name"
    )
    assert done.stderr.count("\n") == 1
    assert not (found.parent / "models").exists()


@pytest.mark.parametrize("models", ["/models", "..", "../models", "mine", "models/none", "."])
def test_another_folder_is_refused_in_a_sentence(found, models):
    done = step(found, "pick", models)
    assert done.returncode == 1
    assert done.stderr.startswith("ModelError: Expected MODELS to be ")
    assert f"Received: {models}." in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (found.parent / "models").exists()


def test_a_model_that_does_not_load_is_a_sentence(found):
    shutil.copy(ROOT / "lambda_function.py", found)
    done = step(found, "run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ModelError: Expected ")
    assert "Traceback" not in done.stderr
