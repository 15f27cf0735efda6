"""training.dataset.scan: checked, counted, split."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageOps

from training.dataset import duplicates
from training.dataset.__main__ import main
from training.dataset.checks import check_dataset
from training.dataset.duplicates import find_duplicates
from training.dataset.scan import Dataset, class_of, require, scan
from training.dataset.split import Split, split_dataset
from training.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Two classes of plain images: 10 and 25."""
    for name, count, green in (("rose", 10, 0), ("aster", 25, 9)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8), (i, green, 0)).save(tmp_path / name / f"{i:02d}.png")
    return tmp_path


def test_classes_are_the_folders_sorted(folder):
    (folder / "README.md").write_text("not a class")
    (folder / ".cache").mkdir()
    dataset = scan(folder)
    assert dataset.class_names == ("aster", "rose")
    assert dataset.counts == {"aster": 25, "rose": 10}
    assert dataset.skipped == ()
    assert dataset.labels(["rose/01.png", "aster/00.png"]).tolist() == [1, 0]


def test_images_are_sorted_in_whatever_order_the_disk_has_them(folder, monkeypatch):
    expected = scan(folder)
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(iterdir(path), reverse=True))
    assert scan(folder) == expected
    assert list(expected.images) == sorted(expected.images)


def test_a_file_that_cannot_be_read_is_left_out(folder, monkeypatch):
    read_bytes = Path.read_bytes

    def read(path):
        if path.name == "03.png" and path.parent.name == "rose":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert scan(folder).skipped == (("rose/03.png", "cannot be read (Permission denied)"),)


def test_what_is_no_image_is_named_and_left_alone(folder):
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

    reasons = dict(scan(folder).skipped)

    assert set(reasons) == set(bad) | {"rose/folder"}
    assert reasons["rose/empty.jpg"] == "empty"
    assert reasons["rose/folder"] == "not a file"
    assert "Expected" in reasons["rose/half.png"]
    assert "Expected an image" in reasons["aster/notes.txt"]
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
    if "images of each class" not in str(caught.value):
        assert "make data" in str(caught.value)


def test_the_split_is_stratified_and_complete(folder):
    dataset = scan(folder)
    split = split_dataset(dataset, 1, validation_fraction=0.2)
    assert sorted(split.train + split.evaluated) == sorted(dataset.images)
    counts = [[class_of(p) for p in split.evaluated].count(n) for n in dataset.class_names]
    assert counts == [5, 2]


def test_the_split_follows_its_seed(folder):
    dataset = scan(folder)
    assert split_dataset(dataset, 1, validation_fraction=0.2) == split_dataset(
        dataset, 1, validation_fraction=0.2
    )
    assert split_dataset(dataset, 1, validation_fraction=0.2) != split_dataset(
        dataset, 2, validation_fraction=0.2
    )
    # not the first fifth of each folder, as the original's
    first_fifth = {p for n in ("aster", "rose") for p in dataset.of_class(n)[: 25 // 5]}
    assert set(split_dataset(dataset, 1, validation_fraction=0.2).evaluated) - first_fifth


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_each_class_is_on_both_sides(folder, fraction):
    split = split_dataset(scan(folder), 1, validation_fraction=fraction)
    for side in (split.train, split.evaluated):
        assert {class_of(p) for p in side} == {"aster", "rose"}
    assert min(len(split.train), len(split.validation)) == 2  # one of each class, and no more
    sizes = f"{len(split.train)} train, {len(split.validation)} validation images"
    assert split.describe() == sizes


def test_a_split_survives_its_record(folder, tmp_path):
    split = split_dataset(scan(folder), 1, validation_fraction=0.2)
    split.write(tmp_path / "split.json")
    assert Split.read(tmp_path / "split.json") == split
    assert Split.read(tmp_path / "split.json").fingerprint == split.fingerprint
    other = split_dataset(scan(folder), 2, validation_fraction=0.2)
    assert other.fingerprint != split.fingerprint


def test_labels_are_indices_of_class_names(folder):
    dataset = scan(folder)
    labels = dataset.labels(dataset.images)
    assert np.bincount(labels).tolist() == [25, 10]


OLD_RECORDS = {  # as version 1.0 wrote them, and what they mean
    "without a test set": (
        {"seed": 1, "fraction": 0.2, "train": ["a/1"], "validation": ["a/2"]},
        Split(1, ("a/1",), ("a/2",), (), 0.2, 0.0),
    ),
    "with one": (
        {
            "seed": 1,
            "fraction": 0.2,
            "train": ["a/1"],
            "validation": ["a/2"],
            "selection": ["a/3"],
            "selection_fraction": 0.125,
        },
        Split(1, ("a/1",), ("a/3",), ("a/2",), 0.125, 0.2),
    ),
}


@pytest.mark.parametrize("kind", OLD_RECORDS)
def test_the_record_of_version_1_is_read(tmp_path, kind):
    record, split = OLD_RECORDS[kind]
    (tmp_path / "split.json").write_text(json.dumps(record))
    assert Split.read(tmp_path / "split.json") == split


def test_the_record_of_the_shipped_checkpoint_is_read():
    split = Split.read(ROOT / "models" / "xception_fin_15_0.966.split.json")
    assert split.sizes == {"train": 2422, "validation": 328, "test": 669}
    assert (split.validation_fraction, split.test_fraction) == (0.125, 0.2)
    assert split.evaluated == split.test
    assert not {*split.train} & {*split.validation, *split.test}


def test_an_image_is_known_by_its_bytes_and_its_look(drawn):
    dataset = scan(drawn)
    assert set(dataset.digests) == set(dataset.hashes) == set(dataset.images)
    name = dataset.images[0]
    assert dataset.digests[name] == hashlib.sha256((drawn / name).read_bytes()).hexdigest()
    assert len(set(dataset.hashes.values())) == len(dataset.images)
    assert dataset.mismatched == ()
    assert find_duplicates(dataset) == ()


def test_plain_images_look_like_nothing(folder):
    shutil.copy(folder / "rose" / "00.png", folder / "aster" / "rose.png")
    dataset = scan(folder)
    assert dataset.hashes == {}
    assert find_duplicates(dataset) == (("aster/rose.png", "rose/00.png"),)  # of the same bytes


def test_a_type_that_the_name_does_not_say_is_reported_and_used(folder):
    noise = Image.effect_noise((16, 16), 50)
    for name, type_ in {
        "jpeg.png": "JPEG",
        "png.txt": "PNG",
        "right.JPG": "JPEG",
        "right.jfif": "JPEG",
        "gif.webp": "GIF",
        "windows.dib": "BMP",
        "bare": "PNG",
        "bare.2": "PNG",
    }.items():
        noise.save(folder / "rose" / name, type_)
    phone = Image.new("RGB", (9, 9))
    phone.save(folder / "rose" / "phone.jpg", "MPO", save_all=True, append_images=[phone])
    dataset = scan(folder)
    assert dict(dataset.mismatched) == {
        "rose/jpeg.png": "named .png, is JPEG",
        "rose/png.txt": "named .txt, is PNG",
        "rose/gif.webp": "named .webp, is GIF",
    }
    assert dataset.skipped == ()
    assert dataset.counts["rose"] == 19


def test_what_a_file_lists_is_left_out(folder):
    (folder / "rose" / "a #1.png").write_bytes((folder / "rose" / "00.png").read_bytes())
    (folder / "rose" / "b#2.png").write_bytes((folder / "rose" / "00.png").read_bytes())
    listed = folder / "doubtful.txt"
    listed.write_text(
        "# all doubtful\n\n  # more\nrose/03.png\r\nrose/04.png  # looks like aster, 0.98 sure\n"
        "rose/a #1.png # a number\nrose/b#2.png\n"
    )
    dataset = scan(folder, listed)
    assert dict(dataset.skipped) == dict.fromkeys(
        ["rose/03.png", "rose/04.png", "rose/a #1.png", "rose/b#2.png"], f"excluded by {listed}"
    )
    assert "rose/03.png" not in dataset.images
    assert set(dataset.digests) == set(dataset.images)
    assert (folder / "rose" / "03.png").exists()


def test_a_list_that_windows_has_written_and_a_name_that_is_no_text_are_read(folder):
    odd = "caf\udce9.png"  # a byte of Latin-1
    shutil.copy(folder / "rose" / "00.png", folder / "rose" / odd)
    listed = folder / "list.txt"
    listed.write_bytes(b"\xef\xbb\xbfrose/03.png\r\nrose/caf\xe9.png\r\n")
    assert [file for file, _ in scan(folder, listed).skipped] == ["rose/03.png", f"rose/{odd}"]


def test_the_wrong_labels_of_the_kaggle_set_can_be_excluded(folder):
    listed = ROOT / "experiments" / "wrong_labels.txt"
    lines = [line for line in listed.read_text().splitlines() if line and not line.startswith("#")]
    assert all("  # " in line for line in lines), "each says what is to be seen"
    names = [line.split("  # ")[0] for line in lines]
    assert names == sorted(set(names))
    shutil.rmtree(folder / "aster")
    for name in ("daisy", "dandelion", "sunflower", "tulip"):
        shutil.copytree(folder / "rose", folder / name)
    for name in names:
        shutil.copy(folder / "rose" / "00.png", folder / name)
    dataset = scan(folder, listed)
    assert dict(dataset.skipped) == dict.fromkeys(names, f"excluded by {listed}")
    assert set(dataset.counts.values()) == {10}


def test_what_an_audit_lists_stays_and_is_marked(folder, tmp_path):
    whole = scan(folder)
    assert whole.wrong_labels == frozenset()
    one, other, *_ = whole.images
    listed = tmp_path / "audit.txt"
    listed.write_text(f"# by hand\n{one}  # a lamp\n./{other}\n")
    dataset = scan(folder, audit=listed)
    assert dataset.wrong_labels == {one, other}
    assert (dataset.images, dataset.skipped) == (whole.images, whole.skipped)
    both = scan(folder, listed, listed)
    assert both.wrong_labels == both.excluded == {one, other}
    listed.write_text("rose/none.png\n")
    with pytest.raises(DataError, match=r"Received: rose/none.png in line 1. Correct or remove"):
        scan(folder, audit=listed)
    with pytest.raises(DataError, match="whose labels are wrong.*or omit --audit."):
        scan(folder, audit=tmp_path / "no.txt")


def test_an_unreadable_image_may_be_excluded(folder):
    (folder / "rose" / "broken.png").write_bytes(b"x")
    (folder / "list.txt").write_text("rose/broken.png")
    assert dict(scan(folder, folder / "list.txt").skipped)["rose/broken.png"].startswith("excluded")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rose/01.png\nrose/gone.png  # blurred\n", "Received: rose/gone.png in line 2. Correct"),
        ("01.png", "to name a file of .* as class/file. Received: 01.png in line 1"),
        ("aster/00.png#1", "Received: aster/00.png#1 in line 1"),
        (None, r"a text file .* Received: .*list.txt \(No such file or directory\). Correct"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused(folder, text, sentence):
    if text is not None:
        (folder / "list.txt").write_text(text)
    with pytest.raises(DataError, match=sentence) as caught:
        scan(folder, folder / "list.txt")
    assert "\n" not in str(caught.value)


def test_excluding_too_many_is_refused(folder):
    (folder / "list.txt").write_text("\n".join(f"rose/{i:02d}.png" for i in range(6)))
    with pytest.raises(DataError, match="at least 5 images of each class. Received: 4 in"):
        scan(folder, folder / "list.txt")


@pytest.fixture
def copies(drawn, tmp_path):
    """The drawn flowers, with copies: as they are, anew, mirrored, and across classes."""
    folder = shutil.copytree(drawn, tmp_path / "flowers")
    rose, tulip = folder / "rose" / "rose_0000.jpg", folder / "tulip" / "tulip_0000.jpg"
    shutil.copy(rose, folder / "rose" / "same.jpg")
    with Image.open(rose) as image:
        small = image.resize((image.width * 2 // 3, image.height * 2 // 3))
        small.save(folder / "rose" / "smaller.jpg", quality=60)
    with Image.open(tulip) as image:
        ImageOps.mirror(image).save(folder / "tulip" / "mirrored.jpg", quality=80)
        image.save(folder / "daisy" / "tulip.webp", quality=70)
    return folder


GROUPS = (
    ("daisy/tulip.webp", "tulip/mirrored.jpg", "tulip/tulip_0000.jpg"),
    ("rose/rose_0000.jpg", "rose/same.jpg", "rose/smaller.jpg"),
)


def test_copies_are_found_also_across_classes(copies):
    assert find_duplicates(scan(copies)) == GROUPS


def test_copies_are_looked_for_once_for_the_checks_and_the_split(copies, monkeypatch):
    counted, dataset = [], scan(copies)
    monkeypatch.setattr(
        duplicates, "near_groups", lambda hashes: counted.append(1) or np.arange(len(hashes))
    )
    check_dataset(dataset)
    split_dataset(dataset, 1, validation_fraction=0.2)
    assert len(counted) == 1


def test_copies_are_never_in_two_parts(copies):
    dataset = scan(copies)
    for seed in range(40):
        split = split_dataset(dataset, seed, validation_fraction=0.2, test_fraction=0.2)
        sides = [set(split.train), set(split.evaluated), set(split.validation)]
        assert sorted(p for side in sides for p in side) == sorted(dataset.images)
        for group in GROUPS:
            assert sum(bool(side & set(group)) for side in sides) == 1
        for side in sides:
            assert {class_of(image) for image in side} == set(dataset.class_names)


def of(**groups):
    """Return a data set whose classes have groups of copies of these sizes."""
    digests = {
        f"{name}/{group}_{i}": f"{name} {group}"
        for name, sizes in groups.items()
        for group, size in enumerate(sizes)
        for i in range(size)
    }
    return Dataset(None, tuple(sorted(groups)), tuple(sorted(digests)), (), digests)


@pytest.mark.parametrize(("own", "counts"), [([1] * 10, [2, 4]), ([10], [2, 2])])
def test_copies_in_another_class_count_towards_its_share(own, counts):
    """Each of `a` has a copy in `b`, which also has groups of its `own`."""
    digests = {f"{name}/{i}": f"{i}" for name in "ab" for i in range(10)}
    digests |= of(b=own).digests
    dataset = Dataset(None, ("a", "b"), tuple(sorted(digests)), (), digests)
    for seed in range(10):
        evaluated = split_dataset(dataset, seed, validation_fraction=0.2).evaluated
        assert [sum(class_of(p) == name for p in evaluated) for name in "ab"] == counts


def test_without_copies_the_split_is_the_plain_draw():
    dataset = of(a=[1] * 50, b=[1] * 31)
    rng = np.random.default_rng(7)
    plain = {p for n, k in (("a", 10), ("b", 6)) for p in rng.permutation(dataset.of_class(n))[:k]}
    assert set(split_dataset(dataset, 7, validation_fraction=0.2).evaluated) == plain


def test_without_copies_the_validation_set_is_the_plain_draw_of_the_rest():
    dataset = of(a=[1] * 50, b=[1] * 31)
    split = split_dataset(dataset, 7, validation_fraction=0.25, test_fraction=0.2)
    rest = set(dataset.images) - set(split.evaluated)
    rng = np.random.default_rng([7, 1])
    plain = {
        image
        for name, count in (("a", 10), ("b", 6))
        for image in rng.permutation([p for p in dataset.of_class(name) if p in rest])[:count]
    }
    assert set(split.validation) == plain


def test_what_is_excluded_later_is_not_measured_on_but_was_trained_on():
    split = Split(
        1,
        ("a/1", "a/2"),
        ("a/5", "a/6"),
        ("a/3", "a/4"),
        validation_fraction=0.5,
        test_fraction=0.2,
    )
    without = split.without({"a/1", "a/3", "a/6"})
    assert without == Split(
        1, ("a/1", "a/2"), ("a/5",), ("a/4",), validation_fraction=0.5, test_fraction=0.2
    )
    assert without.sizes == {"train": 2, "validation": 1, "test": 1}


def test_images_of_another_folder_are_refused():
    dataset = of(a=[1] * 3, b=[1] * 3)
    require(dataset, dataset.images[1:])
    with pytest.raises(DataError, match="the 3 images of the split. Received: .* 2 of them"):
        require(dataset, ["c/1", "a/0_0", "c/2"])


def test_the_shares_hold_where_copies_fit():
    dataset = of(a=[3, 2, 2, *[1] * 43], b=[4, *[1] * 16])
    for seed in range(20):
        split = split_dataset(dataset, seed, validation_fraction=0.1, test_fraction=0.2)
        for side, counts in ((split.evaluated, [10, 4]), (split.validation, [4, 2])):
            assert [sum(class_of(p) == name for p in side) for name in "ab"] == counts


def test_the_share_that_validates_leaves_the_test_set_unchanged():
    dataset = of(a=[1] * 40, b=[2] * 20)
    without, with_ = (
        split_dataset(dataset, 3, validation_fraction=0.25),
        split_dataset(dataset, 3, validation_fraction=0.4, test_fraction=0.25),
    )
    assert with_.evaluated == without.evaluated
    assert set(with_.train) | set(with_.validation) == set(without.train)
    assert len(with_.validation) == 24
    assert with_.validation_fraction == 0.4
    assert split_dataset(dataset, 3, validation_fraction=0.4, test_fraction=0.25) == with_
    assert (
        len(
            {
                without.fingerprint,
                with_.fingerprint,
                split_dataset(dataset, 4, validation_fraction=0.25).fingerprint,
            }
        )
        == 3
    )


def test_a_test_set_survives_its_record(tmp_path):
    split = split_dataset(
        of(a=[1] * 10, b=[1] * 10), 1, validation_fraction=0.25, test_fraction=0.2
    )
    split.write(tmp_path / "split.json")
    assert Split.read(tmp_path / "split.json") == split


def test_groups_larger_than_the_share_still_leave_one_on_each_side():
    for seed in range(10):
        split = split_dataset(of(a=[6, 4], b=[1] * 10), seed, validation_fraction=0.1)
        assert len([p for p in split.evaluated if class_of(p) == "a"]) == 4


@pytest.mark.parametrize(("test_fraction", "sizes"), [(0.0, [10]), (0.2, [5, 5])])
def test_a_class_of_copies_cannot_be_split(test_fraction, sizes):
    with pytest.raises(DataError, match=f"of {len(sizes) + 1} sets.* 10, of which 10 have"):
        split_dataset(
            of(a=sizes, b=[1] * 10), 1, validation_fraction=0.2, test_fraction=test_fraction
        )


def test_the_command_line_reports_and_deletes_nothing(copies, capsys):
    (copies / "rose" / "broken.jpg").write_bytes(b"x")
    before = sorted(copies.rglob("*"))
    assert main([str(copies)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"54 usable images in {copies}: daisy 11, dandelion 10, rose 12,")
    assert "rose/broken.jpg: Expected an image" in out
    assert "daisy/tulip.webp = tulip/mirrored.jpg = tulip/tulip_0000.jpg" in out
    assert "Nothing was deleted." in out
    assert sorted(copies.rglob("*")) == before


def test_the_command_line_lists_ten_findings_of_a_kind(folder, capsys):
    for number in range(12):
        (folder / "rose" / f"broken{number:02}.jpg").write_bytes(b"")
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Skipped:")
    assert lines[start + 10 : start + 12] == ["  rose/broken09.jpg: empty", "  ... and 2 more"]


def test_the_command_line_excludes_and_speaks_json(copies, capsys, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(GROUPS[0][:2]))
    assert main([str(copies), "--exclude", str(listed), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [file for file, _ in record["skipped"]] == list(GROUPS[0][:2])
    assert record["exact"] == [list(GROUPS[1][:2])]
    assert record["near"] == [list(GROUPS[1])]
    assert record["across_classes"] == []


def test_the_command_line_ends_with_one_sentence(tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path / "none")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dataset: Expected")
    assert captured.err.count("\n") == 1

    def unreadable(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("training.dataset.__main__.scan", unreadable)
    assert main([str(tmp_path)]) == 1
    assert "Permission denied" in capsys.readouterr().err

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.dataset.__main__.scan", interrupted)
    assert main([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "\ndataset: Stopped.\n"
