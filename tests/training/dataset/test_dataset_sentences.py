"""The sentences and reports about a data set, whole, and edge cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.dataset.__main__ import main
from training.dataset.checks import DatasetChecks, check_dataset, format_checks
from training.dataset.scan import Dataset, require, scan
from training.dataset.split import Split, split_dataset
from training.errors import DataError

GET_DATA = (
    "Run `make data` for the real flowers or `make sample` for drawn ones, "
    "or name a folder of your own with --data."
)


@pytest.fixture
def folder(tmp_path):
    """Two classes of five plain images, the fewest that may be."""
    for green, name in enumerate(("aster", "rose")):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (8, 8), (i, green, 0)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def refusal(*arguments):
    with pytest.raises(DataError) as caught:
        scan(*arguments)
    return str(caught.value)


def test_five_images_of_a_class_are_enough_and_four_are_not(folder):
    assert scan(str(folder)).counts == {"aster": 5, "rose": 5}
    (folder / "rose" / "0.png").unlink()
    assert refusal(folder) == (
        "Expected at least 5 images of each class. "
        f"Received: 4 in {folder / 'rose'}. Add some, or take the folder away."
    )


def test_a_folder_that_is_none_is_refused_with_where_to_get_one(tmp_path):
    start = f"Expected {tmp_path / 'a'} to hold one folder of images for each class. Received: "
    assert refusal(tmp_path / "a") == f"{start}no such folder. {GET_DATA}"
    (tmp_path / "a").write_text("")
    assert refusal(tmp_path / "a") == f"{start}a file. {GET_DATA}"


def test_fewer_than_two_classes_are_refused_with_where_to_get_more(tmp_path):
    start = f"Expected {tmp_path} to hold one folder of images for each of two or more classes. "
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path) == f"{start}Received: none. {GET_DATA}"
    (tmp_path / "rose").mkdir()
    assert refusal(tmp_path) == f"{start}Received: only rose. {GET_DATA}"


def test_a_list_with_a_wrong_line_is_refused_with_its_number(folder):
    listed = folder / "list.txt"
    assert refusal(folder, listed) == (
        "Expected a text file that lists images to exclude. Received: "
        f"{listed} (No such file or directory). Correct its name, or omit --exclude."
    )
    listed.write_text("# two\n\n0.png # blurred\n")
    assert refusal(folder, listed) == (
        f"Expected each line of {listed} to name a file of {folder} as class/file. "
        "Received: 0.png in line 3. Correct or remove the line."
    )


def test_a_list_may_have_windows_signature_and_names_that_are_no_text(folder):
    for name in ("5.png", "6.png"):
        (folder / "rose" / name).write_bytes((folder / "rose" / "0.png").read_bytes())
    odd = (folder / "rose" / "6.png").rename(folder / "rose" / "caf\udce9.png")
    listed = folder / "list.txt"
    listed.write_bytes(b"\xef\xbb\xbfrose/5.png\nrose/caf\xe9.png\n")
    assert scan(folder, listed).excluded == {"rose/5.png", f"rose/{odd.name}"}


def test_what_cannot_be_read_is_left_out_with_the_reason(folder, monkeypatch):
    read = Path.read_bytes

    def read_bytes(path):
        if path.name == "x.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    (folder / "rose" / "x.png").write_bytes(b"x")
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    dataset = scan(folder)
    assert dataset.skipped == (("rose/x.png", "cannot be read (Permission denied)"),)
    assert dataset.excluded == set()


def test_a_bitmap_by_windows_other_name_is_no_mismatch(folder):
    image = Image.new("RGB", (9, 9))
    image.save(folder / "rose" / "a.dib", "BMP")
    image.save(folder / "rose" / "a.BMP", "BMP")
    image.save(folder / "rose" / "b.bmp", "PNG")
    assert scan(folder).mismatched == (("rose/b.bmp", "named .bmp, is PNG"),)


def test_images_that_are_not_there_are_counted(folder):
    dataset = scan(folder)
    require(dataset, ["rose/0.png"])
    with pytest.raises(DataError) as caught:
        require(dataset, ["rose/0.png", "rose/gone.png", "rose/lost.png"])
    assert str(caught.value) == (
        f"Expected {folder} to hold the 3 images of the split. "
        "Received: a folder without 2 of them. Name the right one with --data."
    )


def test_a_class_of_copies_is_refused_with_their_number():
    digests = {"a/1": "x", "a/2": "x", **{f"b/{i}": str(i) for i in range(5)}}
    dataset = Dataset(None, ("a", "b"), tuple(digests), (), digests)
    with pytest.raises(DataError) as caught:
        split_dataset(dataset, 1, validation_fraction=0.2)
    assert str(caught.value) == (
        "Expected images of a for each of 2 sets, where copies, also those in other classes, "
        "stay together. Received: 2, of which 2 have copies. "
        "Add different ones, or exclude copies."
    )


# The split.


def test_a_record_has_these_fields_a_line_each(tmp_path):
    split = Split(3, ("a/1",), ("a/3",), ("a/ü",), validation_fraction=0.1, test_fraction=0.2)
    split.write(tmp_path / "split.json")
    text = (tmp_path / "split.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert '\n"a/1"\n' in text
    assert json.loads(text) == {
        "seed": 3,
        "train": ["a/1"],
        "validation": ["a/3"],
        "test": ["a/ü"],
        "validation_fraction": 0.1,
        "test_fraction": 0.2,
    }
    assert len(split.fingerprint) == 16


# The report.


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b'{"seed": 1, "train": ["a/1"', b"[]", b"null", b"3", b'{"seed": 1}', b"\xff"),
        b'{"seed": 1, "train": [], "validation": [], "test": [], "colour": 1}',
    ],
)
def test_a_damaged_record_is_refused(tmp_path, content):
    record = tmp_path / "a.split.json"
    record.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Split.read(record)
    assert str(caught.value) == (
        "Expected the record of a split, as train.py writes it. Received: something else "
        f"in {record}. Copy it again from the folder that it was trained in."
    )


def test_a_report_is_this_to_the_last_letter():
    checks = DatasetChecks(
        skipped=(("a/x", "excluded by list.txt"), ("b/y", "empty")),
        mismatched=(("a/1", "named .png, is JPEG"), ("a/2", "named .gif, is PNG")),
        exact=(("a/3", "a/4"),),
        near=(("a/5", "a/6", "a/7"),),
        across_classes=(("a/8", "b/8"),),
    )
    assert format_checks(checks, limit=1) == [
        "Skipped: 2; named as another type: 2; "
        "groups of copies: 1 exact, 1 near, 1 across classes.",
        "Skipped:",
        "  b/y: empty",
        "  ... and 1 more",
        "Named as another type:",
        "  a/1: named .png, is JPEG",
        "  ... and 1 more",
        "Across classes, so a label is probably wrong:",
        "  a/8 = b/8",
        "Exact copies:",
        "  a/3 = a/4",
        "Near copies:",
        "  a/5 ~ a/6 ~ a/7",
        "Nothing was deleted. To leave images out, list them in a file, one class/file a line, "
        "and pass --exclude FILE.",
    ]


def test_images_whose_bytes_are_not_known_are_no_copies():
    dataset = Dataset(None, ("a", "b"), ("a/1", "a/2", "b/1"), ())
    assert check_dataset(dataset) == DatasetChecks((), (), (), (), ())


def test_five_findings_of_each_kind_are_listed():
    five = tuple((f"a/{i}", "empty") for i in range(5))
    assert format_checks(DatasetChecks(five, (), (), (), ()))[2:-1] == [
        f"  a/{i}: empty" for i in range(5)
    ]
    six = (*five, ("a/5", "empty"))
    assert format_checks(DatasetChecks(six, (), (), (), ()))[-2] == "  ... and 1 more"


def test_the_command_line_prints_this(folder, capsys):
    for i in range(11):
        (folder / "rose" / f"{i:02d}.txt").write_text("")
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"10 usable images in {folder}: aster 5, rose 5.",
        "Skipped: 11; named as another type: 0; "
        "groups of copies: 0 exact, 0 near, 0 across classes.",
        "Skipped:",
        *(f"  rose/{i:02d}.txt: empty" for i in range(10)),
        "  ... and 1 more",
        "Nothing was deleted. To leave images out, list them in a file, one class/file a line, "
        "and pass --exclude FILE.",
    ]


def test_the_help_says_what_it_takes(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert text.startswith(
        "usage: python -m training.dataset [-h] [--exclude FILE] [--json] folder Show what "
    )
    assert "python -m training.dataset flowers/ --exclude doubtful.txt" in text
    assert "folder one sub-folder a class" in text
    assert "--exclude FILE images to leave out, one class/file a line" in text
    assert "--json all findings, as JSON" in text


def test_the_command_line_prints_all_findings_as_json(folder, capsys):
    (folder / "rose" / "x.txt").write_text("")
    assert main([str(folder), "--json"]) == 0
    assert capsys.readouterr().out == (
        '{\n "skipped": [\n  [\n   "rose/x.txt",\n   "empty"\n  ]\n ],\n "mismatched": [],\n'
        ' "exact": [],\n "near": [],\n "across_classes": []\n}\n'
    )


def test_a_folder_that_cannot_be_listed_ends_with_one_sentence(folder, capsys, monkeypatch):
    def scan(*_):
        raise PermissionError(13, "Permission denied", "a/b")

    monkeypatch.setattr("training.dataset.__main__.scan", scan)
    assert main([str(folder)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"dataset: Expected to read {folder} and print what is in it. "
        "Received: Permission denied (a/b). Free disk space or fix the permissions.\n"
    )


def test_labels_are_whole_numbers_even_of_nothing(folder):
    dataset = scan(folder)
    assert dataset.labels([]).dtype == dataset.labels(["rose/0.png"]).dtype == np.dtype(int)
