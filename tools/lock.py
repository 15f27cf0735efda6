"""Renew Pipfile.lock: every version and hash, and no package index.

    python -m tools.lock

Pipenv writes the URL of its package index into the lock. This removes it, so that packages install
from the index that a machine is set up for; their hashes ensure that they are the same.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from serving.errors import UserError
from training.cli import make_parser, run_command

ROOT = Path(__file__).resolve().parent.parent
# Optional dependencies: this one reports to Google Analytics, and writes into the home directory,
# whenever OpenVINO is imported.
UNWANTED = ("openvino-telemetry",)


class LockError(UserError):
    """The Pipfile cannot be locked."""

    def __init__(self, sentence: str):
        """Take what went wrong."""
        super().__init__(f"{sentence} Pipfile.lock is unchanged.")


def main(arguments: list[str] | None = None) -> int:
    """Replace Pipfile.lock, or leave it unchanged, and return the exit code."""
    make_parser(__doc__, "python -m tools.lock").parse_args(arguments)
    print("Lock: resolving the versions and hashes of all packages; this takes a minute.")
    code = run_command(
        lambda: lock(ROOT / "Pipfile"),
        "tools.lock",
        stopped="Stopped. Pipfile.lock is unchanged.",
    )
    if code == 0:
        print("Lock: wrote Pipfile.lock. Install it with: make setup")
    return code


def lock(pipfile: Path) -> None:
    """Write the lock of `pipfile` beside it atomically.

    Raises:
        LockError: pipenv failed, or a package has no hash.
    """
    with tempfile.TemporaryDirectory(dir=pipfile.parent, prefix=".lock-") as folder:
        copy = Path(folder, "Pipfile")
        copy.write_bytes(pipfile.read_bytes())
        pipenv(copy, "lock")
        new = copy.with_name("Pipfile.lock")
        content = cleaned(json.loads(new.read_text(encoding="utf-8")))
        check(content)
        new.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n", encoding="utf-8")
        pipenv(copy, "verify")
        new.replace(pipfile.with_name("Pipfile.lock"))


def cleaned(content: dict) -> dict:
    """Return the `content` of a lock without `UNWANTED` packages and index URLs."""
    categories = {
        category: {
            name: {key: value for key, value in package.items() if key != "index"}
            for name, package in packages.items()
            if name not in UNWANTED
        }
        for category, packages in content.items()
        if category != "_meta"
    }
    return {"_meta": content["_meta"] | {"sources": []}} | categories


def check(content: dict) -> None:
    """Raise `LockError` if a package lacks its version or hashes."""
    for category, packages in content.items():
        for name, package in packages.items() if category != "_meta" else ():
            if not (package.get("version") and package.get("hashes")):
                raise LockError(
                    f"Expected a version and hashes of every package. Received: none of {name} "
                    f"in {category}. Lock on Linux x86-64, which every marker in the Pipfile fits."
                )


def pipenv(pipfile: Path, command: str) -> None:
    """Run pipenv's `command` on `pipfile`, in the environment of this Python.

    Raises:
        LockError: it failed; the message contains the end of its output.
    """
    environment = os.environ | {
        "PIPENV_PIPFILE": str(pipfile),
        "PIPENV_IGNORE_VIRTUALENVS": "0",
        "PIPENV_DONT_LOAD_ENV": "1",
        "PIPENV_NOSPIN": "1",
        "VIRTUAL_ENV": sys.prefix,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipenv", command],
        cwd=pipfile.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        last_lines = "\n".join(done.stdout.strip().splitlines()[-20:])
        raise LockError(
            f"{last_lines}\n`pipenv {command}` failed with exit code {done.returncode}."
        )


if __name__ == "__main__":
    sys.exit(main())
