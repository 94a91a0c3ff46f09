"""The texts that run together: which slot each has, what is read of it, and the steps of the model over them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from llm.serve.engine.generation import Generation
from llm.serve.engine.prefixes import Prefix, Prefixes, common
from llm.serve.engine.slots import Slots
from llm.serve.engine.text import TextStream

SHARE_TOKENS = 128  # read of one prompt before another prompt gets its turn


@dataclass(eq=False)
class Row:
    """One text: tokens[:count], of which the first `read` have their keys and values in the slot."""

    generation: Generation
    tokens: np.ndarray
    count: int
    rng: np.random.Generator
    stream: TextStream
    read: int = 0
    began: float = field(default_factory=time.monotonic)  # when it got its slot

    @classmethod
    def of(cls, generation: Generation) -> Row:
        """A text that is its prompt so far."""
        sampling, prompt = generation.sampling, generation.prompt
        tokens = np.empty(len(prompt) + sampling.max_tokens, np.int64)
        tokens[: len(prompt)] = prompt
        return cls(generation, tokens, len(prompt), np.random.default_rng(sampling.seed), TextStream(sampling.stop))

    @property
    def text(self) -> np.ndarray:
        """The prompt and what is written."""
        return self.tokens[: self.count]

    @property
    def written(self) -> np.ndarray:
        return self.tokens[self.generation.prompt_tokens : self.count]

    def append(self, id: int) -> None:
        """Go on with a token."""
        self.tokens[self.count] = id
        self.count += 1


class Batch:
    """Rows by slot: the first `writing` write, the others still read their prompts.

    One step of the model runs over the slots from the first on, so rows move when one of them ends.
    """

    def __init__(self, slots: Slots, prefixes: Prefixes, *, most_rows: int) -> None:
        self.slots, self.prefixes, self.most_rows = slots, prefixes, most_rows
        self.rows: list[Row] = []
        self.writing = 0

    @property
    def reserved_tokens(self) -> int:
        """What the rows may come to need."""
        return sum(len(row.tokens) for row in self.rows)

    def add(self, row: Row) -> None:
        """Give a text the next slot."""
        self.rows.append(row)

    def read_some(self, budget_tokens: int) -> Iterator[tuple[Row, int, np.ndarray | None]]:
        """Read on in prompts, at most `budget_tokens`; each pass's row, its tokens, and if it is through the logits of its first one.

        The row that began first has the first turn, of at most half, so that every prompt comes to its end; then come those of
        which least is read, so that a long one costs short ones little (least attained service).
        """
        alone = len(self.rows) - self.writing == 1
        first_by, most_tokens = attrgetter("began"), min(SHARE_TOKENS, budget_tokens if alone else -(-budget_tokens // 2))
        while budget_tokens > 0 and self.writing < len(self.rows):
            row = min(self.rows[self.writing :], key=first_by)
            tokens, logits_V = self._read_on(row, min(budget_tokens, most_tokens))
            yield row, tokens, logits_V
            budget_tokens -= tokens
            first_by, most_tokens = attrgetter("read"), SHARE_TOKENS

    def _read_on(self, row: Row, most_tokens: int) -> tuple[int, np.ndarray | None]:
        """One pass over a prompt: how many tokens it read, and the logits of the first token to write if that was the rest."""
        slot = self.rows.index(row)
        self._reuse(row, slot)
        start, end = row.read, min(row.read + most_tokens, row.count)
        last = np.array([end - start - 1] if end == row.count else [], np.int64)
        logits = self.slots.read(slot, row.tokens[start:end].tolist(), start, rows=last)
        row.read = end
        if end < row.count:
            return end - start, None
        self._start_writing(slot)
        return end - start, logits[0]

    def write(self) -> np.ndarray:
        """Feed every writing row its last token: logits [writing, vocabulary]."""
        rows = self.rows[: self.writing]
        last, lengths = np.array([row.tokens[row.read] for row in rows]), np.array([row.read for row in rows])
        logits = self.slots.decode(last, lengths)
        for row in rows:
            row.read += 1
        return logits

    def check(self, row: Row, guessed: list[int]) -> np.ndarray:
        """Logits after a row's last token and after each token that may follow it; the row itself stays as it is."""
        tokens = [int(row.tokens[row.read]), *guessed]
        return self.slots.read(self.rows.index(row), tokens, row.read, rows=np.arange(len(tokens)))

    def remove(self, row: Row, *, keep: bool = True) -> None:
        """Free the row's slot, and keep its text for prompts that begin alike."""
        slot = self.rows.index(row)
        if keep and 0 < row.read <= self.prefixes.most_tokens:
            self.prefixes.add(Prefix(row.generation.client, row.tokens[: row.read].copy(), self.slots.keep(slot, row.read)))
        if slot < self.writing:
            self.writing -= 1
            self._move(self.writing, slot)
            slot = self.writing
        self._move(len(self.rows) - 1, slot)
        self.rows.pop()
        self.slots.free(len(self.rows))

    def _reuse(self, row: Row, slot: int) -> None:
        """Copy what another text of the client has read of the same beginning; the last token is read anyway, for its logits."""
        useful, client = row.text[:-1], row.generation.client
        prefix, shared = self.prefixes.longest(client, useful)
        others = [(other, each) for other, each in enumerate(self.rows) if each is not row and each.generation.client == client]
        beside = {other: common(each.tokens[: each.read], useful) for other, each in others}
        nearest = max(beside, key=beside.__getitem__, default=slot)
        longest = max(shared, beside.get(nearest, 0))
        if longest <= row.read:
            return
        if prefix and shared == longest:
            self.slots.restore(slot, prefix.kept, shared)
            self.prefixes.use(prefix)
        else:
            self.slots.copy(nearest, slot, longest)
        row.generation.cached_tokens += longest - row.read
        row.read = longest

    def _start_writing(self, slot: int) -> None:
        """Bring a row among the writing ones, in exchange with the first that reads."""
        if slot != self.writing:
            self.slots.swap(slot, self.rows[slot].read, self.writing, self.rows[self.writing].read)
            self.rows[slot], self.rows[self.writing] = self.rows[self.writing], self.rows[slot]
        self.writing += 1

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self.slots.move(source, target, self.rows[source].read)
            self.rows[target] = self.rows[source]
