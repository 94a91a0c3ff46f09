"""Finds passages of a folder's documents, and follows the folder."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm.artifact import content_digest, describe, sha256_of
from llm.data.document import Document
from llm.data.sources.storage import Stored
from llm.data.tokenizer import Tokenizer
from llm.errors import TrainyardError
from llm.serve.models.catalogue import Catalogue
from llm.serve.observe import log
from llm.serve.retrieval import bm25, chunks, documents
from llm.serve.retrieval.config import RetrievalConfig
from llm.serve.retrieval.index import Index, Passage, load, save, updated

QUESTION_CHARACTERS = 8_000  # of its end
EMBEDDED_AT_ONCE = 32
BUILT_BY = ("documents", "patterns", "text_field", "kind", "chunk_tokens", "overlap_tokens")

EmbedIds = Callable[[list[list[int]]], NDArray[np.float32]]


@dataclass(frozen=True)
class Found:
    """A passage and how well it fits."""

    passage: Passage
    score: float


class Closed(Exception):
    """The retriever is closed; what it was at ends."""


class Retriever:
    """The passages of one folder. Safe to use from several threads; one of its own looks for changes.

    `embed` gives unit vectors of token ids, and `model` says whose: an index belongs to one model.

    Raises: SourceError if the folder isn't there; CapacityError if it holds too much; ArtifactError if the model can't embed.
    """

    def __init__(self, config: RetrievalConfig, tokenizer: Tokenizer, *, embed: EmbedIds | None = None, model: str = "") -> None:
        self.config, self._tokenizer, self._embed_ids = config, tokenizer, embed
        self._embed = self._embedded if config.kind == "embedding" else None
        settings = {name: getattr(config, name) for name in BUILT_BY} | {"model": model if self._embed else ""}
        self._identity = sha256_of(settings | {"tokenizer": hashlib.sha256(tokenizer.vocabulary.content).hexdigest()})
        self._index = load(Path(config.index), self._identity) if config.index else Index()
        self._closed, self._leases = threading.Event(), ExitStack()
        self.refresh()
        self._watcher = threading.Thread(target=self._watch, name="retrieval", daemon=True)
        self._watcher.start()

    @classmethod
    def of(cls, config: RetrievalConfig, catalogue: Catalogue) -> Retriever | None:
        """The retriever of the settings' documents; None without any.

        One that embeds goes on with the version of the model that it began with, which stays loaded.

        Raises: UnknownModel if no such model is served, and what the constructor raises.
        """
        if config.documents is None:
            return None
        with ExitStack() as leases:
            served = leases.enter_context(catalogue.lease(config.model or catalogue.entries()[0][0], key="retrieval"))
            engine = served.engine
            if config.kind == "bm25":
                return cls(config, engine.tokenizer)
            retriever = cls(config, engine.tokenizer, embed=engine.embed, model=content_digest(describe(engine.facts.path)))
            retriever._leases = leases.pop_all()
            return retriever

    @property
    def passages(self) -> tuple[Passage, ...]:
        """All of them, file after file."""
        return self._index.passages

    def search(self, question: str, top: int) -> list[Found]:
        """The passages that fit best, the best first; fewer, or none, where fewer have anything to do with it."""
        index = self._index
        if not index.passages or not question.strip():
            return []
        scores = index.scores(question[-QUESTION_CHARACTERS:], self._embed)
        return [Found(index.passages[place], float(scores[place])) for place in bm25.best(scores, top)]

    def refresh(self) -> bool:
        """Look at the folder; whether something has changed.

        Raises: SourceError if it isn't there; CapacityError if it holds too much; Closed. The index stays what it was then.
        """
        listed, config = documents.listed(self.config), self.config
        if {file.name: documents.content(file) for file in listed} == self._index.files:
            return False
        found = updated(self._index, listed, config, self._read, self._cut, self._embed)
        if found.files == self._index.files:  # what has changed can't be read
            return False
        self._index = found
        if config.index:
            save(self._index, Path(config.index), self._identity)
        log.events.info("documents_indexed", extra={"facts": {"files": len(found.files), "passages": len(found.passages)}})
        return True

    def close(self) -> None:
        """Stop looking for changes; those that are being read end with the document or the batch at hand."""
        self._closed.set()
        self._watcher.join()
        self._leases.close()

    def _watch(self) -> None:
        while not self._closed.wait(self.config.refresh_seconds):
            try:
                self.refresh()
            except Closed:
                return
            except (TrainyardError, OSError) as error:
                log.events.warning("documents_not_indexed", exc_info=error)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Closed

    def _read(self, file: Stored) -> Iterator[Document]:
        for document in documents.read(self.config, file):
            self._check_open()
            yield document

    def _cut(self, text: str) -> list[tuple[int, int]]:
        config = self.config
        return chunks.passages(text, self._counted, max_tokens=config.chunk_tokens, overlap_tokens=config.overlap_tokens)

    def _counted(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._tokenizer.vocabulary.encode_all(texts)]

    def _embedded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        assert self._embed_ids is not None
        ids = [each[: self.config.chunk_tokens] or [self._tokenizer.bos] for each in self._tokenizer.vocabulary.encode_all(texts)]
        batches = list[NDArray[np.float32]]()
        for start in range(0, len(ids), EMBEDDED_AT_ONCE):
            self._check_open()
            batches.append(self._embed_ids(ids[start : start + EMBEDDED_AT_ONCE]))
        return np.concatenate(batches).astype(np.float32)
