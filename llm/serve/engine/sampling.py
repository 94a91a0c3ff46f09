"""How tokens are chosen from logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Guide:
    """A form that the text has to have; exactly one of the two is given."""

    json_schema: Mapping[str, object] | None = None
    regex: str | None = None


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer; temperature 0 takes the likeliest token, and top_k 0 leaves all of them in."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    guide: Guide | None = None
    beams: int = 1
    ignore_eos: bool = False


def sample(logits_V: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One id: the likeliest, or drawn from the top_k likeliest and of those from the fewest that hold top_p.

    Source: top-k, https://arxiv.org/abs/1805.04833; nucleus, https://arxiv.org/abs/1904.09751.
    """
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    order = np.argsort(-logits_V, kind="stable")[: sampling.top_k or None]
    scaled = logits_V[order].astype(np.float64)
    weights = np.exp((scaled - scaled[0]) / sampling.temperature)
    shares = weights / weights.sum()
    shares = shares[shares.cumsum() - shares < sampling.top_p]
    return int(order[rng.choice(len(shares), p=shares / shares.sum())])
