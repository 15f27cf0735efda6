"""Activations of a frozen network, computed once an image and view and kept on disk."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from training.errors import CacheError

FLUSHED_BYTES = 64e6  # rows are on the disk, and count, after so many bytes
SPARE_BYTES = 1e9  # of the disk, left free for checkpoints and whoever else writes


class FeatureStore:
    """Rows of one shape, each under a name, in files that only ever grow.

    `rows.bin` holds the rows one after another, `index.txt` their names, a line a row. A line is
    written after its row has reached the disk, and what stands behind the last whole line is
    written over: killed at any moment, a table holds right rows only.

    Attributes:
        shape: of a row.
        dtype: of its values.
    """

    def __init__(self, folder: Path, key: dict, shape: tuple[int, ...], dtype: str):
        """Open the table of `folder` for what `key` (JSON) says of how its rows are made.

        Another key is another table, beside this one.
        """
        text = json.dumps(key | {"shape": list(shape), "dtype": dtype}, sort_keys=True, indent=1)
        self.folder = Path(folder, hashlib.sha256(text.encode()).hexdigest()[:16])
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(text + "\n", encoding="utf-8")
        self._read_index()

    @property
    def row_bytes(self) -> int:
        """The size of a row."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return those of `names` that have no row yet, each once, in their order."""
        return [name for name in dict.fromkeys(names) if name not in self._row_of]

    def read(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows of `names`, (names, *shape) of `dtype`; `KeyError` if one is missing."""
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
    def writer(self) -> Iterator["FeatureWriter"]:
        """Yield the only `FeatureWriter` of this store; other processes wait for it."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read_index()  # what the other process has filled meanwhile
            with FeatureWriter(self) as writer:
                yield writer

    def check_room(self, count: int) -> None:
        """Raise `CacheError` where the disk has no room for `count` more rows."""
        needed = count * self.row_bytes + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if count and needed > free:
            raise CacheError(
                f"Expected {needed / 1e9:.1f} GB of free disk for activations in "
                f"{self.folder.parent}. Received: {free / 1e9:.1f} GB. Free some, name another "
                "folder with --cache, or train without one with --no-cache."
            )

    def _read_index(self) -> None:
        path = self.folder / "index.txt"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        names = text[: text.rfind("\n") + 1].split()
        self._row_of = {name: row for row, name in enumerate(names)}
        self._index_bytes = sum(len(name) + 1 for name in names)
        self._rows = None


class FeatureWriter:
    """Appends to a `FeatureStore`; as a context manager it flushes at its end, also on errors."""

    def __init__(self, table: FeatureStore):
        """Write behind the last whole row of `table`."""
        self.table = table
        self._pending: list[str] = []

    def __enter__(self) -> "FeatureWriter":
        """Open the files, and cut off what a killed process has left half written."""
        folder, count = self.table.folder, len(self.table._row_of)
        self._rows = _open_at(folder / "rows.bin", count * self.table.row_bytes)
        self._index = _open_at(folder / "index.txt", self.table._index_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        """Flush, and close the files."""
        with self._rows, self._index:
            self.flush()

    def append(self, names: Sequence[str], rows: np.ndarray) -> None:
        """Add `rows`, (names, *shape) of any float type, under `names`, which are new."""
        rows = np.ascontiguousarray(rows, dtype=self.table.dtype)
        if rows.shape != (len(names), *self.table.shape):
            raise ValueError(
                f"Expected rows of shape {(len(names), *self.table.shape)}. Received: {rows.shape}."
            )
        self._rows.write(rows.data)
        self._pending += names
        if len(self._pending) * self.table.row_bytes >= FLUSHED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Bring the rows to the disk, then their names."""
        # Only whole rows are named: one that failed half-way stands behind the last.
        _sync(self._rows)
        self._index.write("".join(f"{name}\n" for name in self._pending).encode())
        _sync(self._index)
        known = self.table._row_of
        known |= {name: len(known) + place for place, name in enumerate(self._pending)}
        self.table._index_bytes += sum(len(name) + 1 for name in self._pending)
        self._pending = []


def _open_at(path: Path, size: int):
    path.touch()
    file = open(path, "r+b")  # noqa: SIM115
    file.truncate(size)
    file.seek(size)
    return file


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())
