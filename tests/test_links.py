"""Every link of every Markdown file leads somewhere: to a file, and to a heading in it."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

import pytest
from conftest import ROOT

from serving.model_files import best_model

PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("[!.]*/*.md"),
        *ROOT.glob(".github/**/*.md"),
        best_model(ROOT / "models", ".h5").with_suffix("") / "README.md",
    }
)
FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n.*?^\1`*[ ]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?:(?!\1).)+?\1")
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s+<?([^\s>]+)", re.MULTILINE)
ATTRIBUTE = re.compile(r"<[a-z][^>]*?\b(?:src|href)=\"([^\"]+)\"", re.IGNORECASE)
HEADING = re.compile(r"^#{1,6}[ ]+(.+?)[ ]*#*$", re.MULTILINE)
MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|(?<!\w)(?:\*\*|__|\*|_)(?=\S)|(?<=\S)(?:\*\*|\*)")


def links(text: str) -> list[str]:
    """Return the targets of the links and images in Markdown `text`; code has none."""
    prose = CODE.sub("", FENCE.sub("", text))
    return [*LINK.findall(prose), *REFERENCE.findall(prose), *ATTRIBUTE.findall(prose)]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of Markdown `text`."""
    found: dict[str, int] = {}
    result = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = MARKUP.sub(r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.get(anchor, 0)
        found[anchor] = count + 1
        result.add(f"{anchor}-{count}" if count else anchor)
    return result


def broken_links(page: Path) -> list[str]:
    """Return the links of `page` that lead to no file of the project, or to no heading in one."""
    broken = []
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        known = target.exists() and target.is_relative_to(ROOT)
        if known and anchor:
            known = target.suffix == ".md" and anchor in anchors(target.read_text(encoding="utf-8"))
        if not known:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_project_that_code_spans_name_exist(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(
        r"`((?:serving|training|tests|tools|experiments|docs|\.ci)/[\w./-]*)`", prose
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        for link in links(page.read_text(encoding="utf-8")):
            if not re.match(r"https?://|mailto:", link):
                waiting.append((page.parent / unquote(link).partition("#")[0]).resolve())
    assert set(PAGES) <= reached


def test_a_missing_file_a_missing_heading_and_a_path_outside_are_found() -> None:
    (ROOT / ".cache").mkdir(exist_ok=True)
    with TemporaryDirectory(dir=ROOT / ".cache") as folder:
        page = Path(folder) / "page.md"
        page.write_text(
            "# A heading\n[here](#a-heading) [gone](#another) [file](gone.md) "
            "[outside](../../../gone) ![image](gone.png) `[code](gone-too.md)`\n"
            '<img src="gone.jpg"> [web](https://example.com/gone)\n'
            "```sh\n# no heading\n[code](gone-too.md)\n```\n[none](#no-heading)\n",
            encoding="utf-8",
        )
        assert broken_links(page) == [
            "#another",
            "gone.md",
            "../../../gone",
            "gone.png",
            "#no-heading",
            "gone.jpg",
        ]


def test_anchors_are_those_of_github() -> None:
    text = (
        "# Train, serve, ask\n## `train.py` and `int8`\n## Why it's 2× **fast**\n"
        "## A_b – c\n## [A link](x.md)\n## Same\n## Same\n```\n# code\n```\n"
    )
    assert anchors(text) == {
        "train-serve-ask",
        "trainpy-and-int8",
        "why-its-2-fast",
        "a_b--c",
        "a-link",
        "same",
        "same-1",
    }
