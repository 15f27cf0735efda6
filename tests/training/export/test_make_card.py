"""The card of a .tflite file, from the report beside its checkpoint."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import convert_to_tflite
from serving.card import CARD_FILE, Card, read_card
from serving.classifier import Classifier
from training.export.card import make_card

METRICS = {
    "checkpoint": "a.h5",
    "set": "test",
    "n": 669,
    "accuracy": 0.96562,
    "accuracy_interval": [0.94894, 0.97698],
    "run": {},
}


def report(checkpoint, **changed):
    """Write a report beside `checkpoint`; return it."""
    folder = checkpoint.with_suffix("")
    folder.mkdir(exist_ok=True)
    metrics = {name: v for name, v in (METRICS | changed).items() if v is not None}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return checkpoint


def test_the_card_has_the_accuracy_of_the_report(tmp_path):
    assert make_card(report(tmp_path / "a_0.966.h5"), 0.96562) == Card(
        0.9656,
        (0.9489, 0.977),
        669,
        "test",
        "Measured before conversion, on images that training did not use.",
    )


def test_validation_images_are_not_called_new(tmp_path):
    card = make_card(report(tmp_path / "a.h5", set="validation"), 0.96562)
    assert card.set == "validation"
    assert card.text == (
        "Measured before conversion, on images that also picked the epoch, so new images may do "
        "slightly worse."
    )


def test_what_was_excluded_is_said(tmp_path):
    known = {"accuracy": 0.95369, "interval": [0.93, 0.97], "n": 691, "excluded": 22}
    card = make_card(report(tmp_path / "a.h5", run={"as_labelled": known}), 0.96562)
    assert card.text.endswith(" use. With the 22 excluded images, it is 95.4 %.")
    run = {"as_labelled": known | {"excluded": 1}}
    card = make_card(report(tmp_path / "b.h5", run=run), 0.96562)
    assert card.text.endswith(" use. With the 1 excluded image, it is 95.4 %.")


@pytest.mark.parametrize(
    "changed",
    [
        {"accuracy": 0.9},
        {"accuracy": None},
        {"accuracy": "0.96562"},
        {"accuracy_interval": None},
        {"accuracy_interval": [0.9]},
        {"accuracy_interval": [0.1, 0.2]},
        {"n": None},
        {"n": "669"},
        {"set": None},
        {"set": "other"},
        {"run": None},
        {"run": {"as_labelled": {"accuracy": 0.9}}},
    ],
    ids=str,
)
def test_a_report_of_another_model_or_form_is_none(tmp_path, changed):
    assert make_card(report(tmp_path / "a.h5", **changed), 0.96562) is None


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"accuracy": 1}'])
def test_a_report_that_is_none(tmp_path, content):
    checkpoint = report(tmp_path / "a.h5")
    (tmp_path / "a" / "metrics.json").write_text(content)
    assert make_card(checkpoint, 0.96562) is None
    assert make_card(tmp_path / "none.h5", 0.96562) is None


def test_a_plain_checkpoint_says_no_accuracy(tmp_path):
    assert make_card(report(tmp_path / "a.h5"), float("nan")) is None


def test_conversion_writes_the_card(tmp_path, monkeypatch, small_checkpoint):
    monkeypatch.chdir(tmp_path)
    checkpoint = Path(shutil.copy(small_checkpoint, tmp_path))
    report(checkpoint, accuracy=0.75, accuracy_interval=[0.6, 0.9])
    assert convert_to_tflite.main([str(checkpoint)]) == 0
    path = checkpoint.with_suffix(".tflite")
    assert Classifier(path).card == read_card(path) == make_card(checkpoint, 0.75) is not None


def test_without_a_report_there_is_no_card(small_tflite):
    with zipfile.ZipFile(small_tflite) as archive:
        assert CARD_FILE not in archive.namelist()
    assert Classifier(small_tflite).card is None


def test_the_checkpoint_that_ships_has_a_card():
    from training.checkpoint import read_metadata

    [checkpoint] = (ROOT / "models").glob("*.h5")
    card = make_card(checkpoint, read_metadata(checkpoint).val_accuracy)
    assert (card.images, card.set) == (669, "test")
    assert f"_{card.accuracy:.3f}" in checkpoint.name
