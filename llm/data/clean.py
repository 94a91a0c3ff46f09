"""Stage clean: repaired text, and only what is worth learning from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ftfy
import trafilatura

from llm.artifact import write_json
from llm.data.config import CleanConfig
from llm.data.document import Books, Document, Verdict, concatenate, read_documents, write_json_lines, write_shards
from llm.data.parts import Workshop, link, shards
from llm.data.quality import is_code, judge
from llm.errors import DataError

# Repairs decoding, leaves typography alone: curly quotes, ligatures and HTML entities may be meant.
REPAIRS = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    normalization="NFC",
    explain=False,
)
NO_MAIN_TEXT = Verdict(False, "no_main_text")

_newlines = re.compile("\r\n?")
_controls = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff]")  # all but tab, line feed and form feed
_trailing_blanks = re.compile("[ \t]+$", re.MULTILINE)


def clean(collected: Path, out: Path, config: CleanConfig, workshop: Workshop) -> dict[str, Any]:
    """Shards of repaired documents that pass every rule; the others go to `dropped.jsonl` with reason and score.

    Raises: DataError if nothing passes.
    """
    pieces = shards(collected, "documents-*.parquet")
    parts = workshop.made("clean", partial(clean_shard, config), pieces, settings=config.model_dump(mode="json"))
    for number, path in enumerate(path for part in parts for path in part.files("documents-*.parquet")):
        link(path, out / f"documents-{number:05d}.parquet")
    concatenate((part.path / "dropped.jsonl" for part in parts), out / "dropped.jsonl")
    books = Books.sum(part.counts for part in parts)
    books.check()
    write_json(out / "books.json", books.to_dict())
    if not books.kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(books.dropped.items()))
        raise DataError("no document is left after cleaning", value=reasons, remedy="relax the thresholds of clean")
    return books.to_dict()


def clean_shard(config: CleanConfig, shard: str, out: Path) -> dict[str, Any]:
    """What is left of one shard, and what was dropped; its books."""
    books, dropped = Books(), list[dict[str, Any]]()
    write_shards(out, _passing(Path(shard), config, books, dropped))
    write_json_lines(out / "dropped.jsonl", dropped)
    return books.to_dict()


def _passing(shard: Path, config: CleanConfig, books: Books, dropped: list[dict[str, Any]]) -> Iterator[Document]:
    for raw in read_documents(shard):
        document = repair(raw)
        verdict = judge(document, config) if document.text else NO_MAIN_TEXT
        if verdict.keep:
            books.keep()
            yield document
        else:
            books.drop(verdict.reason)
            dropped.append({"id": raw.id, "reason": verdict.reason, "score": verdict.score})


def repair(document: Document) -> Document:
    """The document with its text extracted, decoded rightly and normalised; empty if a page has no main text.

    A program is only normalised: what looks like a wrong decoding may be a literal that is meant. It parses
    after this if it did before.

    Source: trafilatura, https://aclanthology.org/2021.acl-demo.15; ftfy, https://ftfy.readthedocs.io; NFC, Unicode annex 15.
    """
    text = document.text
    if document.meta.get("format") == "html":
        text = trafilatura.extract(text, include_comments=False) or ""
    if not is_code(document):
        text = _trailing_blanks.sub("", ftfy.fix_text(text, REPAIRS))
    return replace(document, text=normalise(text))


def normalise(text: str) -> str:
    """NFC, line feeds only, no control characters, no blank lines at either end.

    Example:
        >>> normalise("\\ufeffe\\u0301\\r\\n\\x07b\\n\\n")
        'é\\nb\\n'
    """
    text = unicodedata.normalize("NFC", _controls.sub("", _newlines.sub("\n", text))).strip("\n")
    return text + "\n" if text else ""
