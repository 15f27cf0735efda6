"""experiments.explore: what it measures, what it concludes, and the page it ends in."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import explore
from experiments.records import Records
from training.dataset import DataError, scan


@pytest.fixture
def flawed(drawn, tmp_path):
    """The drawn flowers, with a broken file and a picture that is in two classes."""
    folder = tmp_path / "flowers"
    shutil.copytree(drawn, folder)
    (folder / "rose" / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    shutil.copy(next((folder / "daisy").glob("*.jpg")), folder / "tulip" / "copy.jpg")
    return folder


@pytest.fixture
def colourful(tmp_path):
    """Pictures of one colour each: bright reds of 60×40 pixels, and dark blues of 40×80."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "colourful"
    for name, colour, size in (("red", (200, 0, 0), (60, 40)), ("blue", (0, 0, 90), (40, 80))):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            shade = tuple(np.clip(np.array(colour) + rng.integers(0, 30), 0, 255).tolist())
            Image.new("RGB", size, shade).save(folder / name / f"{number}.png")
    return folder


def test_the_page_has_it_all_inside_and_figures_are_small(flawed, tmp_path, capsys):
    out = tmp_path / "out"
    assert explore.main(["--data", str(flawed), "--out", str(out), "--epochs", "5"]) == 0
    printed = capsys.readouterr().out
    assert "1 across classes" in printed
    assert f"Look at it: {out / 'index.html'}" in printed
    page = (out / "index.html").read_text(encoding="utf-8")
    images = re.findall(r'<img src="([^"]+)"', page)
    assert len(images) == 5
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|<script', page)
    assert "rose/broken.jpg: Expected" in page
    assert re.search(r"daisy/\S+ = tulip/copy.jpg", page)
    figures = list(out.glob("*.png"))
    assert len(figures) == 5
    assert max(figure.stat().st_size for figure in figures) < 200_000
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["classes"]["counts"]["tulip"] == 11
    assert numbers["hygiene"]["left_out"][0][0] == "rose/broken.jpg"
    assert len(numbers["hygiene"]["across_classes"]) == 1


@pytest.mark.parametrize(
    ("sizes", "ratio", "verdict"),
    [
        ((100, 100, 150), 1.5, "even (at most 1.5): no resampling"),
        ((100, 400), 4.0, "mildly uneven (at most 4): no resampling"),
        ((100, 100, 401), 4.01, "uneven (above 4): weigh or resample"),
    ],
)
def test_evenness_is_judged_by_the_largest_and_the_smallest_class(sizes, ratio, verdict):
    found = explore.evenness(dict(zip("abc", sizes, strict=False)))
    assert found["ratio"] == pytest.approx(ratio)
    assert found["verdict"].startswith(verdict)
    assert found["guess"] == max(sizes) / sum(sizes)


def test_the_entropy_of_equal_classes_is_one():
    assert explore.evenness({"a": 7, "b": 7, "c": 7})["entropy"] == pytest.approx(1)
    # -(0.2 ln 0.2 + 0.8 ln 0.8) / ln 2
    assert explore.evenness({"a": 20, "b": 80})["entropy"] == pytest.approx(0.7219, abs=1e-4)


def test_a_picture_is_measured_in_its_own_units():
    orange = explore.measure(Image.new("RGB", (30, 20), (255, 128, 0)))
    assert (orange["width"], orange["height"]) == (30, 20)
    assert orange["brightness"] == pytest.approx(0.299 * 255 + 0.587 * 128, abs=1)
    assert orange["contrast"] == 0
    assert orange["colour"] == [255, 128, 0]
    assert orange["saturation"] == 1
    # A twelfth of the colour circle from red to orange, and full chroma.
    assert orange["hues"][explore.HUES // 12] == pytest.approx(1, abs=0.01)
    assert sum(orange["hues"]) == pytest.approx(1, abs=0.01)
    assert sum(explore.measure(Image.new("RGB", (9, 9), (90, 90, 90)))["hues"]) == 0


def test_sizes_say_what_an_input_size_does_to_the_pictures():
    wide, tall = {"width": 600, "height": 300}, {"width": 200, "height": 400}
    found = explore.sizes([wide] * 39 + [tall])
    assert found["enlarged"] == 1 / 40
    assert found["largest"] == 300
    assert found["stretched"] == 2
    assert found["aspect_ratio"]["least"] == 0.5
    assert found["height"]["median"] == 300


def test_colour_alone_tells_classes_of_colours_apart_and_no_others(colourful, drawn, tmp_path):
    dataset = scan(colourful)
    measured = explore.measure_all(dataset, tmp_path / "rows.jsonl")
    found = explore.colour_alone(dataset, measured, epochs=20, seed=0)
    assert (found["accuracy"], found["n"]) == (1.0, 4)
    same = [measured[0]] * len(measured)
    assert explore.colour_alone(dataset, same, epochs=20, seed=0)["accuracy"] == 0.5
    by_class = explore.colours(dataset, measured)
    assert by_class["red"]["brightness"] > by_class["blue"]["brightness"]
    assert int(np.argmax(by_class["blue"]["hues"])) == explore.HUES * 2 // 3


def test_a_second_run_measures_only_what_is_missing(drawn, tmp_path, monkeypatch):
    dataset, path = scan(drawn), tmp_path / "rows.jsonl"
    whole = explore.measure_all(dataset, path)
    lines = path.read_bytes().split(b"\n")
    # As a kill leaves it: rows of which the last is half there.
    path.write_bytes(b"\n".join(lines[:31]) + b"\n" + lines[31][:50])
    looked = []
    measure = explore.measure
    monkeypatch.setattr(explore, "measure", lambda p: looked.append(p) or measure(p))
    assert explore.measure_all(dataset, path) == whole
    assert len(looked) == len(dataset.pictures) - 30
    assert len(path.read_bytes().splitlines()) == 1 + len(dataset.pictures)


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    Records(tmp_path / "rows.jsonl", {"epochs": 3, "seed": 1}).append({"a": 1})
    assert Records(tmp_path / "rows.jsonl", {"epochs": 3, "seed": 1}).rows == [{"a": 1}]
    with pytest.raises(DataError, match=r"\(epochs 3\)\. Received: epochs 4\. Give the same, or"):
        Records(tmp_path / "rows.jsonl", {"epochs": 4, "seed": 1})


def test_a_missing_folder_is_one_sentence(tmp_path, capsys):
    assert explore.main(["--data", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("experiments.explore: Expected")
