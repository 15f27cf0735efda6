"""Classify images: files, folders or URLs.

    python predict.py rose.jpg https://example.com/tulip.jpg
    python predict.py --json holiday/ > scores.jsonl
    python predict.py --model models/xception_fin_05_0.893.h5 rose.jpg

URLs must be of public hosts. FETCH_ALLOW=localhost,192.168.0.0/16 in the environment allows more.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import training  # noqa: F401 - first, since it explains missing packages

# isort: split
from PIL import Image

from serving.classifier import Classifier
from serving.errors import ImageError, ServingError, error_body
from serving.fetch import fetch, prepare
from serving.image import open_image
from serving.model_files import best_model, thread_count
from training.cli import make_parser, run_command

MODELS = Path("models")


class AnyClassifier(Protocol):
    """What a loaded `.tflite` and a loaded `.h5` file have in common."""

    input_size: tuple[int, int]

    def classify(self, image: Image.Image) -> dict[str, float]:
        """Return {label: score} for an upright RGB image."""


def main(arguments: list[str] | None = None) -> int:
    """Classify images as the command line says and return the exit code."""
    flags = parse_arguments(arguments)
    return run_command(
        lambda: predict(flags.images, flags.model, print_json if flags.json else print_text),
        "predict.py",
        paths="read the images and print their scores",
        advice="Check the paths and their permissions.",
    )


def predict(
    images: list[str], model: Path | None, print_answer: Callable[[str, dict], None]
) -> int:
    """Print the scores of each image and return the exit code.

    It is 1 if an image could not be read.

    Raises:
        ModelError: there is no model, or it cannot be loaded.
        AllowError: FETCH_ALLOW is malformed and there are URLs.
    """
    classifier = load_classifier(model or best_model(MODELS, ".tflite", ".h5"))
    if any(map(is_url, images)):
        prepare()
    exit_code = 0
    for image in expand(images):
        try:
            print_answer(image, classifier.classify(read_image(image, classifier.input_size)))
        except ServingError as error:
            print_answer(image, error_body(error))
            exit_code = 1
    return exit_code


def load_classifier(path: Path) -> AnyClassifier:
    """Return the classifier in `path`, a `.tflite` or `.h5` file.

    Raises:
        ModelError: the file is missing or was not made by this project.
    """
    if path.suffix == ".h5":
        # Imported only here, because TensorFlow takes seconds.
        from training.checkpoint import CheckpointClassifier

        return CheckpointClassifier(path)
    return Classifier(path, threads=thread_count())


def expand(images: list[str]) -> Iterator[str]:
    """Yield `images`, with each folder replaced by its visible files."""
    for image in images:
        folder = Path(image)
        if not is_url(image) and folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            yield from (str(path) for path in files if not path.name.startswith("."))
        else:
            yield image


def is_url(image: str) -> bool:
    """Return whether `image` is a URL rather than a path."""
    return "://" in image


def read_image(image: str, size: tuple[int, int]) -> Image.Image:
    """Return the upright RGB image at a path or URL.

    `size` is the (height, width) that it will be resized to.

    Raises:
        ServingError: it cannot be read or fetched, or is not an image.
    """
    try:
        return open_image(fetch(image) if is_url(image) else Path(image), size)
    except OSError as error:
        raise ImageError(
            f"Expected a file that can be read. Received: {image} ({error.strerror}). "
            "Check the path."
        ) from error


def print_text(image: str, answer: dict) -> None:
    """Print scores, best class first, or an error to standard error."""
    if "error" in answer:
        print(f"{image}: {answer['error']['message']}", file=sys.stderr, flush=True)
        return
    width = max(map(len, answer))
    print(f"{image}: {best_label(answer)}")
    for label, score in sorted(answer.items(), key=lambda item: -item[1]):
        print(f"  {label:{width}} {score:.5f}", flush=True)


def print_json(image: str, answer: dict) -> None:
    """Print a line of JSON: image, label and scores, or error."""
    if "error" not in answer:
        answer = {"label": best_label(answer), "scores": answer}
    print(json.dumps({"image": image} | answer, ensure_ascii=False), flush=True)


def best_label(scores: dict[str, float]) -> str:
    """Return the label with the highest score."""
    return max(scores, key=scores.__getitem__)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = make_parser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_URL", help="file, folder or URL")
    parser.add_argument("--model", type=Path, help=".tflite or .h5 file [the best in models/]")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
