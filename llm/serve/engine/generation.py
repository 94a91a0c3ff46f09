"""One request's answer while it is written: the loop puts chunks in, one reader takes them out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from llm.serve.engine.guide import Matcher
from llm.serve.engine.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True)
class Scored:
    """A token, its log-probability (None for a first token, or where none were asked for) and the likeliest alternatives."""

    id: int
    logprob: float | None = None
    top: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """Text that became showable, and the tokens behind it; the last chunk says why it is the last."""

    text: str
    tokens: tuple[Scored, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Step:
    """The loop ran the model once over `rows` generations, which read or wrote `tokens`."""

    kind: Literal["prefill", "decode"]
    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Finished:
    """A generation ended."""

    generation: Generation


Event = Step | Finished


class Generation:
    """A handle on one answer: iterate it, with `for` or `async for`, once.

    Leaving the iteration early cancels. Times count from submission; a figure is None until it is known.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        top: int | None = None,
        deadline_seconds: float | None = None,
        client: str = "",
        matcher: Matcher | None = None,
    ) -> None:
        self.prompt, self.sampling, self.top, self.client, self.matcher = prompt, sampling, top, client, matcher
        self.began = time.monotonic()
        self.deadline = None if deadline_seconds is None else self.began + deadline_seconds
        self.cached_tokens = self.completion_tokens = 0
        self.queue_seconds: float | None = None
        self.first_token_seconds: float | None = None
        self.seconds: float | None = None
        self.finish_reason: FinishReason | None = None
        self.cancelled = False
        self.error: Exception | None = None
        self.text = ""  # that has become showable so far
        self._chunks: deque[Chunk | Exception] = deque()
        self._ready = threading.Condition()
        self._wake: Callable[[], object] | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def need_tokens(self) -> int:
        """What it may come to hold in memory."""
        return (len(self.prompt) + self.sampling.max_tokens) * self.sampling.beams

    def cancel(self) -> None:
        """Stop at the next token; harmless when it is over."""
        self.cancelled = True

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks as they come, blocking this thread."""
        try:
            last = False
            while not last:
                with self._ready:
                    self._ready.wait_for(lambda: self._chunks)
                chunk = self._take()
                last = chunk.finish_reason is not None
                yield chunk
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Chunks as they come, without a thread of one's own."""
        events, filled = asyncio.get_running_loop(), asyncio.Event()
        with self._ready:
            self._wake = lambda: events.call_soon_threadsafe(filled.set)
            if self._chunks:
                filled.set()
        try:
            last = False
            while not last:
                await filled.wait()
                filled.clear()
                while self._chunks:
                    chunk = self._take_all()
                    last = chunk.finish_reason is not None
                    yield chunk
        finally:
            self._wake = None
            self.cancel()

    def _take_all(self) -> Chunk:
        """What has come as one chunk, so that a reader who lags catches up."""
        taken = [self._take()]
        while self._chunks and isinstance(self._chunks[0], Chunk):
            taken.append(self._take())
        tokens = tuple(token for chunk in taken for token in chunk.tokens)
        return Chunk("".join(chunk.text for chunk in taken), tokens, taken[-1].finish_reason)

    def _take(self) -> Chunk:
        chunk = self._chunks.popleft()
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def put(self, chunk: Chunk) -> None:
        """Hand a chunk to the reader; the last one closes the books. The loop's side."""
        self.text += chunk.text
        self.completion_tokens += len(chunk.tokens)
        if chunk.tokens and self.first_token_seconds is None:
            self.first_token_seconds = time.monotonic() - self.began
        if chunk.finish_reason is not None:
            self.finish_reason, self.seconds = chunk.finish_reason, time.monotonic() - self.began
        self._push(chunk)

    def fail(self, error: Exception) -> None:
        """Let the reader meet `error`. The loop's side."""
        self.error, self.seconds = error, time.monotonic() - self.began
        self._push(error)

    def _push(self, item: Chunk | Exception) -> None:
        with self._ready:
            self._chunks.append(item)
            self._ready.notify()
            wake = self._wake
            if wake and len(self._chunks) == 1:  # otherwise the reader has been woken already
                try:
                    wake()
                except RuntimeError:  # the reader's event loop is closed: nobody is left to read
                    self.cancel()
