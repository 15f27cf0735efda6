"""The container image: built from the Dockerfile, run as on Lambda, and sent events.

Needs a Docker daemon (tests/container/daemon.sh starts one) and the package index.
"""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from conftest import ROOT
from packaging.markers import Marker
from packaging.utils import canonicalize_name
from PIL import Image

from benchmarks.cold_start import size_above_base
from serving.function_url import INVOCATIONS
from serving.image import FORMATS
from tests.container.base_images import (
    REPOSITORY,
    UnavailableError,
    build_options,
    ensure_base_images,
)

PYTHONS = {"tflite-runtime": "3.11", "ai-edge-litert": "3.13", "openvino": "3.13"}
IN_THE_CONTEXT = ("Dockerfile", ".dockerignore", "Pipfile.lock", "lambda_function.py")
# As on Lambda, with a file system that is read-only except for /tmp, and an ordinary user.
AS_LAMBDA = ("--read-only", "--tmpfs", "/tmp", "--user", "993:990")  # noqa: S108
IMAGES_PORT = 8000
BUILDKIT = {"DOCKER_BUILDKIT": "1"}

LIST_FILES = """
import json, os
found = []
for folder, _, names in os.walk("/var/task"):
    for name in names:
        path = os.path.join(folder, name)
        found.append([path, os.stat(path).st_mode])
print(json.dumps(found))
"""
READ_EVERY_FORMAT = """
import io, json
from PIL import Image
from serving.image import FORMATS, open_image
read = []
for name in FORMATS:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, name)
    read.append(open_image(file.getvalue()).info["format"])
Image.init()  # imports every plugin there is
print(json.dumps([read, sorted(Image.ID)]))
"""
IMPORT_THE_EXPORT = """
import json, openvino
from serving.classifier import Classifier
from serving.model_files import best_model
openvino.Core.read_model = openvino.Core.compile_model = None
print(json.dumps(Classifier(best_model("models", ".tflite")).labels))
"""
COUNT_THREADS = """
import os, numpy
numpy.ones((500, 500), "float32") @ numpy.ones((500, 500), "float32")
print(len(os.listdir("/proc/self/task")))
"""
LIST_PACKAGES = """
import json
from importlib.metadata import distributions
found = distributions(path=["/var/task"])
print(json.dumps({package.metadata["Name"]: package.version for package in found}))
"""


@dataclass(frozen=True)
class Service:
    """A running container of the container image for `runtime`."""

    runtime: str
    image: str
    container: str
    endpoint: str


def run(*command, check=True, **options):
    """Run `command` and return its process, with both streams in `stdout`."""
    process = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert not check or process.returncode == 0, process.stdout
    return process


@pytest.fixture(scope="session")
def docker():
    """The Docker client, with the base images in its daemon."""
    if not shutil.which("docker") or run("docker", "version", check=False).returncode:
        pytest.skip("no Docker daemon answers; tests/container/daemon.sh starts one")
    try:
        ensure_base_images()
    except UnavailableError as error:
        pytest.skip(str(error))
    return "docker"


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for color in ("red", "green", "blue"):
        Image.new("RGB", (60, 40), color).save(folder / f"{color}.png")
    return folder


def copy_context(folder):
    """Copy what is built into the image to `folder`, but for the model."""
    for name in IN_THE_CONTEXT:
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "serving", folder / "serving")
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "requirements.py", folder / "tools")


@pytest.fixture(scope="session")
def project(tmp_path_factory, small_tflite):
    """The project with two small models, and many files that the image must not contain."""
    folder = tmp_path_factory.mktemp("project")
    copy_context(folder)
    (folder / "serving" / "__pycache__").mkdir(exist_ok=True)
    (folder / "serving" / "__pycache__" / "a.cpython-311.pyc").touch()
    # As cloned under a strict umask.
    (folder / "lambda_function.py").chmod(0o600)
    (folder / "serving").chmod(0o700)
    for name in ("models", "models/demo", "flowers/rose", ".venv/lib", "training", ".git"):
        (folder / name).mkdir(parents=True)
        (folder / name / "not_for_the_image.h5").touch()
        (folder / name / "not_for_the_image.jpg").touch()
    shutil.copy(small_tflite, folder / "models" / "xception_fin_02_0.875.tflite")
    shutil.copy(small_tflite, folder / "models" / "xception_fin_09_0.874.tflite")
    for name in ("demo", "my flowers.v2"):
        (folder / "models" / name).mkdir(exist_ok=True)
        shutil.copy(small_tflite, folder / "models" / name / "xception_fin_01_0.500.tflite")
    return folder


def build(folder, *arguments, client="docker", check=True, environment=None):
    """Run `docker build` in `folder` and return the finished process."""
    return run(
        *(client, "build", "--force-rm", *build_options(), *arguments, "."),
        cwd=folder,
        check=check,
        env=os.environ | (environment or {}),
    )


@pytest.fixture
def tag():
    """A name for a container image, which is removed after the test."""
    name = f"flowers-test:{uuid.uuid4().hex[:12]}"
    yield name
    run("docker", "image", "rm", "--force", name, check=False)


@pytest.fixture(scope="module", params=PYTHONS)
def service(request, docker, project):
    """The container of one runtime's image, run as on Lambda."""
    name = f"flowers-test-{uuid.uuid4().hex[:12]}"
    build(project, "--tag", name, "--build-arg", f"RUNTIME={request.param}")
    # The images are served inside the container.
    endpoint = start(docker, name, name, "--env", "FETCH_ALLOW=127.0.0.1")
    yield Service(request.param, name, name, endpoint)
    run(docker, "rm", "--force", name, check=False)
    run(docker, "image", "rm", "--force", name, check=False)


def start(docker, image, container, *options):
    """Start `container` of `image` as on Lambda, and return the URL for events."""
    command = (docker, "run", "--detach", "--name", container, *AS_LAMBDA, *options)
    run(*command, "-p", "127.0.0.1::8080", image)
    address = run(docker, "port", container, "8080").stdout.split()[0]
    return f"http://{address}{INVOCATIONS}"


@pytest.fixture(scope="module")
def images_url(service, images):
    """A web server with the images, inside the container so that it can reach them."""
    inside = ("docker", "exec", "--interactive", service.container)
    for path in images.iterdir():
        with path.open("rb") as file:
            run(*inside, "sh", "-c", f"cat > /tmp/{path.name}", stdin=file)
    serve = ("-m", "http.server", IMAGES_PORT, "--bind", "127.0.0.1", "--directory", "/tmp")  # noqa: S108
    run("docker", "exec", "--detach", service.container, "python3", *serve)
    connect = f"import socket; socket.create_connection(('127.0.0.1', {IMAGES_PORT}))"
    for _ in range(50):
        if run(*inside, "python3", "-c", connect, check=False).returncode == 0:
            return f"http://127.0.0.1:{IMAGES_PORT}"
        time.sleep(0.1)
    raise AssertionError("the images' web server does not listen")


def docker_test(service, *arguments):
    """Run docker_test.py on `service` and return its process."""
    command = (sys.executable, ROOT / "docker_test.py", "--endpoint", service.endpoint)
    return run(*command, *arguments, check=False)


def invoke(service, event):
    """Return the text of the service's answer to `event`."""
    with urllib.request.urlopen(service.endpoint, json.dumps(event).encode(), timeout=60) as answer:
        return answer.read().decode()


def in_the_image(service, code):
    """Return the JSON that `code` prints inside a container of the image."""
    name = ("docker", "run", "--rm", *AS_LAMBDA, "--entrypoint", "python3", service.image)
    return json.loads(run(*name, "-c", code).stdout)


def test_a_file_is_named(service, images):
    for color in ("red", "green", "blue"):
        image = images / f"{color}.png"
        process = docker_test(service, "--file", image, "--expect", color)
        assert process.returncode == 0, process.stdout
        assert process.stdout.splitlines()[-4] == f"{image}: {color}"


def test_a_url_is_fetched_and_named(service, images_url):
    process = docker_test(service, "--url", f"{images_url}/blue.png", "--expect", "blue")
    assert process.returncode == 0, process.stdout


def test_another_label_than_expected(service, images):
    process = docker_test(service, "--file", images / "red.png", "--expect", "blue")
    assert process.returncode == 1
    assert process.stdout.endswith("Expected the label blue. Received: red.\n")


def test_requests_at_once_wait_for_each_other(service, images):
    event = {"image": base64.b64encode((images / "red.png").read_bytes()).decode()}
    with ThreadPoolExecutor(8) as pool:
        answers = [
            json.loads(text) for text in pool.map(lambda _: invoke(service, event), "x" * 16)
        ]
    assert [max(answer, key=answer.get) for answer in answers] == ["red"] * 16


def ask(service, path="/", data=None, **headers):
    """Return status, headers and text of the service's answer over HTTP."""
    root = service.endpoint.removesuffix(INVOCATIONS)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{root}{path}", data, names)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def test_a_browser_gets_the_page(service):
    status, headers, text = ask(service, Accept="text/html,*/*;q=0.8")
    assert (status, text) == (200, (ROOT / "serving" / "page.html").read_text(encoding="utf-8"))
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]
    again = ask(service, Accept="text/html", If_None_Match=headers["ETag"])
    assert (again[0], again[2]) == (304, "")


def test_programs_learn_what_it_is(service):
    status, _, text = ask(service)
    assert (status, json.loads(text)["classes"]) == (200, ["red", "green", "blue"])
    status, _, text = ask(service, "/health")
    assert (status, json.loads(text)["runtime"]) == (200, service.runtime)
    assert ask(service, "/none")[0] == 404


def test_images_may_be_sent_over_http(service, images):
    data = (images / "green.png").read_bytes()
    status, headers, text = ask(service, "/?top=1", data, Content_Type="image/png")
    assert (status, list(json.loads(text))) == (200, ["green"])
    assert "total;dur=" in headers["Server-Timing"]
    part = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    form = part + data + b"\r\n--B--\r\n"
    status, _, text = ask(service, "/", form, Content_Type="multipart/form-data; boundary=B")
    scores = json.loads(text)
    assert (status, max(scores, key=scores.get)) == (200, "green")
    assert ask(service, "/", b"hello", Content_Type="image/png")[0] == 415
    assert ask(service, "/", bytes(5_000_000), Content_Type="image/png")[0] == 413


def test_requests_of_both_kinds_at_once_wait_for_each_other(service, images):
    data = (images / "blue.png").read_bytes()
    event = {"image": base64.b64encode(data).decode(), "top": 1}
    with ThreadPoolExecutor(8) as pool:
        over_http = pool.map(lambda _: ask(service, "/?top=1", data)[2], "x" * 8)
        events = pool.map(lambda _: invoke(service, event), "x" * 8)
        answers = [json.loads(text) for text in (*over_http, *events)]
    assert [list(answer) for answer in answers] == [["blue"]] * 16


def test_clients_that_give_up_do_not_end_it(service, images):
    event = {"image": base64.b64encode((images / "red.png").read_bytes()).decode()}
    host, _, path = service.endpoint.removeprefix("http://").partition("/")
    for _ in range(3):
        connection = http.client.HTTPConnection(host)
        connection.request("POST", f"/{path}", json.dumps(event))
        connection.close()
    assert set(json.loads(invoke(service, event))) == {"red", "green", "blue"}


def test_docker_stop_ends_it_at_once(docker, service, images):
    name = f"{service.container}-stopped"
    endpoint = start(docker, service.image, name)
    try:
        stopped = Service(service.runtime, service.image, name, endpoint)
        docker_test(stopped, "--file", images / "red.png")  # waits until it is up
        started = time.monotonic()
        run(docker, "stop", "--time", "30", name)
        assert time.monotonic() - started < 10
        state = run(docker, "inspect", "--format", "{{.State.ExitCode}}", name).stdout
        assert int(state) == 128 + signal.SIGTERM
    finally:
        run(docker, "rm", "--force", name, check=False)


def test_on_lambda_the_base_images_entry_point_starts_the_handler(service):
    """AWS_LAMBDA_RUNTIME_API is set there, and by the emulator of `sam local`."""
    serve = (
        "from http.server import BaseHTTPRequestHandler as B, HTTPServer as S\n"
        "import os, subprocess\n"
        "class H(B):\n"
        "    def do_GET(self):\n"
        "        print('asked', self.path)\n"
        "        processes = [p for p in os.listdir('/proc') if p.isdigit()]\n"
        "        print([open(f'/proc/{p}/cmdline').read() for p in processes], flush=True)\n"
        "        os._exit(0)\n"
        "server = S(('127.0.0.1', 9001), H)\n"
        "subprocess.Popen(['/bin/sh', '/var/task/serving/entrypoint.sh',\n"
        "    'lambda_function.lambda_handler'],\n"
        "    env=os.environ | {'AWS_LAMBDA_RUNTIME_API': '127.0.0.1:9001'})\n"
        "server.handle_request()"
    )
    command = ("docker", "run", "--rm", *AS_LAMBDA, "--entrypoint", "python3", service.image)
    printed = run(*command, "-c", serve).stdout
    assert "asked /2018-06-01/runtime/invocation/next" in printed
    assert "'python\\x00-m\\x00awslambdaric\\x00lambda_function.lambda_handler\\x00'" in printed
    assert "lambda-rie" not in printed
    assert "emulator_queue" not in printed


def test_a_url_that_leads_nowhere(service):
    event = {"url": "http://127.0.0.1:9/a.jpg"}
    answer = json.loads(invoke(service, event))
    assert list(answer) == ["error"]
    assert answer["error"]["type"] == "FetchError"
    assert "Traceback" not in str(answer)
    assert "File" not in str(answer)
    process = docker_test(service, "--url", event["url"])
    assert process.returncode == 1
    assert f"Received: FetchError: {answer['error']['message']}" in process.stdout


def test_by_default_it_goes_to_public_addresses_only(docker, service, images):
    name = f"{service.container}-closed"
    try:
        closed = Service(service.runtime, service.image, name, start(docker, service.image, name))
        docker_test(closed, "--file", images / "red.png")  # waits until it is up
        # Lambda's runtime API, the clouds' metadata, and this machine under other names.
        hosts = ("127.0.0.1:9001", "localhost", "169.254.169.254", "[::1]:8080", "2130706433")
        for host in hosts:
            answer = json.loads(invoke(closed, {"url": f"http://{host}/"}))
            assert answer["error"]["type"] == "AddressError", host
        answer = json.loads(invoke(closed, {"url": "file:///etc/passwd"}))
        assert answer["error"]["type"] == "InvalidRequestError"
    finally:
        run(docker, "rm", "--force", name, check=False)


def test_killed_it_is_started_anew(service, images):
    kill = (
        "import os, signal; from pathlib import Path; "
        "[os.kill(int(p.parent.name), signal.SIGKILL) for p in Path('/proc').glob('[0-9]*/cmdline')"
        " if b'awslambdaric' in p.read_bytes() and b'lambda-rie' not in p.read_bytes()"
        " and int(p.parent.name) != os.getpid()]"
    )
    run("docker", "exec", service.container, "python3", "-c", kill)
    event = {"image": base64.b64encode((images / "red.png").read_bytes()).decode()}
    with contextlib.suppress(urllib.error.HTTPError):  # the emulator may not have noticed yet
        invoke(service, event)
    answer = json.loads(invoke(service, event))
    assert max(answer, key=answer.get) == "red"


def test_scores_are_of_every_class_with_five_decimals(service, images_url):
    scores = json.loads(invoke(service, {"url": f"{images_url}/green.png"}))
    assert list(scores) == ["red", "green", "blue"]
    assert all(score == round(score, 5) for score in scores.values())
    assert any(score != round(score, 4) for score in scores.values())
    assert sum(scores.values()) == pytest.approx(1, abs=3e-5)


def test_the_log_holds_no_stack_trace(service):
    docker_test(service, "--url", "http://127.0.0.1:9/a.jpg")
    assert "Traceback" not in run("docker", "logs", service.container).stdout


def test_the_image_holds_what_it_needs_and_nothing_else(service):
    files = dict(in_the_image(service, LIST_FILES))
    models = [path for path in files if path.endswith((".tflite", ".h5"))]
    assert models == ["/var/task/models/xception_fin_02_0.875.tflite"]
    ours = {path.removeprefix("/var/task/").split("/")[0] for path in files}
    assert {"lambda_function.py", "serving", "models"} <= ours
    assert not ours & {"tensorflow", "keras", "training", "Pipfile", "Pipfile.lock", "Dockerfile"}
    assert all(mode & 0o004 for mode in files.values()), "not readable for everybody"


def test_the_image_is_small(service):
    """With a float32 model of 84 MB, the default image has 178 MB, 16 of them obstore."""
    most = {"tflite-runtime": 97e6, "ai-edge-litert": 110e6, "openvino": 175e6}
    assert 50e6 < size_above_base(service.image) < most[service.runtime]


def test_openvino_imports_what_the_build_exported(service):
    files = [path for path, _ in in_the_image(service, LIST_FILES)]
    exported = {path.partition(".")[2] for path in files if path.startswith("/var/task/models/")}
    if service.runtime == "openvino":
        assert exported == {"875.tflite", "875.openvino", "875.openvino.json"}
        assert in_the_image(service, IMPORT_THE_EXPORT) == ["red", "green", "blue"]
    else:
        assert exported == {"875.tflite"}


def test_products_of_matrices_have_no_threads(service):
    assert in_the_image(service, COUNT_THREADS) == 1


def test_it_reads_every_format_of_ours_and_holds_no_other(service):
    read, there = in_the_image(service, READ_EVERY_FORMAT)
    assert set(read) == set(FORMATS)
    assert set(there) == {*FORMATS, "DIB"}  # a kind of BMP, in the same module


def test_byte_code_is_there(service):
    files = [path for path, _ in in_the_image(service, LIST_FILES)]
    ours = [path for path in files if path.startswith("/var/task/serving/")]
    ours = [path for path in [*ours, "/var/task/lambda_function.py"] if path.endswith(".py")]
    assert len(ours) == len(list((ROOT / "serving").glob("*.py"))) + 1
    suffix = f".cpython-{PYTHONS[service.runtime].replace('.', '')}.pyc"
    for path in ours:
        folder, _, name = path.rpartition("/")
        assert f"{folder}/__pycache__/{name.removesuffix('.py')}{suffix}" in files
    assert {path for path in files if path.endswith(".py")} == set(ours)
    assert "/var/task/numpy/__init__.pyc" in files  # of the packages, nothing else


def test_the_packages_are_those_of_the_lock(service):
    found = in_the_image(service, LIST_PACKAGES)
    python = PYTHONS[service.runtime]
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    locked = json.loads((ROOT / "Pipfile.lock").read_text())[service.runtime]
    wanted = {
        canonicalize_name(name): package["version"].removeprefix("==")
        for name, package in locked.items()
        if "markers" not in package or Marker(package["markers"]).evaluate(environment)
    }
    assert {canonicalize_name(name): version for name, version in found.items()} == wanted
    assert service.runtime in wanted


def test_only_what_the_dockerfile_copies_is_sent_to_the_daemon(docker, project, tag, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    build(project, "--tag", tag, "--file", tmp_path / "Dockerfile")
    container = run(docker, "create", tag, "none").stdout.strip()
    try:
        with subprocess.Popen([docker, "export", container], stdout=subprocess.PIPE) as export:
            listed = run("tar", "--list", stdin=export.stdout).stdout.splitlines()
    finally:
        run(docker, "rm", container)
    # Docker adds empty mount points and files of its own.
    own = ("dev/", "etc/", "proc/", "sys/", ".dockerenv")
    sent = {name for name in listed if not name.startswith(own) and not name.endswith("/")}
    assert sent - {name for name in sent if name.startswith("serving/")} == {
        "Pipfile.lock",
        "lambda_function.py",
        "tools/requirements.py",
        "models/xception_fin_02_0.875.tflite",
        "models/xception_fin_09_0.874.tflite",
        "models/demo/xception_fin_01_0.500.tflite",
        "models/my flowers.v2/xception_fin_01_0.500.tflite",
    }
    assert not [name for name in sent if name.endswith((".pyc", ".h5", ".jpg"))]


@pytest.mark.parametrize("models", ["models/demo", "./models/my flowers.v2/"])
def test_another_folder_of_models(docker, project, tag, models):
    new = project / models / "xception_fin_01_0.400.tflite"
    new.write_bytes(os.urandom(8))  # a step that Docker has in its cache prints nothing
    try:
        printed = build(project, "--tag", tag, "--build-arg", f"MODELS={models}").stdout
    finally:
        new.unlink()
    assert f"Model: {os.path.normpath(models)}/xception_fin_01_0.500.tflite" in printed
    listed = run(docker, "run", "--rm", "--entrypoint", "ls", tag, "models").stdout
    assert listed.split() == ["xception_fin_01_0.500.tflite"]


def test_a_model_that_is_named(docker, project, tag):
    name = "xception_fin_09_0.874.tflite"
    build(project, "--tag", tag, "--build-arg", f"MODEL={name}")
    listed = run(docker, "run", "--rm", "--entrypoint", "ls", tag, "models").stdout
    assert listed.split() == [name]


def failed_build(project, tmp_path, *arguments, model=None):
    """Return the output of building `project` with only `model`: {name: bytes}."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    for path in folder.rglob("*.tflite"):
        path.unlink()
    shutil.rmtree(folder / "models" / "demo")
    for name, data in (model or {}).items():
        (folder / "models" / name).write_bytes(data)
    process = build(folder, *arguments, check=False)
    assert process.returncode != 0
    assert "Traceback" not in process.stdout
    return process.stdout


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ("models", "in models. Received: none. Run python convert_to_tflite.py"),
        (
            "models/demo",
            "Expected MODELS to be a folder with a .tflite file. Received: models/demo.",
        ),
        ("mine", "Expected MODELS to be models or a folder in it. Received: mine."),
    ],
)
def test_without_a_model_the_build_says_what_to_run(docker, project, tmp_path, models, sentence):
    printed = failed_build(project, tmp_path, "--build-arg", f"MODELS={models}")
    assert sentence in printed


def test_a_package_with_another_hash_fails_the_build(docker, project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    lock = json.loads((folder / "Pipfile.lock").read_text())
    lock["tflite-runtime"]["certifi"]["hashes"] = ["sha256:" + "0" * 64]
    (folder / "Pipfile.lock").write_text(json.dumps(lock))
    process = build(folder, check=False)
    assert process.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in process.stdout


def test_another_base_image_by_its_digest(docker, project, tag):
    """Without a registry, an image has no digest but an ID, which Docker takes in its place."""
    base = f"{REPOSITORY}:{PYTHONS['tflite-runtime']}"
    marked = f"{tag}-base"
    run(docker, "build", "--tag", marked, "-", input=f"FROM {base}\nENV MARK=here\n")
    try:
        inspect = (docker, "image", "inspect", "--format", "{{.Id}}", marked)
        build(project, "--tag", tag, "--build-arg", f"BASE={run(*inspect).stdout.strip()}")
        shown = run(docker, "run", "--rm", "--entrypoint", "printenv", tag, "MARK").stdout
    finally:
        run(docker, "image", "rm", "--force", marked, check=False)
    assert shown == "here\n"


def test_a_file_that_is_no_model_fails_the_build(docker, project, tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"no model at all")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "red\n")
    model = {"xception_fin_01_0.500.tflite": path.read_bytes()}
    printed = failed_build(project, tmp_path, model=model)
    assert "ModelError: Expected a model that tflite-runtime 2." in printed
    assert "can load. Received: xception_fin_01_0.500.tflite" in printed


def buildkit_client(folder):
    """Return a Docker client that builds with BuildKit, or None."""
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    # A client without buildx may hide another one that includes BuildKit.
    for client in ("docker", "/usr/bin/docker"):
        if shutil.which(client):
            trial = build(folder, client=client, check=False, environment=BUILDKIT)
            if trial.returncode == 0:
                return client
    return None


def test_it_builds_with_buildkit(docker, project, tag, tmp_path):
    client = buildkit_client(tmp_path)
    if client is None:
        pytest.skip("no Docker client with BuildKit")
    build(project, "--tag", tag, client=client, environment=BUILDKIT)
    listed = run(docker, "run", "--rm", "--entrypoint", "ls", tag, "models").stdout
    assert listed.split() == ["xception_fin_02_0.875.tflite"]
