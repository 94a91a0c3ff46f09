"""Keys and values of finished texts, for prompts of the same client that begin like them.

Clients share nothing: what is cached shows in counts and times, by which one could guess another's prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from llm.serve.engine.slots import Kept


@dataclass(frozen=True, eq=False)
class Prefix:
    """A client's text, and its keys and values."""

    client: str
    tokens: np.ndarray
    kept: Kept


class Prefixes:
    """The texts used last, `most_tokens` in all."""

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self._texts: OrderedDict[int, Prefix] = OrderedDict()

    @property
    def tokens(self) -> int:
        """Tokens that are kept now."""
        return sum(len(prefix.tokens) for prefix in self._texts.values())

    def longest(self, client: str, tokens: np.ndarray) -> tuple[Prefix | None, int]:
        """The client's text that agrees with `tokens` for longest, and for how long."""
        shared = {key: common(prefix.tokens, tokens) for key, prefix in self._texts.items() if prefix.client == client}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is None or not shared[best]:
            return None, 0
        self._texts.move_to_end(best)
        return self._texts[best], shared[best]

    def add(self, prefix: Prefix) -> None:
        """Keep a text in place of those that it begins with, and forget the longest unused."""
        if len(prefix.tokens) > self.most_tokens:
            return
        for key, other in list(self._texts.items()):
            if other.client == prefix.client and common(other.tokens, prefix.tokens) == len(other.tokens):
                del self._texts[key]
        self._texts[id(prefix)] = prefix
        while self.tokens > self.most_tokens:
            self._texts.popitem(last=False)


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two texts have in common before they part.

    Example:
        >>> common(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
        2
    """
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
