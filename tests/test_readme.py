"""The documentation is true: its console blocks are run, its commands, flags and targets exist."""

import doctest
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from serving.model_files import best_model

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README, ALL = TEXTS["README.md"], "\n".join(TEXTS.values())
TRAINING, RESULTS = TEXTS["docs/training.md"], TEXTS["docs/results.md"]
SERVING, SECURITY = TEXTS["docs/serving.md"], TEXTS["docs/security.md"]
SCRIPTS = ("train.py", "convert_to_tflite.py", "predict.py", "docker_test.py")
Finished = subprocess.CompletedProcess[str]


def find(pattern: str, text: str, flags: int = 0) -> re.Match[str]:
    """Return the first match of `pattern`, which there has to be."""
    match = re.search(pattern, text, flags)
    assert match, pattern
    return match


def console_commands(text: str) -> list[tuple[str, str]]:
    """Return (command, expected output) of every `$ ` line of the console blocks in `text`."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [
        (command, output)
        for block in blocks
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]


WITH_CONSOLE = [name for name, text in TEXTS.items() if console_commands(text)]


@pytest.fixture(scope="module")
def run_console(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Finished]]:
    """Run the console commands of a page, once, in a folder with the shipped checkpoint."""

    @functools.cache
    def run(page: str) -> list[Finished]:
        folder = tmp_path_factory.mktemp("console")
        for name in ("serving", "training", "docs", *SCRIPTS):
            (folder / name).symlink_to(ROOT / name)
        (folder / "flowers").mkdir()
        (folder / "models").mkdir()
        shipped = best_model(ROOT / "models", ".h5")
        (folder / "models" / shipped.name).symlink_to(shipped)
        environment = os.environ | {
            "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
        }
        return [
            subprocess.run(
                shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True
            )
            for command, _ in console_commands(TEXTS[page])
        ]

    return run


@pytest.mark.parametrize("page", WITH_CONSOLE)
def test_console_blocks_print_what_they_show(
    page: str, run_console: Callable[[str], list[Finished]]
) -> None:
    for (command, expected), process in zip(
        console_commands(TEXTS[page]), run_console(page), strict=True
    ):
        matches = doctest.OutputChecker().check_output(
            expected, process.stdout, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        )
        assert matches, f"$ {command}\n{process.stdout}{process.stderr}\nexpected:\n{expected}"


def test_training_conversion_and_prediction_are_among_the_console_blocks() -> None:
    commands = [command for text in TEXTS.values() for command, _ in console_commands(text)]
    for script in ("train.py", "convert_to_tflite.py", "predict.py"):
        assert any(command.startswith(f"python {script}") for command in commands)


def test_the_readme_is_a_door_of_under_150_lines() -> None:
    assert len(README.splitlines()) < 150


def test_the_first_answer_is_that_of_the_shipped_checkpoint(
    run_console: Callable[[str], list[Finished]],
) -> None:
    image = "docs/rose.jpg"
    [process] = [done for done in run_console("docs/serving.md") if image in done.args]
    scores = json.loads(process.stdout.splitlines()[0])["scores"]
    shown = json.loads(find(r"```json\n(.*?)```", README, re.DOTALL)[1])
    assert f"base64 < {image}" in README
    assert list(shown) == list(scores)
    assert shown == pytest.approx(scores, abs=0.001)


def test_flags_in_the_documentation_exist() -> None:
    for script in SCRIPTS:
        used = {
            flag
            for line in re.findall(rf"python {re.escape(script)}([^\n`#]*)", ALL)
            for flag in re.findall(r"--[a-z-]+", line)
        }
        help_text = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert used
        assert {flag for flag in used if flag not in help_text} == set()


def module_sources(name: str) -> str:
    """Return the code of the command `python -m name` and of the package that it is in.

    Raises:
        FileNotFoundError: there is no such command.
    """
    path = ROOT.joinpath(*name.split("."))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert "__main__" in path.read_text(encoding="utf-8") or path.name == "__main__.py"
    files = [*path.parent.glob("*.py"), ROOT / "training" / "cli.py"]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def test_modules_and_their_flags_in_the_documentation_exist() -> None:
    texts = [ALL, *((ROOT / f / "README.md").read_text() for f in ("flowers", "models"))]
    texts.append((ROOT / "experiments" / "README.md").read_text(encoding="utf-8"))
    commands = re.findall(
        r"python -m ((?:training|experiments|benchmarks|tests|tools)[\w.]*)([^\n`#|]*)",
        "\n".join(texts).replace("\\\n", " "),
    )
    assert len({module for module, _ in commands}) >= 9
    settings = (ROOT / "training" / "recipes.py").read_text(encoding="utf-8")
    for module, words in commands:
        source, recipes = module_sources(module), " ".join(re.findall(r'"[^"]*"', words))
        flags = re.findall(r"--[a-z-]+", re.sub(r'"[^"]*"', "", words))
        missing = [f for f in flags if f'"{f}"' not in source]
        names = [f.replace("-", "_") for f in re.findall(r"--([a-z-]+)", recipes)]
        missing += [name for name in names if f'"{name}"' not in settings]
        assert missing == [], f"python -m {module}"


def changelog_rows(kind: str) -> list[list[str]]:
    """Return the cells of the table of the changelog that lists renamed commands or flags."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    table = find(rf"\*\*Renamed {kind}\*?.*?\n\n\|.*?\n\|.*?\n(.*?)\n\n", text, re.DOTALL)[1]
    return [re.split(r" *\| *", line)[1:-1] for line in table.splitlines()]


def test_renamed_commands_of_the_changelog_exist_under_their_new_names_only() -> None:
    for before, now in changelog_rows("commands"):
        module_sources(find(r"python -m ([\w.]+)", now)[1])
        with pytest.raises(FileNotFoundError):
            module_sources(find(r"python -m ([\w.]+)", before)[1])


def test_renamed_flags_of_the_changelog_work_under_both_names() -> None:
    for command, before, now, note in changelog_rows("flags"):
        script = find(r"^`python (?:-m )?([\w./]+)`$", command)[1]
        name = script.removesuffix(".py").replace(".", "/") + ".py"
        sources = [ROOT / name, ROOT / "training" / "recipes.py"]
        code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
        assert note == "the old name still works"
        assert f'"{before.strip("`")}"' in code
        new = now.strip("`-")
        assert f'"--{new}"' in code or f'"{new.replace("-", "_")}"' in code


def test_make_targets_in_the_documentation_exist() -> None:
    typed = re.findall(r"(?:^|`|^\$ )make ([a-z]+)", ALL, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "build", "run", "setup", "lock", "fuzz"} <= set(typed)
    assert [t for t in set(typed) if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []


def test_figures_of_the_documentation_are_those_of_the_code() -> None:
    from serving import fetch, image
    from training.export.compare import MIN_AGREEMENT, TOLERANCES
    from training.recipes import Recipe

    for kind, allowed in TOLERANCES.items():
        row = next(line for line in SERVING.splitlines() if line.startswith(f"| `{kind}`"))
        assert f"| {allowed} |" in row
    assert f"the predicted class of {MIN_AGREEMENT:.0%}".replace("%", " %") in SERVING
    limits = f"over {fetch.MAX_BYTES // 10**6} MB or {image.MAX_PIXELS // 10**6} megapixels"
    assert limits in SERVING
    assert f"for at most {fetch.DEADLINE:.0f} seconds" in SECURITY
    assert f"at most {fetch.MAX_BYTES // 10**6} MB" in SECURITY
    assert f"With split seed {Recipe().split_seed} the" in RESULTS


def test_every_error_and_every_setting_of_the_service_is_documented() -> None:
    from serving import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    answered = [c for c in classes if errors.ServingError in c.__mro__[1:]]
    assert len(answered) >= 10
    for error in answered:
        row = next(line for line in SERVING.splitlines() if f"`{error.__name__}`" in line)
        assert str(error.status) in row
    sources = [*(ROOT / "serving").glob("*.py"), ROOT / "lambda_function.py"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    variables = {*re.findall(r"os\.environ(?:\.get\(|\[)\"(\w+)\"", code), "FETCH_ALLOW"}
    ours = {name for name in variables if not name.startswith("AWS_")}
    assert {name for name in ours if f"| `{name}` |" not in SERVING} == set()


def test_the_shipped_checkpoint_is_the_one_described() -> None:
    from training.checkpoint import Split, read_metadata, split_record

    shipped = best_model(ROOT / "models", ".h5")
    metadata = read_metadata(shipped)
    split = Split.read(split_record(shipped))
    assert metadata.class_names == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    described = find(r"\[0\.\d{3}\]\([^)]*#wrong-labels\).*", README)[0]
    assert f"[{metadata.val_accuracy:.3f}]" in described
    assert f"on {len(split.test)} images" in described
    assert f"`models/{shipped.name}` is epoch {metadata.epoch} of the first command" in RESULTS
    assert shipped.stat().st_size <= 50e6


def test_the_demo_prints_the_stages_that_the_readme_shows() -> None:
    from tools import demo

    source = Path(demo.__file__).read_text(encoding="utf-8")
    block = find(r"\$ make demo.*?```", README, re.DOTALL)[0]
    stages = re.findall(r"^\[(\d)/(\d)\] (\w+:)", block, re.MULTILINE)
    assert len(stages) >= 3
    for _, of, title in stages:
        assert int(of) == demo.STAGES
        assert f'"{title} ' in source or f'f"{title} ' in source


def test_the_workflow_runs_the_checks_of_ci_run() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    [command] = re.findall(r"^ +- run: (.+)$", workflow, re.MULTILINE)
    assert command.split()[-1] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_log_line_shown_has_the_fields_of_the_log() -> None:
    from serving.log import ImageLog, RequestLog

    shown = json.loads(find(r'^(\{"level".*)$', SERVING, re.MULTILINE)[1])
    image = ImageLog("url", "", 1, "JPEG", 1, 1, 1.0, 1.0, 0.5, False)
    request = RequestLog("", False, "http 2.0", 1.0, "POST", 200, None, [image], 1.0)
    assert list(shown) == ["level", "message", *request.to_json()]
    assert list(shown["images"][0]) == list(image.to_json())
