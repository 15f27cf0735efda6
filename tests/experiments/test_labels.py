"""experiments.labels: what predictions and an audit say about labels."""

import csv
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import labels
from experiments.predictions import Predictions
from training.dataset.scan import scan
from training.evaluation.metrics import percent, wilson


@pytest.fixture
def found(drawn, tmp_path):
    """Predictions of two networks, in three files, and an audit; returns a function that runs it.

    Of the images 0 to 4, the first is contradicted and audited, the next two contradicted only, the
    fourth audited only; all others are agreed with.
    """
    dataset = scan(drawn)
    names, classes = np.array(dataset.images), len(dataset.class_names)
    truth = np.eye(classes)[dataset.labels(dataset.images)]
    sure = 0.9 * truth + 0.02
    sure[[0, 1, 2]] = 0.02
    sure[0, 2], sure[1, 3], sure[2, 4] = 0.92, 0.92, 0.92
    unsure = sure.copy()
    unsure[1] = 0.2  # 0.56 on average
    unsure[5] = (0.1, 0.6, 0.1, 0.1, 0.1)  # its label is likelier on average
    folder = tmp_path / "predictions" / "fine-tune"
    folder.mkdir(parents=True)
    for name, rows, place in (
        ("fold_1", sure, slice(None, 20)),
        ("fold_2", sure, slice(20, None)),
        ("other", unsure, slice(None)),
    ):
        part = Predictions(tuple(names[place]), rows[place], dataset.class_names)
        part.write(folder / f"{name}.npz")
    (tmp_path / "audit.txt").write_text(f"{names[0]}  # a lamp\n{names[3]}\nrose/gone.jpg\n")

    def start(*words, predictions=folder.parent, data=drawn):
        out = tmp_path / "out"
        places = [predictions, "--data", data, "--out", out]
        return labels.main(list(map(str, (*places, *words)))), out, dataset

    return start


def test_what_contradicts_is_ranked_and_marked(found, tmp_path, capsys):
    code, _, dataset = found("--audit", tmp_path / "audit.txt")
    printed = capsys.readouterr().out
    assert code == 0
    assert "Predictions: 50 images in 3 files.\nAudit: 2 of the 3 images in" in printed
    names, images = dataset.class_names, dataset.images
    assert printed.index(f"| {images[0]} | ") < printed.index(f"| {images[2]} | ")
    assert (
        f"| {images[0]} | {names[0]} | {names[2]} | 0.920 | 0.020 | wrong |\n"
        f"| {images[2]} | {names[0]} | {names[4]} | 0.920 | 0.020 |  |\n"
        f"| {images[1]} | {names[0]} | {names[3]} | 0.560 | 0.110 |  |\n"
    ) in printed
    assert images[5] not in printed
    low, high = (percent(bound, 1) for bound in wilson(1, 2))
    assert "Of 50 images, the network contradicts 3 labels.\n" in printed
    assert f"calls wrong: it contradicts 1 of 2, 50.0 % ({low} to {high}).\n" in printed
    assert "All others: it contradicts 2 of 48, 4.2 % (" in printed


def test_of_one_file_one_label_and_one_audited_image_there_is_no_plural(found, tmp_path, capsys):
    audit = tmp_path / "one.txt"
    audit.write_text((tmp_path / "audit.txt").read_text().split("#")[0] + "\n")
    predictions = tmp_path / "predictions" / "fine-tune" / "other.npz"
    found("--audit", audit, predictions=predictions)
    printed = capsys.readouterr().out
    assert "Predictions: 50 images in 1 file.\nAudit: 1 of the 1 image in" in printed
    assert f"{audit} is among these." in printed
    [sentence] = labels.count(1, [SimpleNamespace(is_audited=False)], [])
    assert sentence == "Of 1 image, the network contradicts 1 label."


def test_all_of_it_is_written(found, tmp_path):
    _, out, dataset = found("--audit", tmp_path / "audit.txt")
    with open(out / labels.TABLE, newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == [*labels.HEAD, "network"]
    assert [row[0] for row in rows] == [dataset.images[i] for i in (0, 2, 1, 3)]
    assert [row[-2:] for row in rows] == [
        ["wrong", "contradicted"],
        ["", "contradicted"],
        ["", "contradicted"],
        ["wrong", "agreed"],
    ]
    listed = (out / labels.CANDIDATES).read_text()
    assert re.findall(r"^(\S+/\S+)  # looks like (\w+), ([\d.]+) confident$", listed, re.M) == [
        (dataset.images[2], dataset.class_names[4], "0.92"),
        (dataset.images[1], dataset.class_names[3], "0.56"),
    ]
    page = (out / labels.PAGE).read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.+)</h2>", page)
    assert titles == list(labels.TITLES.values())
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 3
    assert {path.name for path in out.glob("*.png")} == {
        "unlisted_1.png",
        "listed_1.png",
        "agreed_1.png",
    }


def test_the_page_has_as_many_images_as_asked_for_and_the_table_all(found, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(labels, "PER_FIGURE", 2)
    monkeypatch.setattr(labels.charts, "save", lambda figure, path: path.write_bytes(b"png"))
    monkeypatch.setattr(labels.charts, "labels", lambda folder, rows, title: drawn.append(rows))
    _, out, dataset = found()
    page = (out / labels.PAGE).read_text(encoding="utf-8")
    assert [list(rows) for rows in drawn] == [[1, 2], [3]]
    assert drawn[1][3][0] == dataset.images[1]
    assert "3 to 3 of 3" in page
    assert "wrong by the audit" not in page
    drawn.clear()
    found("--limit", 2)
    assert [list(rows) for rows in drawn] == [[1, 2]]
    assert len((out / labels.TABLE).read_text().splitlines()) == 4


def test_what_cannot_be_read_ends_with_a_sentence(found, drawn, tmp_path, capsys):
    code, *_ = found(predictions=tmp_path / "none")
    assert code == 1
    assert f"Received: {tmp_path / 'none'}, no such file." in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert found(predictions=empty)[0] == 1
    assert f"Received: {empty}, a folder without any. Run" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(drawn / "rose", other / "rose")
    assert found(data=other)[0] == 1
    assert "No such file or directory" in capsys.readouterr().err
