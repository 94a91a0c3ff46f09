"""One request while it is answered: what is known of it, who sent it, and what has to be released when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Scope

from llm.serve.observe.record import CLIENT_LEFT, Record, record_of

PLACE = "trainyard.visit"  # of a request's visit in its ASGI scope
T = TypeVar("T")


class Over(Exception):
    """The request has ended; whatever still works on it may stop."""


class Cleanup:
    """What has to be released when a request ends, the last first.

    Cancelling a task doesn't stop the thread that it waits for: what such a thread registers after the end is released at once.
    """

    def __init__(self) -> None:
        self._lock, self._stack, self._over = threading.Lock(), ExitStack(), False

    def callback(self, release: Callable[[], object]) -> None:
        """Have this called in the end.

        Raises: Over after the end, when it has been called.
        """
        with self._lock:
            if not self._over:
                self._stack.callback(release)
                return
        release()
        raise Over

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that is left in the end.

        Raises: Over after the end, when it has been left.
        """
        value = context.__enter__()
        self.callback(lambda: context.__exit__(None, None, None))
        return value

    def check(self) -> None:
        """Raises: Over after the end."""
        if self._over:
            raise Over

    def close(self) -> None:
        """The end: release everything."""
        with self._lock:
            self._over = True
        self._stack.close()


@dataclass(frozen=True)
class Visit:
    """A request between the gate and its last byte; `cleanup` is closed however that comes about."""

    record: Record
    client: str
    cleanup: Cleanup = field(default_factory=Cleanup)

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
