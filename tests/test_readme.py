"""The README is true: its console blocks are run, its flags and targets exist."""

import doctest
import os
import re
import shlex
import subprocess
import sys

from conftest import ROOT

from serving.model_files import best_model

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = ("train.py", "convert_to_tflite.py", "predict.py", "docker_test.py")


def console_commands():
    """Return (command, expected output) of every `$ ` line of the README's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [
        (command, output)
        for block in blocks
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]


def test_console_blocks_print_what_they_show(tmp_path):
    for name in ("serving", "training", *SCRIPTS):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "flowers").mkdir()
    (tmp_path / "models").mkdir()
    shipped = best_model(ROOT / "models", ".h5")
    (tmp_path / "models" / shipped.name).symlink_to(shipped)
    environment = os.environ | {
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    commands = console_commands()
    assert len(commands) >= 5
    for command, expected in commands:
        process = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        matches = doctest.OutputChecker().check_output(
            expected, process.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        )
        assert matches, f"$ {command}\n{process.stdout}{process.stderr}\nexpected:\n{expected}"


def test_flags_in_the_readme_exist():
    for script in SCRIPTS:
        used = {
            flag
            for line in re.findall(rf"python {re.escape(script)}([^\n`#]*)", README)
            for flag in re.findall(r"--[a-z-]+", line)
        }
        help_text = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert used
        assert {flag for flag in used if flag not in help_text} == set()


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"\bmake ([a-z]+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "build", "run"} <= targets
    assert {t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)} == set()


def test_figures_of_the_readme_are_those_of_the_code():
    from convert_to_tflite import TOLERANCES
    from serving import fetch, image
    from train import Recipe

    for kind, allowed in TOLERANCES.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{kind}`"))
        assert f"| {allowed.difference} | {allowed.agreement:.0%}".replace("%", " %") in row
    assert f"over {fetch.MAX_BYTES // 10**6} MB or {image.MAX_PIXELS // 10**6} megapixels" in README
    assert f"for at most {fetch.DEADLINE:.0f} seconds" in README
    assert f"seed {Recipe().seed}" in README


def test_the_shipped_checkpoint_is_the_one_described():
    from training.checkpoint import Split, read_metadata, split_record

    shipped = best_model(ROOT / "models", ".h5")
    metadata = read_metadata(shipped)
    split = Split.read(split_record(shipped))
    assert metadata.class_names == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert f"validation accuracy {metadata.val_accuracy:.3f} on {len(split.evaluated)}" in README
    assert f"is epoch {metadata.epoch} of this command" in README
    assert shipped.stat().st_size <= 50e6
