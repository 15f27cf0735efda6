"""Fill a folder of images whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.errors import DataError

# Begins with a dot, so that nothing takes it for a class; inside the folder it fills, so that
# renaming never crosses a file system.
STAGING = ".partial"
IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@contextmanager
def fill_folder(out: str | Path) -> Iterator[Path]:
    """Yield an empty folder, whose files and folders move into `out` when the block ends.

    Whatever ends the block early, Ctrl-C too, leaves `out` as it was. What a killed process
    left behind is cleared away by the next.

    Raises:
        DataError: `out` is no folder, holds images already or is being filled by another.
        OSError: `out` cannot be written.
    """
    out = Path(out)
    require_empty(out)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    staging = out / STAGING
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with _locked(staging):
            try:
                ready = _emptied(staging / "ready")
                yield ready
                require_empty(out)
                _move_all(ready, out)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    finally:
        for folder in made:
            with suppress(OSError):  # not empty, so in use
                folder.rmdir()


def require_empty(out: Path) -> None:
    """Raise `DataError` if `out` is no folder or has images or filled folders in it."""
    if out.exists() and not out.is_dir():
        raise DataError(f"Expected a folder to fill. Received: {out}, which is a file.")
    for path in sorted(out.iterdir()) if out.exists() else ():
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES or (path.is_dir() and any(path.iterdir())):
            raise DataError(
                f"Expected {out} to hold no images yet, since drawn and real ones are never "
                f"mixed. Received: one with {path.name} in it. "
                "Empty it, or name another folder with --out."
            )


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Keep other processes out of `staging`; the lock goes with the process that holds it."""
    with open(staging / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"Expected {staging.parent} to be left alone. Received: one that another process "
                "is filling. Wait for that to end."
            ) from None
        yield


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _move_all(source: Path, out: Path) -> None:
    """Rename everything in `source` into `out`, or nothing."""
    names = sorted(path.name for path in source.iterdir())
    try:
        for name in names:
            (source / name).replace(out / name)
    except BaseException:
        for name in names:
            # Gone from here is the only sure sign: an interrupt may fall between any two lines.
            if not (source / name).exists():
                (out / name).replace(source / name)
        raise


UNFINISHED = ".unfinished_"


def remove_unfinished(folder: Path) -> None:
    """Remove from `folder` what a process that was killed while writing has left there."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then give it that name.

    Killed at any moment, `path` is whole: as it was before, or as it is meant to be.
    """
    # Keras wants the ending; the dot keeps a half-written file from being taken for a model.
    temporary = path.with_name(UNFINISHED + path.name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
