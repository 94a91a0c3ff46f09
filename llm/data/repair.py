"""What a document's text is meant to be: a page's main text, decoded rightly, in one Unicode form."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from typing import Literal

import ftfy
import trafilatura

from llm.data.document import KEEP, Document, Verdict
from llm.data.quality.config import RepairConfig
from llm.data.quality.judge import is_code
from llm.data.steps import Edited

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

_newlines = re.compile("\r\n?")
_controls = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff]")  # all but tab, line feed and form feed
_trailing_blanks = re.compile("[ \t]+$", re.MULTILINE)


def main_text(document: Document, config: RepairConfig) -> Edited | Verdict:
    """A page without its menus and its markup; other documents as they are.

    Source: trafilatura, https://aclanthology.org/2021.acl-demo.15.
    """
    if document.meta.get("format") != "html":
        return KEEP
    text = trafilatura.extract(document.text, include_comments=False) or ""
    if not text:
        return NO_MAIN_TEXT
    return Edited(replace(document, text=text), {"boilerplate_characters": len(document.text) - len(text)})


def repair(document: Document, config: RepairConfig) -> Edited | Verdict:
    """The document decoded rightly and normalised.

    A program is only normalised: what looks like a wrong decoding may be a literal that is meant. It parses
    after this if it did before.

    Source: ftfy, https://ftfy.readthedocs.io; Unicode annex 15.
    """
    text = document.text
    if not is_code(document):
        text = _trailing_blanks.sub("", ftfy.fix_text(text, REPAIRS))
    text = normalise(text, config.unicode)
    if not text:
        return EMPTY
    return KEEP if text == document.text else Edited(replace(document, text=text), {"repaired_documents": 1})


def normalise(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """One Unicode form, line feeds only, no control characters, no blank lines at either end.

    Example:
        >>> normalise("\\ufeffe\\u0301\\r\\n\\x07b\\n\\n")
        'é\\nb\\n'
    """
    text = unicodedata.normalize(form, _controls.sub("", _newlines.sub("\n", text))).strip("\n")
    return text + "\n" if text else ""
