"""Texts that the user gives as examples of what to keep, or of what to drop."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm.data.document import Document
from llm.data.hashing import share
from llm.data.sources import files
from llm.data.sources.config import FilesSource
from llm.errors import DataError


def snapshot(sources: Sequence[FilesSource]) -> list[dict[str, Any]]:
    """What changes when the examples do."""
    return [files.snapshot(source) for source in sources]


def texts(sources: Sequence[FilesSource], *, max_examples: int, max_characters: int) -> list[str]:
    """The beginnings of at most so many examples, drawn and ordered by the hash of their ids.

    Raises: DataError if there is none.
    """
    from llm.data.repair import normalise  # brings libraries that a cached run, which only asks for the snapshot, can do without

    drawn = heapq.nsmallest(
        max_examples, ((share(document.id, "example"), document.id, document.text[:max_characters]) for document in _read(sources))
    )
    found = [text for _, _, text in drawn if text.strip()]
    if not found:
        raise DataError(
            "no example to learn from", value=", ".join(source.path for source in sources), remedy="check the paths and patterns"
        )
    return [normalise(text) for text in found]


def _read(sources: Sequence[FilesSource]) -> Iterator[Document]:
    for source in sources:
        for piece in files.pieces(source, Path(".")):
            yield from (document for document in files.read(source, piece.value) if isinstance(document, Document))
