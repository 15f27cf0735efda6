"""training.evaluation.report: what a person looks at after a run."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import training.evaluation.report
from serving.details import Details, Familiarity
from serving.image import open_image
from serving.preprocess import preprocess
from training.backend import keras
from training.dataset.scan import Dataset, scan
from training.evaluation import figures
from training.evaluation.calibration import apply_temperature, bake_temperature
from training.evaluation.figures import (
    MAX_BYTES,
    Tile,
    gallery,
    overlay,
    per_class,
    read_history,
    save,
)
from training.evaluation.metrics import evaluate, wilson
from training.evaluation.model_card import CARD, CURVES, FIGURES, METRICS
from training.evaluation.report import write_report
from training.evaluation.run import EvaluationRun, RunInfo
from training.model import BASE_LAYER

SIDE = 32
TEMPERATURE = 1.5
GALLERIES = ("mistakes.png", "gradcam.png", "label_issues.png")
ALWAYS = [name for name in FIGURES if name != "label_issues.png"]
INFO = RunInfo(
    command="python train.py --epochs 3",
    recipe={"learning_rate": 0.01, "head": (512, 128)},
    seed=69420,
    weights="ImageNet",
    split={"train": 40, "validation": 10},
    seconds=600,
    picked_on="the best epoch was picked on the validation images",
    calibrated_on="The temperature was fitted on them, too.",
    reevaluated_by="python -m training.evaluation a.h5 again/",
    excluded="after training",
)


ROW = {"n": 24, "auroc": 0.996, "auroc_of_confidence": 0.5}
UNKNOWNS = {
    "training_images": 40,
    "validation_images": 50,
    "false_alarms": [
        {"promised": level, "found": level / 2, "interval": [0.001, 0.1], "n": 50}
        for level in (0.05, 0.02)
    ],
    "far": {"all": ROW | {"called_unknown": {"0.05": 1.0, "0.02": 0.9}}},
    "left_out": {
        "rose": ROW
        | {"auroc": 0.71, "auroc_of_confidence": None, "called_unknown": {"0.05": 0.4, "0.02": 0.3}}
    },
    "prediction_sets": {
        "promised": 0.95,
        "found": 0.94,
        "interval": [0.9, 0.97],
        "n": 50,
        "mean_size": 1.25,
    },
}


def strange_to(model):
    """Details by which every image is unknown to `model`."""
    channels = model.layers[-1].input.shape[-1]
    means, directions = np.full((1, channels), -1.0), np.eye(channels, 2)[np.newaxis]
    familiarity = Familiarity(means, directions, np.zeros(60))
    return Details(familiarity, np.zeros(60))


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
        preprocess(open_image(dataset.folder / image), (SIDE, SIDE)) for image in dataset.images
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
        "images": dataset.images,
        "probabilities": apply_temperature(uncalibrated, TEMPERATURE),
        "uncalibrated": uncalibrated,
        "temperature": TEMPERATURE,
        "history": history,
        "info": INFO,
        "label_issues": [
            SimpleNamespace(image=p, label="rose", suggested="tulip", confidence=0.9)
            for p in dataset.images[:14]
        ],
        "details": strange_to(model),
        "unknowns": UNKNOWNS,
    }


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """A report of everything: its folder, and what `write_report` returned."""
    folder = tmp_path_factory.mktemp("models") / "xception_fin_02_0.650"
    return folder, write_report(folder, EvaluationRun(**run))


@pytest.fixture(scope="module")
def faultless(run):
    """The same run, but always right and almost certain."""
    classes = len(run["dataset"].class_names)
    right = np.eye(classes)[run["dataset"].labels(run["images"])]
    probabilities = (right * 0.95 + 0.05 / classes).astype("float32")
    return run | {"probabilities": probabilities, "uncalibrated": probabilities, "temperature": 1.0}


@pytest.fixture
def only_text(monkeypatch):
    """Draw nothing, for tests of the rest."""
    monkeypatch.setattr(training.evaluation.report, "_draw", lambda *_: [])


def test_every_file_is_there_and_nothing_else(written):
    folder, _ = written
    assert {path.name for path in folder.iterdir()} == {METRICS, CARD, *FIGURES}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def near(pixels, colour, distance=30):
    """Return which of `pixels` (..., 3) have about the colour "#rrggbb"."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(pixels.astype(int) - rgb).max(axis=-1) <= distance


@pytest.mark.parametrize(
    ("name", "colours"),
    {
        "per_class.png": (figures.BLUE, figures.ORANGE, figures.GREEN),
        "confusion_matrix.png": ("#084a91", "#f16813"),  # all right, all wrong
        "reliability.png": ("#4e83be", figures.ORANGE, figures.GREY),
        "risk_coverage.png": (figures.BLUE, figures.GREY),
        CURVES: (figures.BLUE, figures.ORANGE, figures.GREY),
        "activation_maps.png": (figures.ORANGE,),
        "mistakes.png": (figures.RED,),
        "gradcam.png": (figures.RED,),
        "label_issues.png": (figures.ORANGE,),
    }.items(),
)
def test_a_figure_is_a_png_of_a_screen_in_its_own_colours(written, name, colours):
    path = written[0] / name
    assert path.stat().st_size <= MAX_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 400 <= image.width <= 1600
        assert 250 <= image.height <= 1600
        pixels = np.asarray(image.convert("RGB"))
    for colour in colours:
        assert near(pixels, colour).mean() > 0.0005
    if name in GALLERIES:  # photographs, beside their captions
        assert (pixels.min(axis=-1) < 240).mean() > 0.4


def test_the_metrics_are_those_of_the_probabilities(run, written):
    folder, returned = written
    metrics = json.loads((folder / METRICS).read_text())
    assert metrics == json.loads(json.dumps(returned))
    truth = run["dataset"].labels(run["images"])
    expected = evaluate(run["probabilities"], truth, run["dataset"].class_names)
    assert {key: returned[key] for key in expected} == expected
    assert metrics["accuracy"] == pytest.approx(
        (run["probabilities"].argmax(axis=1) == truth).mean()
    )
    assert metrics["temperature"] == TEMPERATURE
    before = evaluate(run["uncalibrated"], truth, run["dataset"].class_names)
    assert before["log_loss"] != pytest.approx(metrics["log_loss"])
    assert metrics["before_temperature"] == {
        key: before[key] for key in ("log_loss", "expected_calibration_error")
    }
    assert metrics["class_counts"] == dict.fromkeys(run["dataset"].class_names, 10)
    assert metrics["label_issues"] == 14
    assert metrics["checkpoint"] == "xception_fin_02_0.650.h5"
    assert metrics["run"]["seed"] == 69420
    assert metrics["versions"]["keras"] == keras.__version__


def test_the_model_card_says_how_well_unknown_images_are_told(written):
    card = (written[0] / CARD).read_text()
    head = "| images | n | AUROC | called unknown at 5 % | called unknown at 2 % | AUROC of the"
    assert head in card
    assert "50 validation images; for the numbers here, each half of these is compared" in card
    assert "| drawn: all | 24 | 0.996 | 100 % | 90 % | 0.500 |" in card
    assert "| rose, left out | 24 | 0.710 | 40 % | 30 % |  |" in card
    assert (
        "- called unknown at 2 %: of 50 validation images 1.0 % (0.1 % to 10.0 %), of at most 2 % "
        "promised"
    ) in card
    assert "of 94.0 % (90.0 % to 97.0 %) of 50 validation images, of 95 % promised" in card
    assert "their mean size is 1.25" in card
    assert "with high confidence, so ask whether it is unknown." in card


@pytest.mark.usefixtures("only_text")
def test_the_model_card_gives_no_numbers_for_a_level_that_was_not_measured(run, tmp_path):
    rose = UNKNOWNS["left_out"]["rose"] | {"called_unknown": {"0.05": 0.4, "0.02": None}}
    unknowns = UNKNOWNS | {
        "false_alarms": UNKNOWNS["false_alarms"][:1],
        "left_out": {"rose": rose},
    }
    write_report(tmp_path / "report", EvaluationRun(**run | {"unknowns": unknowns}))
    card = (tmp_path / "report" / CARD).read_text()
    assert "| called unknown at 5 % | called unknown at 2 % | AUROC of the" in card
    assert "| drawn: all | 24 | 0.996 | 100 % | 90 % | 0.500 |" in card
    assert "| rose, left out | 24 | 0.710 | 40 % |  |  |" in card
    assert "called unknown at 5 %: of 50 validation images" in card
    assert "called unknown at 2 %: of" not in card
    assert (
        "- How many of the 50 validation images are called unknown at 2 % is not measured: each "
        "half of them is compared with the other half, and that takes 100 or more.\n"
    ) in card


@pytest.mark.usefixtures("only_text")
def test_where_unknown_images_cannot_be_told_the_model_card_says_why(run, tmp_path):
    details = run["details"]
    few = replace(details, familiarity=replace(details.familiarity, distances=np.zeros(9)))
    for said, changed in {
        "calls no image unknown: 9 validation images": {"details": few, "unknowns": {}},
        None: {"details": Details(), "unknowns": {}},
    }.items():
        write_report(tmp_path / "report", EvaluationRun(**run | changed))
        card = (tmp_path / "report" / CARD).read_text()
        assert ("## Images that are none of these" in card) == bool(said)
        assert said is None or said in card
        assert "with high confidence." in card


def test_drawn_images_come_with_their_p_value_and_map(given):
    _, tiles = given["Drawn images: where the predicted class is seen"]
    assert len(tiles) == 12
    assert {lines[1] for lines in (tile.lines for tile in tiles)} == {
        ("known: 0.016", figures.ORANGE)
    }
    assert all(tile.heat.shape == (8, 8) and tile.heat.max() in {0, 1} for tile in tiles)


def test_a_model_without_maps_has_no_figure_of_them(run, monkeypatch):
    monkeypatch.setattr(training.evaluation.report, "read_head", lambda model: ())
    assert training.evaluation.report._activation_maps(EvaluationRun(**run)) is None


def test_the_model_card_says_what_a_reader_asks(run, written):
    folder, metrics = written
    run_info = (folder / CARD).read_text()
    low, high = metrics["accuracy_interval"]
    assert f"{metrics['accuracy']:.3f} ({low:.3f} to {high:.3f}), n = {metrics['n']}" in run_info
    assert "Wilson" in run_info
    share, low, high = (f"{100 * value:.1f} %" for value in (metrics["accuracy"], low, high))
    assert f"Its validation accuracy is **{share} ({low} to" in run_info
    assert "** on 50 images, with an expected calibration error of " in run_info
    assert f"error of {metrics['expected_calibration_error']:.3f}." in run_info

    def cell(row, key):
        return (
            f"{row[key]:.3f} ({row[f'{key}_interval'][0]:.3f} to {row[f'{key}_interval'][1]:.3f})"
        )

    for name, row in metrics["per_class"].items():
        cells = " | ".join(cell(row, key) for key in ("precision", "recall", "f1"))
        assert f"| {name} | {cells} | {row['support']} |" in run_info
    before = metrics["before_temperature"]
    assert f"- macro F1 {cell(metrics, 'macro_f1')}, the interval by bootstrap" in run_info
    assert f"- log loss {metrics['log_loss']:.3f} nats; {before['log_loss']:.3f} before" in run_info
    assert f"calibration error {metrics['expected_calibration_error']:.3f} (15 bins)" in run_info
    assert f"; {before['expected_calibration_error']:.3f} before calibration by" in run_info
    by_chance = metrics["expected_calibration_error_by_chance"]
    assert f"stays below {by_chance:.3f} in 19 of 20 cases" in run_info
    for text in (
        "    python train.py --epochs 3",
        "- seed: 69420",
        "- starting weights: ImageNet",
        "- time: 10.0 minutes",
        "- report written again by: python -m training.evaluation a.h5 again/",
        "- excluded images: after training",
        "| learning_rate | 0.01 |",
        "Split: train 40, validation 10.",
        "The best epoch was picked on the validation images.",
        "The temperature was fitted on them, too.",
        "also picked the epoch and calibrated the model, so the numbers are slightly better",
        f"tensorflow {metrics['versions']['tensorflow']}",
        "temperature T = 1.500, which is part of the last layer's weights",
        f"A cross-validated model doubts 14 of {len(run['dataset'].images)} labels.",
        "Any other image gets one of them, too",
    ):
        assert text in run_info


def card_of(folder, run, **changed):
    write_report(folder, EvaluationRun(**run | changed))
    return (folder / CARD).read_text()


def test_the_model_card_says_of_which_class_least_is_known(faultless, tmp_path, only_text):
    half_right = faultless["probabilities"].copy()
    half_right[25:30] = half_right[0]  # half of the roses as daisies
    assert faultless["images"][25].startswith("rose/")
    run_info = card_of(tmp_path, faultless, probabilities=half_right)
    low, high = wilson(5, 10)
    assert f"- Least is known about rose: 10 images, recall {low:.2f} to {high:.2f}." in run_info


@pytest.mark.parametrize(
    ("off", "said"), [(0.3, "more than chance"), (0.02, "no more than chance")]
)
def test_the_model_card_compares_the_calibration_error_with_chance(
    faultless, tmp_path, only_text, off, said
):
    right = np.eye(5)[faultless["dataset"].labels(faultless["images"])]
    probabilities = right * (1 - off * 5 / 4) + off / 4
    run_info = card_of(tmp_path, faultless, probabilities=probabilities, uncalibrated=probabilities)
    assert f"expected calibration error {off:.3f} (15 bins), {said} explains; " in run_info
    assert "With 50 images, a perfectly calibrated model stays below" in run_info


def test_the_model_card_has_both_accuracies_and_names_a_stand_in(faultless, tmp_path, only_text):
    as_labelled = {"accuracy": 0.9, "interval": [0.8, 0.95], "n": 60, "excluded": 10}
    info = replace(INFO, as_labelled=as_labelled, weights="the base of a_b.h5")
    card = card_of(tmp_path, faultless, info=info)
    assert "With the 10 excluded images, as they are labelled, it is **90.0 % (80.0 % to" in card
    assert "Training started from the base of a_b.h5, not from ImageNet's weights." in card
    for text in ("as they are labelled", "not from ImageNet's"):
        assert text not in card_of(tmp_path, faultless)
    info = replace(info, as_labelled=as_labelled | {"excluded": 1})
    card = card_of(tmp_path, faultless, info=info)
    assert "With the 1 excluded image, as it is labelled, it is **90.0 %" in card


def test_images_are_counted_where_a_folder_spells_a_class_in_another_normal_form(
    faultless, tmp_path, only_text
):
    dataset, images = faultless["dataset"], faultless["images"]
    old, names = dataset.class_names[0], ("caf\u00e9", *dataset.class_names[1:])
    renamed = {name: name.replace(f"{old}/", "cafe\u0301/") for name in dataset.images}
    dataset = replace(
        dataset,
        class_names=names,
        images=tuple(renamed.values()),
        digests={renamed.get(name, name): digest for name, digest in dataset.digests.items()},
    )
    images = tuple(renamed[name] for name in images)
    card = card_of(tmp_path, faultless, dataset=dataset, images=images)
    assert "| caf\u00e9 | 10 | 10 |" in card


def test_audited_and_raw_accuracy_stand_side_by_side(faultless, tmp_path, only_text):
    dataset, images = faultless["dataset"], faultless["images"]
    right = np.eye(5)[dataset.labels(images)]
    probabilities = np.where(np.arange(50)[:, None] < 4, np.roll(right, 1, axis=1), right)
    probabilities = 0.9 * probabilities + 0.02
    wrong = frozenset((*images[:3], images[20], "rose/not_evaluated.jpg"))
    audited = replace(dataset, wrong_labels=wrong)
    named = {"probabilities": probabilities, "uncalibrated": probabilities}
    card = card_of(tmp_path, faultless, dataset=audited, **named)
    metrics = json.loads((tmp_path / METRICS).read_text())
    assert (metrics["accuracy"], metrics["n"]) == (0.92, 50)
    assert metrics["audited"]["accuracy"] == pytest.approx(45 / 46)
    assert metrics["audited"]["accuracy_interval"] == wilson(45, 46)
    assert (metrics["audited"]["n"], metrics["audited"]["wrong_labels"]) == (46, 4)
    assert "**92.0 % (" in card
    assert "Without 4 of these whose labels an audit found wrong, it is **97.8 % (" in card
    assert "on 46 images, with a calibration error of" in card
    assert "an audit found wrong" not in card_of(tmp_path, faultless, **named)
    assert json.loads((tmp_path / METRICS).read_text())["audited"] == {}


def test_names_that_are_no_text_are_escaped_in_the_report(faultless, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        training.evaluation.report,
        "_draw",
        lambda run, metrics, folder: drawn.append(per_class(metrics)) or ["mistakes.png"],
    )
    images = ("daisy/caf\udce9.jpg", *faultless["images"][1:])
    probabilities = np.roll(faultless["probabilities"], 1, axis=1)  # all of it mistakes
    info = replace(INFO, command="python train.py --data 'caf\udce9'")
    card = card_of(tmp_path, faultless, images=images, probabilities=probabilities, info=info)
    assert r"caf\\udce9.jpg" in card
    record = json.loads((tmp_path / METRICS).read_text())
    assert record["run"]["command"] == info.command
    assert drawn


def test_a_figure_of_thousands_of_classes_shows_the_worst(tmp_path):
    row = {"support": 1, **dict.fromkeys(("precision", "recall", "f1"), 0.5)}
    row |= {f"{key}_interval": [0.1, 0.9] for key in ("precision", "recall", "f1")}
    rows = {f"class {i}": row | {"f1": i / 3000} for i in range(2500)}
    figure = per_class({"per_class": rows})
    assert len(figure.axes[0].get_yticks()) == 100
    assert figure.get_figheight() * 110 < 2**16  # what Matplotlib draws at most
    assert "classes of a higher F1 that are not shown: 2400" in figure.get_supxlabel()


def test_the_model_card_counts_what_is_reported_on(run, tmp_path, only_text):
    some = slice(8, 25)  # of the images, which are ten of each class
    chosen = {key: run[key][some] for key in ("images", "probabilities", "uncalibrated")}
    lines = card_of(tmp_path, run, **chosen).splitlines()
    head = lines.index("| class | images | validation images |")
    assert lines[head + 2 : head + 8] == [
        "| daisy | 10 | 2 |",
        "| dandelion | 10 | 10 |",
        "| rose | 10 | 5 |",
        "| sunflower | 10 | 0 |",
        "| tulip | 10 | 0 |",
        "| all | 50 | 17 |",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(89.4, "89 seconds"), (90, "1.5 minutes"), (None, None)]
)
def test_the_model_card_says_how_long_it_took(run, tmp_path, only_text, seconds, said):
    run_info = card_of(tmp_path, run, info=RunInfo(seconds=seconds))
    assert f"- time: {said}" in run_info if said else "- time" not in run_info


def test_the_model_card_tells_what_was_excluded_from_what_is_broken(run, drawn, tmp_path):
    excluded = tmp_path / "wrong_labels.txt"
    excluded.write_text("\n".join(run["dataset"].images[-3:]))
    dataset = scan(drawn, excluded)
    broken = replace(dataset, skipped=(*dataset.skipped, ("rose/x.jpg", "empty")))
    shown = run | {
        "dataset": broken,
        "images": dataset.images,
        "probabilities": run["probabilities"][:-3],
        "uncalibrated": run["uncalibrated"][:-3],
    }
    write_report(tmp_path / "report", EvaluationRun(**shown))
    run_info = (tmp_path / "report" / CARD).read_text()
    assert "; 1 unusable file skipped, 3 excluded by" in run_info
    assert "- Excluded images are in none of these numbers" in run_info


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
    for image, answer, confidence in rows:
        scores = run["probabilities"][run["images"].index(image)]
        assert answer == run["dataset"].class_names[scores.argmax()]
        assert confidence == f"{scores.max():.3f}"
        assert not image.startswith(answer)
    wrong = run["probabilities"].argmax(axis=1) != run["dataset"].labels(run["images"])
    assert float(rows[0][2]) == pytest.approx(run["probabilities"][wrong].max(), abs=1e-3)


@pytest.fixture
def given(run, monkeypatch, tmp_path):
    """What each figure of the run is given, instead of drawing it: {function: [arguments]}.

    A gallery is under its title. `grad_cam` gives image number i a heat that is i everywhere.
    """
    calls = {}

    def note(name):
        def figure(*arguments, **_):
            key = arguments[0].split(" (")[0] if name == "gallery" else name
            calls[key] = arguments
            return key

        monkeypatch.setattr(figures, name, figure)

    for name in (
        *("per_class", "confusion_matrix", "reliability", "risk_coverage", "learning_curves"),
        "gallery",
    ):
        note(name)
    monkeypatch.setattr(figures, "save", lambda figure, path: path.write_text(figure))

    def grad_cam(*arguments):
        calls["grad_cam"] = arguments
        return np.arange(len(arguments[1]))[:, np.newaxis, np.newaxis] * np.ones((1, 4, 4))

    monkeypatch.setattr(training.evaluation.report, "grad_cam", grad_cam)
    label_issues = [
        SimpleNamespace(image=p, label="rose", suggested="tulip", confidence=0.5 + 0.03 * i)
        for i, p in enumerate(run["dataset"].images[:14])
    ]
    calls["metrics"] = write_report(
        tmp_path / "report", EvaluationRun(**run | {"label_issues": label_issues})
    )
    calls["drawn"] = {path.name: path.read_text() for path in tmp_path.glob("report/*.png")}
    return calls


def position(run, image):
    """Return which of the run's images a gallery shows as `image`, or as a part of it."""
    for index, name in enumerate(run["images"]):
        whole = open_image(run["dataset"].folder / name)
        if image in (whole, figures.crop(whole)):
            return index
    raise AssertionError("an image of another run")


def verdict(run, index):
    """Return the caption that an image should have."""
    names, scores = run["dataset"].class_names, run["probabilities"][index]
    truth = run["images"][index].split("/")[0]
    answer = names[scores.argmax()]
    said = f"{answer} {100 * scores.max():.0f} %"
    if answer == truth:
        return ((said, figures.GREEN),)
    return ((said, figures.RED), (f"true class: {truth}", figures.INK))


def test_each_figure_is_of_what_its_name_says(run, given):
    before, after, truth, temperature = given["reliability"]
    assert np.array_equal(before, run["uncalibrated"])
    assert np.array_equal(after, run["probabilities"])
    assert np.array_equal(truth, run["dataset"].labels(run["images"]))
    assert temperature == TEMPERATURE
    coverage, risk = given["risk_coverage"]
    assert coverage.tolist() == [(n + 1) / 50 for n in range(50)]
    assert risk[-1] == pytest.approx(1 - given["metrics"]["accuracy"])
    counts, names = given["confusion_matrix"]
    assert counts.tolist() == given["metrics"]["confusion_matrix"]
    assert names == run["dataset"].class_names
    assert given["per_class"] == (given["metrics"],)
    history, epoch = given["learning_curves"]
    assert history["val_accuracy"].tolist() == [0.6, 0.65]
    assert epoch == 2
    assert given["drawn"] == {
        "per_class.png": "per_class",
        "confusion_matrix.png": "confusion_matrix",
        "reliability.png": "reliability",
        "risk_coverage.png": "risk_coverage",
        CURVES: "learning_curves",
        "mistakes.png": "The most confident mistakes",
        "gradcam.png": "Where the predicted class is seen",
        "activation_maps.png": "Drawn images: where the predicted class is seen",
        "label_issues.png": "Labels that are probably wrong",
    }


def test_the_marked_epoch_is_that_of_the_history_where_it_is_of_another_network(
    run, given, tmp_path
):
    assert given["learning_curves"][1] == 2  # in the name of the checkpoint
    write_report(tmp_path / "first", EvaluationRun(**run | {"kept_epoch": 1}))
    assert given["learning_curves"][1] == 1


def test_the_most_confident_mistakes_are_shown_with_answer_and_truth(run, given):
    title, tiles = given["The most confident mistakes"]
    wrong = np.flatnonzero(
        run["probabilities"].argmax(axis=1) != run["dataset"].labels(run["images"])
    )
    assert title == f"The most confident mistakes (12 of {len(wrong)})"
    order = wrong[np.argsort(-run["probabilities"][wrong].max(axis=1), kind="stable")]
    assert [position(run, tile.image) for tile in tiles] == order[:12].tolist()
    assert {tile.image.size for tile in tiles} == {(figures.SIDE, figures.SIDE)}, "small ones"
    assert [tile.lines for tile in tiles] == [verdict(run, index) for index in order[:12]]


def test_grad_cam_is_asked_about_the_answer_and_shown_on_its_image(run, given):
    model, inputs, classes = given["grad_cam"]
    _, tiles = given["Where the predicted class is seen"]
    chosen = [position(run, tile.image) for tile in tiles]
    assert model is run["model"]
    for index, pixels in zip(chosen, inputs, strict=True):
        image = open_image(run["dataset"].folder / run["images"][index])
        assert np.array_equal(pixels, preprocess(image, (SIDE, SIDE))[0])
    assert classes.tolist() == run["probabilities"][chosen].argmax(axis=1).tolist()
    assert [tile.heat.max() for tile in tiles] == list(range(len(chosen)))
    assert [tile.lines for tile in tiles] == [verdict(run, index) for index in chosen]


def test_grad_cam_explains_a_typical_right_answer_of_each_class_then_mistakes(run, given):
    _, tiles = given["Where the predicted class is seen"]
    chosen = [position(run, tile.image) for tile in tiles]
    truth, confidence = run["dataset"].labels(run["images"]), run["probabilities"].max(axis=1)
    right = run["probabilities"].argmax(axis=1) == truth
    typical = []
    for index in range(5):
        hits = sorted(np.flatnonzero(right & (truth == index)), key=lambda i: confidence[i])
        typical += hits[len(hits) // 2 :][:1]
    wrong = sorted(np.flatnonzero(~right), key=lambda i: -confidence[i])
    assert typical
    assert chosen == [*typical, *wrong[:4]]


def test_the_surest_suspects_are_shown_with_what_they_look_like(run, given):
    title, tiles = given["Labels that are probably wrong"]
    assert title == "Labels that are probably wrong (12 of 14)"
    assert [position(run, tile.image) for tile in tiles] == list(range(13, 1, -1))
    assert tiles[0].lines == (("tulip 89 %?", figures.ORANGE), ("label: rose", figures.INK))


def test_curves_that_an_earlier_report_has_drawn_are_taken_over(run, given, tmp_path):
    (tmp_path / "curves.png").write_bytes(b"drawn before")
    write_report(tmp_path / "again", EvaluationRun(**run | {"curves": tmp_path / "curves.png"}))
    assert (tmp_path / "again" / CURVES).read_bytes() == b"drawn before"
    assert f"]({CURVES})" in (tmp_path / "again" / CARD).read_text()


def test_without_mistakes_history_suspects_or_card(faultless, tmp_path):
    folder = tmp_path / "report"
    history = tmp_path / "history.csv"
    bare = faultless | {"history": history, "label_issues": [], "info": RunInfo()}
    metrics = write_report(folder, EvaluationRun(**bare))
    assert metrics["accuracy"] == 1
    assert metrics["accuracy_interval"][0] < 1
    assert {path.name for path in folder.glob("*.png")} == set(ALWAYS)
    run_info = (folder / CARD).read_text()
    assert "probably wrong" not in run_info
    assert "None" not in run_info


def test_a_report_that_fails_leaves_the_old_one_whole(run, tmp_path, only_text, monkeypatch):
    folder = tmp_path / "report"
    write_report(folder, EvaluationRun(**run))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(training.evaluation.report, "model_card", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(folder, EvaluationRun(**run | {"info": RunInfo(seed=1)}))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_new_report_replaces_its_own_files_and_keeps_those_of_others(run, tmp_path, only_text):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "label_issues.png").write_text("old")
    (folder / "probable_wrong_labels.txt").write_text("rose/1.jpg")
    (folder / "more").mkdir()
    (folder / "more" / "notes.txt").write_text("mine")
    write_report(folder, EvaluationRun(**run))
    assert not (folder / "label_issues.png").exists()
    assert (folder / "probable_wrong_labels.txt").read_text() == "rose/1.jpg"
    assert (folder / "more" / "notes.txt").read_text() == "mine"
    assert (folder / CARD).exists()


def test_what_a_killed_run_left_is_put_right(run, tmp_path, only_text):
    (tmp_path / ".report.report_old").mkdir()
    (tmp_path / ".report.report_old" / "notes.txt").write_text("mine")
    (tmp_path / ".another.report_new").mkdir()
    write_report(tmp_path / "report", EvaluationRun(**run))
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"


def test_a_backend_without_gradients_has_no_grad_cam_and_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training.evaluation.report, "is_possible", lambda: False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    write_report(tmp_path / "report", EvaluationRun(**run))
    assert not (tmp_path / "report" / "gradcam.png").exists()
    run_info = (tmp_path / "report" / CARD).read_text()
    assert "no Grad-CAM figure: Keras' torch backend is not supported." in run_info
    assert "gradcam.png" not in run_info


@pytest.mark.parametrize("classes", [2, 30])
def test_any_number_of_classes_with_any_names(classes, tmp_path, recwarn):
    odd = ("$5 & $x_1", "a|b *c*", "玫瑰", "two\nlines", "a name that is far too long to be shown")
    names = tuple(sorted([*odd, *(f"class {i}" for i in range(25))][:classes]))
    image = Image.new("RGB", (SIDE, SIDE + 9), "green")
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            image.save(tmp_path / "data" / name / f"{number}.png")
    images = tuple(f"{name}/{number}.png" for name in names for number in range(2))
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(classes), len(images)).astype("float32")
    run = EvaluationRun(
        checkpoint=tmp_path / "mine.h5",
        model=tiny_model(classes),
        dataset=Dataset(tmp_path / "data", names, images, ()),
        images=images,
        probabilities=probabilities,
        uncalibrated=probabilities,
        temperature=1.0,
        history=tmp_path / "none.csv",
    )
    metrics = write_report(tmp_path / "report", run)
    assert list(metrics["per_class"]) == list(names)
    for name in ALWAYS:
        assert (tmp_path / "report" / name).stat().st_size <= MAX_BYTES
    run_info = (tmp_path / "report" / CARD).read_text()
    assert r"\$5 & \$x_1" in run_info
    assert r"a\|b \*c\*" in run_info
    tables = [line for line in run_info.splitlines() if line.startswith(r"| a\|b")]
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
