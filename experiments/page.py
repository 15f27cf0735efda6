"""A self-contained HTML page, with its figures inside."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.files import write_atomically

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
       max-width: 60rem; padding: 1rem 1.5rem 4rem }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e6e6e6; text-align: right;
         font-variant-numeric: tabular-nums; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
ul { padding-left: 1.2rem } code { font-size: .9em; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        text: paragraphs, the most important first.
        figures: PNG files and their descriptions.
        head: of the table; empty without one.
        rows: of the table.
        findings: a list below the table.
    """

    title: str
    text: Sequence[str] = ()
    figures: Sequence[tuple[Path, str]] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    findings: Sequence[str] = field(default=())


def write_page(path: Path, title: str, text: str, sections: Sequence[Section]) -> None:
    """Write the page to `path` atomically; all texts are plain, without HTML."""
    body = "\n".join(_section(section) for section in sections)
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_plain(title)}</title>\n<style>{STYLE}</style>\n"
        f"<h1>{_plain(title)}</h1>\n<p>{_plain(text)}</p>\n{body}\n</html>\n"
    )
    write_atomically(path, lambda new: new.write_text(page, encoding="utf-8"))


def _section(section: Section) -> str:
    parts = [f"<h2>{_plain(section.title)}</h2>"]
    parts += [f"<p>{_plain(paragraph)}</p>" for paragraph in section.text]
    for path, description in section.figures:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<img src="data:image/png;base64,{data}" alt="{_plain(description)}">')
    if section.rows:
        lines = [_row(section.head, "th"), *(_row(row, "td") for row in section.rows)]
        parts.append(f'<div class="wide"><table>{"".join(lines)}</table></div>')
    if section.findings:
        items = "".join(f"<li><code>{_plain(finding)}</code>" for finding in section.findings)
        parts.append(f"<ul>{items}</ul>")
    return "\n".join(parts)


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{_plain(cell)}</{tag}>' for cell in cells)}</tr>\n"


def _plain(text: str) -> str:
    # File names from old archives may hold bytes that are not text.
    return html.escape(text.encode(errors="backslashreplace").decode())
