"""A small model writes ahead, the large one judges all of it in one step: the same texts in fewer steps.

Source: speculative sampling, https://arxiv.org/abs/2211.17192, algorithm 1.
"""

from __future__ import annotations

import numpy as np

from llm.serve.engine.batch import Row
from llm.serve.engine.sampling import Sampling, choose, draw, weights
from llm.serve.engine.slots import Slots


class Draft:
    """The small model over one text at a time."""

    def __init__(self, slots: Slots, most_tokens: int) -> None:
        self._slots, self.most_tokens = slots, most_tokens
        self._row: Row | None = None
        self._read = 0

    @property
    def memory_bytes(self) -> int:
        """What its keys and values may come to take."""
        return self._slots.memory_bytes

    def room(self, row: Row) -> int:
        """How many tokens may be written ahead of a text; a text with a seed none, since its draws mustn't depend on its batch."""
        sampling = row.generation.sampling
        if sampling.temperature > 0 and sampling.seed is not None:
            return 0
        return max(0, min(self.most_tokens, len(row.tokens) - row.count - 1, self._slots.capacity - row.count))

    def ahead(self, row: Row, tokens: int) -> tuple[list[int], np.ndarray]:
        """Ids that may follow a text, and the logits that each was chosen from, [tokens, vocabulary]."""
        if row is not self._row:
            self._row, self._read = row, 0
        fresh, ids, chosen_from = row.tokens[self._read : row.count].tolist(), [], []
        for _ in range(tokens):
            logits = self._slots.read(0, fresh, self._read, rows=np.array([len(fresh) - 1]))
            self._read += len(fresh)
            fresh = choose(logits, [row.generation.sampling], np.array([row.rng.random()])).tolist()
            ids += fresh
            chosen_from.append(logits[0])
        return ids, np.stack(chosen_from)

    def agree(self, tokens: int) -> None:
        """Forget what was written ahead beyond the text's first tokens."""
        self._read = min(self._read, tokens)


def judge(logits_V: np.ndarray, id: int, drafts_V: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """The draft's id, or another in its place, such that it is distributed as the large model would choose.

    An id that the draft chose with share q and the model would with p stays with chance p / q; otherwise one is drawn from what
    the draft gave too little, max(0, p - q).
    """
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    both = weights(np.stack((logits_V, drafts_V)), [sampling] * 2).astype(np.float64)
    shares_V, drafted_V = both / both.sum(axis=1, keepdims=True)
    if rng.random() * drafted_V[id] < shares_V[id]:
        return id
    return int(draw(np.maximum(shares_V - drafted_V, 0)[None], np.array([rng.random()]))[0])
