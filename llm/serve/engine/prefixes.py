"""Keys and values of finished texts, for prompts of the same client that begin like them.

Clients share nothing: what is cached shows in counts and times, by which one could guess another's prompts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from llm.serve.engine.slots import Kept

Key = tuple[str, bytes]
MOST_TEXTS = 2**14  # each may be a mapping of its own, of which Linux lets a process have 65,530


@dataclass(frozen=True, eq=False)
class Prefix:
    """A client's text, and its keys and values."""

    client: str
    tokens: np.ndarray
    kept: Kept


class Prefixes:
    """The texts used last, `most_tokens` in all, and MOST_TEXTS of them at most; none of them begins another of its client.

    They are kept in order, so that what agrees with a text for longest stands next to the place where that text would stand.
    """

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens, self.tokens = most_tokens, 0  # `tokens` are kept now
        self._in_order: list[Key] = []
        self._texts: OrderedDict[Key, Prefix] = OrderedDict()  # the one used last is the last

    def longest(self, client: str, tokens: np.ndarray) -> tuple[Prefix | None, int]:
        """The client's text that agrees with `tokens` for longest, and for how long."""
        place = bisect_left(self._in_order, _key(client, tokens))
        beside = [key for key in self._in_order[max(0, place - 1) : place + 1] if key[0] == client]
        shared = {key: common(self._texts[key].tokens, tokens) for key in beside}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is None or not shared[best]:
            return None, 0
        return self._texts[best], shared[best]

    def use(self, prefix: Prefix) -> None:
        """A text serves again, so that others are forgotten before it."""
        self._texts.move_to_end(_key(prefix.client, prefix.tokens))

    def add(self, prefix: Prefix) -> None:
        """Keep a text in place of the one that it begins with, unless one begins with it, and forget the longest unused."""
        count = len(prefix.tokens)
        if count > self.most_tokens:
            return
        nearest, shared = self.longest(prefix.client, prefix.tokens)
        if nearest and shared == count:
            self.use(nearest)
            return
        if nearest and shared == len(nearest.tokens):
            self._forget(_key(nearest.client, nearest.tokens))
        key = _key(prefix.client, prefix.tokens)
        insort(self._in_order, key)
        self._texts[key] = prefix
        self.tokens += count
        while self.tokens > self.most_tokens or len(self._texts) > MOST_TEXTS:
            self._forget(next(iter(self._texts)))

    def _forget(self, key: Key) -> None:
        del self._in_order[bisect_left(self._in_order, key)]
        self.tokens -= len(self._texts.pop(key).tokens)


def _key(client: str, tokens: np.ndarray) -> Key:
    """What texts are ordered by: bytes of numbers whose first is the largest compare as the numbers do."""
    return client, tokens.astype(">u4").tobytes()


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two texts have in common before they part.

    Example:
        >>> common(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
        2
    """
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
