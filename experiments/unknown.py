"""Measure how well a .tflite file tells images of other things from those of its classes.

    python -m experiments.unknown models/x.int8.tflite --others cats/ documents/
    python -m experiments.unknown models/x.int8.tflite --others cats/ --compare models/x.tflite
    python -m experiments.unknown x.tflite --data mine/ --exclude wrong.txt --others cats/

Prints Markdown tables: for each folder of other images, how often they look stranger than test
images and how many are called unknown; for the test images, how many are called so by mistake; and
how far the p-values are from those of another file. Excluded images that did not train the network
are a set of other images, too. The test images are those in the record of the split,
x.split.json beside the .tflite file; --split names another.
"""

import argparse
import os
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from serving.classifier import Classifier
from serving.details import DETAILS_FILE, Familiarity
from serving.errors import ModelError, ServingError
from serving.model_files import kind_of
from serving.preprocess import preprocess
from serving.resources import thread_count
from serving.runtimes import RUNTIMES
from training import cli
from training.dataset.scan import scan
from training.dataset.split import Split
from training.errors import DataError
from training.image_files import expand, read_images
from training.prefetch import prefetch, progress

TEST, EXCLUDED = "test images", "excluded"  # names of sets


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return cli.run_command(lambda: measure(options), "experiments.unknown", paths="read the images")


class Model(NamedTuple):
    """A .tflite file that tells which images are unknown."""

    classifier: Classifier
    familiarity: Familiarity


def measure(options: argparse.Namespace) -> None:
    """Print the tables.

    Raises:
        ModelError: a file cannot be loaded, or does not tell which images are unknown.
        DataError: there is no split with test images, or no image of a set can be read.
    """
    models = [load(options.model, options.runtime)]
    if options.compare:
        models.append(load(options.compare, options.compare_runtime or options.runtime))
    sets = choose_images(options)
    told = tell(models, list(dict.fromkeys(path for paths in sets.values() for path in paths)))
    arrays = {name: stack(name, paths, told) for name, paths in sets.items()}
    # It imports TensorFlow, after which tflite-runtime loads no model any more.
    from experiments import unknown_report as report

    familiarities = [model.familiarity for model in models]
    test = arrays[TEST][:, 0]
    others = {name: values[:, 0] for name, values in arrays.items() if name != TEST}
    print(f"\n{options.model.name} on {models[0].classifier.runtime}:\n")
    if others:
        report.print_others(familiarities[0], test, others)
    report.print_false_alarms(familiarities[0], test[:, 0])
    with zipfile.ZipFile(options.model) as archive:
        size = archive.getinfo(DETAILS_FILE).compress_size
    print(f"\nThe details take {size:,} of the file's {options.model.stat().st_size:,} bytes.")
    if options.compare:
        print(f"\nCompared with {options.compare.name} on {models[1].classifier.runtime}:\n")
        report.print_differences(familiarities, arrays)


def load(path: Path, runtime: str | None) -> Model:
    """Return the model at `path`; raise ModelError unless it tells which images are unknown."""
    classifier = Classifier(path, thread_count(), runtime)
    if classifier.details.familiarity is None:
        raise ModelError(
            f"Expected a model that tells which images are unknown. Received: {path.name}, which "
            "does not. Convert a checkpoint whose report has a section about it."
        )
    return Model(classifier, classifier.details.familiarity)


def choose_images(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the paths of {set of images: at most --limit of them}, test images first."""
    stem = options.model.name.removesuffix(".tflite").removesuffix(f".{kind_of(options.model)}")
    record = options.split or options.model.with_name(f"{stem}.split.json")
    if not record.exists():
        raise DataError(
            f"Expected the record of the split that {options.model.name} was trained on. Received: "
            f"{record}, which does not exist. Name it with --split."
        )
    dataset = scan(options.data, options.exclude)
    split = Split.read(record).spelled_as((*dataset.images, *dataset.excluded))
    present, training = set(dataset.images), set(split.train)
    test = [image for image in split.test if image in present]
    if not test:
        raise DataError(
            f"Expected the record of a split with test images in {options.data}. Received: "
            f"{record} without them. Name another with --split, or its images with --data."
        )
    sets = {TEST: test, EXCLUDED: sorted(dataset.excluded - training)}
    sets = {name: [str(options.data / each) for each in images] for name, images in sets.items()}
    for folder in map(str, options.others):
        name = f"{folder}/" if folder in (TEST, EXCLUDED) else folder
        sets[name] = list(expand([folder]))
    return {name: take_evenly(paths, options.limit) for name, paths in sets.items() if paths}


def take_evenly(paths: Sequence[str], limit: int | None) -> list[str]:
    """Return up to `limit` of `paths`, evenly; all for None."""
    count = min(limit or len(paths), len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def tell(models: Sequence[Model], paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Return {path: the distance and the largest probability by each model, float (models, 2)}.

    What cannot be read is not in it.
    """
    told = {}
    sizes = list(dict.fromkeys(model.classifier.input_size for model in models))
    with progress(len(paths), "  images") as bar:
        for path, inputs in prefetch(paths, lambda path: read(path, sizes)):
            bar.update()
            if inputs:
                told[path] = np.array(
                    [tell_one(model, inputs[model.classifier.input_size]) for model in models]
                )
    return told


def read(path: str, sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], np.ndarray]:
    """Return the image at `path` as the service's input of {size: array} for each of `sizes`.

    If it is none, print why and return {}.
    """
    try:
        images = read_images(path, sizes)
    except ServingError as error:
        print(f"  Skipped: {os.path.basename(path)}: {error}", file=sys.stderr)
        return {}
    return {size: preprocess(image, size) for size, image in zip(sizes, images, strict=True)}


def tell_one(model: Model, inputs: np.ndarray) -> tuple[float, float]:
    """Return the distance and the largest probability of an image."""
    probabilities, activations = model.classifier.predict(inputs)
    features = cast(np.ndarray, activations).mean(axis=(0, 1))
    return model.familiarity.distance(features), float(probabilities.max())


def stack(name: str, paths: Iterable[str], told: dict[str, np.ndarray]) -> np.ndarray:
    """Return what was `told` of `paths`, float (n, models, 2)."""
    found = [told[path] for path in paths if path in told]
    if not found:
        raise DataError(f"Expected images. Received: {name}, none of which can be read.")
    return np.stack(found)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.make_parser(__doc__, "python -m experiments.unknown")
    cli.add_data_flags(parser)
    add = parser.add_argument
    add("model", type=Path, help="a .tflite file")
    add("--others", type=Path, nargs="+", default=[], help="folders of images, of any depth")
    add("--split", type=Path, help="the record of the split [beside the model]")
    add("--runtime", choices=RUNTIMES, help="[the first installed]")
    add("--compare", type=Path, metavar="MODEL", help="another .tflite file")
    add("--compare-runtime", choices=RUNTIMES, help="of that file [the same]")
    add("--limit", type=cli.positive(int), help="images of each set, evenly [all]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
