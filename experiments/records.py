"""Results in a file that only grows, so that a stopped run loses none of them."""

import json
from pathlib import Path

from training.errors import DataError


class Records:
    """Rows of JSON, a line each, under a line that says what they have in common.

    Killed at any moment, the file has whole rows and at most one broken one at its end, which the
    next run writes over.

    Attributes:
        rows: those written so far, by this run and by those before.
    """

    def __init__(self, path: Path, settings: dict):
        """Go on with the rows at `path`, which have `settings` (JSON) in common.

        Raises:
            DataError: the rows there were made with other settings.
        """
        self.path = path
        settings = json.loads(json.dumps(settings))  # tuples come back as lists
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        if not lines:
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            self.rows: list[dict] = []
            return
        found, *self.rows = (json.loads(line) for line in lines)
        check_same(found, settings, path.parent)
        with open(path, "r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))

    def append(self, row: dict) -> None:
        """Add `row` (JSON)."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)


def check_same(found: dict, wanted: dict, place: object, flags: str = "--out") -> None:
    """Raise a DataError if the results in `place` were `found` with other settings.

    `flags` name another place.
    """
    different = [name for name in wanted if wanted[name] != found.get(name)]
    if different:
        was = ", ".join(f"{name} {found.get(name)}" for name in different)
        now = ", ".join(f"{name} {wanted[name]}" for name in different)
        raise DataError(
            f"Expected the settings of the results in {place} ({was}). Received: {now}. "
            f"Give the same, or another {flags}."
        )
