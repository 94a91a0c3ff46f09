"""The index of a folder's passages: what is in it, how it follows changes, and its file."""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llm.artifact import fsync
from llm.data.document import Document
from llm.data.sources.storage import Stored
from llm.errors import CapacityError, SourceError
from llm.serve.observe import log
from llm.serve.retrieval import bm25
from llm.serve.retrieval.config import RetrievalConfig
from llm.serve.retrieval.documents import content

SCHEMA = 1

Cut = Callable[[str], list[tuple[int, int]]]
Embed = Callable[[Sequence[str]], NDArray[np.float32]]  # unit vectors of texts
Read = Callable[[Stored], Iterable[Document]]


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document."""

    document: str
    start: int
    text: str


@dataclass(frozen=True)
class Index:
    """Passages of files, file after file, and what ranks them: weights of terms, or vectors."""

    files: dict[str, str] = field(default_factory=dict)  # what identifies the content of each, in the order of the passages
    sizes: dict[str, int] = field(default_factory=dict)  # passages of each
    passages: tuple[Passage, ...] = ()
    vocabulary: bm25.Vocabulary = field(default_factory=dict)
    counts: sparse.csr_array = field(default_factory=lambda: sparse.csr_array((0, 0), dtype=np.int32))
    weights: sparse.csr_array = field(default_factory=lambda: sparse.csr_array((0, 0), dtype=np.float32))
    vectors: NDArray[np.float32] | None = None

    def scores(self, question: str, embed: Embed | None) -> NDArray[np.float32]:
        """How well each passage fits a question: cosine where there are vectors, else BM25."""
        if self.vectors is None or embed is None:
            return bm25.scores(self.weights, self.vocabulary, question)
        similar: NDArray[np.float32] = self.vectors @ embed([question])[0]
        return similar


def updated(index: Index, listed: Sequence[Stored], config: RetrievalConfig, read: Read, cut: Cut, embed: Embed | None) -> Index:
    """The index of the files as they are now; what is in it already isn't read again.

    A file that can't be read is left out until it can.

    Raises: CapacityError if there is more text, or are more passages, than the settings allow.
    """
    places = _places(index)
    kept = [file.name for file in listed if index.files.get(file.name) == content(file)]
    known = set(kept)
    fresh = {file: _passages(file, read, cut) for file in listed if file.name not in known}
    found = {file: passages for file, passages in fresh.items() if passages is not None}
    rows = np.concatenate([np.arange(0), *(np.arange(*places[name]) for name in kept)])
    passages = tuple(index.passages[row] for row in rows) + tuple(passage for each in found.values() for passage in each)
    _refuse_excess(passages, config)
    grown = replace(
        index,
        files={name: index.files[name] for name in kept} | {file.name: content(file) for file in found},
        sizes={name: index.sizes[name] for name in kept} | {file.name: len(each) for file, each in found.items()},
        passages=passages,
    )
    texts = [passage.text for passage in passages[len(rows) :]]
    return _with_vectors(grown, rows, texts, embed) if embed else _with_terms(grown, rows, texts)


def _places(index: Index) -> dict[str, tuple[int, int]]:
    """The first passage of each file, and the one behind its last."""
    ends = np.cumsum([0, *index.sizes.values()]).tolist()
    return dict(zip(index.sizes, pairwise(ends), strict=True))


def _passages(file: Stored, read: Read, cut: Cut) -> list[Passage] | None:
    """The passages of a file; None if it can't be read now."""
    try:
        return [
            Passage(document.id.removeprefix("files:"), start, document.text[start:end])
            for document in read(file)
            for start, end in cut(document.text)
        ]
    except SourceError as error:
        log.events.warning("document_not_read", exc_info=error)
        return None


def _refuse_excess(passages: Sequence[Passage], config: RetrievalConfig) -> None:
    if len(passages) > config.max_passages:
        raise CapacityError("documents have too many passages", value=len(passages), remedy="raise retrieval.max_passages, or quote fewer")
    size_bytes = sum(len(passage.text.encode()) for passage in passages)
    if size_bytes > config.max_bytes:
        raise CapacityError("documents hold too much text", value=f"{size_bytes} bytes", remedy="raise retrieval.max_bytes, or quote fewer")


def _with_terms(index: Index, rows: NDArray[np.int64], texts: list[str]) -> Index:
    """With the counts of kept rows and of further texts, and no term that none of them holds."""
    vocabulary = dict(index.vocabulary)
    further = bm25.counted(texts, vocabulary)
    kept = sparse.csr_array(index.counts[rows]) if len(rows) else sparse.csr_array((0, index.counts.shape[1]), dtype=np.int32)
    kept.resize((kept.shape[0], len(vocabulary)))
    counts = sparse.csr_array(sparse.vstack([kept, further]))
    used = np.flatnonzero(np.bincount(counts.indices, minlength=len(vocabulary)))
    names = list(vocabulary)
    counts = sparse.csr_array(counts[:, used])
    return replace(index, vocabulary={names[old]: new for new, old in enumerate(used)}, counts=counts, weights=bm25.weighted(counts))


def _with_vectors(index: Index, rows: NDArray[np.int64], texts: list[str], embed: Embed) -> Index:
    further = embed(texts) if texts else None
    kept = index.vectors[rows] if index.vectors is not None else None
    blocks = [block for block in (kept, further) if block is not None and len(block)]
    return replace(index, vectors=np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32))


def save(index: Index, path: Path, identity: str) -> None:
    """Write the index so that a reader sees the old file or the whole other one."""
    texts = [passage.text.encode() for passage in index.passages]
    documents = dict.fromkeys(passage.document for passage in index.passages)
    numbers = {name: number for number, name in enumerate(documents)}
    facts = {"schema": SCHEMA, "identity": identity, "files": index.files, "sizes": index.sizes, "documents": list(documents)}
    arrays: dict[str, Any] = {
        "facts": _bytes(json.dumps(facts | {"vocabulary": list(index.vocabulary)}).encode()),
        "texts": _bytes(b"".join(texts)),
        "borders": np.cumsum([0, *map(len, texts)]),
        "documents": np.array([numbers[passage.document] for passage in index.passages], np.int32),
        "starts": np.array([passage.start for passage in index.passages], np.int64),
        "data": index.counts.data,
        "indices": index.counts.indices,
        "indptr": index.counts.indptr,
    }
    arrays |= {} if index.vectors is None else {"vectors": index.vectors}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def load(path: Path, identity: str) -> Index:
    """The index in a file; an empty one if there is none, it is damaged, or was made with other settings or another model."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            if (facts["schema"], facts["identity"]) == (SCHEMA, identity):
                return _loaded(arrays, facts)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        log.events.warning("index_not_read", exc_info=error)
    return Index()


def _loaded(arrays: Any, facts: dict[str, Any]) -> Index:
    """Raises: ValueError, KeyError, TypeError or IndexError if the parts don't fit each other."""
    text, borders, names = arrays["texts"].tobytes(), arrays["borders"].tolist(), facts["documents"]
    passages = tuple(
        Passage(names[number], start, text[first:last].decode())
        for number, start, first, last in zip(arrays["documents"].tolist(), arrays["starts"].tolist(), borders, borders[1:], strict=False)
    )
    if not len(passages) == len(borders) - 1 == sum(facts["sizes"].values()) or facts["files"].keys() != facts["sizes"].keys():
        raise ValueError("parts of an index disagree")
    vocabulary = {term: number for number, term in enumerate(facts["vocabulary"])}
    parts = (arrays["data"], arrays["indices"], arrays["indptr"])
    vectors = arrays.get("vectors")
    counts = sparse.csr_array(parts, shape=(len(parts[2]) - 1, len(vocabulary)))
    counts.check_format()
    if len(passages) not in ({counts.shape[0]} if vectors is None else {len(vectors)}):
        raise ValueError("parts of an index disagree")
    sizes, files = facts["sizes"], facts["files"]
    return Index(files, {name: sizes[name] for name in files}, passages, vocabulary, counts, bm25.weighted(counts), vectors)


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
