"""Setting up, locking, the emulator and the demo."""

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from serving.function_url import INVOCATIONS
from tools import demo, emulator, lock


def write_program(path: Path, body: str, interpreter: str = "/bin/sh") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def alive(process_id: int) -> bool:
    """Return whether the process runs, zombies not counted."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# tools/setup.sh


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a space in its name, our setup.sh and a lock of no packages."""
    folder = tmp_path / "a checkout"
    (folder / "tools").mkdir(parents=True)
    for name in ("setup.sh", "requirements.py"):
        shutil.copy(ROOT / "tools" / name, folder / "tools")
    empty = {"_meta": {"sources": []}, "default": {}, "develop": {}}
    (folder / "Pipfile.lock").write_text(json.dumps(empty), encoding="utf-8")
    return folder


def set_up(
    checkout: Path, path: str | None = None, **variables: str
) -> subprocess.CompletedProcess:
    environment = os.environ | {"VIRTUAL_ENV": ""} | ({"PATH": path} if path else {}) | variables
    return subprocess.run(
        [shutil.which("bash"), checkout / "tools" / "setup.sh"],
        cwd=checkout.parent,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def path_without_python(tmp_path: Path) -> str:
    """A PATH with the programs of setup.sh, and a python3 that is another version."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "cat", "cmp", "cp", "dirname", "env", "mkdir", "rm", "tail", "touch"):
        (programs / name).symlink_to(shutil.which(name))
    # It runs programs as this Python would, and has another version.
    write_program(
        programs / "python3",
        f'[ "$2" = 3.11 ] && exit 1\ncase "$*" in *pip*|*venv*) exit 1;; esac\n'
        f'exec {sys.executable} "$@"',
    )
    return str(programs)


def test_setup_says_how_to_get_python(checkout: Path, path_without_python: str) -> None:
    done = set_up(checkout, path_without_python)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Setup: expected Python 3.11 with its venv module. Received: none"
    )
    assert "apt install python3.11 python3.11-venv" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def program_that_gets_python(path: Path, condition: str) -> None:
    """Write a uv that finds Python 3.11, which makes no .venv, only once it has installed it."""
    got, python = path.parent.parent / "got", path.parent.parent / "got-python"
    write_program(python, '[ "$1" = - ] && echo "$0"')
    write_program(
        path,
        f'echo "$(basename "$0") $*" >> {path.parent.parent}/calls.txt\n'
        f'case "$*" in\n'
        f"    *find*) [ -e {got} ] && echo {python} || exit 2;;\n"
        f"    *install*) {condition} : > {got};;\n"
        f"esac",
    )


def test_setup_gets_python_with_an_installed_uv(checkout: Path, path_without_python: str) -> None:
    programs = Path(path_without_python)
    program_that_gets_python(programs / "uv", "")
    (programs / "basename").symlink_to(shutil.which("basename"))
    done = set_up(checkout, path_without_python)
    assert "Setup: no Python 3.11 here, so uv downloads one\n" in done.stderr
    assert f"Setup: making .venv with {programs.parent / 'got-python'}\n" in done.stderr
    calls = (programs.parent / "calls.txt").read_text(encoding="utf-8").splitlines()
    assert "uv python install 3.11" in calls


def test_setup_that_cannot_download_python_ends_in_the_same_sentence(
    checkout: Path, path_without_python: str
) -> None:
    programs = Path(path_without_python)
    program_that_gets_python(programs / "uv", "exit 1;")
    (programs / "basename").symlink_to(shutil.which("basename"))
    done = set_up(checkout, path_without_python)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Setup: expected Python 3.11 with its venv")
    assert not (checkout / ".venv").exists()


def test_setup_uses_an_active_environment_that_has_the_packages(checkout: Path) -> None:
    active = checkout.parent / "active"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", active], check=True)
    done = set_up(checkout, VIRTUAL_ENV=str(active))
    assert (done.returncode, done.stderr) == (
        0,
        f"Setup: using {active} as .venv, since it has the packages of Pipfile.lock\n",
    )
    assert (checkout / ".venv").resolve() == active
    assert set_up(checkout).stderr == "Setup: .venv is up to date\n"


def test_setup_says_what_an_active_environment_lacks(
    checkout: Path, path_without_python: str
) -> None:
    active = checkout.parent / "active"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", active], check=True)
    packages = {name: {"version": "==1.0", "hashes": []} for name in ("one", "two")}
    lock = {"_meta": {"sources": []}, "default": packages, "develop": {}}
    (checkout / "Pipfile.lock").write_text(json.dumps(lock), encoding="utf-8")
    done = set_up(checkout, path_without_python, VIRTUAL_ENV=str(active))
    assert f"Setup: {active} lacks 2 of 2 packages of Pipfile.lock, such as one" in done.stderr
    assert not (checkout / ".venv").exists()


def test_setup_refuses_a_venv_of_another_python(checkout: Path) -> None:
    write_program(
        checkout / ".venv" / "bin" / "python",
        'case "$*" in "-c ") exit 0;; --version) echo Python 3.12.1;; *) exit 1;; esac',
    )
    done = set_up(checkout)
    assert done.returncode == 1
    assert done.stderr == (
        "Setup: expected .venv to be of Python 3.11. Received: Python 3.12.1. "
        "Remove .venv, then run this again.\n"
    )


def test_setup_is_quick_where_the_lock_is_installed(checkout: Path) -> None:
    venv = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    shutil.copy(checkout / "Pipfile.lock", venv / ".installed.lock")
    started = time.monotonic()
    done = set_up(checkout)
    assert (done.returncode, done.stderr) == (0, "Setup: .venv is up to date\n")
    assert time.monotonic() - started < 5


def test_setup_begins_anew_after_an_interruption_and_shows_why_it_failed(checkout: Path) -> None:
    venv = checkout / ".venv"
    left_over = write_program(venv / "bin" / "left-over", "")
    (venv / ".unfinished").touch()
    shutil.copy(checkout / "Pipfile.lock", venv / ".installed.lock")
    done = set_up(checkout)  # the lock has no pipenv, so installing with it fails
    assert done.returncode == 1
    assert "Setup: making .venv with " in done.stderr
    assert "No module named pipenv" in done.stderr
    assert "pipenv sync failed with exit code 1" in done.stderr
    assert not left_over.exists()
    assert (venv / ".unfinished").exists()
    assert not (venv / ".installed.lock").exists()


def start_setup(checkout: Path) -> subprocess.Popen:
    """Start a setup in a process group of its own."""
    return subprocess.Popen(
        [shutil.which("bash"), checkout / "tools" / "setup.sh"],
        env=os.environ | {"VIRTUAL_ENV": ""},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def slow_install(checkout: Path) -> Path:
    """A .venv whose pip says so in `pip-runs`, and installs until `go-on` is there."""
    python = checkout / ".venv" / "bin" / "python"
    write_program(
        python,
        f'case "$*" in\n'
        f'    *" pip install"*)\n'
        f"        cd '{checkout}' && touch pip-runs && echo pip >> calls\n"
        f"        until [ -e go-on ]; do sleep 0.05; done;;\n"
        f"    *pipenv*) ;;\n"
        f'    *) exec {sys.executable} "$@";;\n'
        f"esac",
    )
    return checkout


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_setup_waits_for_the_first(slow_install: Path) -> None:
    with start_setup(slow_install) as first:
        wait_until((slow_install / "pip-runs").exists)
        with start_setup(slow_install) as second:
            waits = f"Setup: another setup (process {first.pid}) is running, so this one waits\n"
            try:
                assert second.stderr.readline() == waits
            finally:
                (slow_install / "go-on").touch()
            assert second.stderr.read() == "Setup: .venv is up to date\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert (slow_install / "calls").read_text(encoding="utf-8") == "pip\n"


def test_a_setup_that_was_killed_keeps_no_other_from_running(slow_install: Path) -> None:
    with start_setup(slow_install) as first:
        wait_until((slow_install / "pip-runs").exists)
        os.killpg(first.pid, signal.SIGKILL)
    (slow_install / ".venv" / ".unfinished").unlink()  # or it would make a real .venv
    (slow_install / "go-on").touch()
    done = set_up(slow_install)
    assert done.returncode == 0
    assert "another setup" not in done.stderr
    assert "Setup: ready in " in done.stderr


@pytest.mark.parametrize("keep", [True, False], ids=["copied", "moved"])
def test_setup_makes_the_venv_of_a_moved_checkout_anew(checkout: Path, keep: bool) -> None:
    venv = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    shutil.copy(checkout / "Pipfile.lock", venv / ".installed.lock")
    there = checkout.parent / "it's there"
    shutil.copytree(checkout, there, symlinks=True)
    if not keep:
        shutil.rmtree(checkout)
    write_program(there / "bin" / "python3.11", '[ "$1" = - ] && echo "$0"')  # makes no .venv
    done = set_up(there, f"{there / 'bin'}:{os.environ['PATH']}")
    assert done.stderr.startswith(
        "Setup: .venv was made for another folder, so it is made anew\n"
        f"Setup: making .venv with {there / 'bin' / 'python3.11'}\n"
    )
    assert not (there / ".venv" / "bin").exists()


def test_a_venv_is_up_to_date_by_any_path_to_it(checkout: Path) -> None:
    venv = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    shutil.copy(checkout / "Pipfile.lock", venv / ".installed.lock")
    link = checkout.parent / "link"
    link.symlink_to(checkout)
    assert set_up(link).stderr == "Setup: .venv is up to date\n"
    worktree = checkout.parent / "worktree"
    shutil.copytree(checkout, worktree, ignore=shutil.ignore_patterns(".venv"))
    (worktree / ".venv").symlink_to(venv)
    assert set_up(worktree).stderr == "Setup: .venv is up to date\n"


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n{}\n", '{"default": {}}', "[]", ""])
def test_setup_refuses_a_lock_that_cannot_be_read_and_changes_nothing(
    slow_install: Path, text: str
) -> None:
    (slow_install / "Pipfile.lock").write_text(text, encoding="utf-8")
    installed = slow_install / ".venv" / ".installed.lock"
    installed.touch() if text else installed.write_text("{}", encoding="utf-8")
    done = set_up(slow_install)
    assert done.returncode == 1
    assert done.stderr.startswith("Setup: expected the JSON of pipenv in Pipfile.lock. Received: ")
    assert "git checkout HEAD -- Pipfile.lock" in done.stderr
    assert done.stderr.count("\n") == 1
    assert installed.exists()
    assert not (installed.parent / ".unfinished").exists()


def test_a_venv_stays_where_pip_fails_by_itself(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    fails = f'case "$*" in *pip*) {{}};; *) exec {sys.executable} "$@";; esac'
    write_program(python, fails.format('[ "$3" = --version ] || exit 2'))
    done = set_up(checkout)
    assert (done.returncode, "installing pipenv failed with exit code 2" in done.stderr) == (
        1,
        True,
    )
    assert not (checkout / ".venv" / ".unfinished").exists()
    write_program(python, fails.format(":"))
    done = set_up(checkout)
    assert (done.returncode, "making .venv" in done.stderr) == (0, False)
    assert set_up(checkout).stderr == "Setup: .venv is up to date\n"


@pytest.mark.parametrize(("works", "broken"), [("-m none", "pip"), ("-m pip", "pipenv")])
def test_a_venv_is_made_anew_where_pip_is_broken(checkout: Path, works: str, broken: str) -> None:
    write_program(
        checkout / ".venv" / "bin" / "python",
        f'case "$*" in "{works} "*) ;; "-m pip"*) exit 1;; *) exec {sys.executable} "$@";; esac',
    )
    done = set_up(checkout)
    what = {"pip": "installing pipenv", "pipenv": "pipenv sync"}[broken]
    assert f"{what} failed with exit code 1" in done.stderr
    assert (checkout / ".venv" / ".unfinished").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_setup_that_was_interrupted_begins_anew(checkout: Path, number: signal.Signals) -> None:
    install = (  # as pip, which ends with 1 after Ctrl-C
        f"import pathlib, time\n"
        f"pathlib.Path({str(checkout / 'pip-runs')!r}).touch()\n"
        f"try: time.sleep(60)\n"
        f"except KeyboardInterrupt: exit(1)\n"
    )
    write_program(checkout / "install.py", install, sys.executable)
    write_program(
        checkout / ".venv" / "bin" / "python",
        f'case "$*" in\n'
        f"    *pip*) exec {sys.executable} '{checkout / 'install.py'}';;\n"
        f'    *) exec {sys.executable} "$@";;\n'
        f"esac",
    )
    with start_setup(checkout) as setup:
        wait_until((checkout / "pip-runs").exists)
        os.killpg(setup.pid, number)
    assert setup.returncode != 0
    assert (checkout / ".venv" / ".unfinished").exists()


# .ci/run


@pytest.mark.parametrize(
    ("known", "python"),
    [("python3.11", "python3.11 python3.11-venv"), ("python3", "python3 python3-venv")],
)
def test_ci_installs_a_python_that_apt_knows(tmp_path: Path, known: str, python: str) -> None:
    script = tmp_path / "checkout" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    write_program(tmp_path / "checkout" / "tests" / "container" / "daemon.sh", "exit 42")
    programs = tmp_path / "programs"
    for name in ("make", "debootstrap", "chromium-browser", "curl"):
        write_program(programs / name, "")
    write_program(programs / "apt-get", f'echo "$*" >> {tmp_path}/calls')
    write_program(programs / "apt-cache", f'[ "$*" = "show {known}" ]')
    for name in ("dirname", "grep"):
        (programs / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [shutil.which("bash"), script], env={"PATH": str(programs)}, stdout=subprocess.PIPE
    )
    assert done.returncode == 42
    assert (tmp_path / "calls").read_text(encoding="utf-8").splitlines() == [
        "-qq update",
        f"-qq install --yes --no-install-recommends {python}",
    ]


# tools/lock.py


def test_our_lock_passes_its_own_check() -> None:
    content = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
    lock.check(content)
    assert content == lock.cleaned(content)


def test_lock_of_no_packages(tmp_path: Path) -> None:
    pipfile = tmp_path / "Pipfile"
    pipfile.write_text('[packages]\n[requires]\npython_version = "3.11"\n', encoding="utf-8")
    lock.lock(pipfile)
    content = json.loads((tmp_path / "Pipfile.lock").read_text(encoding="utf-8"))
    assert content["_meta"]["sources"] == []
    assert content["default"] == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Pipfile", "Pipfile.lock"]


def test_lock_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "Pipfile").write_text("[packages\n", encoding="utf-8")
    (tmp_path / "Pipfile.lock").write_text("old", encoding="utf-8")
    with pytest.raises(lock.LockError, match="`pipenv lock` failed with exit code"):
        lock.lock(tmp_path / "Pipfile")
    assert (tmp_path / "Pipfile.lock").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Pipfile", "Pipfile.lock"]


def test_indexes_and_unwanted_packages_are_taken_out_and_all_else_stays() -> None:
    package = {"version": "==1.0", "hashes": ["sha256:ab"], "markers": "python_version >= '3'"}
    content = {
        "_meta": {"hash": {"sha256": "cd"}, "sources": [{"name": "it", "url": "https://index"}]},
        "default": {"one": package | {"index": "it"}, "openvino-telemetry": package},
        "sam": {"two": package},
    }
    assert lock.cleaned(content) == {
        "_meta": {"hash": {"sha256": "cd"}, "sources": []},
        "default": {"one": package},
        "sam": {"two": package},
    }


@pytest.mark.parametrize("lacking", ["version", "hashes"])
def test_packages_without_version_or_hashes_are_refused(lacking: str) -> None:
    package = {"version": "==1.0", "hashes": ["sha256:ab"]}
    del package[lacking]
    with pytest.raises(lock.LockError, match=r"Received: none of one in default\. Lock on Linux"):
        lock.check({"_meta": {}, "default": {"one": package}})


# tools/emulator.py


@pytest.fixture(scope="module")
def binary() -> Path:
    try:
        return emulator.emulator_binary()
    except emulator.EmulatorError as error:
        pytest.skip(str(error))


@pytest.fixture
def tiny_service(tmp_path: Path) -> dict:
    """What `local_service` needs to serve a handler that answers with its own process."""
    (tmp_path / "tiny.py").write_text(
        "import os\n"
        "def handle(event, context):\n"
        "    names = ['AWS_LAMBDA_FUNCTION_MEMORY_SIZE', 'LAMBDA_TASK_ROOT', 'COLOUR']\n"
        "    return {'event': event, 'process': os.getpid(),\n"
        "            'environment': [os.environ[name] for name in names]}\n",
        encoding="utf-8",
    )
    return {"folder": tmp_path, "handler": "tiny.handle", "log": tmp_path / "log" / "service.log"}


def post(url: str, event: object) -> dict:
    request = urllib.request.Request(url, json.dumps(event).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_emulator_is_fetched_once(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "CACHE", tmp_path)
    fetched = emulator.emulator_binary()
    assert fetched.parent == tmp_path
    assert fetched.read_bytes() == binary.read_bytes()
    assert os.access(fetched, os.X_OK)
    assert {path.suffix for path in tmp_path.iterdir()} == {fetched.suffix, ".whl"}
    monkeypatch.setattr(emulator, "_download", lambda *_: pytest.fail("fetched it twice"))
    assert emulator.emulator_binary() == fetched


@pytest.mark.usefixtures("binary")
def test_emulator_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "ROOT", tmp_path)
    monkeypatch.setattr(emulator, "CACHE", tmp_path / ".cache")
    content = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
    content["sam"]["aws-sam-cli"]["hashes"] = ["sha256:" + "0" * 64]
    (tmp_path / "Pipfile.lock").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(emulator.EmulatorError, match="Expected pip to fetch aws-sam-cli"):
        emulator.emulator_binary()
    assert list((tmp_path / ".cache").iterdir()) == []


@pytest.mark.parametrize("module", [emulator, lock])
def test_what_takes_no_arguments_has_help_and_refuses_others(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "run_command", pytest.fail)
    for arguments, code in ((["--help"], 0), (["--hepl"], 2)):
        with pytest.raises(SystemExit) as ended:
            module.main(arguments)
        assert ended.value.code == code
    printed = capsys.readouterr()
    assert f"\n    python -m {module.__name__}" in printed.out
    assert "unrecognized arguments: --hepl" in printed.err


def test_emulator_elsewhere_says_to_use_docker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert emulator.main([]) == 1
    message = capsys.readouterr().err
    assert "on riscv64. Start Docker instead." in message
    assert message.count("\n") == 1


@pytest.mark.usefixtures("binary")
def test_service_answers_as_lambda_would(
    tiny_service: dict, reserve_port: Callable[[], int]
) -> None:
    port = reserve_port()
    with emulator.local_service(port, {"COLOUR": "red"}, **tiny_service) as url:
        assert url == f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
        answer = post(url, {"url": "blue"})
        assert answer["event"] == {"url": "blue"}
        assert answer["environment"] == ["1769", str(tiny_service["folder"]), "red"]
        assert post(url, {})["process"] == answer["process"]  # stays loaded between requests
        assert alive(answer["process"])
    assert not alive(answer["process"])
    assert "INVOKE START" in tiny_service["log"].read_text(encoding="utf-8")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.usefixtures("binary")
def test_service_ends_with_an_error(tiny_service: dict, reserve_port: Callable[[], int]) -> None:
    processes = []

    def serve_and_fail() -> None:
        service = emulator.local_service(reserve_port(), {"COLOUR": "red"}, **tiny_service)
        with service as url:
            processes.append(post(url, {})["process"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve_and_fail()
    assert not alive(processes[0])


@pytest.mark.usefixtures("binary")
def test_service_wants_a_free_port(tiny_service: dict) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(emulator.EmulatorError, match=f"Expected port {port} of .* to be free"),
            emulator.local_service(port, **tiny_service),
        ):
            pytest.fail("served on a port that was taken")


# tools/demo.py


def make_images(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_text(f"{name} {number}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("counts", "expected"),
    [({}, False), ({"rose": 3}, False), ({"rose": 3, "empty": 0}, False), ({"a": 1, "b": 1}, True)],
)
def test_demo_knows_whether_there_are_images(
    tmp_path: Path, counts: dict[str, int], expected: bool
) -> None:
    folder = make_images(tmp_path / "flowers", counts)
    (tmp_path / "flowers").mkdir(exist_ok=True)
    (folder / "README.md").touch()
    assert demo.has_images(folder) is expected
    assert not demo.has_images(tmp_path / "no such folder")


def test_demo_copies_some_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_images(tmp_path / "mine", {"a": demo.IMAGES + 5, "b": 3})
    data = demo.collect_images(folder)
    assert {name: len(files) for name, files in demo.list_files(data).items()} == {
        "a": demo.IMAGES,
        "b": 3,
    }
    assert len(list(folder.glob("*/*"))) == demo.IMAGES + 8


def test_failed_commands_show_their_last_lines_and_exit_code() -> None:
    program = "import sys; print(*range(99), sep='\\n'); sys.exit('no such weights')"
    with pytest.raises(demo.StageError) as caught:
        demo.python("-c", program)
    lines = str(caught.value).splitlines()
    assert "ended with exit code 1" in lines[0]
    assert lines[-1] == caught.value.reason == "no such weights"
    assert len(lines) == demo.SHOWN_LINES + 1


def test_commands_that_take_too_long_are_ended() -> None:
    program = "echo half done; exec sleep 60"  # of a shell, which takes no second to start
    with pytest.raises(demo.StageError, match="took more than 1 s(.|\\n)*half done"):
        demo.run(["sh", "-c", program], timeout=1)


@pytest.fixture
def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that writes down what it is asked; its `build` does as $BUILD says."""
    calls = tmp_path / "calls.txt"
    write_program(
        tmp_path / "bin" / "docker",
        f'echo "$*" >> {calls}\n'
        'case "$1 $2" in logs*|rm*|"image rm") [ -z "$CTRL_C" ] || kill -INT $PPID;; esac\n'
        'if [ "$1" = build ]; then\n'
        '    [ "$BUILD" = fails ] && { echo "cannot pull the base image"; exit 1; }\n'
        "    echo sha256:abc > .cache/demo/image.txt\n"
        "fi",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    demo.WORK.mkdir(parents=True)
    return calls


def test_demo_continues_without_docker_where_the_build_fails(
    fake_docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("BUILD", "fails")
    with ExitStack() as services:
        assert demo.build_container_image(services, wanted=True) is None
    assert "continuing without Docker (cannot pull the base image)" in capsys.readouterr().out
    assert "--build-arg MODELS=models/demo" in fake_docker.read_text(encoding="utf-8")


def test_demo_continues_without_a_docker_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_program(tmp_path / "docker", "echo Cannot connect to the Docker daemon; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with ExitStack() as services:
        assert demo.build_container_image(services, wanted=True) is None
        assert "no Docker daemon answers" in capsys.readouterr().out
        assert demo.build_container_image(services, wanted=False) is None
        assert "not wanted" in capsys.readouterr().out


def test_demo_removes_container_and_image(fake_docker: Path) -> None:
    def serve_and_fail() -> None:
        with ExitStack() as services:
            image = demo.build_container_image(services, wanted=True)
            assert image == "sha256:abc"
            service = services.enter_context(demo.docker_service(image))
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", service.page)
            assert service.endpoint == f"{service.page[:-1]}{INVOCATIONS}"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve_and_fail()
    calls = fake_docker.read_text(encoding="utf-8").splitlines()
    started = next(call for call in calls if call.startswith("run --detach --name "))
    name = started.split()[3]
    assert calls[-2:] == [f"rm --force --volumes {name}", "image rm --force sha256:abc"]


def test_ctrl_c_meanwhile_does_not_keep_the_container(
    fake_docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTRL_C", "1")
    with pytest.raises(SystemExit), demo.docker_service("sha256:abc"):
        raise SystemExit
    assert fake_docker.read_text(encoding="utf-8").splitlines()[-1].startswith("rm --force ")


@pytest.fixture
def small_project(tmp_path: Path, binary: Path) -> Path:
    """The real demo and emulator, around programs that only pretend to train and convert."""
    project = tmp_path / "project"
    for folder in ("tools", "serving", "training"):
        shutil.copytree(ROOT / folder, project / folder)
    shutil.copy(ROOT / "Pipfile.lock", project)
    (project / ".cache").mkdir()
    shutil.copy(binary, project / ".cache")
    make_images(project / "flowers", {"daisy": 5, "rose": 5})
    programs = {
        "train.py": """
            import json, pathlib, sys
            if "bad" in sys.argv:
                sys.exit("train.py: no such weights")
            stem = pathlib.Path("models/demo/xception_fin_01_0.900")
            stem.with_suffix(".900.h5").touch()
            split = {"train": [], "validation": ["daisy/1.jpg", "rose/2.jpg"]}
            stem.with_suffix(".900.split.json").write_text(json.dumps(split))
        """,
        "convert_to_tflite.py": """
            import pathlib, sys
            pathlib.Path(sys.argv[1]).with_suffix(".tflite").touch()
        """,
        "predict.py": """
            import json
            print("a warning")
            for score in (0.6, 0.9):
                print(json.dumps({"image": "", "label": "", "scores": {"daisy": score, "rose": 0}}))
        """,
        "lambda_function.py": """
            import json, os
            def lambda_handler(event, context):
                if "version" in event:
                    return {"statusCode": 200, "body": json.dumps(event)}
                return {"model": os.environ["MODEL_PATH"], "process": os.getpid()}
        """,
        "docker_test.py": """
            import pathlib, sys, time, urllib.request
            endpoint, image, label = sys.argv[2::2]
            answer = urllib.request.urlopen(endpoint, b"{}").read().decode()
            pathlib.Path("answer.json").write_text(answer)
            print(pathlib.Path(image).name, label)
            if pathlib.Path("wait").exists():
                time.sleep(60)
            sys.exit(pathlib.Path("wrong").exists())
        """,
    }
    for name, body in programs.items():
        lines = [line[12:] for line in body.splitlines()]
        (project / name).write_text("\n".join(lines), encoding="utf-8")
    return project


def start_demo(project: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        # As in a terminal: nohup before pytest would have it ignore the signal.
        [
            "env",
            "--default-signal=HUP",
            sys.executable,
            "-m",
            "tools.demo",
            "--no-docker",
            *arguments,
        ],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_demo_runs_all_stages(small_project: Path) -> None:
    process = start_demo(small_project)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    lines = output.splitlines()
    assert [line[:5] for line in lines[:7]] == [f"[{number}/7]" for number in range(1, 8)]
    assert all(line.endswith(" s") for line in lines[:7])
    assert "what is rose/2.jpg?" in lines[6]
    assert lines[7] == "2.jpg rose"
    assert lines[8].startswith("The answer is right, and the service is stopped.")
    assert lines[9:] == ["To keep it, and to classify images on its page: make demo ARGS=--stay"]
    answer = json.loads((small_project / "answer.json").read_text(encoding="utf-8"))
    assert answer["model"].endswith("/models/demo/xception_fin_01_0.900.tflite")
    assert not alive(answer["process"])


def test_demo_stays_until_ctrl_c_and_says_where_the_page_is(small_project: Path) -> None:
    process = start_demo(small_project, "--stay")
    try:
        lines = [process.stdout.readline() for _ in range(10)]
        assert lines[8].startswith("The answer is right. ")
        address = re.fullmatch(
            r"Open (http://127\.0\.0\.1:\d+/) in a browser; press Ctrl-C to stop\.\n", lines[9]
        )[1]
        with urllib.request.urlopen(f"{address}a?b=c", timeout=60) as response:
            event = json.load(response)
        assert (event["rawPath"], event["rawQueryString"]) == ("/a", "b=c")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output, errors) == (0, "\nThe service is stopped.\n", "")
    answer = json.loads((small_project / "answer.json").read_text(encoding="utf-8"))
    assert not alive(answer["process"])


def test_ctrl_c_while_the_demo_removes_its_image_is_too_late(
    small_project: Path, fake_docker: Path
) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=small_project,
        env=os.environ | {"CTRL_C": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1  # nothing listens
    assert "`docker_test.py` ended with exit code 1" in process.stderr
    calls = fake_docker.read_text(encoding="utf-8").splitlines()
    assert [call.split()[0] for call in calls[-4:]] == ["run", "logs", "rm", "image"]


def test_demo_says_when_the_answer_is_wrong(small_project: Path) -> None:
    (small_project / "wrong").touch()
    process = start_demo(small_project)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.endswith("failed\n")
    assert "ended with exit code 1" in errors
    assert errors.endswith("2.jpg rose\n")
    answer = json.loads((small_project / "answer.json").read_text(encoding="utf-8"))
    assert not alive(answer["process"])


def test_demo_shows_the_stage_that_fails(small_project: Path) -> None:
    process = start_demo(small_project, "--weights", "bad")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("[2/7] Train:")
    assert output.endswith("... failed\n")
    assert "`train.py` ended with exit code 1." in errors
    assert errors.endswith("It printed:\ntrain.py: no such weights\n")


@pytest.mark.parametrize(
    ("number", "exit_code", "message"),
    [
        (signal.SIGINT, 130, "\ntools.demo: Stopped, and the service as well.\n"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGHUP, 129, ""),
    ],
    ids=["ctrl-c", "term", "closed-terminal"],
)
def test_demo_that_is_stopped_stops_the_service(
    small_project: Path, number: signal.Signals, exit_code: int, message: str
) -> None:
    (small_project / "wait").touch()
    process = start_demo(small_project)
    answer_file = small_project / "answer.json"
    deadline = time.monotonic() + 60
    while not (answer_file.exists() and answer_file.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (exit_code, message)
    assert "... stopped\n" in output
    assert not alive(json.loads(answer_file.read_text(encoding="utf-8"))["process"])
