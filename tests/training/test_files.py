"""training.files: folders that are replaced as a whole."""

import pytest

from training.files import LineLog, replace_folder


def test_a_replaced_folder_keeps_what_a_person_added(tmp_path):
    folder = tmp_path / "report"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "deep.txt").write_text("mine")
    (folder / "mine.txt").write_text("mine")
    (folder / "own.txt").write_text("old")
    with replace_folder(folder, {"own.txt"}) as new:
        (new / "other.txt").write_text("new")
        assert (folder / "own.txt").read_text() == "old"
    found = {path.name: path.read_text() for path in folder.rglob("*.txt")}
    assert found == {"deep.txt": "mine", "mine.txt": "mine", "other.txt": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_that_is_not_there_yet_is_made(tmp_path):
    with replace_folder(tmp_path / "deep" / "report", ()) as new:
        (new / "a.txt").write_text("new")
    assert (tmp_path / "deep" / "report" / "a.txt").read_text() == "new"


def test_where_filling_fails_the_folder_stays_as_it_was(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "own.txt").write_text("old")

    def fill_half():
        with replace_folder(tmp_path / "report", ()) as new:
            (new / "own.txt").write_text("half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fill_half()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report" / "own.txt").read_text() == "old"


def test_of_a_folder_killed_between_two_renames_the_old_one_comes_back(tmp_path):
    (tmp_path / ".report.report_old").mkdir()
    (tmp_path / ".report.report_old" / "mine.txt").write_text("mine")
    (tmp_path / ".other.report_new").mkdir()
    with replace_folder(tmp_path / "report", ()):
        assert (tmp_path / "report" / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report" / "mine.txt").read_text() == "mine"


def test_a_log_that_was_never_read_begins_anew(tmp_path):
    log = LineLog(tmp_path / "log.txt")
    log.append(["one"])
    log.append(["two", "three"])
    with open(tmp_path / "log.txt", "a") as file:
        file.write("half")
    again = LineLog(tmp_path / "log.txt")
    assert again.read() == ["one", "two", "three"]
    again.append(["four"])
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree\nfour\n"
