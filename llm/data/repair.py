"""What a document's text is meant to be: a page's main text, decoded rightly, in one Unicode form."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from functools import partial
from operator import ne
from typing import Literal

import ftfy
import trafilatura
from ftfy.fixes import remove_terminal_escapes
from lxml import etree

from llm.data.document import KEEP, Document, Verdict
from llm.data.quality.code import is_code
from llm.data.quality.config import RepairConfig
from llm.data.steps import Edited, Step

# Repairs decoding, leaves typography alone: curly quotes, ligatures and HTML entities may be meant.
REPAIRS = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    normalization=None,
    explain=False,
)

NO_MAIN_TEXT = Verdict(False, "no_main_text")
EMPTY = Verdict(False, "empty")

MAX_TAG_CHARACTERS = 2_000

_tag = re.compile(r"<[A-Za-z][^\s<>]*(?=\s)")
_spans = re.compile(r"</?span(?:\s[^<>]*)?>", re.IGNORECASE)
_newlines = re.compile("\r\n?")
_controls = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff]")  # all but tab, line feed and form feed


def repairs(config: RepairConfig) -> tuple[Step, ...]:
    """The steps from what was found to what it was meant to be, in order."""
    return (partial(main_text, config=config), partial(repair, config=config))


def main_text(document: Document, config: RepairConfig) -> Edited | Verdict:
    """A page without its menus and its markup; other documents as they are.

    The limits bound the seconds that the worst page takes, whatever the machine: parser and trafilatura are quadratic in
    the number of attributes of a tag, and of tags. Spans, most of the tags of highlighted programs, go first.

    Source: trafilatura, https://aclanthology.org/2021.acl-demo.15.
    """
    if document.meta.get("format") != "html":
        return KEEP
    page = document.text
    if page.count("<") > config.max_page_tags:
        page = _spans.sub("", page)
    if len(page) > config.max_page_characters or page.count("<") > config.max_page_tags:
        return Verdict(False, "page_too_large", float(len(page)))
    text = _extracted(without_long_tags(page))
    if not text:
        return NO_MAIN_TEXT
    return Edited(replace(document, text=text), {"boilerplate_characters": len(document.text) - len(text)})


def without_long_tags(page: str) -> str:
    """The page with overlong tags, such as pictures within it, reduced to their names.

    Example:
        >>> without_long_tags("<p class='a'>x</p><img src='" + "A" * 5000 + "'>y")
        "<p class='a'>x</p><img>y"
    """
    return ">".join(_without_long_tag(piece) if len(piece) > MAX_TAG_CHARACTERS else piece for piece in page.split(">"))


def _without_long_tag(piece: str) -> str:
    """What stands before the end of a tag: perhaps text, perhaps a tag, and in a script perhaps its closing tag."""
    tag = _tag.search(piece)
    if tag is None or len(piece) - tag.start() <= MAX_TAG_CHARACTERS:
        return piece
    closing = piece.rfind("</")
    return piece[: tag.end()] + (">" + piece[closing:] if closing > tag.end() else "")


def _extracted(page: str) -> str:
    try:
        return trafilatura.extract(page, include_comments=False) or ""
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError, etree.LxmlError):  # what no parser expected
        return ""


def repair(document: Document, config: RepairConfig) -> Edited | Verdict:
    """The document decoded rightly and normalised.

    A program is only normalised: what looks like a wrong decoding may be a literal that is meant. It parses
    after this if it did before.

    Source: ftfy, https://ftfy.readthedocs.io; Unicode annex 15.
    """
    text = document.text
    if not is_code(document):
        text = _decoded(_newlines.sub("\n", text))
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    text = normalise(text, "NFC" if is_code(document) else config.unicode)
    if not text.strip():
        return EMPTY
    if text == document.text:
        return KEEP
    repaired = sum(map(ne, document.text.strip("\n").split("\n"), text.split("\n")))
    return Edited(replace(document, text=text), {"repaired_lines": repaired})


def _decoded(text: str) -> str:
    """ftfy's repair; it works line by line, and lines in ASCII need but one of its steps."""
    text = remove_terminal_escapes(text)
    if text.isascii():
        return text
    return "\n".join(line if line.isascii() else ftfy.fix_text(line, REPAIRS) for line in text.split("\n"))


def normalise(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """One Unicode form, line feeds only, no control characters, no blank lines at either end.

    Example:
        >>> normalise("\\ufeffe\\u0301\\r\\n\\x07b\\n\\n")
        'é\\nb\\n'
    """
    text = _controls.sub("", _newlines.sub("\n", text))
    text = unicodedata.normalize(form, text).strip("\n")
    return text + "\n" if text else ""
