"""Encoded shards as the rows of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.packing import Numbers, Packing, Pieces, by_group, write_mask, write_tokens
from llm.data.parts import Part
from llm.data.rows import Group


@dataclass(frozen=True)
class Documents:
    """The token ids of a split's documents, where each shard's part has them.

    Shapes: all D. Document d is `streams[shards[d]][starts[d] : starts[d] + lengths[d]]`, of the domain and language `names[groups[d]]`.
    """

    streams: Sequence[NDArray[np.unsignedinteger]]
    shards: Numbers
    starts: Numbers
    lengths: Numbers
    groups: Numbers
    names: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, parts: Sequence[Part], dtype: str) -> Documents:
        """What `encode_shard` left in each part: `tokens`, `borders` and `groups`."""
        streams = [_mapped(part.path / "tokens", dtype) for part in parts]
        borders = [np.fromfile(part.path / "borders", "<i8") for part in parts]
        ends = [np.append(each, part.counts["tokens"])[1:] for each, part in zip(borders, parts, strict=True)]
        names = sorted({(domain, language) for part in parts for domain, language in part.counts["groups"]})
        numbers = [np.array([names.index((domain, language)) for domain, language in part.counts["groups"]], np.int64) for part in parts]
        groups = [number[np.fromfile(part.path / "groups", "<u4")] for number, part in zip(numbers, parts, strict=True)]
        shards = np.repeat(np.arange(len(parts)), [len(each) for each in borders])
        starts = np.concatenate(borders)
        return cls(streams, shards, starts, np.concatenate(ends) - starts, np.concatenate(groups), names)

    def read(self, document: int, start: int, end: int) -> NDArray[np.unsignedinteger]:
        """Some tokens of a document."""
        first = self.starts[document]
        return self.streams[self.shards[document]][first + start : first + end]


@dataclass(frozen=True)
class Laid:
    """What became of a split."""

    rows: int
    tokens: int  # of the documents
    documents: int
    groups: list[dict[str, Any]]  # as in llm/data/rows.py, for the training split
    losses: dict[str, float]  # by packing


def lay_out(parts: Sequence[Part], out: Path, split: str, *, packing: Packing, row_tokens: int, dtype: str, eos: int) -> Laid:
    """Write `.tokens`, `.borders` (where each document begins, in their order), and of packed rows `.mask`.

    Documents of the training split stand by domain and language, so that a mixture can choose among them; those of the
    others keep their order, so that the first rows of a split are a sample of it.
    """
    documents = Documents.of(parts, dtype)
    grouped = split == "train"
    pieces = by_group(packing, documents.lengths, documents.groups if grouped else np.zeros_like(documents.groups), row_tokens)
    write_tokens(out / f"{split}.tokens", pieces, row_tokens, dtype, eos, documents.read)
    if packing != "concatenate":
        write_mask(out / f"{split}.mask", pieces, row_tokens)
    (out / f"{split}.borders").write_bytes(pieces.borders().astype("<i8").tobytes())
    groups = _groups(documents, pieces, row_tokens) if grouped else []
    tokens, count = int(documents.lengths.sum()), len(documents.lengths)
    return Laid(pieces.rows, tokens, count, groups, _losses(pieces, tokens, count, row_tokens))


def _groups(documents: Documents, pieces: Pieces, row_tokens: int) -> list[dict[str, Any]]:
    count = len(documents.names)
    rows = pieces.rows_by(documents.groups, count, row_tokens)
    tokens = np.bincount(documents.groups, documents.lengths, count).astype(np.int64)
    each = zip(documents.names, rows.tolist(), tokens.tolist(), strict=True)
    return [asdict(Group(domain, language, rows, tokens)) for (domain, language), rows, tokens in each]


def _losses(pieces: Pieces, tokens: int, documents: int, row_tokens: int) -> dict[str, float]:
    """Share of the rows that is padding, of the tokens that fill no row, and of the documents that no row holds whole."""
    padding, unread = pieces.padding_tokens(row_tokens), max(0, tokens - pieces.rows * row_tokens)
    return {
        "padding_share": round(padding / max(1, pieces.rows * row_tokens), 6),
        "unread_share": round(unread / max(1, tokens), 6),
        "cut_documents_share": round(pieces.cut_documents(row_tokens) / max(1, documents), 6),
    }


def _mapped(path: Path, dtype: str) -> NDArray[np.unsignedinteger]:
    """A file's numbers; an empty one can't be mapped."""
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)
