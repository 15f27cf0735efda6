"""Results in an append-only file, so that a stopped run loses none."""

import json
from pathlib import Path

from training.files import LineLog
from training.resume import require_same_settings


class Records:
    """Rows of JSON lines, below a line with their common settings.

    Attributes:
        rows: of this run and earlier ones.
    """

    def __init__(self, path: Path, settings: dict):
        """Continue the file `path`, or start it for `settings` (JSON).

        Raises:
            DataError: the rows in the file were made with other settings.
        """
        settings = json.loads(json.dumps(settings))  # tuples come back as lists
        self._log = LineLog(path)
        lines = self._log.read()
        if not lines:
            self._log.append([json.dumps(settings)])
            self.rows: list[dict] = []
            return
        found, *self.rows = (json.loads(line) for line in lines)
        check_same(found, settings, path.parent)

    def append(self, row: dict) -> None:
        """Add `row` (JSON)."""
        self._log.append([json.dumps(row)])
        self.rows.append(row)


def check_same(found: dict, wanted: dict, place: object, flags: str = "--out") -> None:
    """Raise `DataError` if the results in `place` were made with other settings.

    `flags` names the flags for another place.
    """
    require_same_settings(
        found, wanted, f"the results in {place}", f"Give the same, or another {flags}."
    )
