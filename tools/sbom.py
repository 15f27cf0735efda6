"""Write a software bill of materials for each container image and for the environment.

    python -m tools.sbom --models models/mine

sbom/RUNTIME.cdx.json has the packages of a container image with their hashes, its base image and
its model; sbom/development.cdx.json the packages of .venv. They are CycloneDX in JSON, checked
against its schema. Libraries inside a package's wheel, such as Pillow's libjpeg, are not in them.
"""

import argparse
import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.markers import Marker

from serving.model_files import best_model
from serving.runtimes import RUNTIMES
from training.cli import make_parser, run_command
from training.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
VERSION = SchemaVersion.V1_6
# A stage of the Dockerfile: registry, path, version and digest of the base image, and the runtime.
STAGE = re.compile(r"^FROM ([^/\s]+)/([^:@\s]+):([\w.]+)(?:@(\S+))? AS (\S+)$", re.MULTILINE)

Component = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Write all files and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(
        lambda: write_all(options.models, options.out),
        "tools.sbom",
        paths=f"write to {options.out}",
    )


def write_all(models: Path, out: Path) -> None:
    """Write into `out`: the container images, with the best model of `models`, and .venv."""
    out.mkdir(parents=True, exist_ok=True)
    lock = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
    model = best_model(models, ".tflite") if list(models.glob("[!.]*.tflite")) else None
    print(f"Model: {model or f'none in {models}, so the container images are listed without'}")
    for runtime in RUNTIMES:
        base, python = base_image(runtime)
        parts = [base, *([model_component(model)] if model else [])]
        write(out / f"{runtime}.cdx.json", [*packages(lock[runtime], python), *parts])
    write(out / "development.cdx.json", packages(lock["default"] | lock["develop"]))


def base_image(runtime: str) -> tuple[Component, str]:
    """Return the base image of `runtime` in the Dockerfile, and its Python, such as "3.11"."""
    stages = STAGE.findall((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    registry, name, python, digest = next(found[:4] for found in stages if found[4] == runtime)
    purl = f"pkg:docker/{name}@{digest or python}?repository_url={registry}"
    base = {"type": "container", "name": f"{registry}/{name}", "version": python, "purl": purl}
    return {"bom-ref": purl, **base}, python


def model_component(model: Path) -> Component:
    """Return the file `model`."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    hashes = [{"alg": "SHA-256", "content": digest}]
    kind = "machine-learning-model"
    return {"bom-ref": "model", "type": kind, "name": model.name, "hashes": hashes}


def packages(locked: dict[str, dict], python: str | None = None) -> list[Component]:
    """Return those of the `locked` packages that Python `python` on Linux gets; None is ours."""
    environment = None
    if python:
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        environment |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    return [
        package_component(name, package["version"].removeprefix("=="), package["hashes"])
        for name, package in sorted(locked.items())
        if "markers" not in package or Marker(package["markers"]).evaluate(environment)
    ]


def package_component(name: str, version: str, hashes: Iterable[str]) -> Component:
    """Return package `name`; `hashes` are of the files of its release, of which pip takes one."""
    purl = f"pkg:pypi/{name}@{version}"
    release = {
        "type": "distribution",
        "url": purl,
        "comment": "one of these files",
        "hashes": [{"alg": "SHA-256", "content": each.removeprefix("sha256:")} for each in hashes],
    }
    expression = declared_licence(name, version)
    return {
        "bom-ref": purl,
        "type": "library",
        "name": name,
        "version": version,
        "purl": purl,
        "externalReferences": [release],
        **({"licenses": [{"expression": expression}]} if expression else {}),
    }


def declared_licence(name: str, version: str) -> str | None:
    """Return the SPDX expression that the installed package declares, if it is this version."""
    try:
        declared = metadata(name)
    except PackageNotFoundError:
        return None
    return declared["License-Expression"] if declared["Version"] == version else None


def write(file: Path, components: list[Component]) -> None:
    """Write the bill of `components` to `file`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    described = {key: project[key] for key in ("name", "version", "description")}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": VERSION.to_version(),
        "metadata": {"component": {"bom-ref": "root", "type": "application", **described}},
        "components": components,
        "dependencies": [{"ref": "root", "dependsOn": [each["bom-ref"] for each in components]}],
    }
    text = json.dumps(bill, indent=2) + "\n"
    if error := JsonStrictValidator(VERSION).validate_str(text):
        raise ValueError(f"{file} is not valid CycloneDX: {error}")
    write_atomically(file, lambda part: part.write_text(text, encoding="utf-8"))
    print(f"Wrote: {file}, {len(components)} components.")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m tools.sbom")
    for flag, default, text in (
        ("--models", "models", "folder of the model in the container images"),
        ("--out", "sbom", "folder to write to"),
    ):
        parser.add_argument(flag, type=Path, default=Path(default), help=f"{text} [{default}/]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
