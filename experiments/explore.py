"""Explore a folder of images: classes, sizes, colours, copies and broken files.

    python -m experiments.explore                    # flowers/
    python -m experiments.explore --data mine/ --out mine-explored/

Writes index.html (a self-contained page), its figures (*.png) and numbers.json into --out.
Measurements of each image are kept in images.jsonl, so that a stopped run continues.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments import charts
from experiments.command import make_parser, run, split_images
from experiments.page import Section, write_page
from experiments.records import Records
from serving.image import open_image
from training.batches import image_indices
from training.dataset.checks import DatasetChecks, check_dataset, format_checks, load_dataset
from training.dataset.scan import Dataset
from training.dataset.split import Split
from training.evaluation.metrics import shown, wilson, with_interval
from training.files import write_atomically
from training.markdown import markdown_table
from training.prefetch import progress
from training.recipes import ORIGINAL

EPOCHS = 50  # passes of the linear model on colours
INPUT_SIZE = ORIGINAL.input_size  # pixels, height and width
THUMBNAIL = 64  # pixels, height and width, that colours are measured on
HUES = 24  # bins of the colour circle, the first one around red
# Largest class by smallest one. Google's guide to imbalanced data calls two classes of 20 % and
# 80 % still mildly imbalanced, and says to train on such data unchanged.
EVEN, MILD = 1.5, 4.0
TOO_SMALL = 0.05  # share of images that an input size may enlarge
LISTED = 20  # findings of each kind on the page; numbers.json has all
COPIES = 6  # groups of copies on the page


def main(arguments: list[str] | None = None) -> int:
    """Explore as the command line says and return the exit code."""
    return run(explore, "explore", parse_arguments(arguments), claim=True)


def explore(options: argparse.Namespace) -> None:
    """Measure the images; draw, write and print the results."""
    dataset = load_dataset(options.data, options.exclude)
    checks = check_dataset(dataset)
    measured = measure_all(dataset, options.out / "images.jsonl")
    split = split_images(dataset, options.split_seed)
    numbers = {
        "images": len(dataset.images),
        "classes": evenness(dataset.counts),
        "sizes": sizes(measured),
        "colours": colours(dataset, measured),
        "colour_alone": colour_alone(dataset, measured, split, options.epochs, options.seed),
        "checks": asdict(checks),
    }
    text = json.dumps(numbers, indent=1)
    write_atomically(options.out / "numbers.json", lambda new: new.write_text(text + "\n"))
    sections = draw(dataset, measured, checks, numbers, options)
    page = options.out / "index.html"
    counted = f"{len(dataset.images)} images of {len(dataset.class_names)} classes"
    write_page(page, f"What is in {options.data.resolve().name}", f"{counted}.", sections)
    print(markdown_table(CLASS_HEAD, class_rows(numbers)))
    for section in sections:
        for paragraph in section.text:
            print(f"{section.title}: {paragraph}")
    print(f"Wrote {page}.")


# Measurements


def measure_all(dataset: Dataset, path: Path) -> list[dict]:
    """Return the measurements of each image of `dataset`; keep them in `path`."""
    records = Records(path, {"small": THUMBNAIL, "hues": HUES})
    known = {row["digest"]: row for row in records.rows}
    missing = {dataset.digests[name]: name for name in dataset.images}
    missing = {digest: name for digest, name in missing.items() if digest not in known}

    def read_and_measure(name: str) -> dict:
        return measure(open_image(dataset.folder / name))

    with ThreadPoolExecutor() as pool, progress(len(missing), "  measured") as bar:
        try:
            rows = pool.map(read_and_measure, missing.values())
            for digest, row in zip(missing, rows, strict=True):
                known[digest] = {"digest": digest} | row
                records.append(known[digest])
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [known[dataset.digests[name]] for name in dataset.images]


def measure(image: Image.Image) -> dict:
    """Return the measurements of an RGB image (JSON).

    Keys: `width` and `height` in pixels; `brightness`, the mean, and `contrast`, the standard
    deviation, of its grey levels, 0 to 255; `colour`, its mean red, green and blue, 0 to 255;
    `saturation`, 0 to 1; `hues`, for each of `HUES` bins of the colour circle the mean chroma
    (saturation by value, 0 to 1) of the pixels of that hue, counted over all pixels.
    """
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), dtype=float)
    hue, saturation, value = np.moveaxis(np.asarray(small.convert("HSV"), dtype=float), 2, 0) / 255
    bins = np.round(hue * HUES).astype(int) % HUES
    chroma = np.bincount(bins.ravel(), (saturation * value).ravel(), HUES) / bins.size
    return {
        "width": image.width,
        "height": image.height,
        "brightness": round(float(grey.mean()), 2),
        "contrast": round(float(grey.std()), 2),
        "colour": np.asarray(small, dtype=float).mean(axis=(0, 1)).round(2).tolist(),
        "saturation": round(float(saturation.mean()), 4),
        "hues": chroma.round(5).tolist(),
    }


def evenness(counts: dict[str, int]) -> dict:
    """Return how even `counts` (images of each class) are, with a verdict.

    `ratio` is the largest class by the smallest, as Buda et al. 2018 ("A systematic study of the
    class imbalance problem in convolutional neural networks") measure imbalance; `entropy` that of
    the classes' shares by the largest possible one, 1 for equal classes (Pielou's evenness);
    `guess` the accuracy of always answering the largest class; `verdict` a sentence.
    """
    sizes = np.array(list(counts.values()))
    shares = sizes / sizes.sum()
    ratio = float(sizes.max() / sizes.min())
    if ratio <= EVEN:
        verdict = f"even (at most {EVEN}): no resampling needed"
    elif ratio <= MILD:
        verdict = f"mildly uneven (at most {MILD:.0f}): no resampling needed"
    else:
        verdict = f"uneven (above {MILD:.0f}): weigh or resample classes, and look at each recall"
    return {
        "counts": counts,
        "ratio": ratio,
        "entropy": float(-(shares * np.log(shares)).sum() / np.log(len(shares))),
        "guess": float(shares.max()),
        "verdict": verdict,
    }


def sizes(measured: Sequence[dict]) -> dict:
    """Return quartiles of widths, heights, aspect ratios, and effects of resizing.

    `enlarged` is the share of images that `INPUT_SIZE` enlarges in height or width, `largest`
    the largest size that enlarges at most `TOO_SMALL` of them, `stretched` the factor by which
    resizing to a square changes the median image's aspect ratio.
    """
    widths = np.array([row["width"] for row in measured])
    heights = np.array([row["height"] for row in measured])
    aspects = widths / heights
    shorter = np.minimum(widths, heights)
    return {
        "width": _quartiles(widths),
        "height": _quartiles(heights),
        "aspect_ratio": _quartiles(aspects),
        "input_size": INPUT_SIZE,
        "enlarged": float((shorter < INPUT_SIZE).mean()),
        "largest": int(np.quantile(shorter, TOO_SMALL, method="lower")),
        "stretched": float(np.median(np.maximum(aspects, 1 / aspects))),
    }


def _quartiles(values: np.ndarray) -> dict[str, float]:
    names = ("least", "quarter", "median", "three_quarters", "most")
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))


def colours(dataset: Dataset, measured: Sequence[dict]) -> dict[str, dict]:
    """Return each class's median brightness, contrast and saturation, and mean colours."""
    labels = dataset.labels(dataset.images)
    found = {}
    for index, name in enumerate(dataset.class_names):
        rows = [row for row, label in zip(measured, labels, strict=True) if label == index]
        keys = ("brightness", "contrast", "saturation")
        found[name] = {key: float(np.median([row[key] for row in rows])) for key in keys}
        for key in ("colour", "hues"):
            found[name][key] = np.mean([row[key] for row in rows], axis=0).round(5).tolist()
    return found


def colour_alone(
    dataset: Dataset, measured: Sequence[dict], split: Split, epochs: int, seed: int
) -> dict:
    """Return the test accuracy of a linear model on brightness and colours.

    It is fitted in `epochs` passes to the training images of `split`, in an order that `seed`
    draws. Any network has to beat it.
    """
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    keys = ("brightness", "contrast", "saturation")
    inputs = np.array(
        [[*(row[key] for key in keys), *row["colour"], *np.sqrt(row["hues"])] for row in measured]
    )
    labels = dataset.labels(dataset.images)
    train, test = image_indices(dataset, split.train), image_indices(dataset, split.evaluated)
    model = make_pipeline(
        StandardScaler(),
        SGDClassifier("log_loss", max_iter=epochs, tol=None, average=True, random_state=seed),
    )
    model.fit(inputs[train], labels[train])
    hits = int((model.predict(inputs[test]) == labels[test]).sum())
    return {
        "accuracy": hits / len(test),
        "accuracy_interval": wilson(hits, len(test)),
        "n": len(test),
        "epochs": epochs,
        "seed": seed,
    }


# Page

CLASS_HEAD = ("class", "images", "share", "brightness", "contrast", "saturation")


def class_rows(numbers: dict) -> list[list[str]]:
    """Return the cells of `CLASS_HEAD` for each class."""
    counts = numbers["classes"]["counts"]
    return [
        [
            shown(name),
            str(counts[name]),
            f"{counts[name] / numbers['images']:.1%}",
            f"{row['brightness']:.0f}",
            f"{row['contrast']:.0f}",
            f"{row['saturation']:.2f}",
        ]
        for name, row in numbers["colours"].items()
    ]


def draw(
    dataset: Dataset,
    measured: Sequence[dict],
    checks: DatasetChecks,
    numbers: dict,
    options: argparse.Namespace,
) -> list[Section]:
    """Draw the figures into `options.out` and return the page's sections."""
    labels = dataset.labels(dataset.images)

    def save(name: str, figure: Figure, description: str) -> list[tuple[Path, str]]:
        path = options.out / name
        charts.save(figure, path)
        return [(path, description)]

    examples = charts.examples(dataset.folder, choose_examples(dataset, options.seed))
    extent = charts.sizes(measured, INPUT_SIZE)
    palette = charts.colours(dataset.class_names, labels, measured, numbers["colours"])
    return [
        Section(
            "An example of each class",
            ["Drawn at random; another --seed draws others."],
            save("examples.png", examples, "an image of each class"),
        ),
        Section(
            "Classes",
            [describe_classes(numbers["classes"])],
            save("classes.png", charts.classes(numbers["classes"]), "images of each class"),
            CLASS_HEAD,
            class_rows(numbers),
        ),
        Section(
            "Sizes",
            [describe_sizes(numbers["sizes"])],
            save("sizes.png", extent, "widths, heights and aspect ratios"),
            ("pixels", "minimum", "25 %", "median", "75 %", "maximum"),
            size_rows(numbers["sizes"]),
        ),
        Section(
            "Brightness and colour",
            [describe_colours(numbers["colour_alone"], numbers["classes"]["guess"])],
            save("colours.png", palette, "brightness, saturation and hues of each class"),
        ),
        Section(
            "Copies and broken files",
            format_checks(checks, limit=0)[:1],
            save("copies.png", charts.copies(dataset.folder, checks, COPIES), "copies"),
            findings=format_checks(checks, LISTED)[1:],
        ),
    ]


def choose_examples(dataset: Dataset, seed: int, of_each: int = 1) -> list[str]:
    """Return `of_each` images of each class, "class/file", drawn at random; classes take turns."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(dataset.of_class(n), of_each, replace=False) for n in dataset.class_names]
    return [str(name) for turn in zip(*drawn, strict=True) for name in turn]


def size_rows(found: dict) -> list[list[str]]:
    """Return the rows of the table of sizes; `found` has five numbers of each measure."""
    names = {"width": "width", "height": "height", "aspect_ratio": "aspect"}
    return [
        [name, *(f"{value:.4g}" for value in found[key].values())] for key, name in names.items()
    ]


def describe_classes(found: dict) -> str:
    """Return sentences about the result of `evenness`."""
    return (
        f"The largest class is {found['ratio']:.2f} times the smallest. The classes are "
        f"{found['verdict']}. Normalized entropy "
        f"{found['entropy']:.3f} (1: equal classes). Always predicting the largest class is right "
        f"for {found['guess']:.1%}."
    )


def describe_sizes(found: dict) -> str:
    """Return sentences about the result of `sizes`."""
    size = found["input_size"]
    return (
        f"An input of {size}×{size} pixels enlarges {found['enlarged']:.0%} of the images in "
        f"height or width; up to {found['largest']}×{found['largest']} it is at most "
        f"{TOO_SMALL:.0%}. Resizing to a square changes the median image's shape by a factor of "
        f"{found['stretched']:.2f}."
    )


def describe_colours(found: dict, guess: float) -> str:
    """Return sentences about the result of `colour_alone`."""
    accuracy = with_interval(found["accuracy"], found["accuracy_interval"])
    return (
        f"A linear model on brightness and colours, without shapes, has an accuracy of {accuracy} "
        f"on {found['n']} test images; always predicting the largest class, one of {guess:.3f}. "
        "A network has to beat both."
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    return make_parser(__doc__, "explore", EPOCHS).parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
