"""Texts that the user gives as examples of what to keep, or of what to drop."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm.data.document import Document, defect
from llm.data.hashing import share
from llm.data.quality.config import RepairConfig
from llm.data.sources import files
from llm.data.sources.config import FilesSource
from llm.data.steps import Edited, through
from llm.errors import DataError


def snapshot(sources: Sequence[FilesSource]) -> list[dict[str, Any]]:
    """What changes when the examples do."""
    return [files.snapshot(source) for source in sources]


def identity(sources: Sequence[FilesSource], repair: RepairConfig) -> list[dict[str, Any]]:
    """What changes when the texts do: the files, how they are read, and how they are repaired."""
    settings = [source.model_dump(mode="json", exclude={"path"}) for source in sources]
    repairs = repair.model_dump(mode="json")
    return [{"source": each, "repair": repairs, **found} for each, found in zip(settings, snapshot(sources), strict=True)]


def texts(sources: Sequence[FilesSource], repair: RepairConfig, *, max_examples: int, max_characters: int) -> list[str]:
    """The beginnings of at most so many examples, drawn and ordered by the hash of their ids; repaired like what they are compared with.

    Raises: DataError if there is none.
    """
    read = ((share(document.id, "example"), document.id, document.text[:max_characters]) for document in _read(sources, repair))
    found = [text for _, _, text in heapq.nsmallest(max_examples, read) if text.strip()]
    if not found:
        raise DataError(
            "no example to learn from", value=", ".join(source.path for source in sources), remedy="check the paths and patterns"
        )
    return found


def _read(sources: Sequence[FilesSource], repair: RepairConfig) -> Iterator[Document]:
    from llm.data.repair import repairs  # brings libraries that a cached run, which only asks for the snapshot, can do without

    steps = repairs(repair)
    for source in sources:
        for piece in files.pieces(source, Path(".")):
            for found in files.read(source, piece.value):
                if isinstance(found, Document) and not defect(found.text):
                    repaired = through(found, steps)
                    if isinstance(repaired, Edited):
                        yield repaired.document
