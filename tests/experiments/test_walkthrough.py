"""experiments/walkthrough.ipynb: kept without outputs, and it runs from top to bottom."""

import ast
import json
import os
import re
import shutil
import tomllib
from collections import Counter
from urllib.parse import unquote

import nbclient
import nbformat
import pytest
from conftest import ROOT
from test_links import anchors, links

from training.sample import LABELS
from training.sample.others import KINDS

NOTEBOOK = ROOT / "experiments" / "walkthrough.ipynb"
USED = ("models", "serving", "tools", "training", "convert_to_tflite.py", "train.py")
PLACES = ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")  # variables: folders of Jupyter
SMALL = {
    "WALKTHROUGH_IMAGES": "16",
    "WALKTHROUGH_EPOCHS": "3",
    # Of so few validation images, the smallest p-value is 1 / 17.
    "UNKNOWN_BELOW": "0.06",
    # The kernel knows nothing of a hosted notebook, nor of this machine's settings.
    "KAGGLE_KERNEL_RUN_TYPE": None,
    "MPLBACKEND": None,
}


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what of this project the notebook needs."""
    folder = tmp_path_factory.mktemp("walkthrough")
    for name in USED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(NOTEBOOK.parent, folder / "experiments")
    return folder


@pytest.fixture(scope="module")
def cells(notebook, folder):
    """The cells after a run with few images, {id: cell}; it started in the notebook's folder."""
    executed = nbformat.from_dict(notebook)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        for name in PLACES:
            patch.setenv(name, str(folder / name))
        place = {"metadata": {"path": str(folder / "experiments")}}
        nbclient.NotebookClient(executed, timeout=900, resources=place).execute()
    return {cell.id: cell for cell in executed.cells}


def printed(cell):
    """Return what `cell` printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def displayed(cell):
    """Return the values that `cell` displayed, in order."""
    return [
        ast.literal_eval(output.data["text/plain"])
        for output in cell.outputs
        if output.output_type != "stream" and set(output.data) == {"text/plain"}
    ]


def test_it_is_kept_without_outputs_and_without_traces_of_a_machine(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert [cell.id for cell in notebook.cells if cell.metadata] == []
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def test_cells_are_short_and_call_scripts_only_as_commands(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 30, cell.id
            assert not re.search(r"^\s*(?:import|from) (?:train|convert_to_tflite)\b", cell.source)


def test_links_lead_to_files_and_headings(notebook):
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    found = [link for text in texts for link in links(text)]
    assert found
    for link in found:
        name, _, anchor = unquote(link).partition("#")
        target = NOTEBOOK.parent / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_what_it_installs_elsewhere_are_packages_of_this_project(notebook):
    lines = [
        line
        for cell in notebook.cells
        for line in cell.source.splitlines()
        if line.strip().startswith("%pip install")
    ]
    words = [word for line in lines for word in line.split()[2:] if not word.startswith("-")]
    names = [re.match(r"[\w-]+", word.strip('"'))[0] for word in words]
    with open(ROOT / "Pipfile", "rb") as file:
        pipfile = tomllib.load(file)
    assert len(names) == 7
    assert set(names) <= {*pipfile["packages"], *pipfile["dev-packages"]}


def test_it_shows_a_figure_wherever_it_says_so(cells):
    figures = Counter(
        {
            name: sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
            for name, cell in cells.items()
        }
    )
    assert +figures == {
        "examples": 1,
        "classes": 1,
        "sizes": 1,
        "colours": 1,
        "compared": 2,
        "trained": 2,
        "mistakes": 1,
        "labels": 1,
        "grad-cam": 1,
        "unknown": 1,
        "details": 1,
    }


def test_it_finds_the_flaws_that_it_has_made(cells):
    checks = printed(cells["checks"])
    assert "rose/broken.jpg: Expected" in checks
    assert "daisy/daisy_0000.jpg = tulip/daisy_0000.jpg" in checks
    found = re.fullmatch(
        r"Suspected labels: (\d+)\.\nOf 9 images put into wrong folders above: (\d+)\.\n",
        printed(cells["labels"]),
    )
    suspected, misfiled = int(found[1]), int(found[2])
    assert misfiled >= 5
    assert suspected - misfiled <= 1


def test_what_is_trained_and_converted_is_right_far_more_often_than_chance(cells):
    assert "xception won: test accuracy" in printed(cells["compare"])
    accuracy = re.search(r"Validation accuracy: (\S+) on 16 images", printed(cells["train"]))
    assert float(accuracy[1]) >= 0.6
    assert "top-1 agreement: 100%" in printed(cells["convert"])
    assert re.search(r"Wrote: \S+\.tflite, \d", printed(cells["convert"]))


def test_the_handler_answers_events_and_http_requests(cells):
    [scores] = displayed(cells["event"])
    assert list(scores) == sorted(LABELS)
    assert max(scores, key=scores.get) == "tulip"
    event, response = displayed(cells["http"])
    assert event["requestContext"]["http"]["method"] == "POST"
    assert response["statusCode"] == 200
    assert next(iter(json.loads(response["body"]).items())) == ("tulip", scores["tulip"])
    assert '"event": "http 2.0"' in printed(cells["http"])


def test_it_knows_the_flowers_and_calls_the_others_unknown(cells):
    lines = printed(cells["answers"]).splitlines()
    verdicts = dict(re.fullmatch(r" *(\w+): (.+) \(.*\)", line).groups() for line in lines)
    assert set(verdicts) == {*LABELS, *KINDS}
    assert {name for name in LABELS if name in verdicts[name]} == set(LABELS)
    assert sum(verdicts[kind] == "unknown" for kind in KINDS) >= 6


def test_it_writes_only_into_its_own_folder_and_the_caches_of_training(cells, folder):
    assert set(os.listdir(folder)) - {*PLACES} == {*USED, "experiments", ".cache"}
    assert set(os.listdir(folder / ".cache")) == {"walkthrough", "activations", "checks.sqlite3"}
    kept = {path.name for path in NOTEBOOK.parent.iterdir()}
    assert {path.name for path in (folder / "experiments").iterdir()} - {"__pycache__"} <= kept
