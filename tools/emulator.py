"""AWS's Lambda Runtime Interface Emulator, and a handler behind it without Docker.

    python -m tools.emulator    # fetch it once, print where it is

The emulator's binary travels in the wheel of aws-sam-cli. Pipfile.lock has that wheel's version
and hash; nothing of aws-sam-cli is installed.
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
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
MEMBERS = {
    "x86_64": "samcli/local/rapid/aws-lambda-rie-x86_64",
    "aarch64": "samcli/local/rapid/aws-lambda-rie-arm64",
}
SAMPLES = "samcli/lib/generated_sample_events/events"
INVOCATIONS = "/2015-03-31/functions/function/invocations"  # where Lambda takes events
START_SECONDS = 30.0
STOP_SECONDS = 5.0


class EmulatorError(Exception):
    """The emulator cannot be had or does not run; `str(error)` says what to do."""


def emulator_binary() -> Path:
    """Return the emulator for this machine, fetched the first time and kept in .cache/.

    Raises:
        EmulatorError: there is none for this machine, or the package index does not give it.
    """
    member = MEMBERS.get(platform.machine())
    if sys.platform != "linux" or member is None:
        raise EmulatorError(
            "Expected Linux on x86-64 or arm64, which AWS's Lambda emulator is made for. "
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

    `values` take the places that the example leaves open: method, path, body, ...

    Raises:
        EmulatorError: the package index does not give aws-sam-cli, which has it.
    """
    with zipfile.ZipFile(_wheel()) as archive:
        text = archive.read(f"{SAMPLES}/{name}.json").decode()
    for key, value in values.items():
        text = text.replace(f"{{{{{{{key}}}}}}}", json.dumps(value)[1:-1])
    return json.loads(text)


def _wheel() -> Path:
    """Return the locked aws-sam-cli's wheel, fetched the first time and kept in .cache/."""
    lock = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
    package = lock["emulator"]["aws-sam-cli"]
    version = package["version"].removeprefix("==")
    kept = CACHE / f"aws_sam_cli-{version}-py3-none-any.whl"
    if not kept.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="emulator-") as folder:
            _download(package, Path(folder)).replace(kept)
    return kept


def _download(package: dict, folder: Path) -> Path:
    """Return the wheel of the locked aws-sam-cli, fetched into `folder` and checked by pip."""
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
            "Check that a package index can be reached."
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
) -> Iterator[str]:
    """Serve a Lambda handler on 127.0.0.1:`port` while the context lasts.

    AWS's emulator takes the requests and AWS's runtime interface client calls the handler, as in
    the container, so that only the file system around them differs. One request at a time.

    Args:
        port: where to listen.
        environment: what to add to Lambda's variables and this process' own.
        folder: what Lambda would have in /var/task; the handler's module is found there.
        handler: module.function.
        log: where to write what emulator and handler print.

    Yields:
        The URL to post events to.

    Raises:
        EmulatorError: the emulator cannot be had, or does not come to listen on the port.
    """
    binary = emulator_binary()
    if _answers(port):
        raise EmulatorError(
            f"Expected port {port} of 127.0.0.1 to be free. Received: something listens there. "
            "Choose another port."
        )
    command = [
        binary,
        *("--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
        *("--runtime-api-address", f"127.0.0.1:{free_port()}"),
        *(sys.executable, "-m", "awslambdaric", handler),
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in a terminal reaches only us, and we end it in order.
        process = subprocess.Popen(
            command,
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
    """Return a TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _lambda_environment(folder: Path, handler: str) -> dict[str, str]:
    """Return this process' variables and those that Lambda sets."""
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
        f"What it printed is in {log}."
    )


def _answers(port: int) -> bool:
    """Return whether something listens on 127.0.0.1:`port`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen) -> None:
    """End `process` and what it started: all of its session, and nothing else."""
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
    """Return the process groups of `session`: the emulator puts the handler into its own."""
    groups = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the command's name, which may hold anything: state, parent, group, session.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                groups.add(int(fields[2]))
    return groups


def main() -> int:
    """Print where the emulator is; return the exit code."""
    try:
        print(emulator_binary())
    except EmulatorError as error:
        print(f"tools.emulator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
