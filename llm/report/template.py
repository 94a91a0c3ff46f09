"""How every page is made: a folder's page.html, filled in, with the house's style inside and nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

STYLE = Path(__file__).parent / "style.css"


def filled(folder: Path, values: Mapping[str, Any], *, filters: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """The HTML of `folder`/page.html with `values`, each escaped unless it is one of our own drawings.

    Raises: jinja2.UndefinedError if the page asks for a value that isn't there.
    """
    loader = jinja2.FileSystemLoader([folder, STYLE.parent])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters or {}
    return environment.get_template("page.html").render(**values, style=Markup(STYLE.read_text(encoding="utf-8")))
