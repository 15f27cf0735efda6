"""Two steps of the Dockerfile: pick the model that goes into the image, and run it once.

    python3 -m serving.image_build pick MODELS    # the best .tflite of MODELS into ../models
    python3 -m serving.image_build run            # classify a drawn image with it

Where one fails, a sentence is the last line that the build prints.
"""

import base64
import io
import json
import os
import shutil
import sys
from pathlib import Path

from serving.errors import ModelError, UserError
from serving.model_files import best_model


def pick(models: str, target: Path) -> None:
    """Copy the best `.tflite` file of the folder `models` into the folder `target`.

    Raises:
        ModelError: there is none.
    """
    folder = Path(os.path.normpath(models))
    if folder.is_absolute() or folder.parts[:1] != ("models",):
        raise ModelError(
            f"Expected MODELS to be models or a folder in it. Received: {models}. Move it there."
        )
    if not folder.is_dir():
        raise ModelError(
            f"Expected MODELS to be a folder with a .tflite file. Received: {models}. Check its "
            f"name, or run python convert_to_tflite.py --models {models} first."
        )
    model = best_model(folder, ".tflite")
    print(f"Model: {model}")
    target.mkdir()
    shutil.copy(model, target)


def run() -> None:
    """Classify a drawn image as the service would, and print its answer.

    Raises:
        ModelError: the runtime of this image cannot run the model.
    """
    # Here, since importing them takes a second and loads the model.
    from PIL import Image

    from lambda_function import lambda_handler

    image = io.BytesIO()
    Image.new("RGB", (320, 240), "crimson").save(image, "JPEG")
    answer = lambda_handler({"image": base64.b64encode(image.getvalue()).decode()}, None)
    print(json.dumps(answer))
    if isinstance(answer, dict) and "error" in answer:
        raise ModelError(
            f"Expected scores of a drawn image. Received: {answer['error']['message']}"
        )


def main(step: str, *arguments: str) -> None:
    """Do one step; exit with a sentence where it fails."""
    try:
        if step == "pick":
            pick(arguments[0], Path("..", "models"))
        else:
            run()
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
