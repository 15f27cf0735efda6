"""tools.container: `make build` and `make run`, in front of a `docker` that only talks."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, wait_until

from tools import container

CONVERT = """
import pathlib, sys
print(*sys.argv)
if pathlib.Path("refuses").exists():
    sys.exit(1)
pathlib.Path(sys.argv[2], "xception_fin_01_0.900.tflite").touch()
"""
DOCKER = """#!/bin/sh
case "$1 $2" in
    "version "*) [ ! -e no-daemon ] || { echo Cannot connect to the daemon. >&2; exit 1; };;
    "image inspect") [ "$3" = flowers ] || [ "$3" = mine ];;
    "build "*) printf ' <%s>' "$@"; echo; [ ! -e build-fails ];;
    "run "*) printf ' <%s>' "$@"; echo; [ ! -e run-fails ] || exit 125
        [ ! -e stays ] || { trap 'echo stopped; exit 143' TERM; touch runs
            for _ in $(seq 600); do sleep 0.1; done; };;
esac
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose models/ has a model, an own one not yet converted, and an empty folder."""
    (tmp_path / "convert_to_tflite.py").write_text(CONVERT)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(DOCKER)
    (tmp_path / "bin" / "docker").chmod(0o755)
    for name in ("my own", "empty"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "models" / "xception_fin_15_0.966.tflite").touch()
    (tmp_path / "models" / "my own" / "xception_fin_01_0.900.h5").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(container, "ROOT", tmp_path)
    monkeypatch.setattr(container, "exit_on_signals", lambda: None)  # for processes of its own
    return tmp_path


def call(capfd, *arguments):
    """Return the exit code, the output and the errors of the command."""
    code = container.main([*map(str, arguments)])
    return code, *capfd.readouterr()


def test_the_best_model_is_built_into_the_image_and_named(project, capfd):
    code, printed, _ = call(capfd, "build")
    model = "models/xception_fin_15_0.966.tflite"
    assert (code, printed.splitlines()) == (
        0,
        [
            f"Build: flowers with {model}",
            " <build> <-t> <flowers> <--build-arg> <MODELS=models>"
            " <--build-arg> <MODEL=xception_fin_15_0.966.tflite> <.>",
            f"Built: flowers with {model}. Run it: make run",
        ],
    )


@pytest.mark.parametrize("models", ["models/my own", "./models/my own/", "absolute"])
def test_a_folder_without_a_converted_model_has_its_own_converted(project, capfd, models):
    models = project / "models" / "my own" if models == "absolute" else models
    named = ("--runtime", "openvino", "--tag", "mine", "--", "--pull")
    code, printed, _ = call(capfd, "build", "--models", models, *named)
    assert code == 0
    assert "Convert: models/my own has no .tflite file, so xception_fin_01_0.900.h5 is" in printed
    assert "convert_to_tflite.py --models models/my own\n" in printed
    assert (
        " <-t> <mine> <--build-arg> <MODELS=models/my own>"
        " <--build-arg> <MODEL=xception_fin_01_0.900.tflite> <--build-arg> <RUNTIME=openvino>"
        in printed
    )
    assert "<--pull> <.>" in printed
    assert printed.endswith(
        "Built: mine with models/my own/xception_fin_01_0.900.tflite. Run it: make run TAG=mine\n"
    )
    _, again, _ = call(capfd, "build", "--models", models)
    assert "Convert:" not in again


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("build", "--models", "models/none"), "Received: models/none, which is none. Check its"),
        (("build", "--models", "mine"), "Expected MODELS to be models or a folder in it"),
        (("build", "--models", ".."), "Expected MODELS to be models or a folder in it"),
        (
            ("build", "--models", "models/empty"),
            "Expected a model such as xception_fin_01_0.900.h5",
        ),
        (("build", "--runtime", "tflite"), "Expected RUNTIME to be one of tflite-runtime, ai-edge"),
        (("build", "--", "--build-arg", "MODELS=models/x"), "Run: make build MODELS=models/x"),
        (("build", "--", "--build-arg=MODEL=a.tflite"), "the build argument MODEL=a.tflite. Copy"),
        (
            ("run", "--tag", "other"),
            "Expected a container image other. Received: none of that name.",
        ),
    ],
)
def test_what_cannot_be_built_or_run_is_one_sentence(project, capfd, arguments, sentence):
    code, printed, errors = call(capfd, *arguments)
    assert (code, printed) == (1, "")
    assert errors.startswith("tools.container: Expected ")
    assert sentence in errors
    assert errors.count("\n") == 1


def test_the_newest_kind_is_built_by_its_name(project, capfd):
    """Docker's cache takes no notice of which file is the newest."""
    kinds = [project / "models" / f"xception_fin_15_0.966.{kind}tflite" for kind in ("", "int8.")]
    for newest, older in (kinds, kinds[::-1]):
        older.touch()
        os.utime(older, (0, 0))
        newest.touch()
        _, printed, _ = call(capfd, "build")
        assert f"Build: flowers with models/{newest.name}\n" in printed
        assert f" <--build-arg> <MODEL={newest.name}> <.>" in printed


def test_docker_s_help_is_shown_and_nothing_is_built(project, capfd):
    assert call(capfd, "build", "--models", "models/my own", "--", "--help") == (
        0,
        " <build> <--help>\n",
        "",
    )


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_to_a_model_elsewhere_is_refused(project, capfd, tmp_path_factory, linked):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a.tflite"
    elsewhere.touch()
    link = project / "models" / "empty" / ("a.tflite" if linked == "file" else "linked")
    link.symlink_to(elsewhere if linked == "file" else elsewhere.parent)
    models = "models/empty" if linked == "file" else "models/empty/linked"
    code, printed, errors = call(capfd, "build", "--models", models)
    assert (code, printed) == (1, "")
    assert errors == (
        "tools.container: Expected a model in models/, since Docker is sent no other, and follows "
        f"no link to an absolute path. Received: {models}/a.tflite, a link to {elsewhere}. Copy "
        "the file itself there.\n"
    )


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_to_an_absolute_path_is_refused(project, capfd, linked):
    model = project / "models" / "xception_fin_15_0.966.tflite"
    link = project / "models" / ("empty/a.tflite" if linked == "file" else "linked")
    link.symlink_to(model if linked == "file" else model.parent)
    models = "models/empty" if linked == "file" else "models/linked"
    code, printed, errors = call(capfd, "build", "--models", models)
    assert (code, printed) == (1, "")
    assert f"a link to {model}. Copy the file itself there." in errors


def test_a_label_is_no_build_argument(project, capfd):
    code, printed, _ = call(capfd, "build", "--", "--label", "MODEL=x", "--build-arg", "A=MODEL=x")
    assert code == 0
    assert "<--label> <MODEL=x> <--build-arg> <A=MODEL=x> <.>" in printed


def test_a_link_to_another_model_of_the_project_is_taken(project, capfd):
    (project / "models" / "empty" / "a.tflite").symlink_to("../xception_fin_15_0.966.tflite")
    code, printed, _ = call(capfd, "build", "--models", "models/empty")
    assert code == 0
    assert " <MODELS=models/empty> <--build-arg> <MODEL=a.tflite>" in printed


@pytest.mark.parametrize(
    ("fault", "arguments", "sentence"),
    [
        ("no-daemon", ("build",), "Received: Cannot connect to the daemon. Start Docker"),
        ("no-daemon", ("run",), "Received: Cannot connect to the daemon. Start Docker"),
        ("build-fails", ("build",), "docker build failed; its reason is above."),
        ("run-fails", ("run", "--port", "{free}"), "choose another: make run PORT="),
        (
            "refuses",
            ("build", "--models", "models/my own"),
            "--models 'models/my own' --data FOLDER",
        ),
    ],
)
def test_failures_of_other_programs_are_followed_by_a_sentence(
    project, capfd, reserve_port, fault, arguments, sentence
):
    (project / fault).touch()
    code, _, errors = call(capfd, *(word.format(free=reserve_port()) for word in arguments))
    assert code == 1
    assert sentence in errors


def test_without_docker_it_says_so(project, capfd, monkeypatch):
    monkeypatch.setenv("PATH", str(project))
    code, _, errors = call(capfd, "run")
    assert code == 1
    assert "Expected Docker. Received: no such program." in errors


def test_the_container_is_for_this_machine_only_and_has_no_rights(project, capfd, reserve_port):
    port = reserve_port()
    code, printed, _ = call(capfd, "run", "--port", port, "--tag", "mine", "--", "-e", "A=b c")
    assert code == 0
    assert f"Serve: mine on http://localhost:{port}; press Ctrl-C to stop." in printed
    assert f" <run> <--rm> <-p> <127.0.0.1:{port}:8080> <--read-only>" in printed
    for words in ("<--cap-drop> <ALL>", "<--security-opt> <no-new-privileges>", "<--memory>"):
        assert words in printed
    assert "<--user> <65534:65534>" in printed
    assert printed.endswith(" <-e> <A=b c> <mine>\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ended_by_a_signal_it_stops_the_container(project, reserve_port, number):
    (project / "stays").touch()
    with serve_until_a_signal(reserve_port(), "--default-signal=HUP") as process:
        wait_until((project / "runs").exists)
        process.send_signal(number)
        assert process.stdout.read().endswith("\nstopped\n")
    assert process.returncode == 128 + number


def test_behind_nohup_it_stays_when_the_terminal_is_closed(project, reserve_port):
    (project / "stays").touch()
    with serve_until_a_signal(reserve_port(), "--ignore-signal=HUP") as process:
        wait_until((project / "runs").exists)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


def serve_until_a_signal(port, *how):
    """Start `make run` in a process of its own, by env with these options."""
    command = ["env", *how, sys.executable, "-m", "tools.container", "run", f"--port={port}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "word", ["-p", "-p8081:8080", "--publish=8081:8080", "-P", "-itp", "-qp", "-tqP"]
)
def test_a_port_open_to_other_machines_is_refused(project, capfd, word):
    code, printed, errors = call(capfd, "run", "--", "--privileged", word)
    assert code == 1
    assert errors.endswith("Run: make run PORT=8081\n")
    assert not printed


@pytest.mark.parametrize(
    "words",
    [
        "--network host",
        "--network=host",
        "--net host",
        "--net=host",
        "--network=name=host,a=b",
        "--network alias=a,name=host",
    ],
)
def test_the_hosts_network_is_refused(project, capfd, words):
    """With it, Docker publishes no port, and the queue listens on all interfaces."""
    code, printed, errors = call(capfd, "run", "--", "-e", "A=b", *words.split())
    assert code == 1
    assert "Received: the host's, where the service would be open to other machines." in errors
    assert not printed


@pytest.mark.parametrize("words", ["--network hosts", "--network=host-1", "-e --network -e host"])
def test_other_networks_are_taken(project, capfd, reserve_port, words):
    code, _, _ = call(capfd, "run", "--port", reserve_port(), "--", *words.split())
    assert code == 0


def test_a_port_that_is_taken_is_told_with_another(project, capfd):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, printed, errors = call(capfd, "run", "--port", port)
    assert (code, printed) == (1, "")
    assert f"Expected port {port} to be free. Received: a program listens on it." in errors
    assert f"make run PORT={port + 1}" in errors


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "8080:8080"])
def test_ports_are_numbers(port):
    command = [sys.executable, "-m", "tools.container", "run", f"--port={port}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"expected PORT to be a number from 1 to 65535. Received: {port}" in done.stderr
