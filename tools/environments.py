"""Environments beside .venv, for programs that need other versions of what it has.

    python -m tools.environments sam validate --lint --template-file deploy/template.yaml
    python -m tools.environments ministack

runs AWS's SAM CLI, or MiniStack, a local AWS. Each has a category in Pipfile.lock, which is
installed into .cache/ the first time.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from serving.errors import UserError
from tools.requirements import requirements
from training.cli import run_command

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
PROGRAMS = ("sam", "ministack")  # categories of Pipfile.lock with a program of the same name
DONE = "installed.txt"  # what is installed


class EnvironmentsError(UserError):
    """An environment cannot be made."""


def find_program(name: str) -> Path:
    """Return the path of one of `PROGRAMS`, in an environment of its own.

    The environment is made first if it is missing, unfinished or of another lock.

    Raises:
        EnvironmentsError: it is none of them, or pip fails.
    """
    if name not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        raise EnvironmentsError(f"Expected one of {known}. Received: {name or 'none'}.")
    packages = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
    wanted, folder = requirements(packages[name]), CACHE / name
    done = folder / DONE
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at it
        if not done.exists() or done.read_text(encoding="utf-8") != wanted:
            print(f"Installing {name} into .cache/{name} ...", file=sys.stderr)
            _install(folder, wanted)
            done.write_text(wanted, encoding="utf-8")
    return folder / "bin" / name


def _install(folder: Path, wanted: str) -> None:
    """Make the environment at `folder` anew, with the requirements `wanted`."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    listed = folder / "requirements.txt"
    listed.write_text(wanted, encoding="utf-8")
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install"]
    done = subprocess.run(
        [*pip, "--require-hashes", "--no-deps", "--only-binary=:all:", "-r", listed],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        reason = (done.stdout.strip().splitlines() or ["no reason given"])[-1]
        raise EnvironmentsError(
            f"Expected pip to install [{folder.name}] of Pipfile.lock. Received: {reason} "
            "Check that pip can reach a package index, then run this again."
        )


def main(words: list[str]) -> None:
    """Run the program that `words` begin with, in place of this one, with the others."""
    found = find_program(words[0] if words else "")
    os.environ.setdefault("SAM_CLI_TELEMETRY", "0")
    sys.stdout.flush()
    os.execv(found, [str(found), *words[1:]])  # noqa: S606


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:]), "tools.environments"))
