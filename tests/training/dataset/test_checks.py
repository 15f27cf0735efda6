"""training.dataset.checks: what is wrong with a folder of images."""

import json
from dataclasses import asdict

import pytest

from training.dataset.checks import DatasetChecks, check_dataset, format_checks, load_dataset
from training.dataset.scan import Dataset

CLEAN = DatasetChecks((), (), (), (), ())


@pytest.fixture
def dataset():
    """Two files of the same bytes in two classes, one like them, and two alone."""
    look = 0x0123456789ABCDEF0123456789ABCDEF
    return Dataset(
        None,
        ("rose", "tulip"),
        ("rose/a", "rose/b", "rose/c", "tulip/a", "tulip/d"),
        (("rose/x", "empty"),),
        {"rose/a": "1", "rose/b": "2", "rose/c": "3", "tulip/a": "1", "tulip/d": "4"},
        {"rose/a": look, "rose/b": look ^ 0b111, "rose/c": look ^ (2**70 - 1), "tulip/a": look},
        (("rose/c", "named .png, is JPEG"),),
    )


def test_each_finding_has_its_place(dataset):
    group = ("rose/a", "rose/b", "tulip/a")
    assert check_dataset(dataset) == DatasetChecks(
        skipped=(("rose/x", "empty"),),
        mismatched=(("rose/c", "named .png, is JPEG"),),
        exact=(("rose/a", "tulip/a"),),
        near=(group,),
        across_classes=(group,),
    )


def test_the_same_bytes_alone_are_not_near_as_well():
    dataset = Dataset(
        None, ("a", "b"), ("a/1", "a/2", "b/1"), (), {"a/1": "x", "a/2": "x", "b/1": "y"}
    )
    assert check_dataset(dataset) == DatasetChecks((), (), (("a/1", "a/2"),), (), ())


def test_the_drawn_flowers_are_clean(drawn):
    from training.dataset.scan import scan

    assert check_dataset(scan(drawn)) == CLEAN


def test_the_report_counts_then_lists(dataset):
    report = format_checks(check_dataset(dataset))
    assert report[0] == (
        "Skipped: 1; named as another type: 1; groups of copies: 1 exact, 1 near, 1 across classes."
    )
    assert "  rose/x: empty" in report
    assert "  rose/c: named .png, is JPEG" in report
    assert report[report.index("Exact copies:") + 1] == "  rose/a = tulip/a"
    assert report[report.index("Near copies:") + 1] == "  rose/a ~ rose/b ~ tulip/a"
    assert "Nothing was deleted" in report[-1]
    assert "--exclude FILE" in report[-1]


def test_a_clean_folder_takes_one_line():
    (line,) = format_checks(CLEAN)
    assert line.endswith("groups of copies: 0 exact, 0 near, 0 across classes.")


def test_a_long_list_is_cut_and_what_is_excluded_does_not_hide_what_is_broken():
    excluded = tuple((f"a/{i}", "excluded by list.txt") for i in range(9))
    report = format_checks(DatasetChecks((*excluded, ("b/1", "empty")), (), (), (), ()), limit=2)
    assert report[1:5] == [
        "Skipped:",
        "  b/1: empty",
        "  a/0: excluded by list.txt",
        "  ... and 8 more",
    ]


def test_a_list_of_just_that_length_is_not_cut():
    report = format_checks(
        DatasetChecks((("a/1", "empty"), ("b/1", "empty")), (), (), (), ()), limit=2
    )
    assert report[1:-1] == ["Skipped:", "  a/1: empty", "  b/1: empty"]


def test_a_name_that_is_no_text_can_be_printed():
    report = format_checks(DatasetChecks((("rose/caf\udce9.jpg", "empty"),), (), (), (), ()))
    assert "\n".join(report).encode("utf-8")
    assert "  rose/caf\\udce9.jpg: empty" in report


def test_all_of_it_is_json(dataset):
    record = json.loads(json.dumps(asdict(check_dataset(dataset))))
    assert record["near"] == [["rose/a", "rose/b", "tulip/a"]]
    assert record["skipped"] == [["rose/x", "empty"]]


def test_one_wrong_label_is_wrong_and_two_are(drawn, tmp_path, capsys):
    images = load_dataset(drawn).images
    for count, sentence in (
        (1, "1 of these labels is wrong."),
        (2, "2 of these labels are wrong."),
    ):
        (tmp_path / "audit.txt").write_text("\n".join(images[:count]))
        load_dataset(drawn, audit=tmp_path / "audit.txt")
        assert f"  Audit: {sentence} The images stay in the data." in capsys.readouterr().out
