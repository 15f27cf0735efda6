"""AWS's Lambda Runtime Interface Emulator, and a handler behind it without Docker.

    python -m tools.emulator    # fetch the emulator once and print its path

The emulator's binary is in the wheel of aws-sam-cli, whose version and hash are in Pipfile.lock.
Nothing of aws-sam-cli is installed.
"""

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Generator, Mapping
from pathlib import Path

from serving.errors import UserError
from serving.function_url import INVOCATIONS
from training.cli import make_parser, run_command

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
MEMBERS = {
    "x86_64": "samcli/local/rapid/aws-lambda-rie-x86_64",
    "aarch64": "samcli/local/rapid/aws-lambda-rie-arm64",
}
SAMPLES = "samcli/lib/generated_sample_events/events"
START_SECONDS = 30.0
STOP_SECONDS = 5.0


class EmulatorError(UserError):
    """The emulator cannot be downloaded or does not run."""


def emulator_binary() -> Path:
    """Return the path of the emulator, which is downloaded once into .cache/.

    Raises:
        EmulatorError: there is none for this machine, or it cannot be downloaded.
    """
    member = MEMBERS.get(platform.machine())
    if sys.platform != "linux" or member is None:
        raise EmulatorError(
            "Expected Linux on x86-64 or arm64, as AWS's Lambda emulator needs. "
            f"Received: {platform.system()} on {platform.machine()}. Start Docker instead."
        )
    wheel = _wheel()
    binary = CACHE / f"aws-lambda-rie-{wheel.stem.split('-')[1]}"
    if not binary.exists():
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="emulator-") as folder:
            with zipfile.ZipFile(wheel) as archive:
                unpacked = Path(archive.extract(member, folder))
            unpacked.chmod(0o755)
            unpacked.replace(binary)
    return binary


def sample_event(name: str, **values: str) -> dict:
    """Return AWS's own example of an event, `name` such as "apigateway/HttpApi".

    `values` fill in the placeholders of the example: method, path, body, ...

    Raises:
        EmulatorError: aws-sam-cli, which contains it, cannot be downloaded.
    """
    with zipfile.ZipFile(_wheel()) as archive:
        text = archive.read(f"{SAMPLES}/{name}.json").decode()
    for key, value in values.items():
        text = text.replace(f"{{{{{{{key}}}}}}}", json.dumps(value)[1:-1])
    return json.loads(text)


def _wheel() -> Path:
    """Return the wheel of aws-sam-cli, which is downloaded once into .cache/."""
    lock = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
    package = lock["sam"]["aws-sam-cli"]
    version = package["version"].removeprefix("==")
    kept = CACHE / f"aws_sam_cli-{version}-py3-none-any.whl"
    if not kept.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="emulator-") as folder:
            _download(package, Path(folder)).replace(kept)
    return kept


def _download(package: dict, folder: Path) -> Path:
    """Download the locked wheel of aws-sam-cli into `folder`; pip checks its hash."""
    requirements = folder / "requirements.txt"
    hashes = "".join(f" --hash={digest}" for digest in package["hashes"])
    requirements.write_text(f"aws-sam-cli{package['version']}{hashes}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    done = subprocess.run(
        [*pip, "--require-hashes", "--only-binary=:all:", "--dest", folder, "-r", requirements],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        reason = (done.stdout.strip().splitlines() or ["no reason given"])[-1]
        raise EmulatorError(
            f"Expected pip to fetch aws-sam-cli, whose wheel has the emulator. Received: {reason} "
            "Check that pip can reach a package index."
        )
    return next(folder.glob("*.whl"))


@contextlib.contextmanager
def local_service(
    port: int,
    environment: Mapping[str, str] | None = None,
    *,
    folder: Path = ROOT,
    handler: str = "lambda_function.lambda_handler",
    log: Path = CACHE / "service.log",
) -> Generator[str]:
    """Serve a Lambda handler on 127.0.0.1:`port` while the context lasts.

    As in the container, AWS's emulator takes the requests and AWS's runtime interface client calls
    the handler; only the file system differs. It handles one request at a time.

    Args:
        port: where to listen; the URL to post events to is yielded.
        environment: variables beside Lambda's and those of this process.
        folder: stands for Lambda's /var/task, where the handler's module is.
        handler: module.function.
        log: file for the output of emulator and handler.

    Raises:
        EmulatorError: the emulator cannot be downloaded, or does not listen on the port.
    """
    binary = emulator_binary()
    if _answers(port):
        raise EmulatorError(
            f"Expected port {port} of 127.0.0.1 to be free. Received: a program listens on it. "
            "Choose another port."
        )
    addresses = ("--runtime-interface-emulator-address", f"127.0.0.1:{port}")
    addresses += ("--runtime-api-address", f"127.0.0.1:{free_port()}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C in a terminal must reach only this process, which ends it.
        process = subprocess.Popen(
            [binary, *addresses, sys.executable, "-m", "awslambdaric", handler],
            cwd=folder,
            env=_lambda_environment(folder, handler) | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(port, process, log)
        yield f"http://127.0.0.1:{port}{INVOCATIONS}"
    finally:
        _end(process)


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _lambda_environment(folder: Path, handler: str) -> dict[str, str]:
    """Return the variables of this process and of Lambda."""
    return os.environ | {
        "AWS_LAMBDA_FUNCTION_NAME": "flowers",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",  # MB; Lambda gives that one whole vCPU
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "60",  # seconds
        "LAMBDA_TASK_ROOT": str(folder),
        "_HANDLER": handler,
        "PYTHONUNBUFFERED": "1",
    }


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    """Return once `process` listens on 127.0.0.1:`port`.

    Raises:
        EmulatorError: it ended, or took longer than `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(port):
            return
        time.sleep(0.05)
    received = "none yet" if process.poll() is None else f"exit code {process.returncode}"
    raise EmulatorError(
        f"Expected the Lambda emulator to listen on port {port}. Received: {received}. "
        f"Its output is in {log}."
    )


def _answers(port: int) -> bool:
    """Return whether something listens on 127.0.0.1:`port`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen) -> None:
    """End all processes in the session of `process`."""
    session = process.pid
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        for group in _groups(session):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
        deadline = time.monotonic() + seconds
        while _groups(session) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.02)
    process.wait()


def _groups(session: int) -> set[int]:
    """Return the process groups of `session`; the handler's is another one."""
    groups = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the command's name, which may hold anything: state, parent, group, session.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                groups.add(int(fields[2]))
    return groups


def main(arguments: list[str] | None = None) -> int:
    """Print the path of the emulator and return the exit code."""
    make_parser(__doc__, "python -m tools.emulator").parse_args(arguments)
    return run_command(lambda: print(emulator_binary()), "tools.emulator")


if __name__ == "__main__":
    sys.exit(main())
