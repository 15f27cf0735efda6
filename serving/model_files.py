"""Names model files, recognizes them and picks the one to use."""

import hashlib
import re
from pathlib import Path

from serving.errors import ModelError

QUANTIZED = ("int8", "float16", "dynamic")  # kinds of .tflite files besides float32
# The end of the names that train.py gives: epoch and validation accuracy. Some downloads and
# uploads turn a dot into an underscore.
_ACCURACY = re.compile(r"_\d+_([01][._]\d{3})$")
_KIND = re.compile(rf"\.({'|'.join(QUANTIZED)})$")

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_TFLITE = b"TFL3"  # bytes 4 to 7
_GIT_LFS = b"version https://git-lfs"


def tflite_path(checkpoint: Path, kind: str = "none") -> Path:
    """Return where the .tflite file of `checkpoint` is, by `kind` of weights ("none": float32)."""
    return checkpoint.with_suffix(".tflite" if kind == "none" else f".{kind}.tflite")


def kind_of(path: Path) -> str:
    """Return the kind of weights that the name of a .tflite file tells, "none" for float32."""
    match = _KIND.search(path.stem)
    return match[1] if match else "none"


def best_model(folder: str | Path, *suffixes: str) -> Path:
    """Return the model file whose name has the highest validation accuracy.

    Considers the files in `folder` with one of `suffixes` (".tflite", ".h5"). Among equal
    accuracies, an earlier suffix wins, then a newer file. Where no name has an accuracy, but all
    files are forms of one model, it is that one.

    Raises:
        ModelError: there is none, or there are several without an accuracy in their names.
    """
    folder = Path(folder)
    found = [path for suffix in suffixes for path in sorted(folder.glob(f"[!.]*{suffix}"))]
    found = [path for path in found if path.is_file() and not path.name.endswith(".weights.h5")]
    ranked = [path for path in found if _accuracy(path) is not None]
    if not ranked and len({_model_name(path) for path in found}) == 1:
        ranked = found
    if not ranked:
        raise ModelError(
            f"Expected a model such as xception_fin_01_0.900{suffixes[0]} in {folder}. "
            f"Received: {_listed(folder, found)}. "
            f"Run {_maker(suffixes)} first, or name a model."
        )
    return max(
        ranked,
        key=lambda path: (
            _accuracy(path) or 0.0,
            -suffixes.index(path.suffix),
            path.stat().st_mtime,
            path.name,
        ),
    )


def _model_name(path: Path) -> str:
    return _KIND.sub("", path.stem)


def _accuracy(path: Path) -> float | None:
    match = _ACCURACY.search(_model_name(path))
    return float(match[1].replace("_", ".")) if match else None


def _listed(folder: Path, found: list[Path]) -> str:
    if folder.is_file():
        return "a file; name its folder"
    return ", ".join(path.name for path in found) or "none"


def _maker(suffixes: tuple[str, ...]) -> str:
    return "python train.py" if ".h5" in suffixes else "python convert_to_tflite.py"


def file_digest(path: Path) -> str:
    """Return sixteen hexadecimal digits of the file's SHA-256, which no other model has."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def is_tflite(path: Path) -> bool:
    """Return whether `path` is a file that begins like a .tflite file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == _TFLITE


def describe_file(path: Path) -> str:
    """Return what `path` is, by its first bytes, and what to do about it: "a …. Do …."."""
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return (
                "a SavedModel folder. Save the network as one file: "
                f"tf.keras.models.load_model({path.name!r}).save('model.h5')."
            )
        return "a folder. Name a file in it."
    with path.open("rb") as file:
        start = file.read(64)
    plain = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(HDF5):
        return "an HDF5 file such as Keras' .h5. Convert it with python convert_to_tflite.py."
    if is_tflite(path):
        return "a .tflite file. Use it with python predict.py --model, or name a checkpoint."
    for signature, what in {
        _GIT_LFS: "a Git LFS pointer in place of the file. Run `git lfs pull` where it is from.",
        b"<": "an HTML page. Download the file itself.",
        ZIP.lower(): "a zip archive. Unpack it, or convert it first if it is Keras' (.keras).",
    }.items():
        if plain.startswith(signature):
            return what
    return "no model file. Download or copy it again." if start else "an empty file. Copy it again."
