"""Answers in OpenAI's form: whole ones, and the parts of a stream.

Source: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import codecs
import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

from llm.serve.endpoint.generate import Submitted
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
    def to(cls, submitted: Submitted, *, chat: bool) -> Reply:
        """The answer of a request's generations."""
        record = submitted.visit.record
        return cls(record.answer_id, record.model, submitted.served.version, chat)

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
    return f"data: {json.dumps(data, allow_nan=False)}\n\n"


def usage_of(submitted: Submitted) -> dict[str, Any]:
    """Tokens read and written."""
    return {
        "prompt_tokens": submitted.prompt_tokens,
        "completion_tokens": submitted.completion_tokens,
        "total_tokens": submitted.prompt_tokens + submitted.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": submitted.cached_tokens},
    }


class Offsets:
    """Where each token of a text begins, in characters; every token of a character that is spread over several, where it does."""

    def __init__(self, engine: Engine) -> None:
        self._pieces = engine.pieces
        self._place, self._decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, scored: list[Scored]) -> list[int]:
        """Of the next tokens."""
        offsets = []
        for token in scored:
            offsets.append(self._place)
            self._place += len(self._decoder.decode(self._pieces[token.id] or b""))
        return offsets

    def end(self) -> None:
        """What follows is a text of its own: a character that isn't whole by now stays so."""
        self._place += len(self._decoder.decode(b"", final=True))


def completion_logprobs(engine: Engine, scored: list[Scored], offsets: Offsets) -> dict[str, Any]:
    """The `logprobs` object of a completion, one entry per token."""
    return {
        "tokens": [engine.token_name(token.id) for token in scored],
        "token_logprobs": [_finite(token.logprob) for token in scored],
        "top_logprobs": [_top(engine, token) or None for token in scored],
        "text_offset": offsets.of(scored),
    }


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two `logprobs` objects of a completion as one."""
    return {name: first[name] + second[name] for name in first}


def _top(engine: Engine, token: Scored) -> dict[str, float]:
    values = ((engine.token_name(id), _finite(value)) for id, value in token.top.items())
    return {name: value for name, value in values if value is not None}


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
    """As JSON can carry it; None for what is no number."""
    return None if logprob is None or math.isnan(logprob) else min(max(logprob, LEAST_LOGPROB), 0.0)
