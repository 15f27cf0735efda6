"""The figures of the pages, in the style of the training reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serving.image import open_image
from training.dataset.checks import DatasetChecks
from training.dataset.scan import class_of
from training.evaluation import figures
from training.evaluation.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    RED,
    Tile,
    crop,
    gallery,
    note,
    styled,
)
from training.evaluation.metrics import percent, shown

MAX_BYTES = 190_000  # of a PNG: some of them are kept in git
MAX_CLASSES = 500  # of a figure; of 1,080, Matplotlib draws none
CYCLE = (BLUE, ORANGE, GREEN, RED, "#7d5ba6", "#8c6d46", "#17a2a8", "#c45a9d")


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as a PNG of at most `MAX_BYTES`."""
    figures.save(figure, path, MAX_BYTES)


# A folder of images


def examples(folder: Path, images: Sequence[str]) -> Figure:
    """Draw `images`, "class/file" in `folder`, each under its class.

    Where the classes take turns, each has a column, if they are six at most. Of many classes, the
    first `MAX_CLASSES` are drawn; so it is in the figures below.
    """
    names = list(dict.fromkeys(class_of(image) for image in images))[:MAX_CLASSES]
    images = [image for image in images if class_of(image) in names]
    tiles = [
        Tile(crop(open_image(folder / image)), ((shown(class_of(image)), INK),)) for image in images
    ]
    count = len(names)
    title = "An example of each class" if count == len(tiles) else "Examples of each class"
    return gallery(title, tiles, columns=min(count, 6))


def labels(folder: Path, rows: Mapping[int, tuple[str, str, str, float]], title: str) -> Figure:
    """Draw images in `folder` with what they are called and what a network takes them for.

    `rows` is {number: (image, label, predicted class, its probability)}.
    """
    tiles = []
    for number, (image, label, predicted, confidence) in rows.items():
        told = f"{number}. {shown(predicted, 14)} {percent(confidence)}"
        lines = ((told, GREEN if predicted == label else RED), (f"label: {shown(label)}", INK))
        tiles.append(Tile(crop(open_image(folder / image)), lines))
    return gallery(title, tiles, columns=6)


@styled
def classes(found: dict) -> Figure:
    """Draw the number of images of each class; `found` is from `explore.evenness`."""
    counts, total = found["counts"], sum(found["counts"].values())
    equal_share, left_out = total / len(counts), _left_out(len(counts))
    counts = dict(list(counts.items())[:MAX_CLASSES])
    figure = Figure(figsize=(8, 1.3 + 0.36 * len(counts)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(counts))[::-1]
    axes.barh(places, list(counts.values()), color=BLUE, height=0.7)
    for place, count in zip(places, counts.values(), strict=True):
        axes.annotate(
            f"{count} ({percent(count / total)})",
            (count, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.axvline(equal_share, color=ORANGE, lw=1.2, ls="--", label="an equal share")
    axes.set_yticks(places, [shown(name) for name in counts])
    axes.set_xlabel(f"images{left_out}")
    axes.set_xlim(0, 1.15 * max(counts.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"The largest class is {found['ratio']:.2f} times the smallest")
    figure.legend(loc="outside lower right", fontsize=9)
    return figure


@styled
def sizes(measured: Sequence[dict], input_size: int) -> Figure:
    """Draw widths, heights and aspect ratios, beside `input_size` (pixels)."""
    widths = np.array([row["width"] for row in measured])
    heights = np.array([row["height"] for row in measured])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = _bins(np.concatenate([widths, heights, [input_size]]))
    left.hist(widths, bins, color=BLUE, alpha=0.75, label="width")
    left.hist(heights, bins, color=ORANGE, alpha=0.75, label="height")
    left.axvline(input_size, color=INK, lw=1.2, ls="--", label=f"input: {input_size}")
    left.set_title("Widths and heights")
    left.set_xlabel("pixels")
    right.hist(widths / heights, _bins(np.append(widths / heights, 1)), color=GREEN, alpha=0.85)
    right.axvline(1, color=INK, lw=1.2, ls="--", label="a square")
    right.set_title("Aspect ratio: width by height")
    right.set_xlabel("aspect ratio")
    for axes in (left, right):
        axes.set_ylabel("images")
        axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the edges of 40 bins, also if all `values` are equal."""
    low, high = values.min(), values.max()
    margin = max(0.03 * (high - low), 0.02 * high)
    return np.linspace(low - margin, high + margin, 41)


@styled
def colours(
    class_names: Sequence[str], labels: np.ndarray, measured: Sequence[dict], by_class: dict
) -> Figure:
    """Draw the brightness, the saturation and the hues of each class."""
    left_out, class_names = _left_out(len(class_names)), class_names[:MAX_CLASSES]
    figure = Figure(figsize=(9.5, 1.6 + 0.55 * len(class_names)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.5))
    places = np.arange(len(class_names))[::-1]
    for axes, key, title in (
        (panels[0], "brightness", "Brightness, 0 to 255"),
        (panels[1], "saturation", "Saturation, 0 to 1"),
    ):
        values = np.array([row[key] for row in measured])
        boxes = axes.boxplot(
            [values[labels == index] for index in range(len(class_names))],
            positions=places,
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            medianprops={"color": ORANGE, "lw": 2},
            whis=(5, 95),
        )
        for index, box in enumerate(boxes["boxes"]):
            # On top of their mean colours boxes would be hard to compare; only the first shows it.
            mean = np.array(by_class[class_names[index]]["colour"]) / 255
            box.set(facecolor=mean if key == "brightness" else PALE, edgecolor=GREY)
        axes.set_title(title)
        axes.grid(axis="x")
    _hues(panels[2], [by_class[name]["hues"] for name in class_names], places)
    panels[0].set_yticks(places, [shown(name) for name in class_names])
    panels[0].set_ylim(-0.6, len(class_names) - 0.4)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
    figure.supxlabel(
        "box: half of the images, in their mean colour; whiskers: 90 %; line: median" + left_out,
        fontsize=9,
    )
    return figure


def _left_out(count: int) -> str:
    """Return what a legend says where not all of `count` classes are drawn."""
    return f"; the first {MAX_CLASSES} of {count} classes" if count > MAX_CLASSES else ""


def _hues(axes: Axes, hues: Sequence[Sequence[float]], places: np.ndarray) -> None:
    """Draw each class's chroma by hue, a row of coloured bars."""
    count = len(hues[0])
    circle = matplotlib.colormaps["hsv"](np.arange(count) / count)
    most = max(map(max, hues)) or 1
    # From purple over red, yellow and green to blue, so that the hues of flowers are adjacent.
    order = np.roll(np.arange(count), count // 4)
    for row, place in zip(hues, places, strict=True):
        heights = 0.85 * np.array(row)[order] / most
        axes.bar(np.arange(count), heights, 0.95, place - 0.42, color=circle[order])
    axes.set_xticks([])
    axes.set_title("Share of each hue")


def copies(folder: Path, checks: DatasetChecks, limit: int) -> Figure:
    """Draw two images of each group, at most `limit`, across classes first."""
    groups = list(dict.fromkeys((*checks.across_classes, *checks.near, *checks.exact)))
    if not groups:
        return note("Copies", "None: no two images look alike.")
    tiles = []
    for group in groups[:limit]:
        across = group in checks.across_classes
        one = group[0]
        other = next((p for p in group if class_of(p) != class_of(one)), group[1])
        for image in (one, other):
            caption = ((shown(class_of(image), 18), RED if across else INK),)
            tiles.append(Tile(crop(open_image(folder / image)), caption))
    title = f"Copies, two by two ({min(limit, len(groups))} of {len(groups)} groups)"
    return gallery(title, tiles, columns=min(6, len(tiles)))


# A comparison of networks


@styled
def curves(histories: dict[str, dict[str, np.ndarray]], kept: dict[str, int]) -> Figure:
    """Draw accuracy and loss by epoch, and mark the `kept` epochs."""
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("accuracy", "loss"), strict=True):
        for (name, history), colour in zip(histories.items(), CYCLE, strict=False):
            values, best = history[f"val_{metric}"], kept[name]
            epochs = np.arange(1, len(values) + 1)
            axes.plot(epochs, history[metric], color=colour, lw=1, ls=":")
            axes.plot(epochs, values, color=colour, lw=1.8, label=name)
            axes.plot(best, values[best - 1], "o", color=colour, ms=6)
        axes.set_title(metric.capitalize())
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
    # The loss of a network that only memorizes would leave no room for the others.
    start = max(history["val_loss"][0] for history in histories.values())
    panels[1].set_ylim(0, min(panels[1].get_ylim()[1], 1.5 * start))
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        fontsize=9,
        title="line: validation images; dots: training images; mark: kept epoch",
        title_fontsize=9,
    )
    return figure


@styled
def accuracy_by_time(rows: Sequence[dict]) -> Figure:
    """Draw the accuracy of `rows`, with its interval, by inference time."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for row, colour in zip(rows, CYCLE, strict=False):
        x, y = row["inference_seconds"] * 1000, row["accuracy"]
        low, high = row["accuracy_interval"]
        axes.errorbar(
            x, y, [[y - low], [high - y]], fmt="o", color=colour, ms=8, capsize=3, label=row["name"]
        )
    _logarithmic(axes)
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds an image, one thread")
    axes.set_ylabel("test accuracy")
    axes.grid()
    axes.set_title("Better is up and left")
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _logarithmic(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers instead of powers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


# A search


@styled
def trials(found: Sequence[tuple], original) -> Figure:
    """Draw the trials by learning rate and momentum, and by time.

    `found` is from `tune.search`, the best first; `original` is the candidate to compare with.
    """
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    losses = np.array([metrics["val_loss"] for _, metrics in found])
    rates = [candidate.learning_rate for candidate, _ in found]
    momentums = [candidate.momentum for candidate, _ in found]
    # A diverged trial would leave one colour for all others.
    top = min(losses.max(), 2 * losses.min())
    style = {"cmap": "viridis_r", "vmin": losses.min(), "vmax": top, "zorder": 3}
    dots = left.scatter(rates, momentums, c=losses, s=70, edgecolor="white", **style)
    left.plot(
        rates[0], momentums[0], "o", ms=15, mfc="none", mec=RED, mew=2, label="best", zorder=4
    )
    left.plot(
        original.learning_rate,
        original.momentum,
        "x",
        color=INK,
        ms=10,
        mew=2,
        zorder=5,
        label="the original's",
    )
    _logarithmic(left)
    left.margins(0.1)
    left.set_xlabel("learning rate")
    left.set_ylabel("momentum")
    left.set_title("Loss of each trial")
    left.grid()
    figure.colorbar(dots, ax=left, extend="max" if losses.max() > top else "neither")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=9)
    by_time = sorted((metrics["trial"], metrics["val_loss"]) for _, metrics in found)
    numbers = np.arange(1, len(by_time) + 1)
    in_time = np.array([loss for _, loss in by_time])
    right.plot(numbers, in_time, "o", color=GREY, ms=5)
    right.step(numbers, np.minimum.accumulate(in_time), color=BLUE, lw=1.8, where="post")
    right.set_ylim(0.9 * losses.min(), 1.05 * top)
    right.set_title("The best so far")
    right.set_xlabel("trial")
    right.set_ylabel("loss")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.grid(axis="y")
    return figure
