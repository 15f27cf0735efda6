"""Rows of features on disk: written once, read by every later run."""

import fcntl
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from training.errors import CacheError
from training.files import DAY, LineLog

FLUSHED_BYTES = 64e6  # after so many, rows are flushed to the disk and named
SPARE_BYTES = 1e9  # of the disk, left free for checkpoints and other programs
KEY = "key.json"  # its time is the last use of a store, and those who use it lock it
REMOVED = ".removed_"  # begins the names of stores that are being removed
HASH_DIGITS = 16  # hexadecimal, of the hash that names a store
STORE = "[0-9a-f]" * HASH_DIGITS  # the pattern of such names


class FeatureStore:
    """Named rows of one shape in append-only files.

    `rows.bin` holds the rows, `index.txt` their names, one a line. A name is written after its row
    has reached the disk, and rows without a name are overwritten: a process may be killed at any
    moment, and the store holds complete rows only.

    Attributes:
        folder: where the files are.
        shape: of a row.
        dtype: of its values.
    """

    def __init__(self, folder: Path, key: dict, shape: tuple[int, ...], dtype: str):
        """Open the store below `folder` whose rows are made as `key` (JSON) describes.

        Each key, shape and dtype has a store of its own, in a folder named by their hash.
        """
        text = _describe(key, shape, dtype)
        self.folder = Path(folder, _folder_name(text))
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        # The file stays open, and so locked, as long as this object is in use.
        weakref.finalize(self, os.close, _use(self.folder, f"{text}\n".encode()))
        self.index = LineLog(self.folder / "index.txt")
        self._read_index()

    @classmethod
    def find(
        cls, folder: Path, key: dict, shape: tuple[int, ...], dtype: str
    ) -> "FeatureStore | None":
        """Return the store that there is for the same arguments, or None."""
        exists = (folder / _folder_name(_describe(key, shape, dtype)) / KEY).exists()
        return cls(folder, key, shape, dtype) if exists else None

    def __contains__(self, name: str) -> bool:
        return name in self._row_of

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return the `names` without a row, each once, in order."""
        return [name for name in dict.fromkeys(names) if name not in self._row_of]

    def read(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows of `names`, (names, *shape) of `dtype`.

        Raises:
            KeyError: one of them has no row.
        """
        rows = [self._row_of[name] for name in names]
        if self._rows is None or len(self._rows) < len(self._row_of):
            self._rows = np.memmap(
                self.folder / "rows.bin",
                self.dtype,
                mode="r",
                shape=(len(self._row_of), *self.shape),
            )
        return np.asarray(self._rows[rows])

    @contextmanager
    def writer(self) -> Generator["FeatureWriter"]:
        """Yield the only `FeatureWriter` of this store; other processes wait for it."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read_index()  # another process may have added rows
            with FeatureWriter(self) as writer:
                yield writer

    def check_room(self, count: int) -> None:
        """Raise `CacheError` where the disk has no room for `count` more rows."""
        require_room(self.folder.parent, count * self.row_bytes)

    def _read_index(self) -> None:
        self._row_of = {}
        for row, name in enumerate(self.index.read()):
            if name in self._row_of:
                # Earlier versions could write names twice, and from there on rows are not those
                # of their names: what comes before is kept, and the rest written again.
                self.index.cut(row)
                break
            self._row_of[name] = row
        self._rows = None


class FeatureWriter:
    """Appends rows to a `FeatureStore`; as a context manager it flushes, also after errors."""

    def __init__(self, store: FeatureStore):
        """Write behind the last complete row of `store`."""
        self.store = store
        self._pending: list[str] = []

    def __enter__(self) -> "FeatureWriter":
        """Open the file of rows, and cut off what a killed process left behind."""
        path, size = self.store.folder / "rows.bin", len(self.store._row_of) * self.store.row_bytes
        path.touch()
        self._rows = open(path, "r+b")
        self._rows.truncate(size)
        self._rows.seek(size)
        self.store.index.append([])
        return self

    def __exit__(self, *_: object) -> None:
        """Flush and close the file."""
        with self._rows:
            self.flush()

    def append(self, names: Sequence[str], rows: np.ndarray) -> None:
        """Add `rows`, (names, *shape) of any float type, under `names`, which must be new.

        Raises:
            ValueError: the shape is another one.
        """
        rows = np.ascontiguousarray(rows, dtype=self.store.dtype)
        if rows.shape != (len(names), *self.store.shape):
            raise ValueError(
                f"Expected rows of shape {(len(names), *self.store.shape)}. Received: {rows.shape}."
            )
        self._rows.write(rows.data)
        self._pending += names
        if len(self._pending) * self.store.row_bytes >= FLUSHED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows to the disk, then their names."""
        self._rows.flush()
        os.fsync(self._rows.fileno())
        # Taken first: after Ctrl-C in the middle, the next flush must not write them again.
        names, self._pending = self._pending, []
        self.store.index.append(names)
        known = self.store._row_of
        known |= {name: len(known) + place for place, name in enumerate(names)}


def _describe(key: dict, shape: tuple[int, ...], dtype: str) -> str:
    return json.dumps(key | {"shape": list(shape), "dtype": dtype}, sort_keys=True, indent=1)


def _folder_name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def require_room(folder: Path, size: int) -> int:
    """Return how many bytes are free in `folder`.

    Raises:
        CacheError: they are too few for `size` more.
    """
    needed, free = size + SPARE_BYTES, shutil.disk_usage(folder).free
    if size and needed > free:
        raise CacheError(
            f"Expected {needed / 1e9:.1f} GB of free disk space for features in {folder}. "
            f"Received: {free / 1e9:.1f} GB. Free some, name another folder with --cache, or train "
            "without a cache: --no-cache."
        )
    return free


def remove_unused(cache: Path, days: float) -> tuple[int, int]:
    """Remove the stores below `cache` that nothing used for `days`; return how many, and bytes.

    A store that a process has opened stays, however long ago that was, and so does every folder
    that is no store.
    """
    before, count, size = time.time() - days * DAY, 0, 0
    for folder in sorted(cache.glob(STORE)):
        count += not folder.is_symlink() and _set_aside(folder, before)
    # Also where a process was killed while it did this.
    for removed in cache.glob(REMOVED + STORE):
        with suppress(OSError):
            size += sum(path.stat().st_size for path in removed.iterdir())
        shutil.rmtree(removed, ignore_errors=True)
    return count, size


def _use(folder: Path, key: bytes) -> int:
    """Make the store `folder` if need be, and write its `key` and so the time of this use.

    Returns the descriptor of a file: the store is not removed until that is closed.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # it is removed at this moment
            file = os.open(folder / KEY, os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(OSError):  # some network file systems lock no files
                fcntl.flock(file, fcntl.LOCK_SH)
            os.pwrite(file, key, 0)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(folder / KEY)):
                    return file
            os.close(file)


def _is_store(folder: Path) -> bool:
    """Return whether `folder` has the name of a store of its key, as a store alone does."""
    key = (folder / KEY).read_text(encoding="utf-8", errors="replace")
    return folder.name == _folder_name(key.removesuffix("\n"))


def _set_aside(folder: Path, before: float) -> bool:
    """Rename the store `folder` for removal, unless it is in use or was since the time `before`."""
    try:
        file = os.open(folder / KEY, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_mtime >= before or not _is_store(folder):
            return False
        folder.rename(folder.with_name(REMOVED + folder.name))
    except OSError:  # in use, or no longer there
        return False
    finally:
        os.close(file)
    return True
