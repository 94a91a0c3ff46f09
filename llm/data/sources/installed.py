"""Real text that every Python brings along: the standard library's source and the documentation of installed packages."""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from llm.data.document import Document, Quarantined
from llm.data.parts import Piece
from llm.data.sources.config import InstalledSource

OURSELVES = "trainyard"
NO_SOURCE = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
NO_DOCUMENTATION = re.compile(r"(^|/)(tests?|licen[cs]es?)/|(^|/)(licen[cs]e|copying|notice|authors|third_?party)[^/]*$", re.IGNORECASE)

_recorded = re.compile(r"^\"?([^,\"\n]+\.(?:md|rst))\"?,", re.MULTILINE)
_name = re.compile(r"^Name: *(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Bytes that may become a document."""

    id: str
    domain: str
    content: bytes
    facts: dict[str, Any]


def snapshot(source: InstalledSource) -> dict[str, Any]:
    """Id, size and sha256 of every document that `read` would give: their content, so a new version of Python that
    brings the same text changes nothing."""
    documents = [
        {"id": each.id, "bytes": len(each.content), "sha256": hashlib.sha256(each.content).hexdigest()} for each in _chosen(source)
    ]
    return {"kind": source.kind, "documents": documents}


def pieces(source: InstalledSource, home: Path) -> list[Piece]:
    """All of it in one piece."""
    return [Piece(None, snapshot(source))]


def read(source: InstalledSource, piece: None) -> Iterator[Document | Quarantined]:
    """Code, then documentation, each by id. Ids such as `installed:code/json/decoder.py` are the same on every machine."""
    for each in _chosen(source):
        try:
            text = each.content.decode("utf-8-sig")
        except UnicodeDecodeError:
            yield Quarantined(each.id, "undecodable")
            continue
        told = {"language": source.language, "license": source.license}
        yield Document(id=each.id, text=text, source=source.kind, domain=each.domain, **told | each.facts)


def _chosen(source: InstalledSource) -> list[Candidate]:
    """The documents of each domain, up to `max_documents` and `max_bytes` of it, by id.

    A capped domain keeps the smallest hashes of ids: a sample of everything, not the beginning of the alphabet,
    and mostly the same sample after an upgrade.
    """
    finders = {"code": _code, "docs": _docs}
    return [candidate for domain in source.domains for candidate in _capped(finders[domain](), source.max_bytes, source.max_documents)]


def _capped(candidates: Iterator[Candidate], max_bytes: int | None, max_documents: int | None = None) -> list[Candidate]:
    """Candidates by id; with a cap, those with the smallest hashes whose sizes together stay below it."""
    everything = sorted(candidates, key=lambda each: each.id)
    if max_bytes is None and max_documents is None:
        return everything
    chosen, left_bytes = list[Candidate](), sum(len(each.content) for each in everything) if max_bytes is None else max_bytes
    for each in sorted(everything, key=lambda each: hashlib.sha256(each.id.encode()).digest()):
        if len(each.content) <= left_bytes and len(chosen) != max_documents:
            chosen.append(each)
            left_bytes -= len(each.content)
    return sorted(chosen, key=lambda each: each.id)


def _code() -> Iterator[Candidate]:
    """Modules of the standard library, without tests, and without what was generated when Python was built."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in NO_SOURCE and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                place = path.relative_to(root).as_posix()
                yield Candidate(f"installed:code/{place}", "code", path.read_bytes(), {"language": "python", "meta": {"path": place}})


def _docs() -> Iterator[Candidate]:
    """Description, .md and .rst files of every installed distribution, except ours, editable ones, licences and tests."""
    found: dict[str, Candidate] = {}
    for distribution in distributions():
        metadata = distribution.read_text("METADATA") or ""
        name = _name.search(metadata)
        if name is None or name[1].lower() == OURSELVES or _editable(distribution):
            continue
        for place, content in _documentation(distribution, metadata):
            id = f"installed:docs/{name[1]}/{place}"
            found.setdefault(id, Candidate(id, "docs", content, {"meta": {"package": name[1]}}))
    yield from found.values()


def _editable(distribution: Distribution) -> bool:
    """Is it a working copy, whose files change as someone types? Source: PEP 610."""
    return '"editable": true' in (distribution.read_text("direct_url.json") or "")


def _documentation(distribution: Distribution, metadata: str) -> Iterator[tuple[str, bytes]]:
    """(place, content) of each text; the list of files is RECORD, https://packaging.python.org/specifications/recording-installed-packages."""
    description = metadata.partition("\n\n")[2]
    if description.strip():
        yield "METADATA", description.encode(errors="surrogateescape")
    for place in _recorded.findall(distribution.read_text("RECORD") or ""):
        path = Path(str(distribution.locate_file(place)))
        if not NO_DOCUMENTATION.search(place) and path.is_file():
            yield place, path.read_bytes()
