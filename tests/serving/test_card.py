"""serving.card: what a model file says of its accuracy, and files that say something else."""

import json
import zipfile

import pytest

from serving.card import CARD_FILE, MAX_BYTES, MAX_SET, MAX_TEXT, Card, read_card

CARD = Card(0.966, (0.949, 0.977), 669, "test", "On images that training did not use.")
RECORD = {
    "accuracy": 0.966,
    "interval": [0.949, 0.977],
    "images": 669,
    "set": "test",
    "text": "On images that training did not use.",
}


def with_card(path, content, name=CARD_FILE, compression=zipfile.ZIP_STORED):
    """Write a file with `content` as its card, behind what a runtime would read."""
    path.write_bytes(b"\x1c\x00\x00\x00TFL3")
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr(name, content)
    return path


def test_a_card_is_read_as_it_was_written(tmp_path):
    assert CARD.to_json() == RECORD
    assert json.loads(CARD.to_bytes()) == RECORD
    assert read_card(with_card(tmp_path / "a.tflite", CARD.to_bytes())) == CARD


def test_a_file_of_another_version_may_say_more(tmp_path):
    content = json.dumps(RECORD | {"recipe": "fine-tune", "date": None})
    assert read_card(with_card(tmp_path / "a.tflite", content)) == CARD


@pytest.mark.parametrize(
    "changed",
    [
        {"accuracy": 1.2},
        {"accuracy": -0.1, "interval": [-0.2, 0.9]},
        {"accuracy": float("nan")},
        {"accuracy": "0.966"},
        {"accuracy": True, "interval": [0, 1]},
        {"accuracy": None},
        {"accuracy": 0.9},
        {"interval": [0.977, 0.949]},
        {"interval": [0.949]},
        {"interval": [0.949, 0.97, 0.977]},
        {"interval": [0.949, float("inf")]},
        {"interval": [0.949, "1"]},
        {"interval": 0.9},
        {"images": 0},
        {"images": -1},
        {"images": 1.5},
        {"images": True},
        {"images": "669"},
        {"set": "t" * (MAX_SET + 1)},
        {"set": 1},
        {"set": "te\nst"},
        {"text": "t" * (MAX_TEXT + 1)},
        {"text": ["a"]},
        {"text": "a\x1b[2J"},
        {"text": "\ud800"},
    ],
    ids=str,
)
def test_a_card_with_another_value_is_none(tmp_path, changed):
    content = json.dumps(RECORD | changed)
    assert read_card(with_card(tmp_path / "a.tflite", content)) is None


@pytest.mark.parametrize("missing", RECORD)
def test_a_card_without_one_of_its_fields_is_none(tmp_path, missing):
    content = json.dumps({name: value for name, value in RECORD.items() if name != missing})
    assert read_card(with_card(tmp_path / "a.tflite", content)) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'"accuracy"', b"{}"]
)
def test_something_else_is_none(tmp_path, content):
    assert read_card(with_card(tmp_path / "a.tflite", content)) is None


def test_no_more_than_a_card_is_unpacked(tmp_path):
    small = CARD.to_bytes()
    for size, expected in ((MAX_BYTES, CARD), (MAX_BYTES + 1, None), (20_000_000, None)):
        content = small + b" " * (size - len(small))
        path = with_card(tmp_path / "a.tflite", content, compression=zipfile.ZIP_DEFLATED)
        assert read_card(path) == expected


def test_a_file_without_a_card_or_without_anything_is_none(tmp_path):
    assert read_card(with_card(tmp_path / "a.tflite", CARD.to_bytes(), name="other.json")) is None
    assert read_card(tmp_path / "none.tflite") is None
    (tmp_path / "b.tflite").write_bytes(b"no archive")
    assert read_card(tmp_path / "b.tflite") is None
    damaged = bytearray(with_card(tmp_path / "c.tflite", CARD.to_bytes()).read_bytes())
    damaged[damaged.index(b'"accuracy"')] ^= 1
    (tmp_path / "c.tflite").write_bytes(damaged)
    assert read_card(tmp_path / "c.tflite") is None


@pytest.mark.parametrize("bounds", [(0.966, 0.966), (0, 1), (0.0, 0.966)])
def test_an_interval_may_touch_the_accuracy_and_its_limits(bounds):
    assert Card(0.966, bounds, 1, "", "").interval == bounds
