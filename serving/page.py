"""The page at GET /, and what programs get there instead.

Imported at the first GET /, so that a cold start does without it.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).with_name("page.html")
NAME = "Image classifier"
# Nothing but the page's own blocks runs, and it sends to this service only. Images come from a
# file (blob:), and from any URL that the user names.
POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; "
    "img-src 'self' blob: data: https: http:; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_ETAG = re.compile(r'"[^"]*"')
_QUALITY = re.compile(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Html:
    """A page for browsers.

    Attributes:
        text: HTML.
        etag: its entity tag, with quotes.
        headers: of the response, also of one without the text.
    """

    text: str
    etag: str
    headers: dict[str, str]


@cache
def read_page(path: Path = PAGE) -> Html:
    """Return the page at `path`, with a policy that allows its style and script only."""
    text = path.read_text(encoding="utf-8")
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    blocks = {name: _hashes(text, name) for name in ("script", "style")}
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": POLICY.format(**blocks),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "ETag": etag,
    }
    return Html(text, etag, headers)


def _hashes(text: str, element: str) -> str:
    """Return the sources of Content-Security-Policy for each `element` in HTML."""
    blocks = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(block.encode()).digest()) for block in blocks]
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests) or "'none'"


def matches(etag: str, if_none_match: str) -> bool:
    """Return whether the header `if_none_match` names `etag`, weak or not, or any by `*`."""
    return if_none_match.strip() == "*" or etag in _ETAG.findall(if_none_match)


def prefers_html(accept: str) -> bool:
    """Return whether a client with this header `accept` would rather have HTML than JSON.

    A browser would. Clients that name neither, or both alike, would not: the API answers JSON.
    """
    html, json = _rank(accept, "text/html"), _rank(accept, "application/json")
    return html[0] > 0 and html > json


def _rank(accept: str, kind: str) -> tuple[float, int]:
    """Return the quality of the media type `kind`, 0 to 1, and how precisely it is named.

    The most precise range decides (RFC 9110, section 12.5.1). Parameters other than q are ignored.
    """
    ranges = {kind: 2, f"{kind.partition('/')[0]}/*": 1, "*/*": 0}
    precision, quality = -1, 0.0
    for part in accept.lower().split(","):
        name, *parameters = part.split(";")
        found = ranges.get(name.strip(), -1)
        if found > precision:
            precision, quality = found, _quality(parameters)
    return quality, precision


def _quality(parameters: list[str]) -> float:
    """Return the value of q among `parameters`, 1 without it, at most 1."""
    given = [match[1] for each in parameters if (match := _QUALITY.fullmatch(each))]
    return min(float(given[0]), 1.0) if given else 1.0


def describe(model: str, classes: tuple[str, ...], root: str, has_page: bool) -> dict:
    """Return what the service is, for programs; `root` is the path of its root."""
    root = root.rstrip("/")
    links = {"health": f"{root}/health", "openapi": f"{root}/openapi.json"}
    if has_page:
        links = {"page": f"{root}/", **links}
    return {
        "name": NAME,
        "description": "Says which of its classes an image shows, with a score for each: "
        "POST an image, or JSON with its URL.",
        "model": model,
        "classes": list(classes),
        "links": links,
    }
