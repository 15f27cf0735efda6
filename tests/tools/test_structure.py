"""What no linter holds: how long a function may be, and that tests stand where their subject is."""

import ast
import subprocess

from conftest import ROOT

MAX_LINES = 50  # of a function, its docstring included


def tracked(*patterns):
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split() if (ROOT / name).exists()]


def test_no_function_is_longer_than_a_screen():
    files = [name for name in tracked("*.py") if not name.startswith("tests/")]
    assert len(files) > 50
    lengths = {
        f"{name}: {node.name}": node.end_lineno - node.lineno + 1
        for name in files
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_each_folder_of_tests_mirrors_a_folder_of_code():
    folders = {name.split("/", 1)[1].rpartition("/")[0] for name in tracked("tests/*/test_*.py")}
    # The scripts at the top level; the fuzzers are tests themselves; the page is one file, and so
    # is the stack.
    of_their_own = {"", "cloud", "fuzz", "page"}
    assert not [name for name in folders - of_their_own if not (ROOT / name).is_dir()]
