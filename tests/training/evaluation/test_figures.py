"""training.evaluation.figures: what is drawn is what was counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation import figures
from training.evaluation.calibration import bin_predictions
from training.evaluation.figures import Tile
from training.evaluation.metrics import evaluate, wilson

NAMES = ("ash", "birch", "cedar")


def texts(axes):
    return {text.get_position(): text.get_text() for text in axes.texts}


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_the_confusion_matrix_has_truth_in_rows_and_answers_in_columns():
    figure = figures.confusion_matrix(np.array([[5, 1, 0], [2, 7, 0], [0, 4, 3]]), NAMES)
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert tick_labels(axes.xaxis) == tick_labels(axes.yaxis) == list(NAMES)
    # (column, row), of what is not 0
    assert texts(axes) == {
        (0, 0): "5",
        (1, 0): "1",
        (0, 1): "2",
        (1, 1): "7",
        (1, 2): "4",
        (2, 2): "3",
    }
    assert (
        figure.get_suptitle()
        == "15 of 22 correct\nmost frequent mistake: cedar predicted as birch (4)"
    )


def test_the_confusion_matrix_is_coloured_by_the_share_of_its_row():
    figure = figures.confusion_matrix(np.array([[8, 2, 0], [0, 80, 20], [0, 1, 1]]), NAMES)
    cells = np.asarray(figure.axes[0].images[0].get_array())
    assert np.array_equal(cells[0, 0], cells[1, 1])  # both 0.8
    assert np.array_equal(cells[0, 1], cells[1, 2])  # both 0.2
    red, green, blue = np.moveaxis(cells, -1, 0)
    assert (blue > red)[np.eye(3, dtype=bool)].all()
    assert (red > blue)[[0, 1, 2], [1, 2, 1]].all()
    assert (green[2, 1], cells[0, 0].sum()) < (green[0, 1], cells[2, 2].sum())  # more is darker
    assert (cells[[0, 1, 2], [2, 0, 0]] == cells[0, 2, 0]).all()  # no mistakes: grey
    figure = figures.confusion_matrix(np.diag([1, 2, 3]), NAMES)
    assert figure.get_suptitle() == "6 of 6 correct\nno mistakes"


ANSWER = {
    "label": "ash",
    "scores": {"ash": 0.7, "birch": 0.3},
    "known": 0.019,
    "unknown": True,
    "prediction_set": ["ash"],
    "heatmap": {"rows": 1, "columns": 3, "values": [0.0, 1.0, 0.5]},
}


@pytest.mark.parametrize(
    ("answer", "lines", "heat"),
    [
        (ANSWER, [("ash 70 %", figures.INK), ("known: 0.019", figures.ORANGE)], [[0, 1, 0.5]]),
        (
            ANSWER | {"known": 0.5, "unknown": False},
            [("ash 70 %", figures.INK), ("known: 0.500", figures.GREEN)],
            [[0, 1, 0.5]],
        ),
        (
            ANSWER | {"known": None, "unknown": None, "heatmap": None},
            [("ash 70 %", figures.INK)],
            None,
        ),
    ],
)
def test_a_tile_shows_what_a_model_tells_of_an_image_and_no_more(answer, lines, heat):
    image = Image.new("RGB", (4, 4))
    tile = figures.answer_tile(image, answer)
    assert (tile.image, tile.lines) == (image, lines)
    assert (tile.heat if tile.heat is None else tile.heat.tolist()) == heat


@pytest.fixture
def answers():
    """Probabilities of 40 images and the truth: 16 of 20 right at 0.95, 5 of 20 at 0.55."""
    truth = np.array([0] * 16 + [1] * 4 + [0] * 5 + [1] * 15)
    return np.repeat([[0.95, 0.05], [0.55, 0.45]], 20, axis=0), truth


def bars(axes):
    return [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]


def test_the_reliability_diagram_is_of_what_is_before_and_after(answers):
    before, truth = answers
    after = np.array([[0.75, 0.25]] * 40)
    figure = figures.reliability(before, after, truth, 1.5)
    tops = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in tops] == [
        "Before: ECE 0.225",  # 0.15 of one half and 0.3 of the other
        "After, T = 1.50: ECE 0.225",  # 0.75 - 21 / 40
    ]
    for top, bottom, probabilities in zip(tops, figure.axes[2:], (before, after), strict=True):
        binned = bin_predictions(probabilities, truth)
        filled = np.flatnonzero(binned.count)
        centres, accuracy = (filled + 0.5) / 15, binned.accuracy[filled]
        assert np.array(bars(top)) == pytest.approx(np.transpose([centres, accuracy]))
        assert np.array(bars(bottom)) == pytest.approx(
            np.transpose([centres, binned.count[filled]])
        )
        lines = {lines.get_label(): lines.get_segments() for lines in top.collections}
        hits = np.rint(accuracy * binned.count[filled]).astype(int)
        intervals = [wilson(h, n) for h, n in zip(hits, binned.count[filled], strict=True)]
        assert [segment[:, 1] for segment in lines["Wilson 95 % interval"]] == [
            pytest.approx(interval) for interval in intervals
        ]
        confidence = lines["mean confidence"]
        assert [segment[:, 1] for segment in confidence] == [
            pytest.approx([value] * 2) for value in binned.confidence[filled]
        ]
        assert [segment[:, 0].mean() for segment in confidence] == pytest.approx(centres)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "accuracy",
        "of fewer than 10 images",
        "Wilson 95 % interval",
        "mean confidence",
        "calibrated",
    ]


def test_a_bar_of_few_images_is_pale():
    probabilities = np.array([[0.95, 0.05]] * 10 + [[0.55, 0.45]] * 9)
    figure = figures.reliability(probabilities, probabilities, np.zeros(19, dtype=int), 1.0)
    pale, full = (bar.get_alpha() or bar.get_facecolor()[3] for bar in figure.axes[0].patches)
    assert pale < full


def test_an_interval_is_of_whole_hits():
    probabilities, truth = np.array([[0.95, 0.05]] * 49), np.array([0] + [1] * 48)
    figure = figures.reliability(probabilities, probabilities, truth, 1.0)
    [interval] = figure.axes[0].collections[0].get_segments()
    assert interval[:, 1] == pytest.approx(wilson(1, 49))  # though 1 / 49 * 49 is below 1


def test_each_class_has_its_numbers_and_intervals_the_best_on_top():
    counts = np.array([[17, 3, 0], [0, 4, 6], [1, 0, 19]])
    pairs = [pair for pair in np.ndindex(3, 3) for _ in range(counts[pair])]
    truth, answers = np.transpose(pairs)
    metrics = evaluate(np.eye(3)[answers] * 0.7 + 0.1, truth, NAMES)
    panels = figures.per_class(metrics).axes
    assert tick_labels(panels[0].yaxis) == ["birch (10)", "cedar (20)", "ash (20)"]  # upwards
    assert [axes.get_title(loc="left") for axes in panels] == ["Precision", "Recall", "F1"]
    for axes, key in zip(panels, ("precision", "recall", "f1"), strict=True):
        rows = [metrics["per_class"][name] for name in ("birch", "cedar", "ash")]
        bands, dots = axes.lines[::2], axes.lines[1::2]
        assert [list(band.get_xdata()) for band in bands] == [
            row[f"{key}_interval"] for row in rows
        ]
        assert [dot.get_xdata()[0] for dot in dots] == [row[key] for row in rows]
        assert [dot.get_ydata()[0] for dot in dots] == [0, 1, 2]
        assert [text.get_text() for text in axes.texts] == [f"{row[key]:.2f}" for row in rows]


def test_the_curves_are_those_of_the_history_and_the_kept_epoch_is_marked():
    history = {
        "accuracy": np.array([0.5, 0.7, 0.8]),
        "loss": np.array([1.2, 0.8, 0.6]),
        "val_accuracy": np.array([0.6, np.nan, 0.65]),
        "val_loss": np.array([1.1, 0.9, 1.0]),
    }
    figure = figures.learning_curves(history, 3)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Accuracy: best validation 0.650",
        "Loss",
    ]
    for axes, name in zip(figure.axes, ("accuracy", "loss"), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for label, column in (("training", name), ("validation", f"val_{name}")):
            assert lines[label].get_xdata().tolist() == [1, 2, 3]
            assert np.array_equal(lines[label].get_ydata(), history[column], equal_nan=True)
        assert list(lines["kept: epoch 3"].get_xdata()) == [3, 3]
    without = figures.learning_curves({"loss": np.array([1.0])}, None)
    assert [line.get_label() for axes in without.axes for line in axes.lines] == ["training"]


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("xception_fin_07_0.650.h5", 7),
        ("xception_fin_12_1.000.h5", 12),
        ("xception_fin_2024_07_0.650.h5", 7),
        ("mine.h5", None),
    ],
)
def test_the_kept_epoch_is_the_one_in_the_checkpoints_name(name, epoch):
    assert figures.kept_epoch(Path(name)) == epoch


def test_a_gallery_shows_each_image_with_its_caption():
    red, green = (Image.new("RGB", (30, 20), colour) for colour in ("red", "green"))
    lines = (("rose 90 %", "#c0392b"), ("truth: tulip", "#222222"))
    figure = figures.gallery("Mistakes", [Tile(red, lines), Tile(green, lines[:1])], columns=6)
    assert figure.get_suptitle() == "Mistakes"
    for axes, image, caption in zip(figure.axes, (red, green), (lines, lines[:1]), strict=True):
        pixels = np.asarray(axes.images[0].get_array())
        assert pixels.shape == (224, 224, 3)
        assert (pixels == image.getpixel((0, 0))).all()
        said = [(text.get_text(), text.get_color()) for text in axes.texts]
        assert said == list(caption)


def test_an_image_without_heat_is_cut_and_one_with_heat_is_squeezed_beside_its_overlay():
    image = Image.new("RGB", (300, 100), "green")
    image.paste("red", (0, 0, 60, 100))
    image.paste("blue", (240, 0, 300, 100))
    heat = np.zeros((10, 10))
    heat[:, 5:] = 1
    tiles = [Tile(image, [("a", "red")]), Tile(image, [("b", "red")], heat)]
    figure = figures.gallery("Both", tiles)
    cut, squeezed = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert (cut == (0, 128, 0)).all()
    assert squeezed.shape == (224, 448, 3)
    assert np.array_equal(squeezed[:, :224], np.asarray(image.resize((224, 224))))
    assert np.array_equal(squeezed[:, 224:], figures.overlay(squeezed[:, :224], heat))
