"""experiments.unknown: which images a file does not know, as the command prints it."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import unknown
from experiments.unknown_report import by_chance
from training.dataset.split import Split

NAMES = ("red", "green", "blue")


@pytest.fixture
def folders(telling, tmp_path):
    """Images that `telling` knows, a folder a class; strange ones; and the record of a split."""
    images = {"train": [], "validation": [], "test": []}
    for number, pixels in enumerate(telling.images):
        name = NAMES[pixels.mean(axis=(0, 1)).argmax()]
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
        images[list(images)[number % 3]].append(f"{name}/{number}.png")
    Split(0, *map(tuple, images.values())).write(tmp_path / "telling.split.json")
    (tmp_path / "others" / "deep").mkdir(parents=True)
    for number in range(6):
        stripes = np.zeros((32, 48, 3), np.uint8)
        stripes[::2] = 200 + 10 * number
        Image.fromarray(stripes).save(tmp_path / "others" / "deep" / f"{number}.png")
    return tmp_path


@pytest.fixture
def run(telling, folders, capsys):
    """Measure a file of `telling`; returns the exit code, the tables' rows, and all printed."""

    def run(*flags, model=telling.tflite):
        words = [model, "--data", folders / "data", "--split", folders / "telling.split.json"]
        code = unknown.main([*map(str, words), *map(str, flags)])
        printed = capsys.readouterr()
        rows = [re.split(r" \| ", row[2:-2]) for row in printed.out.splitlines() if row[:1] == "|"]
        return code, {row[0]: row[1:] for row in rows}, printed.out + printed.err

    return run


def test_strange_images_and_false_alarms_are_counted(run, telling, folders):
    code, rows, printed = run("--others", folders / "others")
    assert code == 0
    count, auroc, _, *called = rows[str(folders / "others")]
    assert (count, called) == ("6", ["100 %", "100 %"])
    assert float(auroc) > 0.99
    found, interval, expected, count = rows["5 %"]
    assert count == "83"
    assert 0 <= float(found[:-2]) < 12
    assert re.fullmatch(r"[\d.]+ % to [\d.]+ %", interval)
    assert re.fullmatch(r"[\d.]+ % to [\d.]+ %", expected)
    size = int(re.search(r"details take ([\d,]+) of", printed)[1].replace(",", ""))
    assert 500 < size < telling.tflite.stat().st_size


def test_excluded_images_count_as_others_if_they_did_not_train(run, folders):
    listed = folders / "wrong.txt"
    split = Split.read(folders / "telling.split.json")
    listed.write_text("\n".join([*split.train[:3], *split.validation[:2], *split.test[:5]]))
    _, rows, _ = run("--exclude", listed)
    assert rows["excluded"][0] == "7"
    assert rows["5 %"][-1] == "78"


def test_another_file_is_compared_on_the_same_images(run, telling, folders):
    flags = ("--others", folders / "others", "--compare-runtime", "openvino", "--compare")
    _, rows, printed = run(*flags, telling.int8)
    assert "Compared with telling.int8.tflite on openvino" in printed
    assert rows["test images"][0] == "83"
    assert 0 < float(rows["test images"][2]) < 0.5
    _, rows, _ = run("--compare", telling.tflite)
    assert rows["test images"] == ["83", "0.000", "0.000", "0.000", "0"]


def test_models_of_different_input_sizes_see_each_image_at_their_own(folders):
    def model(height, width):
        def predict(inputs):
            assert inputs.shape == (1, height, width, 3)
            return np.array([0.4, 0.6]), np.full((2, 2, 5), float(height))

        classifier = SimpleNamespace(input_size=(height, width), predict=predict)
        return unknown.Model(classifier, SimpleNamespace(distance=lambda features: features[0]))

    paths = [str(folders / "others" / "deep" / f"{number}.png") for number in range(2)]
    told = unknown.tell([model(32, 48), model(71, 71), model(32, 48)], paths)
    assert list(told) == paths
    assert told[paths[1]].tolist() == [[32, 0.6], [71, 0.6], [32, 0.6]]


def test_a_missing_record_of_the_split_is_asked_for(run, telling, folders):
    code, _, printed = run("--split", folders / "none.json")
    assert code == 1
    assert (
        f"Expected the record of the split that {telling.tflite.name} was trained on. Received: "
        f"{folders / 'none.json'}, which does not exist. Name it with --split."
    ) in printed


def test_a_folder_named_as_a_set_is_a_set_of_its_own(run, folders, monkeypatch):
    monkeypatch.chdir(folders)
    for name in ("excluded", "test images"):
        (folders / "others").rename(folders / name)
        listed = folders / "wrong.txt"
        listed.write_text("\n".join(Split.read(folders / "telling.split.json").test[:5]))
        _, rows, _ = run("--exclude", listed, "--others", name)
        assert (rows["excluded"][0], rows[f"{name}/"][0], rows["5 %"][-1]) == ("5", "6", "78")
        (folders / name).rename(folders / "others")


def test_a_limit_takes_images_evenly(run, folders):
    _, rows, _ = run("--others", folders / "others", "--limit", "4")
    assert rows[str(folders / "others")][0] == "4"
    assert rows["5 %"][-1] == "4"
    assert unknown.take_evenly("abcdef", 3) == ["a", "c", "e"]


def test_what_is_no_image_is_skipped_and_said(run, folders):
    (folders / "others" / "notes.txt").write_text("no image")
    code, rows, printed = run("--others", folders / "others")
    assert (code, rows[str(folders / "others")][0]) == (0, "6")
    assert "Skipped: notes.txt: Expected" in printed


def test_folders_without_images_and_files_that_do_not_tell_are_refused(run, small_tflite, folders):
    (folders / "empty").mkdir()
    (folders / "empty" / "notes.txt").write_text("no image")
    code, _, printed = run("--others", folders / "empty")
    assert code == 1
    assert "none of which can be read" in printed
    code, _, printed = run(model=small_tflite)
    assert code == 1
    assert "Expected a model that tells which images are unknown" in printed
    Split(0, (), ()).write(folders / "telling.split.json")
    code, _, printed = run()
    assert code == 1
    assert "Expected the record of a split with test images" in printed


def test_the_record_of_the_split_is_found_beside_a_file_of_any_kind(telling, folders, capsys):
    for suffix in (".tflite", ".int8.tflite"):
        model = folders / f"telling{suffix}"
        model.write_bytes(telling.tflite.read_bytes())
        assert unknown.main([str(model), "--data", str(folders / "data"), "--limit", "3"]) == 0
        assert "The details take" in capsys.readouterr().out


def test_chance_allows_what_drawing_at_random_gives():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        calibrating, new = np.sort(rng.random(99)), rng.random(200)
        beyond = 99 - np.searchsorted(calibrating, new)
        found.append(((beyond + 1) / 100 < 0.05).mean())
    low, high = by_chance(0.05, 99, 200)
    assert np.percentile(found, [2.5, 97.5]) == pytest.approx([low, high], abs=0.011)
    assert by_chance(0.02, 49, 200) == (0, 0)
