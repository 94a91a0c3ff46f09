"""The documents of a folder, read by what reads a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llm.data.document import Document, Verdict
from llm.data.quality.config import RepairConfig
from llm.data.repair import main_text
from llm.data.sources import files
from llm.data.sources.config import FilesSource
from llm.data.sources.storage import Stored, is_remote
from llm.data.steps import Edited
from llm.serve.retrieval.config import RetrievalConfig


def listed(config: RetrievalConfig) -> list[Stored]:
    """The files with their hashes, by name; those that nobody touched aren't read again for it.

    Links that lead out of the folder are left out: who may write there may not read the rest of the machine.

    Raises: SourceError if the folder isn't there or can't be read.
    """
    assert config.documents
    found = [file for piece in files.pieces(_source(config), Path()) for file in piece.value]
    if is_remote(config.documents):
        return found
    root = Path(config.documents.removeprefix("file://")).expanduser().resolve()
    return [file for file in found if Path(file.place).resolve().is_relative_to(root)]


def content(file: Stored) -> str:
    """What is the same as long as a file's content is."""
    return file.sha256 or file.mark


def read(config: RetrievalConfig, file: Stored) -> Iterator[Document]:
    """The documents of a file that hold text, pages without their menus.

    Raises: SourceError if it can't be reached, or isn't what was listed any more.
    """
    for document in files.read(_source(config), [file]):
        if isinstance(document, Document) and (found := _readable(document)):
            yield found


def _source(config: RetrievalConfig) -> FilesSource:
    assert config.documents
    return FilesSource(path=config.documents, patterns=config.patterns, text_field=config.text_field)


def _readable(document: Document) -> Document | None:
    """The document's own text, if it is one."""
    if "\0" in document.text or any("\ud800" <= character <= "\udfff" for character in set(document.text)):
        return None
    outcome = main_text(document, RepairConfig())
    if isinstance(outcome, Verdict):
        return document if outcome.keep else None
    return outcome.document if isinstance(outcome, Edited) else None
