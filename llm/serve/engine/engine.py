"""Text generation with an exported model: one background thread runs the model for all requests at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from llm.data.tokenizer import Tokenizer
from llm.errors import ArtifactError, DataError
from llm.serve.engine.batch import Batch
from llm.serve.engine.beams import Beams
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.generation import Chunk, Event, Generation, Scored
from llm.serve.engine.guide import Guides
from llm.serve.engine.loop import Loop, scored
from llm.serve.engine.memory import Room, affordable, available_bytes
from llm.serve.engine.prefixes import Prefixes
from llm.serve.engine.sampling import Guide, Sampling, check_finite, log_softmax
from llm.serve.engine.session import graph_file, open_session
from llm.serve.engine.slots import Slots, token_bytes
from llm.serve.engine.speculation import Draft
from llm.serve.engine.text import piece_bytes
from llm.serve.models.folder import open_folder

__all__ = ["Chunk", "Engine", "EngineConfig", "Event", "Generation", "Guide", "Load", "Sampling", "Scored"]
DEFAULTS = EngineConfig()
REMEDY = "send ids of this model, and less than its context"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """How busy an engine is; tokens are used from the moment that they are reserved for an answer."""

    running: int
    waiting: int
    slots: int
    kv_used_tokens: int
    kv_total_tokens: int


class Engine:
    """One model, shared by all requests and threads."""

    def __init__(self, folder: Path, *, model_id: str, config: EngineConfig = DEFAULTS) -> None:
        """Open the model and start its thread.

        Raises: ArtifactError if the folder can't be served; CapacityError if memory is short.
        """
        self.model_id, self.config = model_id, config
        facts = open_folder(folder)
        self.facts = replace(facts, context_tokens=min(facts.context_tokens, config.kv_tokens or facts.context_tokens))
        self.tokenizer = Tokenizer.load(self.facts.path)
        self.pieces = piece_bytes(self.tokenizer)
        self.longest_piece_bytes = max(len(piece) for piece in self.pieces if piece)
        self.watch: Callable[[Event], None] | None = None
        self._guides = Guides(self.tokenizer, self.pieces)
        self._session = open_session(self.facts, graph_file(config.variant), threads=config.threads)
        draft, context = self._draft(config.draft) if config.draft else None, self.facts.context_tokens
        room = self._room(beside_bytes=draft.memory_bytes if draft else 0)
        bounded = room.running_tokens < config.slots * context
        self._slots = Slots(self._session, self.facts, slots=config.slots + 1, capacity=context, gives_back=bounded)
        self._spare, self._reading = config.slots, threading.Lock()  # the last slot is for texts that are only read, one at a time
        self._loop = Loop(
            Batch(self._slots, Prefixes(room.kept_tokens), most_rows=config.slots),
            self.pieces,
            kv_tokens=room.running_tokens,
            queue_requests=config.queue_requests,
            prefill_tokens=config.prefill_tokens,
            draft=draft,
            search=self._search,
            tell=self._tell,
        )

    def _room(self, *, beside_bytes: int) -> Room:
        """What may be held: as configured, else what free memory holds when `beside_bytes` of it are taken."""
        config, each = self.config, token_bytes(self._session, self.facts)
        if config.kv_tokens:
            return Room(config.kv_tokens, config.prefix_tokens)
        free, context = max(0, available_bytes() - beside_bytes), self.facts.context_tokens
        return affordable(config.slots, context, prefix_tokens=config.prefix_tokens, token_bytes=each, free_bytes=free)

    def _draft(self, folder: Path) -> Draft:
        """The small model that writes ahead."""
        facts = open_folder(folder)
        if piece_bytes(Tokenizer.load(facts.path)) != self.pieces:
            raise ArtifactError("draft has another tokenizer", value=folder, remedy="train the draft on this model's tokenizer")
        slots = Slots(open_session(facts, threads=self.config.threads), facts, slots=1, capacity=facts.context_tokens)
        return Draft(slots, self.config.draft_tokens)

    def _search(self, generation: Generation) -> Beams:
        slots = Slots(
            self._session, self.facts, slots=generation.sampling.beams, capacity=len(generation.prompt) + generation.sampling.max_tokens
        )
        return Beams(generation, slots, np.array([piece is None for piece in self.pieces]), step_tokens=self.config.prefill_tokens)

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
        """Queue a generation and return at once; any id that is no text (end of document, a new turn) ends it.

        `top` asks for log-probabilities, and for that many alternatives.
        Raises: DataError if the prompt can't be continued so far, or beams can't be searched with these settings; RecipeError if
        the guide can't be followed; CapacityError if the queue is full or the engine is closed.
        """
        self._check(prompt, extra_tokens=sampling.max_tokens, biased=list(sampling.logit_bias))
        if sampling.beams > 1:
            self._check_beams(sampling, top=top)
        matcher = self._guides.matcher(sampling.guide) if sampling.guide else None
        generation = Generation(prompt, sampling, top=top, deadline_seconds=deadline_seconds, client=client, matcher=matcher)
        if generation.need_tokens > self._loop.kv_tokens:
            raise DataError("beams need more memory than there is", value=generation.need_tokens, remedy=f"at most {self._loop.kv_tokens}")
        if sampling.max_tokens:
            self._loop.put(generation)
        else:
            generation.put(Chunk("", finish_reason="length"))
        return generation

    def score(self, prompt: list[int], *, top: int) -> list[Scored]:
        """How likely each token of the prompt was after those before it.

        Raises: ArtifactError if the model's logits aren't finite; DataError for a prompt that isn't the model's.
        """
        self._check(prompt)
        answer = [Scored(prompt[0])]
        with self._only_reading():
            for start, chunk in self._chunks(prompt):
                logits_TV = self._loop.call(partial(self._slots.read, self._spare, chunk, start, rows=np.arange(len(chunk))))
                check_finite(logits_TV)
                following = prompt[start + 1 : start + 1 + len(chunk)]
                answer += [scored(id, log_softmax(logits_V), top) for logits_V, id in zip(logits_TV, following, strict=False)]
        return answer

    def embed(self, texts: list[list[int]]) -> np.ndarray:
        """One unit vector per text, [texts, width] in float32: the mean of what the head would read at each token."""
        return np.stack([self._embedding(text) for text in texts])

    def _embedding(self, text: list[int]) -> np.ndarray:
        self._check(text)
        with self._only_reading():
            states = [self._loop.call(partial(self._slots.hidden, self._spare, chunk, start)) for start, chunk in self._chunks(text)]
        mean = np.concatenate(states).mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    @contextmanager
    def _only_reading(self) -> Iterator[None]:
        """Have the spare slot."""
        with self._reading:
            try:
                yield
            finally:
                self._loop.call(partial(self._slots.free, self._spare))

    def _chunks(self, tokens: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Pieces between which generations go on."""
        size = self.config.prefill_tokens
        yield from ((start, tokens[start : start + size]) for start in range(0, len(tokens), size))

    def load(self) -> Load:
        """How busy the engine is now."""
        running, waiting, reserved = self._loop.counts()
        return Load(running, waiting, self.config.slots, reserved, self._loop.kv_tokens)

    def close(self) -> None:
        """Cancel every generation and end the thread; harmless when it is done."""
        self._loop.close()

    def _check(self, prompt: list[int], *, extra_tokens: int = 0, biased: list[int] | None = None) -> None:
        vocabulary, context = self.facts.vocab_size, self.facts.context_tokens
        if not prompt or not all(0 <= id < vocabulary for id in (*prompt, *(biased or []))):
            raise DataError("ids aren't this model's", value=f"not all from 0 to {vocabulary - 1}, or none", remedy=REMEDY)
        if len(prompt) + extra_tokens > context:
            value = f"{len(prompt)} tokens and {extra_tokens} to come, of {context}"
            raise DataError("prompt and answer are longer than the context", value=value, remedy=REMEDY)

    def _check_beams(self, sampling: Sampling, *, top: int | None) -> None:
        """A search goes by the model's own probabilities and draws nothing, and all of its texts run at once."""
        if sampling.beams > self.config.slots:
            raise DataError("beams are too many", value=sampling.beams, remedy=f"at most {self.config.slots}")
        plain = Sampling(sampling.max_tokens)
        heeded = ("max_tokens", "beams", "stop", "ignore_eos", *(["temperature"] if sampling.temperature == 0 else []))
        names = [each.name for each in fields(sampling) if each.name not in heeded]
        others = [name for name in names if getattr(sampling, name) != getattr(plain, name)] + (["logprobs"] if top is not None else [])
        if others:
            raise DataError(f"beams can't be searched with {', '.join(others)}", remedy="leave out either")

    def _tell(self, event: Event) -> None:
        try:
            if self.watch:
                self.watch(event)
        except Exception:  # whoever watches, the model goes on
            log.exception("an event is lost")
