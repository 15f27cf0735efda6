"""Results of earlier checks of images, kept on disk: a second start decodes only what is new.

A result belongs to the content of a file, which its SHA-256 names. A file whose path, size and
times of change are those of an earlier check has the content of then, and is not even read. Only
usable images are kept: what is wrong with other files is found anew each time.
"""

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TypeVar

import serving
from training import streams

CHECKS = Path(".cache", "checks.sqlite3")
KEPT_DAYS = 30  # after which a file that no check has met is forgotten
# A file that changed so shortly before it was read may change again and keep its times: some file
# systems count in steps of two seconds.
SETTLED_NS = 2_000_000_000
WRITE_SECONDS = 5  # between two writes; a process that is killed loses what came later
LOCK_SECONDS = 10  # to wait for another process that writes
PACKAGES = ("pillow", "imagehash", "numpy", "scipy")  # they decide what a check finds,
SOURCES = (Path(serving.__file__).parent, Path(__file__).parent)  # and so do these folders
CREATE = (
    "CREATE TABLE IF NOT EXISTS files (path PRIMARY KEY, size, modified, changed, digest, format,"
    " hash, seal, seen) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS digests ON files (digest)",
)
IN_FOLDER = "SELECT * FROM files WHERE path > ? AND path < ?"
OF_CONTENT = "SELECT * FROM files WHERE digest = ?"
INSERT = "REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
# The file may be sound: it is in use, may not be written, or the disk is full or fails.
SOUND = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}
FAILURES = (sqlite3.Error, UnicodeDecodeError)  # the latter where the name of a column is damaged

Stamp = tuple[int, int, int]  # size in bytes; when content and status changed, nanoseconds
UNSETTLED: Stamp = (-1, -1, -1)  # which no file has
Result = TypeVar("Result")


class Usable(NamedTuple):
    """What a check finds out about a usable image.

    Attributes:
        digest: SHA-256 of the file, hexadecimal.
        format: one of `serving.image.FORMATS`.
        hash: `perceptual_hash`, None for an image that has none.
    """

    digest: str
    format: str
    hash: int | None


class Row(NamedTuple):
    """What is known about a file, and the day when a check met it, counted from 1970."""

    path: bytes
    stamp: Stamp
    usable: Usable
    seen: int


class CheckCache:
    """What is known about the files of a folder; a context manager.

    It never fails: where its file cannot be used, nothing is known. Several processes may use it
    at once. Rows that are damaged, or that another version of this project or of `PACKAGES` wrote,
    do not count.
    """

    def __init__(self, folder: Path, path: Path | None = None):
        """Use what the SQLite file `path` [`CHECKS`] says about files in `folder`."""
        self.path = path or CHECKS
        self._prefix = os.fsencode(folder.resolve()) + b"/"
        self._today = int(time.time() // 86_400)
        self._known: dict[str, Row] = {}
        self._is_empty = True
        self._new: list[Row] = []  # not yet written
        self._met: list[bytes] = []  # whose day has to be written
        self._written = time.monotonic()
        self._database: sqlite3.Connection | None = None
        self._lock = threading.Lock()  # of the database
        self._problem: Exception | None = None

    def __enter__(self) -> "CheckCache":
        """Read what is known."""
        if not self._load() and not os.path.exists(self.path):  # it was damaged, and is gone
            self._load()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what was found, also where the check was stopped, and forget what is old."""
        self._run(self._write)
        self._run(self._forget)
        if self._database:
            self._database.close()
        if self._new:
            streams.print_error(
                f"Note: the results for {streams.counted(len(self._new), 'image')} cannot be kept "
                f"in {self.path} ({self._problem}). The next start checks these images again."
            )

    def find(self, name: str, status: os.stat_result) -> Usable | None:
        """Return what is known about the file `name` ("class/file") with this `status`, or None."""
        row = self._known.get(name)
        if row is None or row.stamp != stamp_of(status):
            return None
        if row.seen != self._today:
            self._met.append(row.path)
        return row.usable

    def find_content(self, digest: str) -> Usable | None:
        """Return what is known about content, wherever it was, or None; callable on any thread."""
        if self._is_empty:
            return None
        rows = self._run(lambda database: _select(database, OF_CONTENT, bytes.fromhex(digest)))
        return rows[0].usable if rows else None

    def keep(self, name: str, stamp: Stamp, usable: Usable) -> None:
        """Note the result for the file `name` ("class/file")."""
        self._new.append(Row(self._prefix + os.fsencode(name), stamp, usable, self._today))
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._run(self._write)
            self._written = time.monotonic()

    def _load(self) -> bool:
        """Open the file and read what it knows of the folder; return whether that succeeded."""
        with suppress(OSError):  # which opening it will tell
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = _open(self.path)
        except FAILURES as error:
            self._give_up(error)
            return False
        rows = self._run(self._read_folder)
        self._known = {os.fsdecode(row.path.removeprefix(self._prefix)): row for row in rows or ()}
        return rows is not None

    def _read_folder(self, database: sqlite3.Connection) -> list[Row]:
        end = self._prefix[:-1] + bytes([self._prefix[-1] + 1])
        self._is_empty = database.execute("SELECT 1 FROM files").fetchone() is None
        return _select(database, IN_FOLDER, self._prefix, end)

    def _write(self, database: sqlite3.Connection) -> None:
        with database:
            database.executemany(INSERT, map(_pack, self._new))
        self._new.clear()

    def _forget(self, database: sqlite3.Connection) -> None:
        with database:
            met = [(self._today, path) for path in self._met]
            database.executemany("UPDATE files SET seen = ? WHERE path = ?", met)
            database.execute("DELETE FROM files WHERE seen < ?", (self._today - KEPT_DAYS,))

    def _run(self, use: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Return what `use` makes of the database; None where there is none, or it fails."""
        with self._lock:
            try:
                return use(self._database) if self._database else None
            except FAILURES as error:
                self._give_up(error)
                return None

    def _give_up(self, error: Exception) -> None:
        """Use the database no more, and remove it if it is damaged or another program's."""
        if self._database:
            self._database.close()
        self._database, self._problem = None, error
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in SOUND:  # the rest tells kinds apart
            for path in (self.path, self.path.with_name(f"{self.path.name}-journal")):
                with suppress(OSError):
                    path.unlink()


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what shows that a file with this `status` has changed."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def settled_stamp(before: os.stat_result, after: os.stat_result, now_ns: int) -> Stamp:
    """Return the stamp of a file that was read between two looks at it.

    It is `UNSETTLED` unless the file was the same in both and, `now_ns` being the time of the
    first, had not changed for a while: then it may have changed without showing it.
    """
    stamp = stamp_of(before)
    same = stamp == stamp_of(after)
    return stamp if same and max(stamp[1:]) < now_ns - SETTLED_NS else UNSETTLED


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
    try:
        for statement in CREATE:
            database.execute(statement)
    except FAILURES:
        database.close()
        raise
    return database


def _select(database: sqlite3.Connection, statement: str, *values: bytes) -> list[Row]:
    """Return the rows that `statement` selects, without those that do not count."""
    return list(_unpack(database.execute(statement, values)))


def _pack(row: Row) -> tuple:
    """Return the values of `row` in the database."""
    digest, held, value = row.usable
    packed = (
        row.path,
        *row.stamp,
        bytes.fromhex(digest),
        held.encode(),
        None if value is None else value.to_bytes(16, "big"),
    )
    return (*packed, _seal(packed), row.seen)


def _unpack(rows: Iterable[tuple]) -> Iterator[Row]:
    """Yield those of the `rows` that this version packed, and that are as they were then."""
    for *packed, seal, seen in rows:
        if seal == _seal(tuple(packed)):
            path, size, modified, changed, digest, held, value = packed
            number = None if value is None else int.from_bytes(value, "big")
            usable = Usable(digest.hex(), held.decode(), number)
            yield Row(path, (size, modified, changed), usable, seen)


def _seal(packed: tuple) -> bytes:
    return hashlib.sha256(_version() + repr(packed).encode()).digest()[:8]


@cache
def _version() -> bytes:
    """Return a hash of what decides what a check finds: our code and `PACKAGES`."""
    hashed = hashlib.sha256("\n".join(map(version, PACKAGES)).encode())
    for folder in SOURCES:
        for path in sorted(folder.glob("*.py")):
            hashed.update(path.read_bytes())
    return hashed.digest()
