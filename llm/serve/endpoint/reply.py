"""Answers in OpenAI's form: whole ones, and the parts of a stream.

Source: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from llm.serve.endpoint.generate import Batch
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Scored

DONE = "data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # JSON has no minus infinity


@dataclass(frozen=True)
class Reply:
    """What the parts of one answer have in common."""

    id: str
    model: str
    version: str
    chat: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def to(cls, batch: Batch, *, chat: bool) -> Reply:
        """The answer of a request's generations."""
        record = batch.visit.record
        return cls(record.answer_id, record.model, batch.served.version, chat)

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that isn't streamed."""
        return self._frame("chat.completion" if self.chat else "text_completion", choices) | {"usage": usage}

    def part(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None, more: dict[str, Any] | None = None) -> str:
        """One server-sent event."""
        frame = self._frame("chat.completion.chunk" if self.chat else "text_completion", choices)
        return event(frame | {"usage": usage} | (more or {}))

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return frame | {"system_fingerprint": self.version, "choices": choices}

    def choice(self, index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        """One finished choice of a whole answer."""
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        return {"index": index, **content, "finish_reason": finish_reason, "logprobs": logprobs}

    def delta(self, index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        """One step of a choice in a stream."""
        content = {"delta": {"content": text}} if self.chat else {"text": text}
        return {"index": index, **content, "finish_reason": finish_reason, "logprobs": logprobs}

    def opening(self, index: int) -> dict[str, Any]:
        """The first step of a choice in a chat, which names the role."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}


def event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


def usage_of(batch: Batch) -> dict[str, Any]:
    """Tokens read and written."""
    return {
        "prompt_tokens": batch.prompt_tokens,
        "completion_tokens": batch.completion_tokens,
        "total_tokens": batch.prompt_tokens + batch.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": batch.cached_tokens},
    }


def completion_logprobs(engine: Engine, scored: list[Scored], *, offset: int = 0) -> dict[str, Any]:
    """The `logprobs` object of a completion, one entry per token; `offset` is how many characters came before."""
    names = [engine.token_name(token.id) for token in scored]
    lengths = [len(engine.text([token.id])) for token in scored]
    return {
        "tokens": names,
        "token_logprobs": [_finite(token.logprob) for token in scored],
        "top_logprobs": [{engine.token_name(id): _finite(value) for id, value in token.top.items()} or None for token in scored],
        "text_offset": [offset + sum(lengths[:place]) for place in range(len(lengths))],
    }


def chat_logprobs(engine: Engine, scored: list[Scored]) -> dict[str, Any]:
    """The `logprobs` object of a chat, one entry per token."""
    entries = [
        _entry(engine, token.id, token.logprob) | {"top_logprobs": [_entry(engine, id, value) for id, value in token.top.items()]}
        for token in scored
    ]
    return {"content": entries, "refusal": None}


def _entry(engine: Engine, id: int, logprob: float | None) -> dict[str, Any]:
    piece = engine.pieces[id]
    return {"token": engine.token_name(id), "logprob": _finite(logprob), "bytes": None if piece is None else list(piece)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
