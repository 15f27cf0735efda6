"""The figures of this folder's pages, in the style of the training reports."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serving.image import open_picture
from training import figures
from training.dataset import class_of
from training.figures import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, Tile, gallery, note, styled
from training.hygiene import Hygiene
from training.metrics import percent, shown

MAX_BYTES = 190_000  # of a PNG: some of them are kept in git
CYCLE = (BLUE, ORANGE, GREEN, RED, "#7d5ba6", "#8c6d46", "#17a2a8", "#c45a9d")


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as a PNG of at most `MAX_BYTES`."""
    figures.save(figure, path, MAX_BYTES)


# What is in a folder of pictures


def examples(folder: Path, pictures: Sequence[str]) -> Figure:
    """Draw `pictures`, "class/file" in `folder`, each under its class."""
    tiles = [Tile(open_picture(folder / p), ((shown(class_of(p)), INK),)) for p in pictures]
    return gallery("One example a class", tiles, columns=min(len(tiles), 6))


@styled
def classes(found: dict) -> Figure:
    """Draw the pictures of each class; `found` as `explore.evenness` gives it."""
    counts = found["counts"]
    figure = Figure(figsize=(8, 1.3 + 0.36 * len(counts)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(counts))[::-1]
    total = sum(counts.values())
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
    axes.axvline(total / len(counts), color=ORANGE, lw=1.2, ls="--", label="an equal share")
    axes.set_yticks(places, [shown(name) for name in counts])
    axes.set_xlabel("pictures")
    axes.set_xlim(0, 1.15 * max(counts.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"Largest class by smallest: {found['ratio']:.2f}")
    figure.legend(loc="outside lower right", fontsize=9)
    return figure


@styled
def sizes(measured: Sequence[dict], input_size: int) -> Figure:
    """Draw the widths, heights and aspect ratios of `measured`, beside `input_size` (pixels)."""
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
    right.set_title("Width by height")
    right.set_xlabel("aspect ratio")
    for axes in (left, right):
        axes.set_ylabel("pictures")
        axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the edges of 40 bins, also where all `values` are one."""
    low, high = values.min(), values.max()
    margin = max(0.03 * (high - low), 0.02 * high)
    return np.linspace(low - margin, high + margin, 41)


@styled
def colours(
    class_names: Sequence[str], labels: np.ndarray, measured: Sequence[dict], by_class: dict
) -> Figure:
    """Draw the brightness, the saturation and the hues of each class."""
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
        "box: half of the pictures, in their mean colour; whiskers: 90 %; line: median", fontsize=9
    )
    return figure


def _hues(axes: Axes, hues: Sequence[Sequence[float]], places: np.ndarray) -> None:
    """Draw each class's chroma by hue as a row of bars in that hue."""
    count = len(hues[0])
    circle = matplotlib.colormaps["hsv"](np.arange(count) / count)
    most = max(map(max, hues)) or 1
    # From purple over red, yellow and green to blue: what flowers are made of, in one piece.
    order = np.roll(np.arange(count), count // 4)
    for row, place in zip(hues, places, strict=True):
        heights = 0.85 * np.array(row)[order] / most
        axes.bar(np.arange(count), heights, 0.95, place - 0.42, color=circle[order])
    axes.set_xticks([])
    axes.set_title("Hues: how much of which")


def copies(folder: Path, hygiene: Hygiene, limit: int) -> Figure:
    """Draw the first two of each of at most `limit` groups of copies, across classes first."""
    groups = list(dict.fromkeys((*hygiene.across_classes, *hygiene.near, *hygiene.exact)))
    if not groups:
        return note("Copies", "None: no two pictures look alike.")
    tiles = []
    for group in groups[:limit]:
        across = group in hygiene.across_classes
        one = group[0]
        other = next((p for p in group if class_of(p) != class_of(one)), group[1])
        for picture in (one, other):
            caption = ((shown(class_of(picture), 18), RED if across else INK),)
            tiles.append(Tile(open_picture(folder / picture), caption))
    title = f"Copies, two by two ({min(limit, len(groups))} of {len(groups)} groups)"
    return gallery(title, tiles, columns=min(6, len(tiles)))
