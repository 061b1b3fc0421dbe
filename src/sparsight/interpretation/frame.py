"""What every page has in common: one HTML file, its style and script inside, and nothing loaded from elsewhere."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

_PACKAGE = "sparsight.interpretation"


def asset(name: str, package: str = _PACKAGE) -> str:
    """A file that comes with a package, as text."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def rendered_page(
    template: str, kind: str, title: str, filters: Mapping[str, Callable[..., Any]], **content: object
) -> str:
    """A page as one string of HTML.

    Text is escaped throughout, and the page's own security policy refuses any script but the one it was written with,
    any connection and any image from elsewhere.

    Args:
        template: Fills the blocks of `frame.html`.
        kind: What the page is, in a word.
        title: Its heading.
        filters: That the template uses.
        content: What it shows.
    """
    import jinja2

    loader = jinja2.DictLoader({"frame.html": asset("frame.html")})
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(filters)
    script = asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html: str = environment.from_string(template).render(
        kind=kind, title=title, css=asset("report.css"), js=script, script_hash=f"sha256-{digest}", **content
    )
    return html


def write_page(path: Path | str, html: str) -> Path:
    """Write a page, whole or not at all; folders above it are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path
