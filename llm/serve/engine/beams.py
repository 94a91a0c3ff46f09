"""Beam search: the likeliest text among those that stay in the best few at every token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm.serve.engine.generation import Generation
from llm.serve.engine.sampling import check_finite, log_softmax
from llm.serve.engine.slots import Slots


@dataclass(frozen=True)
class Beam:
    """A text and how likely it is, in nats."""

    ids: tuple[int, ...]
    score: float

    @property
    def mean(self) -> float:
        """Per token, so that long texts can win."""
        return self.score / len(self.ids)


class Beams:
    """The search for one generation, in slots of its own.

    Source: the search of transformers with length_penalty 1 and early_stopping False,
    https://huggingface.co/docs/transformers/generation_strategies#beam-search.
    """

    def __init__(self, generation: Generation, slots: Slots, silent_V: np.ndarray, *, step_tokens: int) -> None:
        self.generation, self._slots, self._silent_V, self._step_tokens = generation, slots, silent_V, step_tokens
        self._width, self._read = generation.sampling.beams, 0
        self._running = [Beam((), 0.0)]
        self._ended: list[Beam] = []

    def step(self) -> list[int] | None:
        """Read on in the prompt or write one token; the ids of the best text, with the id that ends it, once it is found.

        Raises: ArtifactError if the logits aren't finite.
        """
        prompt = self.generation.prompt
        if self._read < len(prompt):
            chunk = prompt[self._read : self._read + self._step_tokens]
            logits_BV = self._slots.read(0, chunk, self._read, rows=np.array([len(chunk) - 1]))
            self._read += len(chunk)
            if self._read < len(prompt):
                return None
        else:
            last, lengths = np.array([beam.ids[-1] for beam in self._running]), np.full(len(self._running), self._read)
            logits_BV = self._slots.decode(last, lengths)
            self._read += 1
        self._extend(logits_BV)
        return self._best() if self._over() else None

    def _extend(self, logits_BV: np.ndarray) -> None:
        """Every beam by every token; the best go on, and those of the best that end are set aside."""
        check_finite(logits_BV)
        logprobs_BV = np.stack([log_softmax(logits_V) for logits_V in logits_BV])
        if self.generation.sampling.ignore_eos:
            logprobs_BV[:, self._silent_V] = -np.inf
        scores = (logprobs_BV + np.array([[beam.score] for beam in self._running])).ravel()
        enough = self._width * (1 + int(self._silent_V.sum()))
        best = sorted(np.argpartition(-scores, min(enough, len(scores) - 1))[:enough].tolist(), key=lambda place: (-scores[place], place))
        parents: list[int] = []
        running: list[Beam] = []
        for rank, place in enumerate(best):
            parent, id = divmod(place, logprobs_BV.shape[1])
            beam = Beam((*self._running[parent].ids, id), float(scores[place]))
            if self._silent_V[id]:
                if rank < self._width:
                    self._ended.append(beam)
            elif len(running) < self._width:
                parents.append(parent)
                running.append(beam)
        self._slots.reorder(parents, self.generation.prompt_tokens if len(self._running) > 1 else 0, self._read)
        self._running = running

    def _over(self) -> bool:
        if len(self._running[0].ids) == self.generation.sampling.max_tokens:
            self._ended += self._running
            return True
        self._ended = sorted(self._ended, key=lambda beam: -beam.mean)[: self._width]
        return len(self._ended) == self._width and self._running[0].mean <= self._ended[-1].mean

    def _best(self) -> list[int]:
        return list(max(self._ended, key=lambda beam: beam.mean).ids)
