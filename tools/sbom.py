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

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    XsUri,
)
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.markers import Marker

from serving.model_files import best_model
from serving.runtimes import RUNTIMES
from training.cli import make_parser, path, run_command
from training.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
VERSION = SchemaVersion.V1_6
# A stage of the Dockerfile: the base image's name, version, digest and runtime.
STAGE = re.compile(r"^FROM ([\w.-]+/[\w./-]+):([\w.]+)(?:@(\S+))? AS (\S+)$", re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    """Write all files and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(
        lambda: write_all(options.models, options.out),
        "tools.sbom",
        paths=f"write to {options.out}",
    )


def write_all(models: Path, out: Path) -> None:
    """Write into `out` the bill of each container image, with the best of `models`, and of .venv."""
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
    name, version, digest = next(found[:3] for found in stages if found[3] == runtime)
    registry, _, path = name.partition("/")
    namespace, _, image = path.rpartition("/")
    purl = PackageURL("docker", namespace, image, digest or version, {"repository_url": registry})
    kind = ComponentType.CONTAINER
    return Component(type=kind, name=name, version=version, purl=purl, bom_ref="base"), version


def model_component(model: Path) -> Component:
    """Return the file `model`."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=model.name,
        hashes=[sha256(digest)],
        bom_ref="model",
    )


def packages(locked: dict[str, dict], python: str | None = None) -> list[Component]:
    """Return those of the `locked` packages that Python `python` on Linux gets; None is ours."""
    machine = {"sys_platform": "linux", "platform_machine": "x86_64"}
    environment = machine | {"python_version": python, "python_full_version": f"{python}.0"}
    return [
        package_component(name, package["version"].removeprefix("=="), package["hashes"])
        for name, package in sorted(locked.items())
        if Marker(package.get("markers", "python_version > '0'")).evaluate(
            environment if python else None
        )
    ]


def package_component(name: str, version: str, hashes: Iterable[str]) -> Component:
    """Return package `name`; `hashes` are of the files of its release, of which pip takes one."""
    purl = PackageURL("pypi", None, name, version)
    release = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(purl.to_string()),
        comment="one of these files",
        hashes=[sha256(value.removeprefix("sha256:")) for value in hashes],
    )
    text = declared_licence(name, version)
    return Component(
        name=name,
        version=version,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[LicenseExpression(text)] if text else [],
        external_references=[release],
    )


def sha256(content: str) -> HashType:
    """Return a hash with the hexadecimal digits `content`."""
    return HashType(alg=HashAlgorithm.SHA_256, content=content)


def declared_licence(name: str, version: str) -> str | None:
    """Return the SPDX expression that the installed package declares, if it is this version."""
    try:
        declared = metadata(name)
    except PackageNotFoundError:
        return None
    return declared["License-Expression"] if declared["Version"] == version else None


def write(file: Path, components: Iterable[Component]) -> None:
    """Write the bill of `components` to `file`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    root = Component(
        type=ComponentType.APPLICATION,
        name=project["name"],
        version=project["version"],
        description=project["description"],
        bom_ref="root",
    )
    bom = Bom(components=components)
    bom.metadata.component = root
    bom.register_dependency(root, bom.components)
    text = make_outputter(bom, OutputFormat.JSON, VERSION).output_as_string(indent=2)
    if error := JsonStrictValidator(VERSION).validate_str(text):
        raise ValueError(f"{file} is not valid CycloneDX: {error}")
    write_atomically(file, lambda part: part.write_text(f"{text}\n", encoding="utf-8"))
    print(f"Wrote: {file}, {len(bom.components)} components.")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m tools.sbom")
    for flag, default, text in (
        ("--models", "models", "folder of the model in the container images"),
        ("--out", "sbom", "folder to write to"),
    ):
        parser.add_argument(flag, type=path, default=Path(default), help=f"{text} [{default}/]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
