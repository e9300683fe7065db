"""Pages from templates. Everything is escaped; Markdown (instructions only) passes a parser and a sanitiser."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import nh3
from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import HTMLResponse

from tutelage.labeling.store import answers

TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Read once, so that no request names a file; the digest lets browsers keep each version for good.
STATIC = {
    file.name: (file.read_bytes(), TYPES["." + file.name.rsplit(".", 1)[-1]])
    for file in resources.files("tutelage.labeling.web").joinpath("static").iterdir()
}
DIGESTS = {name: hashlib.sha256(content).hexdigest()[:12] for name, (content, _) in STATIC.items()}
_markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
TAGS = set("a blockquote br code em h1 h2 h3 h4 hr li ol p pre strong table tbody td th thead tr ul".split())


def markdown(text: str) -> Markup:
    """Markdown as safe HTML: no raw HTML, no pictures, links only to the web and to mail."""
    html = nh3.clean(
        _markdown.render(text), tags=TAGS, attributes={"a": {"href", "title"}}, url_schemes={"http", "https", "mailto"}
    )
    return Markup(html)


def ago(seconds: float, now: float | None = None) -> str:
    """A time gone by, roughly: `3 minutes ago`."""
    passed = max(0.0, (time.time() if now is None else now) - seconds)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if passed >= length:
            n = int(passed // length)
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now"


def date(seconds: float) -> str:
    """A time as people write it; times from files of an earlier version may be of no year that there is."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return "unknown"


environment = Environment(
    loader=PackageLoader("tutelage.labeling.web"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
environment.globals.update(
    static=lambda name: f"/static/{name}?{DIGESTS[name]}", KINDS=answers.KINDS, FLAGS=answers.FLAGS,
    ANNOTATIONS=answers.ANNOTATIONS, USE_CASES=answers.USE_CASES, SKIP_REASONS=answers.SKIP_REASONS,
    AREAS=answers.AREAS,
)  # fmt: skip
environment.filters.update(markdown=markdown, ago=ago, date=date)


def page(request: Request, template: str, person: Any = None, status: int = 200, **values: Any) -> HTMLResponse:
    """A template as a response. `person` is who is signed in, or None; `path` tells the navigation where it is."""
    html = environment.get_template(template).render(person=person, path=request.url.path, **values)
    return HTMLResponse(html.encode("utf-8", "replace"), status)  # a model may have written half a surrogate pair
