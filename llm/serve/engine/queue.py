"""Who comes next: one line per client, served in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from llm.serve.engine.generation import Generation


class FairQueue:
    """Waiting generations; a client that sends many waits behind its own. Not locked.

    Source: round-robin over flows, https://www.rfc-editor.org/rfc/rfc970.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Generation]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def held(self, client: str) -> int:
        """How many of a client's wait."""
        return len(self._lines.get(client, ()))

    def put(self, generation: Generation) -> None:
        """Join the client's line."""
        self._lines.setdefault(generation.client, deque()).append(generation)

    def first(self) -> Generation | None:
        """Whose turn it is."""
        return next(iter(self._lines.values()))[0] if self._lines else None

    def pop(self) -> Generation:
        """Take the one whose turn it is; its client's next comes after everybody else's."""
        client, line = self._lines.popitem(last=False)
        generation = line.popleft()
        if line:
            self._lines[client] = line
        return generation

    def drop(self, unwanted: Callable[[Generation], bool]) -> list[Generation]:
        """Take out those that needn't run any more."""
        dropped = [generation for line in self._lines.values() for generation in line if unwanted(generation)]
        for generation in dropped:
            self._lines[generation.client].remove(generation)
            if not self._lines[generation.client]:
                del self._lines[generation.client]
        return dropped
