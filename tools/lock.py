"""Lock the Pipfile anew: every version and hash, and no package index.

    python -m tools.lock

Pipenv writes the index it asked into the lock. This one names none, so that it installs from
whichever index a machine is set up for; the hashes see to it that the packages are the same.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What other packages ask for and work without: this one reports to Google Analytics, and writes
# into the home directory, whenever OpenVINO is imported.
UNWANTED = ("openvino-telemetry",)


class LockError(Exception):
    """There is no new lock; `str(error)` says why."""


def main() -> int:
    """Replace Pipfile.lock by a new one, or leave it as it was; return the exit code."""
    print("Lock: asking for the versions and hashes of every package; this takes a minute.")
    try:
        lock(ROOT / "Pipfile")
    except LockError as error:
        print(f"tools.lock: {error} Pipfile.lock is as it was.", file=sys.stderr)
        return 1
    print("Lock: wrote Pipfile.lock. Install it: make setup")
    return 0


def lock(pipfile: Path) -> None:
    """Write `pipfile`'s lock beside it, at once or not at all.

    Raises:
        LockError: pipenv fails, a package has no hash, or the lock does not fit the Pipfile.
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
    """Return a lock's `content` without `UNWANTED`, and without the indexes it was found on."""
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
    """Raise a LockError if a package of a lock's `content` lacks its version or hashes."""
    for category, packages in content.items():
        for name, package in packages.items() if category != "_meta" else ():
            if not (package.get("version") and package.get("hashes")):
                raise LockError(
                    f"Expected a version and hashes of every package. Received: none of {name} "
                    f"in {category}. Lock on Linux x86-64, which every marker in the Pipfile fits."
                )


def pipenv(pipfile: Path, command: str) -> None:
    """Run pipenv's `command` on `pipfile`, in the environment that this Python belongs to.

    Raises:
        LockError: it fails; the message has the end of its output.
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
