"""Answers in OpenAI's form: whole ones, and the parts of a stream.

Source: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from llm.serve.engine.engine import Engine, Scored


@dataclass(frozen=True)
class Reply:
    """What the parts of one answer have in common."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The answer to a request that isn't streamed."""
        return self._frame("chat.completion" if self.chat else "text_completion", choices) | {"usage": usage}

    def part(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        """One server-sent event."""
        frame = self._frame("chat.completion.chunk" if self.chat else "text_completion", choices)
        return f"data: {json.dumps(frame | ({'usage': usage} if usage else {}))}\n\n"

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def choice(self, index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        """One finished choice of a whole answer."""
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        return {"index": index, **content, "finish_reason": finish_reason, "logprobs": logprobs}

    def delta(self, index: int, text: str, finish_reason: str | None, *, opens: bool = False) -> dict[str, Any]:
        """One step of a choice in a stream; a chat's first step names the role."""
        role = {"role": "assistant"} if opens else {}
        content = {"delta": {**role, "content": text}} if self.chat else {"text": text}
        return {"index": index, **content, "finish_reason": finish_reason, "logprobs": None}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens read and written."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}


def logprobs_of(engine: Engine, scored: list[Scored]) -> dict[str, Any]:
    """The `logprobs` object of a completion, one entry per token."""
    names = [engine.token_name(token.id) for token in scored]
    lengths = [len(engine.text([token.id])) for token in scored]
    return {
        "tokens": names,
        "token_logprobs": [token.logprob for token in scored],
        "top_logprobs": [{engine.token_name(id): value for id, value in token.top.items()} or None for token in scored],
        "text_offset": [sum(lengths[:place]) for place in range(len(lengths))],
    }
