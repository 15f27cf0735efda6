"""The bills of materials: valid CycloneDX, and what the lock and the Dockerfile say."""

import hashlib
import json
from pathlib import Path

import pytest
from conftest import ROOT

from tools import sbom

LOCK = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
PYTHONS = {"tflite-runtime": "3.11", "ai-edge-litert": "3.13", "openvino": "3.13"}


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """{name: content} of the files that the command writes, of a folder with one model."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "xception_fin_01_0.900.tflite").write_bytes(b"a model")
    out = folder / "sbom"
    assert sbom.main(["--models", str(folder), "--out", str(out)]) == 0
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in out.iterdir()}


def of_type(bill: dict, kind: str) -> list[dict]:
    return [component for component in bill["components"] if component["type"] == kind]


def test_there_is_one_of_each_container_image_and_of_the_environment(bills: dict) -> None:
    assert set(bills) == {f"{name}.cdx.json" for name in (*PYTHONS, "development")}
    for bill in bills.values():
        assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
        root = next(item for item in bill["dependencies"] if item["ref"] == "root")
        assert len(root["dependsOn"]) == len(bill["components"])


@pytest.mark.parametrize("runtime", PYTHONS)
def test_a_container_image_has_the_packages_of_its_category(bills: dict, runtime: str) -> None:
    libraries = of_type(bills[f"{runtime}.cdx.json"], "library")
    found = {library["name"]: f"=={library['version']}" for library in libraries}
    assert found == {name: package["version"] for name, package in LOCK[runtime].items()}
    for library in libraries:
        [release] = library["externalReferences"]
        hashes = [f"sha256:{each['content']}" for each in release["hashes"]]
        assert sorted(hashes) == sorted(LOCK[runtime][library["name"]]["hashes"])
        assert library["purl"] == f"pkg:pypi/{library['name']}@{library['version']}"


@pytest.mark.parametrize("runtime", PYTHONS)
def test_a_container_image_has_its_base_and_its_model(bills: dict, runtime: str) -> None:
    [base] = of_type(bills[f"{runtime}.cdx.json"], "container")
    assert (base["name"], base["version"]) == ("public.ecr.aws/lambda/python", PYTHONS[runtime])
    [model] = of_type(bills[f"{runtime}.cdx.json"], "machine-learning-model")
    digest = hashlib.sha256(b"a model").hexdigest()
    assert model["name"] == "xception_fin_01_0.900.tflite"
    assert model["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_the_environment_has_the_packages_of_both_lists(bills: dict) -> None:
    found = {library["name"] for library in of_type(bills["development.cdx.json"], "library")}
    assert (
        {"tensorflow", "pytest", "cyclonedx-python-lib"}
        <= found
        <= {
            *LOCK["default"],
            *LOCK["develop"],
        }
    )


def test_a_package_for_another_python_is_left_out() -> None:
    locked = {
        "old": {"version": "==1", "hashes": [], "markers": "python_version < '3.12'"},
        "new": {"version": "==2", "hashes": [], "markers": "python_version >= '3.12'"},
        "mac": {"version": "==3", "hashes": [], "markers": "sys_platform == 'darwin'"},
        "any": {"version": "==4", "hashes": []},
    }
    assert [found["name"] for found in sbom.packages(locked, "3.11")] == ["any", "old"]
    assert [found["name"] for found in sbom.packages(locked, "3.13")] == ["any", "new"]


def test_a_base_image_with_a_digest_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    pinned = text.replace(":3.11 AS", f":3.11@sha256:{'a' * 64} AS")
    (tmp_path / "Dockerfile").write_text(pinned, encoding="utf-8")
    monkeypatch.setattr(sbom, "ROOT", tmp_path)
    base, python = sbom.base_image("tflite-runtime")
    assert python == "3.11"
    assert base["purl"].startswith(f"pkg:docker/lambda/python@sha256:{'a' * 64}?")


def test_a_licence_is_that_of_the_same_version_only() -> None:
    assert sbom.declared_licence("urllib3", LOCK["default"]["urllib3"]["version"][2:]) == "MIT"
    assert sbom.declared_licence("urllib3", "0.1") is None
    assert sbom.declared_licence("no-such-package", "1") is None


def test_what_is_not_valid_is_not_written(tmp_path: Path) -> None:
    broken = sbom.package_component("one", "1", ["sha256:no digest"])
    with pytest.raises(ValueError, match="is not valid CycloneDX"):
        sbom.write(tmp_path / "a.cdx.json", [broken])
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_the_packages_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sbom.main(["--models", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"Model: none in {tmp_path}, so ")
    bill = json.loads((tmp_path / "openvino.cdx.json").read_text(encoding="utf-8"))
    assert {item["type"] for item in bill["components"]} == {"library", "container"}
