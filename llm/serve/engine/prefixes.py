"""Keys and values of finished texts, for prompts that begin like them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from llm.serve.engine.slots import Kept


@dataclass(frozen=True, eq=False)
class Prefix:
    """A text, and its keys and values."""

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

    def longest(self, tokens: np.ndarray) -> tuple[Prefix | None, int]:
        """The text that agrees with `tokens` for longest, and for how long."""
        shared = {key: common(prefix.tokens, tokens) for key, prefix in self._texts.items()}
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
            if common(other.tokens, prefix.tokens) == len(other.tokens):
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
