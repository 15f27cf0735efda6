"""Why a class has too few images, and which folder was probably meant."""

import os
from pathlib import Path

import pytest
from PIL import Image

from training.dataset import scan as module
from training.dataset.__main__ import main
from training.dataset.explain import short_reason
from training.dataset.scan import TooFewImagesError, scan
from training.errors import DataError


def fill(folder, count=5, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.effect_noise((16, 16), 50 + i).save(folder / f"{i}{suffix}", "PNG")


@pytest.fixture
def data(tmp_path):
    """A class that is complete, beside which others are made."""
    fill(tmp_path / "data" / "aster")
    return tmp_path / "data"


def refusal(folder, *arguments):
    with pytest.raises(DataError) as caught:
        scan(folder, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder.parent}/", "")


def test_each_reason_is_counted_and_folders_are_named(data):
    fill(data / "rose", 2)
    whole = (data / "rose" / "0.png").read_bytes()
    for i in range(3):
        (data / "rose" / f"half{i}.png").write_bytes(whole[:60])
    (data / "rose" / "empty.jpg").touch()
    assert "Received: 2 in data/rose (3 × truncated" in refusal(data)
    assert "; 1 × empty). Add some, or take the folder away." in refusal(data)
    (data / "rose" / "photos").mkdir()
    (data / "rose" / "gone.jpg").symlink_to("nowhere.jpg")
    sentence = refusal(data)
    assert "Received: 2 in data/rose (1 folder: photos; 3 × truncated" in sentence
    assert "1 × link to nothing" in sentence
    assert sentence.endswith(
        "Put the images directly into the folder of their class: folders inside are not read."
    )


def test_an_empty_folder_hidden_files_and_excluded_ones_are_told_apart(data, tmp_path):
    (data / "rose").mkdir()
    assert "Received: 0 in data/rose (an empty folder). Add some" in refusal(data)
    (data / "rose" / "._0.jpg").write_bytes(b"x")
    assert "Received: 0 in data/rose (only hidden files). Add some" in refusal(data)
    fill(data / "rose")
    (tmp_path / "list").write_text("".join(f"rose/{i}.png\n" for i in range(5)))
    assert "(5 × excluded by " in refusal(data, tmp_path / "list")


def test_four_classes_are_counted_of_which_three_are_named(data):
    for name in "bcde":
        (data / name).mkdir()
    assert "0 in data/d (an empty folder), and too few in 1 more. Add" in refusal(data)


def test_a_folder_that_cannot_be_listed_is_one_of_the_reasons(data, monkeypatch):
    fill(data / "rose")
    list_files = module._list_files

    def refuse(folder):
        if folder.name == "rose":
            raise PermissionError(13, "Permission denied")
        return list_files(folder)

    monkeypatch.setattr(module, "_list_files", refuse)
    assert "0 in data/rose (1 × cannot be listed (Permission denied))" in refusal(data)


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("Expected an image (JPEG, PNG). Received: a HEIC image.", "HEIC image"),
        ("Expected an image. Received: an HTML page. Give another.", "HTML page"),
        ("Expected a whole image. Received: one that is truncated.", "truncated"),
        ("Expected at most 50 million pixels. Received: 9×9.", "more than 50 million pixels"),
        ("empty", "empty"),
    ],
)
def test_a_reason_is_shortened_to_what_was_received(reason, short):
    assert short_reason(reason) == short


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("a HEIC image", "Export HEIC images as JPEG."),
        ("an HTML page", "Download the images themselves, not the web pages about them."),
        ("a Git LFS pointer", "Fetch the files with `git lfs pull`."),
    ],
)
def test_what_to_do_depends_on_what_came(data, monkeypatch, content, advice):
    fill(data / "rose")
    check = module._check_file
    unusable = module._Checked(f"Expected an image. Received: {content}.")
    monkeypatch.setattr(
        module,
        "_check_file",
        lambda path, cache: unusable if "rose" in path.parts else check(path, cache),
    )
    assert f"(5 × {content.split(' ', 1)[1]}). {advice}" in refusal(data)


@pytest.mark.parametrize(
    ("made", "named", "meant"),
    [
        # one level too high
        (("mine/rose", "mine/tulip"), ".", "./mine"),
        (("mine/rose", "mine/tulip", "docs/pdf"), ".", "./mine"),
        (("a/b/mine/rose", "a/b/mine/tulip"), ".", "./a/b/mine"),
        (("train/rose", "train/tulip", "test/rose", "test/tulip"), ".", "./train"),
        (("Val/rose", "Val/tulip", "Test/rose", "Test/tulip"), ".", "./Test"),
        (("d/train/rose", "d/train/tulip", "d/val/rose", "d/val/tulip"), ".", "./d/train"),
        # one level too deep
        (("mine/rose", "mine/tulip"), "mine/rose", "mine"),
    ],
)
def test_the_folder_that_was_probably_meant_is_named(tmp_path, monkeypatch, made, named, meant):
    for folder in made:
        fill(tmp_path / folder, suffix=".pdf" if "pdf" in folder else "")
        if "pdf" in folder:
            for file in (tmp_path / folder).iterdir():
                file.write_bytes(b"%PDF-1.7")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        scan(named)
    meant = str(Path(meant))
    assert f"ou probably mean the folder {meant}." in str(caught.value)
    assert len(scan(meant).class_names) == 2


def test_within_one_folder_the_whole_path_of_its_parent_is_named(tmp_path, monkeypatch):
    for name in ("rose", "tulip"):
        fill(tmp_path / name)
    monkeypatch.chdir(tmp_path / "rose")
    with pytest.raises(DataError, match=f"mean the folder {tmp_path}."):
        scan(".")


def test_images_outside_of_class_folders_are_seen(tmp_path):
    fill(tmp_path / "pile")
    assert refusal(tmp_path / "pile").endswith(
        "Received: none. It holds images itself: put those of each class into a folder of its own."
    )


def test_folders_inside_of_classes_are_not_taken_for_a_data_set(tmp_path):
    for name in ("rose/small", "rose/large", "tulip/small", "tulip/large"):
        fill(tmp_path / "data" / name)
    sentence = refusal(tmp_path / "data")
    assert "0 in data/rose (2 folders: large, small)" in sentence
    assert "probably" not in sentence


def test_a_link_to_a_folder_is_a_class_and_a_loop_ends(data, tmp_path):
    fill(tmp_path / "elsewhere")
    (data / "rose").symlink_to(tmp_path / "elsewhere")
    assert scan(data).counts == {"aster": 5, "rose": 5}
    (data / "tulip").symlink_to(data)
    assert "0 in data/tulip (3 folders: aster, rose, tulip)" in refusal(data)


def test_the_command_for_looking_shows_everything_and_then_refuses(data, capsys):
    fill(data / "rose", 4)
    fill(data / "tulip", 5)
    (data / "tulip" / "note.txt").write_text("hello")
    assert main([str(data)]) == 1
    out, err = capsys.readouterr()
    assert "14 usable images" in out
    assert "aster 5, rose 4, tulip 5" in out
    assert "tulip/note.txt: Expected an image" in out
    assert err.startswith("dataset: Expected at least 5 images of each class. Received: 4 in ")
    assert main([str(data), "--json"]) == 1
    assert capsys.readouterr().out.startswith("{")


def test_what_is_usable_comes_with_the_refusal(data):
    fill(data / "rose", 4)
    with pytest.raises(TooFewImagesError) as caught:
        scan(data)
    assert caught.value.dataset.counts == {"aster": 5, "rose": 4}


def test_a_file_larger_than_memory_is_judged_by_its_first_bytes(data, monkeypatch):
    fill(data / "rose", 6)
    video, giant = data / "rose" / "6.mp4", data / "rose" / "7.png"
    for path, head in ((video, b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"), (giant, b"")):
        path.write_bytes(head or (data / "rose" / "0.png").read_bytes())
        os.truncate(path, 2 * 10**12)  # sparse
    monkeypatch.setattr(module, "SMALL_BYTES", 100)  # so that the others are large as well
    dataset = scan(data)
    assert dataset.counts == {"aster": 5, "rose": 6}
    reasons = dict(dataset.skipped)
    assert reasons["rose/6.mp4"].startswith("Expected an image")
    assert reasons["rose/7.png"] == "Expected at most 400 MB. Received: more."


def test_nobody_is_told_to_send_an_image(data):
    fill(data / "rose")
    (data / "rose" / "note.txt").write_text("hello")
    [(_, reason)] = scan(data).skipped
    assert reason.startswith("Expected an image")
    assert "Send" not in reason
