"""Files and folders that are written as a whole or not at all, and append-only logs."""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from training.errors import DataError

UNFINISHED = ".unfinished_"  # begins the names of files that are being written
UNCLAIMED = ".tflite"  # ends the names of those that are written into folders of another process
DAY = 86_400  # seconds
# Inside the folder it fills, so that renaming never crosses a file system; the dot keeps it from
# being taken for a class.
STAGING = ".partial"
BEING_WRITTEN, BEING_REPLACED = ".report_new", ".report_old"
IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename that file to `path`.

    A process may be killed at any moment: `path` then has its old content or all of the new.
    """
    # Keras needs the suffix; the dot keeps a half-written file from being taken for a model.
    temporary = path.with_name(UNFINISHED + path.name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_disk_space(path: Path, size: float) -> None:
    """Raise `OSError` where the disk has no room for `size` bytes in a new file `path`.

    For HDF5 files: on a full disk their library prints tracebacks, and may crash.
    """
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in `folder`, which is claimed.

    convert_to_tflite.py claims no folder and may be writing there, on another machine as well: a
    file of its kind is removed only when nothing has written to it for a day.
    """
    for path in folder.glob(f"{UNFINISHED}*"):
        with suppress(FileNotFoundError):  # it is finished at this moment
            if path.suffix != UNCLAIMED or path.stat().st_mtime < time.time() - DAY:
                path.unlink()


class LineLog:
    """Lines of text in a file that only grows.

    A process that is killed while it appends leaves complete lines and at most one incomplete
    line at the end, which is not read, and which the next `append` overwrites.
    """

    def __init__(self, path: Path):
        """Use the file `path`, which need not exist; call `read` before `append`."""
        self.path = path
        self._size = 0  # bytes of the complete lines

    def read(self) -> list[str]:
        """Return the complete lines."""
        content = self.path.read_bytes() if self.path.exists() else b""
        self._size = content.rfind(b"\n") + 1
        return content[: self._size].decode().split("\n")[:-1]

    def cut(self, count: int) -> None:
        """Keep the first `count` lines of the file: the next `append` overwrites the others."""
        with open(self.path, "rb") as file:
            self._size = sum(len(file.readline()) for _ in range(count))

    def append(self, lines: Iterable[str]) -> None:
        """Add `lines` behind those that `read` returned, and wait until they are on the disk."""
        self.path.touch()
        with open(self.path, "r+b") as file:
            file.truncate(self._size)
            file.seek(self._size)
            if content := "".join(f"{line}\n" for line in lines).encode():
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                self._size += len(content)


@contextmanager
def replace_folder(folder: Path, own_names: Collection[str]) -> Generator[Path]:
    """Yield a new folder to fill, which replaces `folder` when the block ends.

    If the block fails, `folder` stays unchanged. Files in it other than `own_names`, which a
    person may have added, are copied into the new one.
    """
    new = folder.with_name(f".{folder.name}{BEING_WRITTEN}")
    old = folder.with_name(f".{folder.name}{BEING_REPLACED}")
    if old.exists() and not folder.exists():
        old.rename(folder)  # a process was killed between the two renames below
    for unfinished in folder.parent.glob(f".*{BEING_WRITTEN}"):
        shutil.rmtree(unfinished)
    new.mkdir(parents=True)
    try:
        yield new
        _copy_others(folder, new, own_names)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _copy_others(folder: Path, new: Path, own_names: Collection[str]) -> None:
    for path in folder.iterdir() if folder.exists() else ():
        if path.name in own_names:
            continue
        if path.is_dir():
            shutil.copytree(path, new / path.name)
        else:
            shutil.copy2(path, new / path.name)


def require_outside(folder: Path, data: Path, flag: str | None = None) -> None:
    """Raise `DataError` if `folder` would be taken for a class of the images in `data`.

    `flag` names it on the command line; None where it stands there without one.
    """
    inner, outer = folder.resolve(), data.resolve()
    if inner != outer and outer not in inner.parents:
        return
    if inner != outer and inner.relative_to(outer).parts[0].startswith("."):
        return
    raise DataError(
        f"Expected {flag or 'a folder to write to'} outside of {data}, where each folder is a "
        f"class. Received: {folder}. Name another folder{f' with {flag}' if flag else ''}."
    )


@contextmanager
def claim_folder(folder: Path) -> Generator[None]:
    """Make `folder`, and keep it for this process while the block runs.

    The system releases it when the process ends, whatever ends it. A folder that was made here, and
    stays empty, is removed again.

    Raises:
        DataError: another process has claimed it, or it is a file.
        OSError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(
            f"Expected a folder to write to. Received: {folder}, which is a file. Name another."
        )
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            _lock(
                lock,
                f"Expected no other run to write to {folder}. Received: one that has not ended. "
                "Wait for it, stop it, or name another folder.",
            )
            _require_writable(folder)
            yield
        finally:
            os.close(lock)
    finally:
        for path in made:
            with suppress(OSError):  # not empty, so in use
                path.rmdir()


def _lock(lock: int, sentence: str) -> None:
    """Lock the open file or folder `lock`, or raise `DataError` with `sentence`."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(sentence) from None
    except OSError:  # some network file systems lock no folders
        return


def _require_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


@contextmanager
def fill_folder(out: str | Path) -> Generator[Path]:
    """Yield an empty folder, whose content moves into `out` when the block ends.

    If the block fails, or is interrupted, `out` stays unchanged. What a killed process left behind
    is removed by the next one.

    Raises:
        DataError: `out` is not a folder, holds images already or is being filled by another
            process.
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
                ready = staging / "ready"
                shutil.rmtree(ready, ignore_errors=True)
                ready.mkdir()
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
    """Raise `DataError` if `out` is not a folder, or holds images or folders with content."""
    if out.exists() and not out.is_dir():
        raise DataError(
            f"Expected a folder to fill. Received: {out}, which is a file. Name another."
        )
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
def _locked(staging: Path) -> Generator[None]:
    """Hold the lock of `staging`, which the system releases when the process ends."""
    with open(staging / "lock", "w") as lock:
        _lock(
            lock.fileno(),
            f"Expected no other process to use {staging.parent}. Received: one that is "
            "filling it. Wait until that has ended.",
        )
        yield


def _move_all(source: Path, out: Path) -> None:
    """Rename everything in `source` into `out`, or nothing."""
    names = sorted(path.name for path in source.iterdir())
    try:
        for name in names:
            (source / name).replace(out / name)
    except BaseException:
        for name in names:
            # Look in `source`: an interrupt may fall between any two lines.
            if not (source / name).exists():
                (out / name).replace(source / name)
        raise
