"""Text generation with an exported model: one background thread runs the model for all requests at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm.data.tokenizer import Tokenizer
from llm.errors import CapacityError
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.generation import Chunk, Event, Finished, Generation, Scored
from llm.serve.engine.sampling import Guide, Sampling, sample
from llm.serve.engine.session import Cache, Session
from llm.serve.engine.text import TextStream, piece_bytes
from llm.serve.models.folder import open_folder

__all__ = ["Chunk", "Engine", "EngineConfig", "Event", "Generation", "Guide", "Load", "Sampling", "Scored"]

DEFAULTS = EngineConfig()


@dataclass(frozen=True)
class Load:
    """How busy an engine is."""

    running: int
    waiting: int
    slots: int
    kv_used_tokens: int
    kv_total_tokens: int


@dataclass
class Row:
    """A generation that runs, with its own cache."""

    generation: Generation
    fresh: list[int]
    cache: Cache
    rng: np.random.Generator
    stream: TextStream


class Engine:
    """One model, shared by all requests and threads."""

    def __init__(self, folder: Path, *, model_id: str, config: EngineConfig = DEFAULTS) -> None:
        self.model_id, self.config = model_id, config
        self.facts = open_folder(folder)
        self.tokenizer = Tokenizer.load(self.facts.path)
        self.pieces = piece_bytes(self.tokenizer)
        self.watch: Callable[[Event], None] | None = None
        self._session = Session(self.facts, threads=config.threads)
        self._waiting: deque[Generation] = deque()
        self._rows: list[Row] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=f"engine {model_id}", daemon=True)
        self._thread.start()

    def text(self, ids: list[int]) -> str:
        """What these ids say; ids that are no text say nothing."""
        return b"".join(self.pieces[id] or b"" for id in ids).decode("utf-8", "replace")

    def token_name(self, id: int) -> str:
        """A token as reports show it: its text, the name of a control token, or `bytes:` and half a character."""
        piece = self.pieces[id]
        if piece is None:
            return self.tokenizer.vocabulary.piece(id)
        shown = piece.decode("utf-8", "replace")
        return f"bytes:\\x{piece.hex()}" if shown == "\ufffd" else shown

    def submit(
        self, prompt: list[int], sampling: Sampling, *, top: int | None = None, deadline_seconds: float | None = None, client: str = ""
    ) -> Generation:
        """Queue a generation and return at once. Any id that is no text (end of document, a new turn) ends it.

        Raises: CapacityError if the queue is full or the engine is closed.
        """
        generation = Generation(prompt, sampling, top=top, deadline_seconds=deadline_seconds, client=client)
        with self._changed:
            if self._closed or len(self._waiting) >= self.config.queue_requests:
                raise CapacityError("queue is full", value=f"{len(self._waiting)} requests wait", remedy="try again later")
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    def score(self, prompt: list[int], *, top: int) -> list[Scored]:
        """How likely each token of the prompt was after those before it."""
        logits, _ = self._session.run(np.array([prompt]), self._session.empty_cache())
        return [Scored(prompt[0], None, {}), *(score(row, id, top) for row, id in zip(logits[0], prompt[1:], strict=False))]

    def load(self) -> Load:
        """How busy the engine is now."""
        used, total = sum(row.generation.prompt_tokens for row in self._rows), self.config.slots * self.facts.context_tokens
        return Load(len(self._rows), len(self._waiting), self.config.slots, used, total)

    def close(self) -> None:
        """End every generation and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._rows)
                while self._waiting and len(self._rows) < self.config.slots:
                    self._rows.append(self._start(self._waiting.popleft()))
            self._rows = [row for row in self._rows if self._advance(row)]
        for row in self._rows:
            row.generation.put(Chunk("", finish_reason="cancelled"))

    def _start(self, generation: Generation) -> Row:
        sampling = generation.sampling
        generation.queue_seconds = 0.0
        return Row(
            generation, generation.prompt, self._session.empty_cache(), np.random.default_rng(sampling.seed), TextStream(sampling.stop)
        )

    def _advance(self, row: Row) -> bool:
        """One token; whether the generation goes on."""
        generation = row.generation
        try:
            chunk = self._next(row)
        except Exception as error:  # noqa: BLE001 - one failed request must not end the loop
            generation.fail(error)
            return False
        generation.put(chunk)
        if chunk.finish_reason and self.watch:
            self.watch(Finished(generation))
        return chunk.finish_reason is None

    def _next(self, row: Row) -> Chunk:
        generation, sampling = row.generation, row.generation.sampling
        if generation.cancelled:
            return Chunk(row.stream.finish(), finish_reason="cancelled")
        if generation.completion_tokens >= sampling.max_tokens:
            return Chunk(row.stream.finish(), finish_reason="length")
        logits, row.cache = self._session.run(np.array([row.fresh]), row.cache)
        id = sample(logits[0, -1], sampling, row.rng)
        piece = self.pieces[id]
        if piece is None:
            return Chunk(row.stream.finish(), finish_reason="stop")
        row.fresh = [id]
        token = Scored(id) if generation.top is None else score(logits[0, -1], id, generation.top)
        return Chunk(row.stream.push(piece), (token,), "stop" if row.stream.stopped else None)


def score(logits_V: np.ndarray, id: int, top: int) -> Scored:
    """The token's log-probability in nats, at temperature 1, and the `top` likeliest."""
    shifted = logits_V.astype(np.float64) - logits_V.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-logprobs, kind="stable")[:top]
    return Scored(id, float(logprobs[id]), {int(other): float(logprobs[other]) for other in best})
