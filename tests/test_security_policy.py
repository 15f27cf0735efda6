"""SECURITY.md: what it judged is what is pinned, and what it says about our code holds."""

import ast
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

POLICY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
LOCK = json.loads((ROOT / "Pipfile.lock").read_text(encoding="utf-8"))
IMAGES = ("tflite-runtime", "ai-edge-litert", "openvino")
# They read what strangers send; the others of an image are theirs, or read nothing.
JUDGED = {
    *("ai-edge-litert", "numpy", "obstore", "openvino", "pillow", "python-multipart"),
    *("requests", "tflite-runtime", "urllib3"),
}
# By SECURITY.md not called, or not imported.
UNUSED_CALLS = {"filter", "merge", "quantize", "show", "transform", "getexif", "thumbnail"}
SERVED = sorted([*(ROOT / "serving").glob("*.py"), ROOT / "lambda_function.py"])
# They write an image of their own: while the container image is built, and before a snapshot.
DRAW = ("image_build.py", "snapshot.py")
USED_MODULES = {"Image", "ImageFile", "TiffImagePlugin"}


def judged() -> set[tuple[str, str]]:
    """Return the (package, version) pairs of the table."""
    return set(re.findall(r"^\| ([a-z][\w-]+) \| (\d[\w.]*)", POLICY, re.MULTILINE))


def test_the_versions_in_the_container_images_were_judged() -> None:
    locked = {
        (name, LOCK[image][name]["version"].removeprefix("=="))
        for image in IMAGES
        for name in JUDGED & LOCK[image].keys()
    }
    assert {name for name, _ in locked} == JUDGED
    new, gone = sorted(locked - judged()), sorted(judged() - locked)
    assert (new, gone) == ([], []), (
        f"Expected SECURITY.md to judge the versions of Pipfile.lock. Received: {new} not judged, "
        f"{gone} not pinned any more. Look for advisories about the new ones, judge whether "
        "callers can reach them, and change its tables and their date."
    )


def test_no_advisory_is_judged_twice() -> None:
    section = POLICY[POLICY.index("### Pillow") :]
    numbers = [
        number
        for numbers in re.findall(r"CVE-2026-(\d+(?:, \d+)*)", section)
        for number in numbers.split(", ")
    ]
    names = numbers + re.findall(r"[0-9a-z]{4}-[0-9a-z]{4}-[0-9a-z]{4}", section)
    assert len(names) > 50
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", SERVED, ids=lambda path: path.name)
def test_the_service_uses_nothing_of_pillow_that_was_judged_unused(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {node.func.attr for node in ast.walk(tree) if is_method_call(node)}
    if path.name not in DRAW:
        assert "save" not in calls
    assert not calls & UNUSED_CALLS
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "PIL"
        for alias in node.names
    }
    assert {module for module in imported if not module.endswith("ImagePlugin")} <= USED_MODULES


def is_method_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
