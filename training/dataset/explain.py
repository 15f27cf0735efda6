"""Says why a folder holds too few images, and which folder was probably meant."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from serving.image import FORMATS
from training.files import IMAGE_SUFFIXES
from training.streams import counted, printable

LISTED = 3  # reasons, folders or classes that a sentence names
LOOKED_AT = 50  # files of a folder, to find an image among them
MAX_FOLDERS = 200  # that are looked into
DEPTH = 3  # folders below the one that was named
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
SUFFIXES = IMAGE_SUFFIXES | {".heic", ".heif"}
ADVICE = {
    "HEIC": "Export HEIC images as JPEG.",
    "HTML": "Download the images themselves, not the web pages about them.",
    "LFS": "Fetch the files with `git lfs pull`.",
}


def explain_skipped(folder: Path, class_name: str, skipped: Sequence[tuple[str, str]]) -> str:
    """Return why files of a class do not count, such as " (12 × HEIC image)"; "" for no reason.

    `skipped` has ("class/file", reason) of all classes in `folder`.
    """
    own = [(file, reason) for file, reason in skipped if file.split("/", 1)[0] == class_name]
    folders = [Path(file).name for file, _ in own if (folder / file).is_dir() and "/" in file]
    counts = Counter(short_reason(reason) for file, reason in own if Path(file).name not in folders)
    parts = []
    if folders:
        parts.append(f"{counted(len(folders), 'folder')}: {_first(folders)}")
    parts += [f"{count} × {reason}" for reason, count in counts.most_common(LISTED)]
    if len(counts) > LISTED:
        parts.append(f"{counted(len(counts) - LISTED, 'other reason')}")
    return f" ({'; '.join(parts)})" if parts else ""


def explain_empty(folder: Path) -> str:
    """Return what a class folder without any file that counts holds, for a person."""
    return " (only hidden files)" if any(_entries(folder, hidden=True)) else " (an empty folder)"


def short_reason(reason: str) -> str:
    """Return what was received instead of an image, without what was expected."""
    if most := re.match(r"Expected at most (.+?)\. Received: ", reason):
        return f"more than {most[1]}"
    received = re.search(r"Received: (.+?)(\. |\.?$)", reason)
    return re.sub(r"^(one that is|an?) ", "", received[1] if received else reason)


def advise(folder: Path, short: Sequence[str], skipped: Sequence[tuple[str, str]]) -> str:
    """Return what to do about the classes `short` of `folder`, which have too few images."""
    own = [(file, reason) for file, reason in skipped if file.split("/", 1)[0] in short]
    if any((folder / file).is_dir() for file, _ in own if "/" in file):
        return suggest_folder(folder) or (
            "Put the images directly into the folder of their class: folders inside are not read."
        )
    reasons = " ".join(reason for _, reason in own)
    known = [advice for word, advice in ADVICE.items() if word in reasons]
    return " ".join(known) or "Add some, or take the folder away."


def suggest_folder(folder: Path) -> str:
    """Return a sentence that names the data set that was probably meant, or ""."""
    inside = _datasets_inside(folder)
    splits = [path for path in inside if path.name.lower() in SPLITS]
    if splits:
        first = next((path for path in splits if path.name.lower().startswith("train")), splits[0])
        return (
            f"You probably mean the folder {printable(first)}. train.py makes its own split: to "
            f"use all images, merge {_first([path.name for path in splits])} into one folder."
        )
    if len(inside) == 1:
        return f"You probably mean the folder {printable(inside[0])}."
    if inside or not holds_images(folder):
        return ""
    whole = folder.resolve()
    if _is_dataset(whole.parent):
        shown = folder.parent if len(folder.parts) > 1 and folder.name != ".." else whole.parent
        return f"It holds images itself: you probably mean the folder {printable(shown)}."
    return "It holds images itself: put those of each class into a folder of its own."


def holds_images(folder: Path) -> bool:
    """Return whether one of the first files directly in `folder` is an image."""
    files = (path for path in _entries(folder) if path.is_file())
    return any(_looks_like_image(path) for path in islice(files, LOOKED_AT))


def _looks_like_image(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with Image.open(path, formats=FORMATS):  # reads the header only
            return True
    except Exception:  # Pillow raises nearly anything on what is no image
        return False


def _datasets_inside(folder: Path) -> list[Path]:
    """Return the folders below `folder` that hold classes, those of the least depth."""
    level = [folder]
    for _ in range(DEPTH):
        level = list(islice((sub for path in level for sub in _folders(path)), MAX_FOLDERS))
        if found := [path for path in level if _is_dataset(path)]:
            return found
    return []


def _is_dataset(folder: Path) -> bool:
    """Return whether at least two folders in `folder` hold images."""
    classes = (sub for sub in islice(_folders(folder), MAX_FOLDERS) if holds_images(sub))
    return len(list(islice(classes, 2))) == 2


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in _entries(folder) if path.is_dir())


def _entries(folder: Path, hidden: bool = False) -> Iterator[Path]:
    """Yield what is in `folder`, sorted; nothing where it cannot be listed."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return
    yield from (path for path in found if path.name.startswith(".") == hidden)


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:LISTED])
    return shown + ", …" * (len(names) > LISTED)
