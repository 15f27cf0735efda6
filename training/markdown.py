"""Markdown that several commands print or write."""

from collections.abc import Sequence


def markdown_table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; the cells are Markdown already."""
    return "\n".join(map(markdown_row, [head, ["---"] * len(head), *rows]))


def markdown_row(cells: Sequence[object]) -> str:
    """Return a row of a Markdown table, for tables that are printed as they grow."""
    return f"| {' | '.join(map(str, cells))} |"
