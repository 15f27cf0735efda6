"""Classify images: files, folders, URLs or buckets.

    python predict.py rose.jpg https://example.com/tulip.jpg
    python predict.py --json holiday/ > scores.jsonl
    python predict.py --csv holiday/ > scores.csv
    python predict.py --model models/mine/ rose.jpg
    python predict.py --details rose.jpg         # all that the model tells, as JSON
    python predict.py --heatmap maps/ rose.jpg   # where it looked, as maps/rose.heatmap.png
    python predict.py s3://bucket/images --out s3://bucket/labels   # any number, on all processors

An image that is unlike those of training is "unknown", if the model can tell: if fewer than 2 % of
them look as strange. UNKNOWN_BELOW=0.05 in the environment says 5 %.

An image that cannot be read gets a line of its own, the others are still answered, and the exit
code is 1. URLs must be of public hosts. FETCH_ALLOW=localhost,192.168.0.0/16 in the environment
allows more.

With --out, images are labelled in shards on all processors, and each shard has a file of results in
results/, one JSON object a line. A run that was stopped or killed goes on when it is started again,
also on several machines at once, and labels each image once. The images are listed by the first run
only: those that come later need another --out. A bad image is a row with its error, and the exit
code is 0 when all results are written.
"""

import argparse
import codecs
import csv
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import training.cli as cli  # first: it says in one line that Ctrl-C ended the other imports
import training.large_job as large_job
from serving.answers import describe, read_unknown_below, require_finite
from serving.classifier import Classifier, read_labels
from serving.details import Details
from serving.errors import InternalError, ModelError, ServingError, UserError, error_body
from serving.fetch import prepare
from serving.model_files import best_model
from serving.preprocess import preprocess
from serving.resources import thread_count
from serving.runtimes import RUNTIMES, Prediction, find_runtime
from training.image_files import expand, is_url, read_images
from training.model_facts import ModelFacts, add_model_flags
from training.streams import print_error, printable, without_info_lines

if TYPE_CHECKING:
    import numpy as np

    from training.heatmaps import HeatmapFolder

MODELS = Path("models")
BESIDE = Path(__file__).resolve().parent  # where models/ is looked for next
CHECKPOINTS = (".h5", ".keras")
SUFFIXES = (".tflite", *CHECKPOINTS)  # of models; of equally good ones the first
LISTED = 10  # class names in the line about the model


class AnyClassifier(Protocol):
    """What a loaded `.tflite` and a loaded `.h5` file have in common."""

    labels: tuple[str, ...]
    input_size: tuple[int, int]
    details: Details

    def predict(self, inputs: "np.ndarray") -> Prediction:
        """Return what the model makes of one image, float32 (1, height, width, 3), -1 to 1."""


Answer = dict | ServingError  # what `serving.answers.describe` returns, or why there is none
PrintAnswer = Callable[[str, Answer], None]  # takes an image and what came of it


def main(arguments: list[str] | None = None) -> int:
    """Classify images as the command line says and return the exit code."""
    flags = parse_arguments(arguments)
    if flags.out is not None:
        return cli.run_command(
            lambda: label(flags),
            "predict.py",
            paths="read the model and the lists of images",
            advice="Check the paths and their permissions.",
        )
    printer = flags.printer or (json_printer if flags.details else text_printer)
    make_printer = partial(printer, details=flags.details)
    facts = ModelFacts.read(flags)
    return cli.run_command(
        lambda: predict(
            flags.images, flags.model, facts, make_printer, flags.heatmap, flags.runtime
        ),
        "predict.py",
        paths="read the model and print the scores",
        advice="Check the paths, their permissions and the free disk space.",
    )


def predict(
    images: list[str],
    model: Path | None,
    facts: ModelFacts,
    make_printer: Callable[[AnyClassifier], PrintAnswer],
    heatmaps: Path | None = None,
    runtime: str | None = None,
) -> int:
    """Print the scores of each image and return the exit code.

    It is 1 if an image could not be read. `facts` are what is known of a checkpoint of another
    program. Heat maps are written into the folder `heatmaps`, if it is not None. `runtime` runs a
    `.tflite` file, see `load_classifier`.

    Raises:
        ModelError: there is no model, it cannot be loaded, or has no heat maps to write.
        SettingError: UNKNOWN_BELOW is malformed.
        AllowError: FETCH_ALLOW is malformed and there are URLs.
        UserError: a heat map cannot be written.
    """
    unknown_below = read_unknown_below()
    path = find_model(model)
    classifier = load_classifier(path, facts, runtime)
    used = getattr(classifier, "runtime", "Keras")
    print_error(describe_model(path, classifier.labels, used))
    folder = make_folder(heatmaps, path, classifier) if heatmaps else None
    if any(map(is_url, images)):
        prepare()
    print_answer = make_printer(classifier)
    exit_code = 0
    # Not the heat maps of this run or an earlier one, if their folder is among the images.
    found = expand(images, folder.is_output) if folder else expand(images)
    for image in found:
        answer = classify(image, classifier, unknown_below, folder)
        exit_code = 1 if isinstance(answer, ServingError) else exit_code
        print_answer(image, answer)
    return exit_code


def label(flags: argparse.Namespace) -> int:
    """List or label the images of a large job and return the exit code.

    Raises:
        UserError: as `training.large_job.run`, and where there is no .tflite model.
    """
    model = find_model(flags.model)
    require_tflite(model, "--out")
    unknown_below = read_unknown_below()
    if flags.list_only and flags.runtime:  # it may be installed only where images are labelled
        runtime, labels = flags.runtime, read_labels(model)
    else:
        runtime, _ = find_runtime(flags.runtime)
        labels = load_classifier(model, runtime=runtime).labels
    print_error(describe_model(model, labels, runtime))
    listed = large_job.read_lists(flags.lists)
    job = large_job.Job(
        flags.images, listed, flags.out, model, runtime, unknown_below, flags.shard_size
    )
    if flags.list_only:
        return large_job.list_only(job)
    return large_job.run(job, flags.shard, flags.processes, flags.engine)


def make_folder(heatmaps: Path, model: Path, classifier: AnyClassifier) -> "HeatmapFolder":
    """Return the folder `heatmaps`, made if it is missing.

    Raises:
        ModelError: `model` has no heat maps.
        UserError: the folder cannot be made.
    """
    if not classifier.details.head:
        raise ModelError(
            "Expected a model that tells where it looks, for --heatmap: with a global average "
            f"pooling, dense layers (ReLU) and a softmax at its end. Received: {model}, which does "
            "not. Convert its checkpoint again with python convert_to_tflite.py."
        )
    # Imported only here, because Matplotlib takes half a second.
    from training.heatmaps import HeatmapFolder

    return HeatmapFolder(heatmaps)


def find_model(model: Path | None) -> Path:
    """Return `model`, or the best one in it if it is a folder.

    By default the folder is ./models or, if no model is in there, models/ beside this script.

    Raises:
        ModelError: there is no model in the folder.
    """
    if model is None:
        places = (MODELS, BESIDE / MODELS)
        used = [p for p in places if any(f.suffix in SUFFIXES for f in p.glob("[!.]*"))]
        model = used[0] if used else MODELS
    elif not model.is_dir():
        return model
    return best_model(model, *SUFFIXES)


def load_classifier(
    path: Path, facts: ModelFacts | None = None, runtime: str | None = None
) -> AnyClassifier:
    """Return the classifier in `path`, a `.tflite`, `.h5` or `.keras` file.

    A `.tflite` file is run by the package `runtime`, by default the first that is installed.

    Raises:
        ModelError: the file is missing, damaged, or no image classifier that can be read, or
            `runtime` is given for a checkpoint.
    """
    if runtime:
        require_tflite(path, "--runtime")
    try:
        if path.suffix in CHECKPOINTS:
            # Imported only here, because TensorFlow takes seconds.
            from training.checkpoint import CheckpointClassifier

            return CheckpointClassifier(path, facts)
        with without_info_lines():  # TFLite says at each start that it uses XNNPACK
            return Classifier(path, threads=thread_count(), runtime=runtime)
    except (UserError, OSError, ImportError):
        raise
    except Exception as error:  # Keras raises nearly anything on a damaged file
        if cli.is_out_of_memory(error):
            raise
        raise ModelError(
            f"Expected a model that can be loaded. Received: {path} ({cli.first_line(error)}). "
            "Name another with --model."
        ) from error


def require_tflite(model: Path, flag: str) -> None:
    """Raise ModelError where `model` is a checkpoint, which does not go with `flag`."""
    if model.suffix in CHECKPOINTS:
        raise ModelError(
            f"Expected a .tflite model for {flag}. Received: {model}. Convert it with python "
            "convert_to_tflite.py, or name another with --model."
        )


def describe_model(path: Path, names: tuple[str, ...], runtime: str) -> str:
    """Return a line about the model that answers, with its class `names`."""
    listed = ", ".join(names[:LISTED]) + ", …" * (len(names) > LISTED)
    return printable(f"Model: {path} ({runtime}), {len(names)} classes: {listed}")


def classify(
    image: str,
    classifier: AnyClassifier,
    unknown_below: float,
    folder: "HeatmapFolder | None" = None,
) -> Answer:
    """Return what the model tells of `image` or, whatever happens to it, an error.

    Its heat map is written into `folder`, if there is one.
    """
    try:
        sizes = [classifier.input_size] if folder is None else [classifier.input_size, None]
        small, *whole = read_images(image, sizes)
        prediction = classifier.predict(preprocess(small, classifier.input_size))
        require_finite(prediction)
        answer = describe(classifier.labels, classifier.details, prediction, unknown_below)
        if folder:
            written = folder.write(image, whole[0], answer["heatmap"])
            print_error(printable(f"Wrote: {written}, where the model looked in {image}"))
        return answer
    except ServingError as error:
        return error
    except UserError:
        raise
    except Exception as error:  # a defect on one image is no reason to lose the others
        if cli.is_out_of_memory(error):
            return InternalError("Memory ran out on this image. Make it smaller.")
        return InternalError(f"Unexpected error on this image ({cli.first_line(error)}).")


def text_printer(*_: object, **__: object) -> PrintAnswer:
    """Return a function that prints scores, best class first, or an error to standard error."""

    def print_text(image: str, answer: Answer) -> None:
        if isinstance(answer, ServingError):
            print_error(printable(f"{image}: {answer}"))
            return
        label, scores = answer["label"], answer["scores"]
        width = max(map(len, scores))
        said = f"unknown (looks like {label})" if answer["unknown"] else label
        print(printable(f"{image}: {said}"))
        # The label comes first, also where rounding makes another score equal to its own.
        for name, score in sorted(scores.items(), key=lambda s: (s[0] != label, -s[1])):
            print(f"  {printable(name):{width}} {score:.5f}", flush=True)

    return print_text


def json_printer(_: AnyClassifier, details: bool = False) -> PrintAnswer:
    """Return a function that prints a line of JSON: image, label and scores, or error.

    With `details`, it has all that `serving.answers.describe` returns.
    """
    only_ascii = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"

    def print_json(image: str, answer: Answer) -> None:
        if isinstance(answer, ServingError):
            found = error_body(answer)
        else:
            found = answer if details else {name: answer[name] for name in ("label", "scores")}
        line = json.dumps({"image": image} | found, ensure_ascii=only_ascii)
        # What UTF-8 has no bytes for, or a terminal obeys, in JSON's own escapes.
        line = re.sub(r"[\x7f-\x9f\ud800-\udfff]", lambda c: f"\\u{ord(c[0]):04x}", line)
        print(line, flush=True)

    return print_json


def csv_printer(classifier: AnyClassifier, details: bool = False) -> PrintAnswer:
    """Print a header, and return a function that prints a row: best class, its score, all scores.

    An image that could not be read has a row with its error, and no scores. With `details` the
    last columns are `known` and `unknown`, empty where the model does not tell.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    more = ["known", "unknown"] if details else []
    writer.writerow(["image", "label", "score", "error", *classifier.labels, *more])

    def print_row(image: str, answer: Answer) -> None:
        if isinstance(answer, ServingError):
            row = [image, "", "", str(answer), *("" for _ in (*classifier.labels, *more))]
        else:
            best, scores = answer["label"], answer["scores"]
            shown = [f"{scores[label]:.5f}" for label in (best, *classifier.labels)]
            row = [image, best, shown[0], "", *shown[1:]]
            row += ["" if answer[name] is None else json.dumps(answer[name]) for name in more]
        writer.writerow(row)
        sys.stdout.flush()

    return print_row


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE_OR_URL", help="file, folder, URL or s3://… with --out")
    add("--model", type=Path, help="model file, or a folder [the best in models/]")
    add("--runtime", choices=RUNTIMES, help="package that runs a .tflite [the first installed]")
    add_model_flags(parser)
    output = parser.add_mutually_exclusive_group()
    for flag, printer, text in (
        ("--json", json_printer, "print one JSON object per line"),
        ("--csv", csv_printer, "print a table with a row per image"),
    ):
        output.add_argument(flag, dest="printer", action="store_const", const=printer, help=text)
    add("--details", action="store_true", help="print all that the model tells [as --json]")
    add("--heatmap", type=Path, metavar="DIR", help="write where the model looked, as PNG")
    large_job.add_flags(parser)
    flags = parser.parse_args(arguments)
    large_job.check_flags(parser, flags)
    return flags


if __name__ == "__main__":
    sys.exit(main())
