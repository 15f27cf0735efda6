"""Print a category of Pipfile.lock as pip's requirements, with their hashes.

    python tools/requirements.py tflite-runtime < Pipfile.lock

tools/setup.sh and the Dockerfile run this file alone, with a bare Python that may be old.
"""

import json
import sys


def requirements(packages: dict) -> str:
    """Return a line for each of the locked `packages`, as `pip install --require-hashes` wants."""
    lines = []
    for name, package in packages.items():
        extras = f"[{','.join(package['extras'])}]" if "extras" in package else ""
        marker = f"; {package['markers']}" if "markers" in package else ""
        hashes = "".join(f" --hash={digest}" for digest in package["hashes"])
        lines.append(f"{name}{extras}{package['version']}{marker}{hashes}\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(requirements(json.load(sys.stdin)[sys.argv[1]]))
