r"""Convert a checkpoint to TFLite, and compare the two.

    python convert_to_tflite.py                                   # the best of models/
    python convert_to_tflite.py models/xception_fin_05_0.893.h5 --quantize float16
    python convert_to_tflite.py --quantize int8 --data flowers/   # calibrated on images
    python convert_to_tflite.py --evaluate --data flowers/        # an existing file, on all images
    python convert_to_tflite.py xception_fin_23_0.880.h5 --input-scaling 1/255 \
        --classes daisy,dandelion,rose,sunflower,tulip            # a plain Keras file of Xception

Writes <stem>.tflite, or for example <stem>.int8.tflite, beside the checkpoint, with the class names
inside, and the accuracy if its report is there. Nothing is written where the serving runtime and
Keras differ by more than the kind's tolerance.
"""

import argparse
import shlex
import sys
from pathlib import Path

import training  # noqa: F401 - first, since it explains missing packages
from serving.errors import ModelError
from serving.model_files import best_model, kind_of, tflite_path
from serving.runtimes import RUNTIMES, find_runtime
from training.checkpoint import Metadata, load_checkpoint, split_record
from training.cli import make_parser, run_command
from training.dataset.split import Split
from training.errors import DataError
from training.export.card import make_card
from training.export.compare import (
    FLOWERS,
    MAX_ACCURACY_DROP,
    MIN_AGREEMENT,
    TOLERANCES,
    choose_images,
    compare,
    evaluate,
)
from training.export.tflite import make_tflite
from training.files import write_atomically
from training.model_facts import ModelFacts, add_model_flags

ROOT = Path(__file__).resolve().parent
FASTEST = {"int8": "openvino", "dynamic": "openvino"}  # {kind of weights: runtime}


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says and return the exit code."""
    options = parse_arguments(arguments)

    def command() -> None:
        checkpoint = find_checkpoint(options.checkpoint, options.models)
        facts = ModelFacts.read(options, options.data)
        if options.evaluate:
            path = find_tflite(checkpoint, options.quantize)
            evaluate(checkpoint, path, options.data or FLOWERS, options.runtime, facts)
        else:
            kind = options.quantize or "none"
            convert(checkpoint, kind, options.data, options.runtime, facts)

    return run_command(
        command,
        "convert_to_tflite.py",
        paths="read the images and write beside the checkpoint",
        stopped="Stopped; nothing was written.",
    )


def find_checkpoint(checkpoint: Path | None, models: Path) -> Path:
    """Return `checkpoint` or, if that is a folder or None, the best in it or in `models`.

    Raises:
        ModelError: there is none.
    """
    if models.is_file():
        raise ModelError(
            f"Expected a folder for --models. Received: {models}, which is a file. "
            f"Name it alone: {shlex.join(['python', 'convert_to_tflite.py', str(models)])}"
        )
    folder = models if checkpoint is None else checkpoint
    if folder.is_dir() and not (folder / "saved_model.pb").exists():
        return best_model(folder, ".h5", ".keras")
    return checkpoint or best_model(models, ".h5", ".keras")


def find_tflite(checkpoint: Path, kind: str | None) -> Path:
    """Return the .tflite file of `checkpoint` and `kind`, or else the newest of any kind."""
    if kind:
        return tflite_path(checkpoint, kind)
    paths = [tflite_path(checkpoint, each) for each in TOLERANCES]
    newest_first = sorted(filter(Path.exists, paths), key=lambda path: -path.stat().st_mtime)
    return (newest_first or paths)[0]


def convert(
    checkpoint: Path,
    quantize: str,
    data: Path | None,
    runtime: str | None,
    facts: ModelFacts | None = None,
) -> None:
    """Write the .tflite file of `checkpoint`, if it predicts what Keras predicts.

    Compares on images of the folder `data`, which for None is flowers/ or, if empty, drawn ones.
    `facts` are what is known of a checkpoint without metadata.

    Raises:
        ModelError: the checkpoint cannot be read, the runtime cannot load the file, or it differs
            from Keras by more than `TOLERANCES` allows.
        DataError: `data` holds no data set, or int8 has no images to calibrate on, as where `data`
            is None and flowers/ has none of those that trained the checkpoint.
    """
    print(f"Read: {checkpoint}", flush=True)
    model, metadata = load_checkpoint(checkpoint, facts)
    print_notes(checkpoint, metadata, data)
    calibration, comparison = choose_images(checkpoint, data, model.input_shape[1:3])
    if quantize == "int8" and not calibration:
        raise DataError(
            f"Expected training images in {data or FLOWERS} to calibrate int8 on. Received: none. "
            "Name the folder that it was trained on with --data, or run `make data`."
        )

    print(f"Convert: --quantize {quantize}; this takes a minute.", flush=True)
    details, card = metadata.details, make_card(checkpoint, metadata.val_accuracy)
    content = make_tflite(model, metadata.class_names, quantize, calibration, details, card)

    def write_compared(temporary: Path) -> None:
        temporary.write_bytes(content)
        compare(model, temporary, comparison, quantize, runtime, details)

    path = tflite_path(checkpoint, quantize)
    write_atomically(path, write_compared)
    print(f"Wrote: {path}, {path.stat().st_size / 1e6:.1f} MB.")
    print_next_steps(path, runtime)


def print_notes(checkpoint: Path, metadata: Metadata, data: Path | None) -> None:
    """Print what a checkpoint lacks that a finished training would have given it.

    `data` is the folder of its images, if that is known.
    """
    if not metadata.epoch:
        names = ", ".join(metadata.class_names)
        print(f"  Another program made it: {names}; its scores are not calibrated.", flush=True)
    elif metadata.temperature == 1 and not checkpoint.with_suffix("").is_dir():
        print("  It is not calibrated and has no report: its training was stopped.")
        if split_record(checkpoint).exists():
            again = ["training.evaluation", str(checkpoint), str(checkpoint.parent)]
            folder = data or (FLOWERS if is_trained_on(checkpoint, FLOWERS) else "FOLDER")
            command = shlex.join(["python", "-m", *again, "--data", str(folder)])
            print("  Finish it with train.py's --resume and the run's flags, or without training:")
            print(f"  {command}", flush=True)


def is_trained_on(checkpoint: Path, folder: Path) -> bool:
    """Return whether any training image of the checkpoint's split is in `folder`."""
    return any((folder / image).exists() for image in Split.read(split_record(checkpoint)).train)


def print_next_steps(path: Path, runtime: str | None) -> None:
    """Print the commands that use the .tflite file `path`."""
    words = ["python", "predict.py", "--model", str(path)]
    if runtime and runtime != find_runtime()[0]:
        words += ["--runtime", runtime]
    print(f"Use it: {shlex.join(words)} IMAGE")
    kind, default = kind_of(path), next(iter(RUNTIMES))
    runtime = runtime or FASTEST.get(kind) or find_runtime()[0]
    flags = [f"RUNTIME={runtime}"] if runtime != default else []
    if not path.resolve().is_relative_to(ROOT / "models"):
        print("To build a container image, copy it into a folder in models/, and then:")
        print(f"  {shlex.join(['make', 'build', 'MODELS=models/FOLDER', *flags])}")
        return
    folder, copy = path.resolve().parent.relative_to(ROOT), ""
    if is_outranked(path):
        folder = folder / f"only_{path.name.removesuffix('.tflite')}"
        new = shlex.quote(f"{folder}/")
        copy = f"mkdir -p {new} && cp {shlex.quote(str(path))} {new} && "
    command = shlex.join(["make", "build", f"MODELS={folder}", *flags])
    print(f"Build the container image: {copy}{command}")


def is_outranked(path: Path) -> bool:
    """Return whether another .tflite file counts as the best of its folder."""
    try:
        return best_model(path.parent, ".tflite") != path
    except ModelError:
        return True  # several without an accuracy in their names


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, help="a .h5 or .keras file [the best in --models]")
    add("--quantize", choices=TOLERANCES, help="kind of weights [none: float32]")
    add("--data", type=Path, help="images to compare on [flowers/, or drawn ones if empty]")
    add("--models", type=Path, default=Path("models"), help="where checkpoints are [models/]")
    add("--runtime", choices=RUNTIMES, help="the runtime that will serve it [the first installed]")
    add(
        "--evaluate",
        action="store_true",
        help="convert nothing; evaluate the checkpoint and the .tflite file beside it on all "
        "images of --data: accuracy, top-1 agreement and which are unknown. Without --quantize "
        "it is the newest. "
        f"Exit code 1 if the file loses more than {MAX_ACCURACY_DROP:.1%}% of accuracy or agrees "
        f"on less than {MIN_AGREEMENT:.0%}%. Takes minutes",
    )
    add_model_flags(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
