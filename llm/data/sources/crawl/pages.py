"""Pages as text, and the links on them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lxml import etree

from llm.data.sources.crawl.urls import canonical
from llm.data.sources.decoding import decoded_page

HTML = ("text/html", "application/xhtml+xml")
CONTENT_TYPES = (*HTML, "text/plain")

_charset = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


def media_type(content_type: str) -> str:
    """A Content-Type without its parameters.

    Example:
        >>> media_type("Text/HTML; charset=utf-8")
        'text/html'
    """
    return content_type.partition(";")[0].strip().lower()


def page_text(body: bytes, content_type: str, min_confidence: float) -> str:
    """A page's text in the encoding that its header or itself declares, or in the most probable one.

    Raises: Refused if no encoding is probable enough.
    """
    declared = _charset.search(content_type)
    return decoded_page(body, declared[1] if declared else "", min_confidence)


def links(text: str, url: str, drop_parameters: Sequence[str]) -> set[str]:
    """Canonical URLs that a page of HTML links to with <a> and <area>."""
    try:
        tree = etree.HTML(text.encode(errors="replace"), etree.HTMLParser(encoding="utf-8"))
    except (etree.LxmlError, ValueError):
        return set()
    if tree is None:
        return set()
    base = next((canonical(each.get("href"), url) for each in tree.iter("base") if each.get("href")), None) or url
    references = {each.get("href", "").partition("#")[0].strip() for each in tree.iter("a", "area")} - {""}
    return {link for reference in references if (link := canonical(reference, base, drop_parameters))}
