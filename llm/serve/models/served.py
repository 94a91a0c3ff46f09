"""One loaded version of a model, and who is using it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llm.serve.engine.engine import Engine


class Served:
    """An engine under a version's name. It is closed after its last lease, never during one."""

    def __init__(self, engine: Engine, version: str) -> None:
        self.engine, self.version = engine, version
        self._leases, self._free = 0, threading.Condition()

    @contextmanager
    def leased(self) -> Iterator[Served]:
        """Keep the engine open for the length of a block."""
        with self._free:
            self._leases += 1
        try:
            yield self
        finally:
            with self._free:
                self._leases -= 1
                self._free.notify_all()

    def close(self) -> None:
        """Wait for the last lease to end, then free the engine. Nobody may take another lease."""
        with self._free:
            self._free.wait_for(lambda: self._leases == 0)
        self.engine.close()
