"""What is known of one request; its handler fills it in, and its last byte closes it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from llm.serve.engine.generation import Generation

PLACE = "trainyard.record"  # of a request's record in its ASGI scope
CLIENT_LEFT = 499  # nginx's status for it


@dataclass
class Record:
    """One request. But for `messages`, nothing that a client wrote stands in it, except where it is one of the server's own names."""

    id: str = field(default_factory=lambda: f"req-{uuid.uuid4().hex}")
    began_ns: int = field(default_factory=time.time_ns)
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    method: str = ""
    route: str = ""
    status: int = CLIENT_LEFT  # until an answer begins
    late_status: int | None = None  # what an answer came to whose status had gone out by then
    key: str = ""  # the name of the key that opened the door
    model: str = ""
    version: str = ""
    kind: str = ""  # chat or completion, once a prompt is read
    messages: tuple[dict[str, str], ...] = ()  # what was asked; it goes into samples alone
    prompt_tokens: int = 0
    generations: list[Generation] = field(default_factory=list)
    error: str = ""  # kind and place of what failed inside

    @property
    def answer_id(self) -> str:
        """Under which the client knows the answer."""
        return self.id.replace("req", "chatcmpl" if self.kind == "chat" else "cmpl", 1)

    @property
    def outcome(self) -> int:
        """The status that tells how it ended."""
        return self.late_status or self.status

    @property
    def completion_tokens(self) -> int:
        return sum(generation.completion_tokens for generation in self.generations)

    @property
    def cached_tokens(self) -> int:
        return sum(generation.cached_tokens for generation in self.generations)

    @property
    def queue_seconds(self) -> float | None:
        """Of the answer that waited longest."""
        return max((each.queue_seconds for each in self.generations if each.queue_seconds is not None), default=None)

    @property
    def first_token_seconds(self) -> float | None:
        """Of the first answer that has one."""
        return min((each.first_token_seconds for each in self.generations if each.first_token_seconds is not None), default=None)

    @property
    def finish_reasons(self) -> list[str]:
        return sorted({"error" if each.error else each.finish_reason or "cancelled" for each in self.generations})

    def facts(self) -> dict[str, Any]:
        """What a line of the log says: figures and names, never a prompt, an answer or a key."""
        found = {
            "id": self.id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "outcome": self.late_status,
            "key": self.key,
            "model": self.model,
            "version": self.version,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "finish_reason": ",".join(self.finish_reasons),
            "queue_seconds": _rounded(self.queue_seconds),
            "first_token_seconds": _rounded(self.first_token_seconds),
            "seconds": _rounded(self.seconds),
            "error": self.error,
        }
        return {name: value for name, value in found.items() if value not in ("", None)}


def record_of(connection: HTTPConnection | Scope) -> Record:
    """The record of the request that a handler answers; one that nobody reads, outside the server."""
    scope = connection.scope if isinstance(connection, HTTPConnection) else connection
    record = scope.setdefault(PLACE, Record())
    assert isinstance(record, Record)
    return record


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
