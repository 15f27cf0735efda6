"""The container with the least memory that the documentation names: no image ends it.

As test_container.py; the model is the shipped one, since it takes most of the memory.
"""

import contextlib
import json
import re
import shutil
import sys
import time
import urllib.error
import uuid
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from urllib.parse import urlsplit

import pytest
from conftest import ROOT
from PIL import Image
from test_container import (  # noqa: F401 - a fixture among them
    PYTHONS,
    Service,
    build,
    copy_context,
    docker,
    invoke,
    run,
    start,
)

from benchmarks.decoding import in_new_process, make
from benchmarks.load import image_server
from benchmarks.worst_images import WORST
from serving.image import FORMATS
from serving.model_files import best_model
from serving.resources import MEGABYTES_PER_VCPU
from tools.ministack import bridge

pytestmark = pytest.mark.usefixtures("docker")

SECONDS = 30  # of the function's timeout
LARGEST_BATCH = 16


def least_memory(runtime):
    """Return the megabytes that docs/serving.md asks for."""
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `make build.*\b{runtime}\b.*\| (\d+) MB \|$", text, re.M | re.I)
    assert row, runtime
    return int(row[1])


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """The project with the shipped model."""
    folder = tmp_path_factory.mktemp("context")
    copy_context(folder)
    (folder / "models").mkdir()
    if not list((ROOT / "models").glob("*.tflite")):
        run(sys.executable, "convert_to_tflite.py", cwd=ROOT)
    shutil.copy(best_model(ROOT / "models", ".tflite"), folder / "models")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{URL path: content} of the worst image of each format, and of a small one."""
    path = tmp_path_factory.mktemp("images") / "image"
    found = {}
    for number, image in enumerate(WORST):
        if number + 1 == len(WORST) or WORST[number + 1].format != image.format:
            in_new_process(make, number, path)
            found[f"/{image.format}"] = path.read_bytes()
    small = BytesIO()
    Image.new("RGB", (64, 48), "red").save(small, "PNG")
    return found | {"/small": small.getvalue()}


@pytest.fixture(scope="module", params=PYTHONS)
def service(request, context, files):
    """The container of one runtime's image, with as much memory as is documented."""
    name = f"flowers-test-{uuid.uuid4().hex[:12]}"
    build(context, "--tag", name, "--build-arg", f"RUNTIME={request.param}")
    try:
        with (
            image_server(files, 0, bridge()) as address,
            container(request.param, name, address, least_memory(request.param)) as running,
        ):
            yield running, address
    finally:
        run("docker", "image", "rm", "--force", name, check=False)


@pytest.fixture
def service_on_two_processors(service):
    """The same with as much memory, but the threads of a function with two processors."""
    running, address = service
    with container(running.runtime, running.image, address, 2 * MEGABYTES_PER_VCPU) as other:
        yield other, address


@contextlib.contextmanager
def container(runtime, image, address, megabytes):
    """Start a container for a function of `megabytes`, with the least memory of `runtime`."""
    name, least = f"flowers-test-{uuid.uuid4().hex[:12]}", least_memory(runtime)
    settings = {
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": megabytes,
        "AWS_LAMBDA_FUNCTION_TIMEOUT": SECONDS,
        "FETCH_ALLOW": urlsplit(address).hostname,
    }
    options = [f"--env={key}={value}" for key, value in settings.items()]
    options += [f"--memory={least}m", f"--memory-swap={least}m"]
    try:
        running = Service(runtime, image, name, start("docker", image, name, *options))
        wait(running, address)
        yield running
    finally:
        run("docker", "rm", "--force", name, check=False)


def wait(service, address):
    """Return once `service` answers."""
    for _ in range(100):
        try:
            assert is_scores(ask(service, {"url": f"{address}/small"}))
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(run("docker", "logs", service.container).stdout)


def ask(service, event):
    try:
        return json.loads(invoke(service, event))
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from None


def is_scores(answer):
    return isinstance(answer, dict) and answer.keys() > {"rose", "tulip"}


def check(answer):
    """Fail unless `answer` is scores, or says that the image is too large."""
    if not is_scores(answer):
        assert answer["error"]["type"] == "TooLargeError"
        assert answer["error"]["message"].startswith("Expected at most ")


def memory_kills(service):
    """Return how often the kernel ended a process of `service` for its memory."""
    code = (
        "from pathlib import Path; root = Path('/sys/fs/cgroup')\n"
        "files = [root / 'memory.events', root / 'memory/memory.oom_control']\n"
        "print([f.read_text().split() for f in files if f.exists()])"
    )
    printed = run("docker", "exec", service.container, "python3", "-c", code).stdout
    return int(re.search(r"'oom_kill', '(\d+)'", printed)[1])


@pytest.mark.parametrize("name", FORMATS)
def test_the_worst_image_of_each_format_is_answered_and_then_a_small_one(service, name):
    running, address = service
    started = time.monotonic()
    check(ask(running, {"url": f"{address}/{name}"}))
    assert time.monotonic() - started < SECONDS
    assert is_scores(ask(running, {"url": f"{address}/small"}))
    assert memory_kills(running) == 0


def test_among_the_largest_images_a_small_one_is_answered(service):
    running, address = service
    urls = [f"{address}/AVIF"] * (LARGEST_BATCH - 1)
    *large, small = ask(running, {"urls": [*urls, f"{address}/small"]})
    for answer in large:
        check(answer)
    assert is_scores(small)
    assert memory_kills(running) == 0


def test_the_model_runs_while_the_largest_images_are_decoded(service_on_two_processors):
    running, address = service_on_two_processors
    urls = [f"{address}/{name}" for name in FORMATS]
    between = [url for each in urls for url in (each, f"{address}/small")]
    for answer in ask(running, {"urls": [*between, urls[0]]}):
        check(answer)
    assert memory_kills(running) == 0


def test_an_image_in_the_event_is_answered(service, files):
    """Several requests of 6 MB wait in front of the emulator."""
    running, _ = service
    event = {"image": "A" * 5_900_000}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(running, event), range(4)))
    assert {answer["error"]["type"] for answer in answers} == {"UnsupportedTypeError"}
    assert memory_kills(running) == 0
