"""One request while it is answered: what is known of it, who sent it, and what has to be released when it ends."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

from llm.serve.observe.record import CLIENT_LEFT, Record, record_of

PLACE = "trainyard.visit"  # of a request's visit in its ASGI scope


@dataclass(frozen=True)
class Visit:
    """A request between the gate and its last byte; `cleanup` is closed however that comes about."""

    record: Record
    client: str
    cleanup: ExitStack = field(default_factory=ExitStack)

    @property
    def begun(self) -> bool:
        """Whether the answer's status has been sent."""
        return self.record.status != CLIENT_LEFT

    @property
    def tokens(self) -> int:
        """Read and written so far."""
        return self.record.prompt_tokens + self.record.completion_tokens


def begin(scope: Scope) -> Visit:
    """The visit of an ASGI request, put where routes find it."""
    visit = Visit(record_of(scope), (scope.get("client") or ("",))[0])
    scope[PLACE] = visit
    return visit


def visit_of(request: Request) -> Visit:
    """The visit that the gate began."""
    visit: Visit = request.scope[PLACE]
    return visit
