"""Convert a checkpoint to TFLite, and compare the two.

    python convert_to_tflite.py                                   # the best of models/
    python convert_to_tflite.py models/xception_fin_05_0.893.h5 --quantize float16
    python convert_to_tflite.py --quantize int8 --data flowers/   # calibrated on images
    python convert_to_tflite.py --evaluate --data flowers/        # an existing file, on all images

Writes models/<stem>.tflite beside the checkpoint, with the class names inside. Nothing is written
where the serving runtime and Keras differ by more than the kind's tolerance.
"""

import argparse
import sys
from pathlib import Path

import training  # noqa: F401 - first, since it explains missing packages
from serving.model_files import best_model
from serving.runtimes import RUNTIMES
from training.checkpoint import load_checkpoint
from training.cli import make_parser, run_command
from training.errors import DataError
from training.export.compare import TOLERANCES, choose_images, compare, evaluate
from training.export.tflite import make_tflite
from training.files import write_atomically


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says and return the exit code."""
    options = parse_arguments(arguments)

    def command() -> None:
        checkpoint = options.checkpoint or best_model(options.models, ".h5")
        if options.evaluate:
            evaluate(checkpoint, options.data, options.runtime)
        else:
            convert(checkpoint, options.quantize, options.data, options.runtime)

    return run_command(
        command,
        "convert_to_tflite.py",
        paths="read the images and write beside the checkpoint",
        stopped="Stopped; nothing was written.",
    )


def convert(checkpoint: Path, quantize: str, data: Path, runtime: str | None) -> None:
    """Write the .tflite file of `checkpoint`, if it predicts what Keras predicts.

    Raises:
        ModelError: the checkpoint cannot be read, the runtime cannot load the file, or it differs
            from Keras by more than `TOLERANCES` allows.
        DataError: int8, and there are no images to calibrate on.
    """
    print(f"Read: {checkpoint}", flush=True)
    model, metadata = load_checkpoint(checkpoint)
    calibration, comparison = choose_images(checkpoint, data, model.input_shape[1:3])
    if quantize == "int8" and not calibration:
        raise DataError(
            f"Expected training images in {data} to calibrate int8 on. Received: none. "
            "Run `make data`, or name a folder with --data."
        )

    print(f"Convert: --quantize {quantize}; this takes a minute.", flush=True)
    content = make_tflite(model, metadata.class_names, quantize, calibration)

    def write_compared(temporary: Path) -> None:
        temporary.write_bytes(content)
        compare(model, temporary, comparison, quantize, runtime)

    path = checkpoint.with_suffix(".tflite")
    write_atomically(path, write_compared)
    print(f"Wrote: {path}, {path.stat().st_size / 1e6:.1f} MB.")
    print("Use it: python predict.py IMAGE, or build the container image: make build")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, help="a .h5 file [the best in --models]")
    add("--quantize", choices=TOLERANCES, default="none", help="kind of weights [none: float32]")
    add("--data", type=Path, default=Path("flowers"), help="images to compare on [flowers/]")
    add("--models", type=Path, default=Path("models"), help="where checkpoints are [models/]")
    add("--runtime", choices=RUNTIMES, help="the runtime that will serve it [the first installed]")
    add(
        "--evaluate",
        action="store_true",
        help="convert nothing; evaluate the checkpoint and the .tflite file beside it on all "
        "images of --data: accuracy and top-1 agreement. Exit code 1 if the file loses more than "
        "half a percentage point or agrees on less than 98 %%. Takes minutes",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
