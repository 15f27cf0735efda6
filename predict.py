"""Classify images: files, folders of them, or URLs.

python predict.py rose.jpg https://example.com/tulip.jpg
python predict.py --json holiday/ > scores.jsonl
python predict.py --model models/xception_fin_05_0.893.h5 rose.jpg

URLs are those of public hosts; FETCH_ALLOW=localhost,192.168.0.0/16 in the environment adds some.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from PIL import Image

from serving.addresses import AllowError
from serving.classifier import Classifier
from serving.errors import ImageError, ModelError, ServingError, error_body
from serving.fetch import fetch, prepare
from serving.image import open_image
from serving.model_files import best_model, thread_count

MODELS = Path("models")


class AnyClassifier(Protocol):
    """What `.tflite` and `.h5` files have in common once they are loaded."""

    input_size: tuple[int, int]

    def classify(self, image: Image.Image) -> dict[str, float]:
        """Return {label: score} of an upright RGB image."""


def main(arguments: list[str] | None = None) -> int:
    """Print the scores of each image; return 0, or 1 if one of them could not be read."""
    options = parse_arguments(arguments)
    try:
        classifier = load_classifier(options.model or best_model(MODELS, ".tflite", ".h5"))
        if any(map(is_url, options.images)):
            prepare()
    except (ModelError, AllowError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 1
    show = show_json if options.json else show_text
    exit_code = 0
    for image in expand(options.images):
        try:
            show(image, classifier.classify(read_image(image, classifier.input_size)))
        except ServingError as error:
            show(image, error_body(error))
            exit_code = 1
    return exit_code


def load_classifier(path: Path) -> AnyClassifier:
    """Return the classifier in `path`, a `.tflite` or a `.h5` file.

    Raises:
        ModelError: the file is missing or not one of ours.
    """
    if path.suffix == ".h5":
        # Only here, since importing TensorFlow takes seconds.
        from training.checkpoint import CheckpointClassifier

        return CheckpointClassifier(path)
    return Classifier(path, threads=thread_count())


def expand(images: list[str]) -> Iterator[str]:
    """Yield `images`, with the files inside in place of each folder."""
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
    """Return the upright RGB image at the path or URL `image`, for inputs of `size`.

    Raises:
        ServingError: it cannot be had, or is no image.
    """
    try:
        return open_image(fetch(image) if is_url(image) else Path(image), size)
    except OSError as error:
        raise ImageError(
            f"Expected a file that can be read. Received: {image} ({error.strerror}). "
            "Check the path."
        ) from error


def show_text(image: str, answer: dict) -> None:
    """Print `answer`, best class first, or to standard error why there is none."""
    if "error" in answer:
        print(f"{image}: {answer['error']['message']}", file=sys.stderr, flush=True)
        return
    width = max(map(len, answer))
    print(f"{image}: {max(answer, key=answer.get)}")
    for label, score in sorted(answer.items(), key=lambda item: -item[1]):
        print(f"  {label:{width}} {score:.5f}", flush=True)


def show_json(image: str, answer: dict) -> None:
    """Print one line of JSON: image, label and scores, or image and error."""
    if "error" not in answer:
        answer = {"label": max(answer, key=answer.get), "scores": answer}
    print(json.dumps({"image": image} | answer, ensure_ascii=False), flush=True)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_URL", help="file, folder or URL")
    parser.add_argument("--model", type=Path, help=".tflite or .h5 file [the best in models/]")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
