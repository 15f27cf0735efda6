"""Steps of the Dockerfile: pick the model that goes into the image, export it, and run it once.

    python3 -m serving.image_build pick MODELS          # the best .tflite of MODELS into ../models
    python3 -m serving.image_build pick MODELS MODEL    # the file MODEL of MODELS instead
    python3 -m serving.image_build export MODELS        # beside it, as OpenVINO compiles it
    python3 -m serving.image_build run                  # classify a drawn image with it

Where one fails, a sentence is the last line that the build prints.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from serving.errors import ModelError, UserError
from serving.model_files import best_model

# Kinds of processors that Lambda may have, as oneDNN names them: with all instructions of the one
# that builds the image, with the fewest that OpenVINO needs, and those between.
MOST, LEAST = "ALL", "AVX2"
BETWEEN = (
    *("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16"),
    "AVX512_CORE_AMX",
)


def pick(models: str, name: str = "", target: str = "../models") -> None:
    """Copy the best `.tflite` file of the folder `models`, or `name`, into the new folder `target`.

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
    model = folder / name if name else best_model(folder, ".tflite")
    if model.parent != folder or model.suffix != ".tflite" or not model.is_file():
        raise ModelError(
            f"Expected MODEL to be a .tflite file in {models}. Received: {name}. Check its name; "
            "where it is a link, put the file itself there."
        )
    print(f"Model: {model}")
    Path(target).mkdir()
    shutil.copy(model, target)


def export(models: str) -> None:
    """Export the model in the folder `models` for several kinds of processors.

    Does nothing with another runtime than OpenVINO.

    Raises:
        ModelError: the runtime cannot run the model.
    """
    # Here, since importing them takes a second.
    from serving.classifier import Classifier
    from serving.exported import write_export
    from serving.runtimes import find_runtime

    if find_runtime()[0] != "openvino":
        return
    model = best_model(models, ".tflite")
    Classifier(model)  # says in a sentence what is wrong with it
    exports = [_export_for(processor, model) for processor in (MOST, LEAST)]
    if exports[0] != exports[1]:
        exports += [_export_for(processor, model) for processor in BETWEEN]
    written = write_export(model, exports)
    print(f"Export: {written.path.name}; kinds of processors: {len(written.heads)}")


def _export_for(processor: str, model: Path) -> bytes:
    """Return the export of `model` for this processor, with no more instructions than `processor`.

    Raises:
        ModelError: it cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "export")
        command = [sys.executable, "-m", "serving.image_build", "export_once", model, path]
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": processor}  # oneDNN reads it once
        if subprocess.run(command, env=environment).returncode:
            raise ModelError(
                f"Expected {model.name} to be exported for {processor}. Received: the reason "
                "above. Use another version of OpenVINO."
            )
        return path.read_bytes()


def export_once(model: str, path: str) -> None:
    """Write the export of `model` to `path`, for this processor.

    Raises:
        ModelError: it does not compute what the model does.
    """
    from serving.runtimes import export_openvino, find_runtime

    _, openvino = find_runtime("openvino")
    Path(path).write_bytes(export_openvino(openvino, Path(model)))


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


STEPS = {"pick": pick, "export": export, "export_once": export_once, "run": run}


def main(step: str, *arguments: str) -> None:
    """Do one step; exit with a sentence where it fails."""
    try:
        STEPS[step](*arguments)
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
