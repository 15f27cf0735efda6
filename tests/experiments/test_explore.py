"""experiments.explore: what it measures, what it concludes, and the page it ends in."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import charts, command, compare, explore
from experiments.page import Section, write_page
from experiments.records import Records
from serving.errors import ModelError
from training.dataset.checks import DatasetChecks
from training.dataset.scan import scan
from training.errors import CacheError, DataError
from training.evaluation import figures
from training.files import claim_folder


@pytest.fixture
def flawed(drawn, tmp_path):
    """The drawn flowers, with a broken file and an image that is in two classes."""
    folder = tmp_path / "flowers"
    shutil.copytree(drawn, folder)
    (folder / "rose" / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    shutil.copy(next((folder / "daisy").glob("*.jpg")), folder / "tulip" / "copy.jpg")
    return folder


@pytest.fixture
def colourful(tmp_path):
    """Images of one colour each: bright reds of 60×40 pixels, and dark blues of 40×80."""
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
    assert f"Wrote {out / 'index.html'}." in printed
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
    assert numbers["checks"]["skipped"][0][0] == "rose/broken.jpg"
    assert len(numbers["checks"]["across_classes"]) == 1


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


def test_an_image_is_measured_in_its_own_units():
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


def test_sizes_say_what_an_input_size_does_to_the_images():
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
    split = command.split_images(dataset, 0)
    found = explore.colour_alone(dataset, measured, split, epochs=20, seed=0)
    assert (found["accuracy"], found["n"]) == (1.0, 4)
    same = [measured[0]] * len(measured)
    assert explore.colour_alone(dataset, same, split, epochs=20, seed=0)["accuracy"] == 0.5
    by_class = explore.colours(dataset, measured)
    assert by_class["red"]["brightness"] > by_class["blue"]["brightness"]
    assert int(np.argmax(by_class["blue"]["hues"])) == explore.HUES * 2 // 3


def test_colour_alone_is_not_fitted_to_what_it_is_judged_on(colourful, tmp_path):
    dataset = scan(colourful)
    rng = np.random.default_rng(2)
    # Nothing to learn, but enough numbers to know twenty images by heart.
    noise = [
        {
            **{key: rng.normal() for key in ("brightness", "contrast", "saturation")},
            "colour": rng.normal(size=3).tolist(),
            "hues": rng.uniform(size=explore.HUES).tolist(),
        }
        for _ in dataset.images
    ]
    splits = [command.split_images(dataset, seed) for seed in range(10)]
    found = [explore.colour_alone(dataset, noise, s, 50, s.seed)["accuracy"] for s in splits]
    assert 0.25 < np.mean(found) < 0.75


def test_one_odd_image_does_not_speak_for_its_class(colourful, tmp_path):
    dataset = scan(colourful)
    measured = explore.measure_all(dataset, tmp_path / "rows.jsonl")
    odd = dict(measured[0], brightness=10_000, contrast=10_000, saturation=10_000)
    found = explore.colours(dataset, [odd, *measured[1:]])[dataset.class_names[0]]
    assert found["brightness"] < 255
    assert found["saturation"] <= 1
    assert found["contrast"] < 255


def test_the_example_of_a_class_is_of_that_class(colourful, tmp_path, monkeypatch):
    drawn = []
    examples = charts.examples
    monkeypatch.setattr(
        charts, "examples", lambda folder, names: drawn.extend(names) or examples(folder, names)
    )
    monkeypatch.setattr(charts, "save", lambda figure, path: path.write_bytes(b""))
    flags = ["--data", str(colourful), "--out", str(tmp_path), "--epochs", "1"]
    for seed in range(3):
        assert explore.main([*flags, "--seed", str(seed)]) == 0
    assert [name.split("/")[0] for name in drawn] == ["blue", "red"] * 3
    assert len(set(drawn)) > 2  # drawn at random


def test_several_examples_of_a_class_are_different_images_and_classes_take_turns(colourful):
    names = explore.choose_examples(scan(colourful), seed=0, of_each=3)
    assert [name.split("/")[0] for name in names] == ["blue", "red"] * 3
    assert len(set(names)) == 6


def test_of_large_images_only_what_is_shown_is_kept(colourful, monkeypatch):
    galleries = []
    gallery = charts.gallery
    monkeypatch.setattr(
        charts,
        "gallery",
        lambda title, tiles, columns: galleries.append(tiles) or gallery(title, tiles),
    )
    Image.new("RGB", (3000, 400), (200, 0, 0)).save(colourful / "red" / "0.png")
    names = ["blue/0.png", "red/0.png"]
    charts.examples(colourful, names)
    charts.labels(colourful, {1: ("red/0.png", "red", "blue", 0.9)}, "labels")
    charts.copies(colourful, DatasetChecks((), (), (), (tuple(names),), (tuple(names),)), 6)
    assert len(galleries) == 3
    assert {tile.image.size for tiles in galleries for tile in tiles} == {(224, 224)}


def test_of_many_classes_the_figures_show_the_first(colourful, tmp_path, monkeypatch):
    assert (1.6 + 0.55 * charts.MAX_CLASSES) * figures.DPI < 2**16, "what Matplotlib draws"
    monkeypatch.setattr(charts, "MAX_CLASSES", 1)
    drawn = {}
    monkeypatch.setattr(charts, "save", lambda figure, path: drawn.update({path.name: figure}))
    monkeypatch.setattr(explore, "write_page", lambda *_: None)
    assert explore.main(["--data", str(colourful), "--out", str(tmp_path), "--epochs", "1"]) == 0
    for name in ("classes.png", "colours.png"):
        labels = [label.get_text() for label in drawn[name].axes[0].get_yticklabels()]
        assert labels == ["blue"]
    assert "the first 1 of 2 classes" in drawn["colours.png"].get_supxlabel()
    assert "the first 1 of 2 classes" in drawn["classes.png"].axes[0].get_xlabel()
    assert "10 (50 %)" in [text.get_text() for text in drawn["classes.png"].axes[0].texts]
    assert len(drawn["examples.png"].axes) == 1


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
    assert len(looked) == len(dataset.images) - 30
    assert len(path.read_bytes().splitlines()) == 1 + len(dataset.images)


@pytest.mark.parametrize("program", [compare, explore])
def test_a_second_process_may_not_write_into_the_same_folder(
    program, drawn, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(program, program.__name__.split(".")[1], lambda _: pytest.fail("it runs"))
    out = tmp_path / "out"
    with claim_folder(out):
        assert program.main(["--data", str(drawn), "--out", str(out)]) == 1
    assert f"Expected no other run to write to {out}." in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--out", "--cache"])
def test_nothing_is_written_among_the_images(drawn, tmp_path, monkeypatch, capsys, flag):
    monkeypatch.setattr(compare, "compare", lambda _: pytest.fail("it runs"))
    flags = {"--data": drawn, "--out": tmp_path / "out", flag: drawn / "mine"}
    assert compare.main([str(word) for pair in flags.items() for word in pair]) == 1
    assert f"Expected {flag} outside of {drawn}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (drawn / "mine").exists()


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    Records(tmp_path / "rows.jsonl", {"epochs": 3, "seed": 1}).append({"a": 1})
    assert Records(tmp_path / "rows.jsonl", {"epochs": 3, "seed": 1}).rows == [{"a": 1}]
    with pytest.raises(DataError, match=r"\(epochs 3\)\. Received: epochs 4\. Give the same, or"):
        Records(tmp_path / "rows.jsonl", {"epochs": 4, "seed": 1})
    # A setting that rows of an older version know nothing of.
    with pytest.raises(DataError, match=r"\(views None\)\. Received: views 4\."):
        Records(tmp_path / "rows.jsonl", {"epochs": 3, "seed": 1, "views": 4})


def test_settings_come_back_from_a_file_as_they_were_given(tmp_path):
    settings = {"head": (512, 128), "nothing": None}
    Records(tmp_path / "rows.jsonl", settings).append({"a": 1})
    assert Records(tmp_path / "rows.jsonl", settings).rows == [{"a": 1}]


def test_names_of_classes_and_files_are_no_html(tmp_path):
    name = '<img src=x onerror="alert(1)"> & co'
    section = Section(name, [name], head=(name,), rows=[[name]], findings=[name])
    write_page(tmp_path / "index.html", name, name, [section])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp; co") == 8


def test_the_figure_of_a_search_shows_the_best_so_far_and_who_was_best():
    class Rates:
        def __init__(self, rate):
            self.learning_rate, self.momentum = rate, 0.9

    # In time: 0.5, 0.4, 0.6, 0.3; the diverged one last.
    losses = {3: 0.3, 1: 0.4, 0: 0.5, 2: 0.6, 4: 16.0}
    found = [
        (Rates(10.0**-number), {"trial": number, "val_loss": loss})
        for number, loss in losses.items()
    ]
    figure = charts.trials(found, Rates(0.01))
    left, right = figure.axes[:2]
    [best, original] = left.get_lines()
    assert (best.get_label(), best.get_xdata()[0]) == ("best", 1e-3)
    assert (original.get_label(), original.get_xdata()[0]) == ("the original's", 0.01)
    each, so_far = right.get_lines()
    assert each.get_ydata().tolist() == [0.5, 0.4, 0.6, 0.3, 16.0]
    assert so_far.get_ydata().tolist() == [0.5, 0.4, 0.4, 0.3, 0.3]


def test_the_figures_of_a_comparison_mark_what_was_kept_and_how_sure_it_is():
    history = {key: np.array([0.4, 0.3, 0.2]) for key in ("accuracy", "loss", "val_accuracy")}
    history["val_loss"] = np.array([1.0, 0.7, 0.9])
    left, right = charts.curves({"deeper": history}, {"deeper": 2}).axes
    for axes, value in ((left, 0.3), (right, 0.7)):
        [mark] = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (2, value)
    row = {
        "name": "deeper",
        "inference_seconds": 0.004,
        "accuracy": 0.9,
        "accuracy_interval": [0.7, 0.95],
    }
    [axes] = charts.accuracy_by_time([row]).axes
    [bar] = axes.containers
    [[low, high]] = bar.lines[2][0].get_segments()
    assert (*low, *high) == pytest.approx((4, 0.7, 4, 0.95))


@pytest.mark.parametrize("flag", ["--epochs=0", "--epochs=-1", "--epochs=half"])
def test_epochs_are_a_number_above_zero(flag, capsys):
    with pytest.raises(SystemExit):
        explore.parse_arguments([flag])
    assert "argument --epochs" in capsys.readouterr().err


def test_what_stops_a_command_is_one_sentence_and_an_exit_code(tmp_path, capsys):
    options = explore.parse_arguments(["--out", str(tmp_path / "out")])

    def stop_with(error):
        def job(_):
            raise error

        return command.run(job, "explore", options)

    assert stop_with(KeyboardInterrupt()) == 130
    assert "experiments.explore: Stopped. Rerun to continue" in capsys.readouterr().err
    for error, sentence in (
        (
            OSError(28, "No space left on device"),
            "No space left on device. Free disk space or fix the permissions",
        ),
        (DataError("Expected this. Received: that."), "Expected this. Received: that."),
        (CacheError("Expected room. Received: none."), "Expected room. Received: none."),
        (ModelError("Expected a model. Received: none."), "Expected a model. Received: none."),
    ):
        assert stop_with(error) == 1
        printed = capsys.readouterr().err
        assert sentence in printed
        assert "Traceback" not in printed
    with pytest.raises(ZeroDivisionError):  # a defect is not the person's fault
        stop_with(ZeroDivisionError())


def test_a_missing_folder_is_one_sentence(tmp_path, capsys):
    assert explore.main(["--data", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("experiments.explore: Expected")
