"""The figures of a report, drawn without pyplot and its global state."""

import csv
import re
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from training.evaluation.calibration import Bins, bin_predictions, expected_calibration_error
from training.evaluation.metrics import percent, shown, wilson

MAX_BYTES = 300_000  # of a PNG, so that a page of figures loads quickly
DPI = 110
COLOURS = 256  # of a palette, where full colour takes too many bytes
MAX_ROWS = 100  # classes of a figure; of several thousand, Matplotlib draws none
SIDE = 224  # pixels of a gallery's image, height and width
ENOUGH = 10  # images in a bin of the reliability diagram; bars of fewer are pale

INK, GREY, PALE = "#222222", "#8a8a8a", "#e6e6e6"
BLUE, ORANGE, RED, GREEN = "#2f6db3", "#d9822b", "#c0392b", "#2e8b57"
STYLE = {
    "text.parse_math": False,  # a class may be called "$5"
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


class Tile(NamedTuple):
    """An image of a gallery.

    Attributes:
        image: RGB, of any size.
        lines: (text, colour) of each line of the caption.
        heat: its map by `grad_cam`, float (rows, columns), 0 to 1, or None.
    """

    image: Image.Image
    lines: Sequence[tuple[str, str]]
    heat: np.ndarray | None = None


def styled(function: Callable) -> Callable:
    """Return `function` run with `STYLE`, whatever the caller's Matplotlib settings."""

    @wraps(function)
    def in_style(*positional: object, **named: object) -> object:
        with matplotlib.rc_context(), warnings.catch_warnings():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)  # ty: ignore[no-matching-overload]
            # The font lacks some scripts; class names in them show as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            return function(*positional, **named)

    return in_style


@styled
def save(figure: Figure, path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Write `figure` to `path` as a PNG of at most `max_bytes`, with fewer colours if needed."""
    for dpi in (DPI, 90, 75, 60, 50, 40):
        image = _rendered(figure, dpi)
        png = _png(image)
        if len(png) > max_bytes:
            # Of Pillow's methods the octree is fastest and, dithered, closest on photographs.
            palette = image.quantize(COLOURS, Image.Quantize.FASTOCTREE)
            png = _png(image.quantize(palette=palette))
        if len(png) <= max_bytes:
            break
    path.write_bytes(png)


def _rendered(figure: Figure, dpi: int) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _png(image: Image.Image) -> bytes:
    with BytesIO() as file:
        image.save(file, "PNG", optimize=True)
        return file.getvalue()


# Learning curves


def read_history(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of the CSV at `path`, float (epochs,); NaN where a field is not a number.

    Without a file, or without epochs in it, return {}.
    """
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else ()) if name]
    return {name: np.array([_number(row.get(name)) for row in rows]) for name in names}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


@styled
def learning_curves(history: dict[str, np.ndarray], kept_epoch: int | None) -> Figure:
    """Draw accuracy and loss by epoch; mark `kept_epoch`, the checkpoint's, counted from 1."""
    if not any(history.get(name) is not None for name in ("accuracy", "loss", "val_accuracy")):
        return note("Learning curves", "There is no history of this run's epochs.")
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("accuracy", "loss"), strict=True):
        _curves(axes, history, name, kept_epoch)
    best = history.get("val_accuracy")
    if best is not None and np.isfinite(best).any():
        panels[0].set_title(f"Accuracy: best validation {np.nanmax(best):.3f}")
    figure.legend(*_legend_of(panels), loc="outside lower center", ncols=3)
    return figure


def _curves(axes: Axes, history: dict[str, np.ndarray], name: str, kept_epoch: int | None) -> None:
    for column, label, colour in (
        (name, "training", GREY),
        (f"val_{name}", "validation", BLUE),
    ):
        values = history.get(column)
        if values is not None:
            # By position: a history may count epochs from 0, or start again in each stage.
            epochs = np.arange(1, len(values) + 1)
            marker = "o" if len(values) <= 40 else None
            axes.plot(epochs, values, color=colour, label=label, lw=1.8, marker=marker, ms=3.5)
    if kept_epoch is not None:
        axes.axvline(kept_epoch, color=ORANGE, lw=1.2, ls="--", label=f"kept: epoch {kept_epoch}")
    axes.set_title(name.capitalize())
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    if name == "accuracy":
        axes.set_ylim(top=min(1.005, axes.get_ylim()[1]))
    else:
        axes.set_ylim(bottom=0)


def _legend_of(panels: Sequence[Axes]) -> tuple[list, list]:
    """Return the handles and labels of the panel that has more of them."""
    return max((axes.get_legend_handles_labels() for axes in panels), key=lambda both: len(both[1]))


# Confusion matrix


@styled
def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw `counts`, int (classes, classes): rows are true, columns predicted classes."""
    size = len(class_names)
    side = np.clip(2.6 + 0.62 * size, 4.6, 11)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(_cell_colours(shares))
    _write_cells(axes, counts, shares, np.clip(150 / size, 5.5, 12))
    names = [shown(name) for name in class_names]
    small = np.clip(200 / size, 7, 10)
    rotation = 0 if size <= 6 and max(map(len, names)) <= 10 else 90 if size > 12 else 45
    axes.set_xticks(
        range(size),
        names,
        rotation=rotation,
        ha="right" if rotation == 45 else "center",
        rotation_mode="anchor" if rotation == 45 else "default",
        fontsize=small,
    )
    axes.set_yticks(range(size), names, fontsize=small)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    right, total = int(np.trace(counts)), int(counts.sum())
    figure.suptitle(
        f"{right} of {total} correct\n{_worst(counts, names)}",
        x=0.02,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    return figure


def _cell_colours(shares: np.ndarray) -> np.ndarray:
    """Return RGB, 0 to 1: correct cells in blue, mistakes in orange on their own scale."""
    right = matplotlib.colormaps["Blues"](shares * 0.9)[..., :3]
    mistakes = shares * (1 - np.eye(len(shares)))
    wrong = matplotlib.colormaps["Oranges"](mistakes / max(mistakes.max() * 1.6, 0.2))[..., :3]
    wrong[mistakes == 0] = 0.97
    return np.where(np.eye(len(shares), dtype=bool)[..., np.newaxis], right, wrong)


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, size: float) -> None:
    for row, column in np.argwhere(counts > 0):
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=size,
            fontweight="bold" if row == column else "normal",
            color="white" if row == column and shares[row, column] > 0.55 else INK,
        )


def _worst(counts: np.ndarray, names: Sequence[str]) -> str:
    mistakes = counts - np.diag(np.diag(counts))
    if not mistakes.any():
        return "no mistakes"
    row, column = divmod(int(mistakes.argmax()), len(names))
    count = mistakes[row, column]
    return f"most frequent mistake: {names[row]} predicted as {names[column]} ({count})"


# Reliability


@styled
def reliability(
    uncalibrated: np.ndarray,
    probabilities: np.ndarray,
    true_classes: np.ndarray,
    temperature: float,
) -> Figure:
    """Draw the reliability diagram before and after `temperature`, and the number of images."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, height_ratios=(3.2, 1))
    for column, (title, predictions) in enumerate(
        (("Before", uncalibrated), (f"After, T = {temperature:.2f}", probabilities))
    ):
        top, bottom = panels[:, column]
        top.set_title(f"{title}: ECE {expected_calibration_error(predictions, true_classes):.3f}")
        _reliability(top, bottom, bin_predictions(predictions, true_classes))
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("images")
    handles = [Patch(color=BLUE, alpha=0.85), Patch(color=BLUE, alpha=0.35)]
    labels = ["accuracy", f"of fewer than {ENOUGH} images"]
    for handle, label in zip(*panels[0, 0].get_legend_handles_labels(), strict=True):
        handles.append(handle)
        labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9)
    return figure


def _reliability(top: Axes, bottom: Axes, binned: Bins) -> None:
    width = 1 / len(binned.count)
    filled = np.flatnonzero(binned.count)
    centres = (filled + 0.5) * width
    counts, accuracy = binned.count[filled], binned.accuracy[filled]
    low, high = np.transpose(
        [wilson(round(a * n), int(n)) for a, n in zip(accuracy, counts, strict=True)]
    )
    colours = [(BLUE, 0.85 if count >= ENOUGH else 0.35) for count in counts]
    top.bar(centres, accuracy, width * 0.9, color=colours)
    top.vlines(centres, low, high, color=INK, lw=1, label="Wilson 95 % interval")
    edges = (centres - width * 0.45, centres + width * 0.45)
    confidence = binned.confidence[filled]
    top.hlines(confidence, *edges, color=ORANGE, lw=3, label="mean confidence")
    top.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="calibrated")
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    top.grid(axis="y")
    bottom.bar(centres, counts, width * 0.9, color=GREY)
    for x, count in zip(centres, counts, strict=True):
        bottom.text(x, count, str(count), ha="center", va="bottom", fontsize=8)
    bottom.margins(y=0.3)
    bottom.set_xlabel("confidence")


# Risk and coverage


@styled
def risk_coverage(coverage: np.ndarray, risk: np.ndarray) -> Figure:
    """Draw `risk` by `coverage`, each (n,), 0 to 1, of `metrics.risk_coverage`."""
    counts = np.arange(1, len(risk) + 1)
    low, high = np.transpose(
        [wilson(round(r * n), int(n)) for r, n in zip(risk, counts, strict=True)]
    )
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(coverage, low, high, color=BLUE, alpha=0.2, lw=0, label="Wilson 95 %")
    axes.plot(coverage, risk, color=BLUE, lw=1.8, label="mistakes among them")
    axes.axhline(risk[-1], color=GREY, lw=1, ls="--", label=f"among all: {risk[-1]:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, max(3 * risk[-1], 0.05)))
    axes.set(xlabel="share of images answered, the surest first", ylabel="share of mistakes")
    axes.set_title(f"Risk and coverage: mean risk {risk.mean():.4f}")
    axes.grid(axis="y")
    axes.legend(loc="upper left")
    return figure


# Classes


@styled
def per_class(metrics: dict) -> Figure:
    """Draw precision, recall and F1 of each class with intervals, the best F1 on top."""
    rows = sorted(metrics["per_class"].items(), key=lambda item: item[1]["f1"])
    rows, left_out = rows[:MAX_ROWS], max(0, len(rows) - MAX_ROWS)
    figure = Figure(figsize=(9.5, 1.7 + 0.34 * max(len(rows), 3)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True, sharex=True)
    for axes, key, colour in zip(
        panels, ("precision", "recall", "f1"), (BLUE, ORANGE, GREEN), strict=True
    ):
        for y, (_, row) in enumerate(rows):
            axes.plot(
                row[f"{key}_interval"], [y, y], color=colour, lw=5, alpha=0.3, solid_capstyle="butt"
            )
            axes.plot(row[key], y, "o", color=colour, ms=6)
            axes.annotate(
                f"{row[key]:.2f}",
                (row[key], y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
            )
        axes.set_title("F1" if key == "f1" else key.capitalize())
        axes.grid(axis="x")
        axes.set_ylim(-0.6, len(rows) - 0.3)
    lowest = min(row[f"{key}_interval"][0] for _, row in rows for key in ("precision", "recall"))
    panels[0].set_xlim(max(0, np.floor((lowest - 0.03) * 10) / 10), 1.02)
    panels[0].set_yticks(
        range(len(rows)), [f"{shown(name)} ({row['support']})" for name, row in rows]
    )
    others = f"; classes of a higher F1 that are not shown: {left_out}" * bool(left_out)
    legend = f"dot: value; band: Wilson's 95 % interval; in brackets: images{others}"
    figure.supxlabel(legend, fontsize=9)
    return figure


# Galleries


@styled
def gallery(title: str, tiles: Sequence[Tile], columns: int = 4) -> Figure:
    """Draw `tiles` in rows of `columns`; with heat, the image and its overlay side by side."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    wide = 2 if any(tile.heat is not None for tile in tiles) else 1
    captions = 0.17 * max(len(tile.lines) for tile in tiles) + 0.1
    width, height = columns * (1.45 * wide + 0.2), 0.5 + rows * (1.45 + captions)
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.03, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(max(width, 4.5), height), layout=layout)
    figure.suptitle(title, x=0.005, ha="left", fontsize=11, fontweight="bold")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, tile in zip(panels, tiles, strict=False):
        _draw_tile(axes, tile)
    return figure


def crop(image: Image.Image) -> Image.Image:
    """Return what a gallery shows of `image`; of many large ones, the wholes fill the memory."""
    return ImageOps.fit(image, (SIDE, SIDE))


def _draw_tile(axes: Axes, tile: Tile) -> None:
    if tile.heat is None:
        pixels = np.asarray(crop(tile.image))
    else:
        # Squeezed like the network's input, not cropped, so that the heat is in place.
        squeezed = np.asarray(tile.image.resize((SIDE, SIDE)))
        pixels = np.concatenate([squeezed, overlay(squeezed, tile.heat)], axis=1)
    axes.imshow(pixels)
    for number, (line, colour) in enumerate(tile.lines):
        axes.annotate(
            line,
            (0, 0),
            xycoords="axes fraction",
            xytext=(0, -3 - 12 * number),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=colour,
            fontweight="bold" if number == 0 else "normal",
        )


def answer_tile(image: Image.Image, answer: dict) -> Tile:
    """Return a tile of `image` and what a model tells of it: class, p-value and heat map.

    `answer` is what `serving.answers.describe` returns, and the service with details.
    """
    label, known, heatmap = answer["label"], answer["known"], answer["heatmap"]
    lines = [(f"{shown(label, 16)} {percent(answer['scores'][label])}", INK)]
    if known is not None:
        lines.append((f"known: {known:.3f}", ORANGE if answer["unknown"] else GREEN))
    return Tile(image, lines, None if heatmap is None else read_heat(heatmap))


def read_heat(heatmap: dict) -> np.ndarray:
    """Return the heat map of an answer as an array, float (rows, columns), 0 to 1."""
    return np.reshape(heatmap["values"], (heatmap["rows"], heatmap["columns"]))


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend `heat`, float (rows, columns), 0 to 1, over `pixels`, uint8 (height, width, 3).

    Hot regions turn red, cold ones grey of the same brightness.
    """
    size = (pixels.shape[1], pixels.shape[0])
    smooth = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    warmth = np.clip(np.asarray(smooth), 0, 1)[..., np.newaxis]
    colour = matplotlib.colormaps["turbo"](warmth[..., 0])[..., :3] * 255
    grey = np.asarray(Image.fromarray(pixels).convert("L"))[..., np.newaxis]
    strength = 0.6 * np.minimum(warmth * 2, 1)
    return (grey * (1 - strength) + colour * strength).astype(np.uint8)


@styled
def note(title: str, text: str) -> Figure:
    """Draw a sentence in place of a figure."""
    figure = Figure(figsize=(6, 1.4))
    figure.text(0.03, 0.8, title, va="top", fontsize=11, fontweight="bold")
    figure.text(0.03, 0.5, text, va="top", fontsize=10)
    return figure


def kept_epoch(checkpoint: Path) -> int | None:
    """Return the epoch in the name of `checkpoint`, or None."""
    match = re.search(r"_(\d+)_[01]\.\d{3}$", checkpoint.stem)
    return int(match[1]) if match else None
