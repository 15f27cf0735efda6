"""Names of files and folders: which can be written and compared, and which only look alike.

macOS stores an accented letter as two characters, other systems as one; names of old archives may
hold bytes that are not text at all, which Python reads as surrogates.
"""

import codecs
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from training.errors import DataError
from training.streams import printable

# Unicode categories that a class name may not have: control characters, bytes that are not text,
# and line or paragraph separators.
UNWRITABLE = {"Cc", "Cs", "Zl", "Zp"}
INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"  # zero-width characters, which copying picks up


def composed(name: str) -> str:
    """Return `name` with each accented letter as one character (NFC)."""
    return unicodedata.normalize("NFC", name)


def look(name: str) -> str:
    """Return a key that is equal for names that look the same."""
    text = unicodedata.normalize("NFKC", name).casefold()
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(visible.split())


def has_line_break(name: str) -> bool:
    """Return whether `name` would take more than one line of a list."""
    return "\n" in name or "\r" in name


def check_class_names(folder: Path, names: Sequence[str]) -> None:
    """Raise `DataError` if a class could not be written, or not be told from another.

    `names` are those of the sub-folders of `folder`. A model carries them as lines of text.
    """
    for name in names:
        if any(unicodedata.category(c) in UNWRITABLE for c in name) or not name.strip():
            raise DataError(
                "Expected folders whose names are one line of text (UTF-8), as they become the "
                f"class names. Received: {name!a} in {printable(folder)}. "
                "Rename it."
            )
        if name != name.strip():
            raise DataError(
                "Expected class names without spaces at their ends. "
                f"Received: {name!r} in {printable(folder)}. Rename the folder."
            )
    alike = defaultdict(list)
    for name in names:
        alike[look(name)].append(name)
    for same in alike.values():
        if len(same) > 1:
            raise DataError(
                f"Expected classes whose names differ visibly. Received: {_shown(same)} in "
                f"{printable(folder)}. Merge the folders, or rename one."
            )


def _shown(names: Sequence[str]) -> str:
    """Return `names`, escaped where they would be printed alike."""
    whole = " and ".join(map(repr, names))
    same = len({composed(name) for name in names}) < len(names)
    return " and ".join(map(ascii, names)) if same else whole


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file in UTF-8 or, with its signature, UTF-16.

    Bytes that are not text are kept as surrogates, as in file names.

    Raises:
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", errors="replace")
    else:
        text = content.decode("utf-8-sig", errors="surrogateescape")
    return re.split(r"\r\n|[\r\n]", text)


class FileIndex:
    """Finds the files that a line of a list names, however it spells them."""

    def __init__(self, folder: Path, files: Iterable[str]):
        """Index `files`, "class/file" in `folder`."""
        self._files = set(files)
        self._prefixes = ("./", f"{folder.as_posix()}/", f"{folder.resolve().as_posix()}/")
        self._alike = defaultdict(set)
        for file in self._files:
            self._alike[_key(file)].add(file)

    def find(self, text: str) -> set[str]:
        """Return the file that `text` names or, if none has just this name, those spelled alike.

        `text` may name the folder in front, and separate names by backslashes as on Windows.
        """
        text = text.strip(INVISIBLE)
        if text in self._files:
            return {text}
        for reading in (text, text.replace("\\", "/")):
            for prefix in ("", *self._prefixes):
                if reading.startswith(prefix) and (found := self._alike.get(_key(reading, prefix))):
                    return found
        return set()


def _key(text: str, prefix: str = "") -> str:
    return composed(text.removeprefix(prefix)).strip()


class ListedLine(NamedTuple):
    """A line of a list of files.

    Attributes:
        number: of the line, from 1.
        text: without its comment.
        files: that it names; none if there are no such files.
    """

    number: int
    text: str
    files: set[str]


def read_list(path: Path, index: FileIndex) -> list[ListedLine]:
    """Return the lines of the text file `path` that name files; `#` begins a comment.

    Raises:
        OSError: it cannot be read.
    """
    listed = []
    for number, line in enumerate(read_lines(path), 1):
        readings = list(_without_comment(line))
        found = next(filter(None, map(index.find, readings)), set())
        if found or readings[-1]:
            listed.append(ListedLine(number, readings[-1], found))
    return listed


def _without_comment(line: str) -> Iterator[str]:
    """Yield `line` without its comment, the shortest comment first: names may contain ` #`."""
    yield line.strip()
    for mark in reversed(list(re.finditer(r"(^|\s)#", line))):
        yield line[: mark.start()].strip()
