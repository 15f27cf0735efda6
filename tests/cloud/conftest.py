"""The stack of deploy/template.yaml on this machine: MiniStack, with IAM on, and the real image.

Run by `make test-cloud`, not by `make test`: it takes minutes, and needs Docker and AWS's base
image or its stand-in. Everything listens on the address of Docker's bridge only.
"""

import os
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from tests.container.base_images import build_options, ensure_base_image
from tools import ministack
from tools.cloud import built
from tools.container import converted_model, require_docker
from tools.deploy import RUNTIME
from tools.ministack import Cloud, MiniStack
from training.sample import LABELS, draw

collect_ignore_glob = [] if os.environ.get("TEST_CLOUD") else ["test_*.py"]
PYTHON = "3.13"  # of the base image for RUNTIME
PER_CLASS = 4  # drawn images


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes")


@pytest.fixture(scope="session")
def model() -> Path:
    """The model in the image."""
    return converted_model(Path("models"))


@pytest.fixture(scope="session")
def image(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the container image."""
    require_docker()
    ensure_base_image(PYTHON)
    name, log = f"flowers-test-cloud-{os.getpid()}", tmp_path_factory.mktemp("image") / "log"
    with built(name, model, RUNTIME, log, build_options()):
        yield name
    assert subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniStack]:
    """MiniStack."""
    with ministack.running(tmp_path_factory.mktemp("ministack") / "log") as server:
        yield server
    assert (server.process.returncode, server.containers()) == (0, [])


@pytest.fixture(scope="session")
def cloud(image: str, server: MiniStack) -> Cloud:
    """The stack, deployed."""
    return ministack.deploy(server.url, image)


@pytest.fixture(scope="session")
def drawn() -> dict[str, bytes]:
    """JPEG files by their names, as rose-1.jpg: the model knows what they show."""
    files = {}
    for index, label in enumerate(LABELS):
        for number in range(PER_CLASS):
            file = BytesIO()
            generator = np.random.default_rng([0, index, number])
            draw(label, generator, (320, 240)).save(file, "JPEG", quality=88)
            files[f"{label}-{number}.jpg"] = file.getvalue()
    return files
