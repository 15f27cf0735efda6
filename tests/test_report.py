"""training.report: what a person looks at after a run."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import training.report
from serving.image import open_picture
from serving.preprocess import preprocess
from training.backend import keras
from training.calibration import apply_temperature, bake_temperature
from training.dataset import Dataset, scan
from training.figures import MAX_BYTES, Tile, gallery, overlay, read_history, save
from training.metrics import evaluate
from training.model import BASE_LAYER
from training.report import CARD, FIGURES, METRICS, write_report

SIDE = 32
TEMPERATURE = 1.5
ALWAYS = [name for name in FIGURES if name != "suspects.png"]
CARD_OF_RUN = {
    "command": "python train.py --epochs 3",
    "recipe": {"learning_rate": 0.01, "head": (512, 128)},
    "seed": 69420,
    "split": {"train": 40, "selection": 0, "validation": 10},
    "picked_on": "the best of its epochs on the validation pictures",
    "weights": "ImageNet",
    "seconds": 600,
    "hygiene": ["two near duplicates left out"],
    "git": "abc123",
}


def tiny_model(classes):
    """The shape of a real one: a convolution named as the base, pooling, dense softmax."""
    keras.utils.set_random_seed(3)
    inside = keras.Input((SIDE, SIDE, 3))
    base = keras.Model(
        inside, keras.layers.Conv2D(8, 4, strides=4, activation="relu")(inside), name=BASE_LAYER
    )
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.GlobalAveragePooling2D()(base(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(x))


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """What `write_report` is given, about all drawn flowers."""
    dataset = scan(drawn)
    model = tiny_model(len(dataset.class_names))
    inputs = [
        preprocess(open_picture(dataset.folder / picture), (SIDE, SIDE))
        for picture in dataset.pictures
    ]
    uncalibrated = np.asarray(model(np.concatenate(inputs)))
    bake_temperature(model, TEMPERATURE)
    folder = tmp_path_factory.mktemp("run")
    history = folder / "history.csv"
    history.write_text(
        "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,1.2,0.6,1.1\n1,0.7,0.8,0.65,0.9\n"
    )
    return {
        "checkpoint": folder / "xception_fin_02_0.650.h5",
        "model": model,
        "dataset": dataset,
        "pictures": dataset.pictures,
        "probabilities": apply_temperature(uncalibrated, TEMPERATURE),
        "uncalibrated": uncalibrated,
        "temperature": TEMPERATURE,
        "history": history,
        "card": CARD_OF_RUN,
        "suspects": [
            SimpleNamespace(picture=p, label="rose", suggested="tulip", confidence=0.9)
            for p in dataset.pictures[:14]
        ],
    }


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """A report of everything: its folder, and what `write_report` returned."""
    folder = tmp_path_factory.mktemp("models") / "xception_fin_02_0.650"
    return folder, write_report(folder, **run)


@pytest.fixture(scope="module")
def faultless(run):
    """The same run, but always right and almost certain."""
    classes = len(run["dataset"].class_names)
    right = np.eye(classes)[run["dataset"].labels(run["pictures"])]
    probabilities = (right * 0.95 + 0.05 / classes).astype("float32")
    return run | {"probabilities": probabilities, "uncalibrated": probabilities, "temperature": 1.0}


@pytest.fixture
def only_text(monkeypatch):
    """Draw nothing, for tests of the rest."""
    monkeypatch.setattr(training.report, "_draw", lambda *_: [])


def test_every_file_is_there_and_nothing_else(written):
    folder, _ = written
    assert {path.name for path in folder.iterdir()} == {METRICS, CARD, *FIGURES}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_png_of_a_screen_with_something_on_it(written, name):
    path = written[0] / name
    assert path.stat().st_size <= MAX_BYTES
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert 400 <= picture.width <= 1600
        assert 250 <= picture.height <= 1600
        grey = np.asarray(picture.convert("L"))
    assert (grey < 128).mean() > 0.005


def test_the_metrics_are_those_of_the_probabilities(run, written):
    folder, returned = written
    metrics = json.loads((folder / METRICS).read_text())
    assert metrics == json.loads(json.dumps(returned))
    truth = run["dataset"].labels(run["pictures"])
    expected = evaluate(run["probabilities"], truth, run["dataset"].class_names)
    assert {key: returned[key] for key in expected} == expected
    assert metrics["accuracy"] == pytest.approx(
        (run["probabilities"].argmax(axis=1) == truth).mean()
    )
    assert metrics["temperature"] == TEMPERATURE
    before = metrics["before_temperature"]["log_loss"]
    assert before != pytest.approx(metrics["log_loss"])
    assert metrics["checkpoint"] == "xception_fin_02_0.650.h5"
    assert metrics["run"]["seed"] == 69420
    assert metrics["versions"]["keras"] == keras.__version__


def test_the_model_card_says_what_a_reader_asks(run, written):
    folder, metrics = written
    card = (folder / CARD).read_text()
    low, high = metrics["accuracy_interval"]
    assert f"{metrics['accuracy']:.3f} ({low:.3f} to {high:.3f}), n = {metrics['n']}" in card
    assert "Wilson" in card
    for name, row in metrics["per_class"].items():
        assert f"| {name} | {row['precision']:.3f} (" in card
    for text in (
        "    python train.py --epochs 3",
        "- seed: 69420",
        "- starting weights: ImageNet",
        "- time: 10.0 minutes",
        "- git: abc123",
        "| learning_rate | 0.01 |",
        "train 40, selection 0, validation 10",
        "- two near duplicates left out",
        "The best of its epochs on the validation pictures. Where a picture",
        f"tensorflow {metrics['versions']['tensorflow']}",
        "temperature T = 1.500, which is inside the model's last layer",
        f"Of the {len(run['dataset'].pictures)}, a cross-validated model suspects 14.",
        "and nothing else",
    ):
        assert text in card


def test_the_model_card_tells_what_was_excluded_from_what_is_broken(run, drawn, tmp_path):
    excluded = tmp_path / "wrong_labels.txt"
    excluded.write_text("\n".join(run["dataset"].pictures[-3:]))
    dataset = scan(drawn, excluded)
    broken = replace(dataset, left_out=(*dataset.left_out, ("rose/x.jpg", "empty")))
    shown = run | {
        "dataset": broken,
        "pictures": dataset.pictures,
        "probabilities": run["probabilities"][:-3],
        "uncalibrated": run["uncalibrated"][:-3],
    }
    write_report(tmp_path / "report", **shown)
    card = (tmp_path / "report" / CARD).read_text()
    assert "; 1 unusable files left out, 3 excluded by" in card
    assert "- What was excluded is in none of these numbers" in card


def test_the_model_card_shows_each_figure_that_is_there(written):
    folder, _ = written
    shown = re.findall(r"!\[.*\]\((.*)\)", (folder / CARD).read_text())
    assert sorted(shown) == sorted(path.name for path in folder.glob("*.png"))
    assert all("/" not in name for name in shown)


def test_the_model_card_lists_the_mistakes_most_confident_first(run, written):
    folder, _ = written
    rows = re.findall(r"^\| (\S+/\S+) \| (\w+) \| (0\.\d+) \|$", (folder / CARD).read_text(), re.M)
    assert len(rows) == 12
    confidence = [float(row[2]) for row in rows]
    assert confidence == sorted(confidence, reverse=True)
    for picture, answer, _ in rows:
        assert picture in run["pictures"]
        assert not picture.startswith(answer)


def test_without_mistakes_history_suspects_or_card(faultless, tmp_path):
    folder = tmp_path / "report"
    history = tmp_path / "history.csv"
    bare = faultless | {"history": history, "suspects": [], "card": {}}
    metrics = write_report(folder, **bare)
    assert metrics["accuracy"] == 1
    assert metrics["accuracy_interval"][0] < 1
    assert {path.name for path in folder.glob("*.png")} == set(ALWAYS)
    card = (folder / CARD).read_text()
    assert "probably wrong" not in card
    assert "None" not in card


def test_a_report_that_fails_leaves_the_old_one_whole(run, tmp_path, only_text, monkeypatch):
    folder = tmp_path / "report"
    write_report(folder, **run)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(training.report, "model_card", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(folder, **run | {"card": {"seed": 1}})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_new_report_replaces_its_own_files_and_keeps_those_of_others(run, tmp_path, only_text):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "suspects.png").write_text("old")
    (folder / "probable_wrong_labels.txt").write_text("rose/1.jpg")
    (folder / "more").mkdir()
    (folder / "more" / "notes.txt").write_text("mine")
    write_report(folder, **run)
    assert not (folder / "suspects.png").exists()
    assert (folder / "probable_wrong_labels.txt").read_text() == "rose/1.jpg"
    assert (folder / "more" / "notes.txt").read_text() == "mine"
    assert (folder / CARD).exists()


def test_what_a_killed_run_left_is_put_right(run, tmp_path, only_text):
    (tmp_path / ".report.report_old").mkdir()
    (tmp_path / ".report.report_old" / "notes.txt").write_text("mine")
    (tmp_path / ".another.report_new").mkdir()
    write_report(tmp_path / "report", **run)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"


def test_a_backend_without_gradients_has_no_grad_cam_and_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training.report, "is_possible", lambda: False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    write_report(tmp_path / "report", **run)
    assert not (tmp_path / "report" / "gradcam.png").exists()
    card = (tmp_path / "report" / CARD).read_text()
    assert "Grad-CAM is left out: not made on Keras' torch backend." in card
    assert "gradcam.png" not in card


@pytest.mark.parametrize("classes", [2, 30])
def test_any_number_of_classes_with_any_names(classes, tmp_path, recwarn):
    odd = ("$5 & $x_1", "a|b *c*", "玫瑰", "two\nlines", "a name that is far too long to be shown")
    names = tuple(sorted([*odd, *(f"class {i}" for i in range(25))][:classes]))
    picture = Image.new("RGB", (SIDE, SIDE + 9), "green")
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            picture.save(tmp_path / "data" / name / f"{number}.png")
    pictures = tuple(f"{name}/{number}.png" for name in names for number in range(2))
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(classes), len(pictures)).astype("float32")
    metrics = write_report(
        tmp_path / "report",
        checkpoint=tmp_path / "mine.h5",
        model=tiny_model(classes),
        dataset=Dataset(tmp_path / "data", names, pictures, ()),
        pictures=pictures,
        probabilities=probabilities,
        uncalibrated=probabilities,
        temperature=1.0,
        history=tmp_path / "none.csv",
        card={},
        suspects=[],
    )
    assert list(metrics["per_class"]) == list(names)
    for name in ALWAYS:
        assert (tmp_path / "report" / name).stat().st_size <= MAX_BYTES
    card = (tmp_path / "report" / CARD).read_text()
    assert r"\$5 & \$x_1" in card
    assert r"a\|b \*c\*" in card
    tables = [line for line in card.splitlines() if line.startswith(r"| a\|b")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in tables] == [6, 4]
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_gallery_of_noise_is_made_to_fit(tmp_path):
    rng = np.random.default_rng(0)
    tiles = [
        Tile(Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)), (("x", "red"),))
        for _ in range(24)
    ]
    save(gallery("Noise", tiles, columns=6), tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size <= MAX_BYTES


def test_matplotlib_is_left_as_the_caller_has_set_it(run, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    save(gallery("One", [Tile(Image.new("RGB", (9, 9)), (("x", "red"),))]), tmp_path / "one.png")
    assert dict(matplotlib.rcParams) == before


def test_the_overlay_is_warm_where_it_is_hot_and_grey_elsewhere():
    pixels = np.full((20, 20, 3), (0, 128, 0), dtype=np.uint8)
    heat = np.zeros((10, 10))
    heat[:, :3] = 1
    red, green, blue = np.moveaxis(overlay(pixels, heat).astype(int), -1, 0)
    assert (red[:, :4] > green[:, :4]).all()
    assert (red[:, 12:] == green[:, 12:]).all()
    assert (red[:, 12:] == blue[:, 12:]).all()


@pytest.mark.parametrize("text", [None, "", "epoch,accuracy\n"])
def test_a_history_without_epochs_is_empty(tmp_path, text):
    if text is not None:
        (tmp_path / "history.csv").write_text(text)
    assert read_history(tmp_path / "history.csv") == {}


def test_what_is_no_number_in_a_history_is_not_drawn(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,loss\n0,0.5\n1,NA\n2\n")
    loss = read_history(tmp_path / "history.csv")["loss"]
    assert loss[0] == 0.5
    assert np.isnan(loss[1:]).all()
