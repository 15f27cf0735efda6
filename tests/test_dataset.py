"""training.dataset: checked, counted, split."""

import shutil

import numpy as np
import pytest
from PIL import Image

from training.dataset import DataError, Split, class_of, scan, split


@pytest.fixture
def folder(tmp_path):
    """Two classes of plain pictures: 10 and 25."""
    for name, count in (("rose", 10), ("aster", 25)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name / f"{i:02d}.png")
    return tmp_path


def test_classes_are_the_folders_sorted(folder):
    (folder / "README.md").write_text("not a class")
    (folder / ".cache").mkdir()
    dataset = scan(folder)
    assert dataset.class_names == ("aster", "rose")
    assert dataset.counts == {"aster": 25, "rose": 10}
    assert dataset.left_out == ()
    assert dataset.labels(["rose/01.png", "aster/00.png"]).tolist() == [1, 0]


def test_what_is_no_picture_is_named_and_left_alone(folder):
    whole = (folder / "rose" / "00.png").read_bytes()
    bad = {
        "rose/empty.jpg": b"",
        "rose/half.png": whole[: len(whole) // 2],
        "aster/notes.txt": b"hello",
    }
    for file, content in bad.items():
        (folder / file).write_bytes(content)
    (folder / "rose" / "folder").mkdir()
    (folder / "rose" / ".DS_Store").write_bytes(b"x")

    reasons = dict(scan(folder).left_out)

    assert set(reasons) == set(bad) | {"rose/folder"}
    assert reasons["rose/empty.jpg"] == "empty"
    assert reasons["rose/folder"] == "not a file"
    assert "Expected" in reasons["rose/half.png"]
    assert "Expected a picture" in reasons["aster/notes.txt"]
    assert all((folder / file).read_bytes() == content for file, content in bad.items())


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda f: shutil.rmtree(f), "Received: no such folder"),
        (lambda f: [shutil.rmtree(f / n) for n in ("rose", "aster")], "Received: none"),
        (lambda f: shutil.rmtree(f / "rose"), "Received: only aster"),
        (lambda f: [p.unlink() for p in sorted((f / "rose").iterdir())[4:]], "Received: 4 in"),
        (lambda f: [p.write_bytes(b"x") for p in (f / "rose").iterdir()], "Received: 0 in"),
    ],
)
def test_an_unusable_folder_ends_with_one_sentence(folder, prepare, sentence):
    prepare(folder)
    with pytest.raises(DataError, match=sentence) as caught:
        scan(folder)
    assert "\n" not in str(caught.value)
    if "pictures of each class" not in str(caught.value):
        assert "make data" in str(caught.value)


def test_the_split_is_stratified_and_complete(folder):
    dataset = scan(folder)
    parts = split(dataset, 0.2, seed=1)
    assert sorted(parts.train + parts.validation) == sorted(dataset.pictures)
    counts = [[class_of(p) for p in parts.validation].count(n) for n in dataset.class_names]
    assert counts == [5, 2]


def test_the_split_follows_its_seed(folder):
    dataset = scan(folder)
    assert split(dataset, 0.2, seed=1) == split(dataset, 0.2, seed=1)
    assert split(dataset, 0.2, seed=1) != split(dataset, 0.2, seed=2)
    # not the first fifth of each folder, as the original's
    first_fifth = {p for n in ("aster", "rose") for p in dataset.of_class(n)[: 25 // 5]}
    assert set(split(dataset, 0.2, seed=1).validation) - first_fifth


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_each_class_is_on_both_sides(folder, fraction):
    parts = split(scan(folder), fraction, seed=1)
    for side in (parts.train, parts.validation):
        assert {class_of(p) for p in side} == {"aster", "rose"}


def test_a_split_survives_its_record(folder, tmp_path):
    parts = split(scan(folder), 0.2, seed=1)
    parts.write(tmp_path / "split.json")
    assert Split.read(tmp_path / "split.json") == parts
    assert Split.read(tmp_path / "split.json").fingerprint == parts.fingerprint
    other = split(scan(folder), 0.2, seed=2)
    assert other.fingerprint != parts.fingerprint


def test_labels_are_indices_of_class_names(folder):
    dataset = scan(folder)
    labels = dataset.labels(dataset.pictures)
    assert np.bincount(labels).tolist() == [25, 10]
