"""How the next token is chosen from logits, for a batch of texts that each have their own settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llm.errors import ArtifactError

LEAST_TEMPERATURE = 1e-30  # what float32 can divide logits by
BLOCK = 256  # weights that are summed before one of them is looked for
CACHED = 2**16  # weights that a second-level cache holds


@dataclass(frozen=True)
class Guide:
    """A form that the text has to have: a JSON schema, or a regular expression that matches all of it."""

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


def check_finite(logits: np.ndarray) -> None:
    """Refuse what nothing can be chosen from: a row of logits without a finite greatest one.

    Raises: ArtifactError if there is one.
    """
    if not np.isfinite(logits.max(axis=-1)).all():
        raise ArtifactError("model's logits aren't finite", remedy="serve another version")


def adjust(logits_V: np.ndarray, sampling: Sampling, *, tokens: np.ndarray, written: np.ndarray) -> None:
    """Apply penalties and biases in place; `tokens` are the text with its prompt, `written` without.

    Source: repetition, https://arxiv.org/abs/1909.05858, section 4.1, with negative logits multiplied as transformers does;
    frequency, presence and bias, https://platform.openai.com/docs/api-reference/completions/create.
    """
    if sampling.repetition_penalty != 1:
        ids = np.unique(tokens)
        values = logits_V[ids]
        with np.errstate(over="ignore"):  # no token is left then, which the loop says
            logits_V[ids] = np.where(values < 0, values * sampling.repetition_penalty, values / sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        ids, counts = np.unique(written, return_counts=True)
        logits_V[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    for id, bias in sampling.logit_bias.items():
        logits_V[id] += bias


def choose(logits_BV: np.ndarray, settings: Sequence[Sampling], uniforms_B: np.ndarray) -> np.ndarray:
    """One id per row: the likeliest, or drawn with that row's number from [0, 1), so that rows don't depend on each other."""
    ids_B = logits_BV.argmax(axis=1)
    drawn = [row for row, sampling in enumerate(settings) if sampling.temperature > 0]
    together = max(1, CACHED // logits_BV.shape[1])
    for rows in (drawn[first : first + together] for first in range(0, len(drawn), together)):
        ids_B[rows] = draw(weights(logits_BV[rows], [settings[row] for row in rows]), uniforms_B[rows])
    return ids_B


def weights(logits_BV: np.ndarray, settings: Sequence[Sampling]) -> np.ndarray:
    """What each token's chance is proportional to: at the row's temperature, the likeliest is 1, and what is cut off is 0.

    Source: top-k, https://arxiv.org/abs/1805.04833; nucleus, https://arxiv.org/abs/1904.09751; min-p,
    https://arxiv.org/abs/2407.01082; in this order, as transformers applies them.
    """
    temperature_B1 = np.array([[max(sampling.temperature, LEAST_TEMPERATURE)] for sampling in settings], np.float32)
    weights_BV = (logits_BV - logits_BV.max(axis=1, keepdims=True)) / temperature_B1
    np.exp(weights_BV, out=weights_BV)
    for weights_V, sampling in zip(weights_BV, settings, strict=True):
        if least := _least(weights_V, sampling):
            weights_V[weights_V < least] = 0
    return weights_BV


def _least(weights_V: np.ndarray, sampling: Sampling) -> float:
    """The smallest weight that isn't cut off; equals of it stay too."""
    least = 0.0
    if 0 < sampling.top_k < len(weights_V):
        least = float(np.partition(weights_V, -sampling.top_k)[-sampling.top_k])
    if sampling.top_p < 1:
        falling = np.sort(weights_V[weights_V >= least])[::-1].astype(np.float64)
        before = falling.cumsum() - falling
        least = float(falling[before < sampling.top_p * falling.sum()][-1])
    return max(least, sampling.min_p)


def draw(weights_BV: np.ndarray, uniforms_B: np.ndarray) -> np.ndarray:
    """One id per row, each with its share of the row's weight: where the running sum passes that share of the total.

    Sums run over blocks first: a running sum over a whole vocabulary would cost as much as all else here.
    """
    starts = np.arange(0, weights_BV.shape[1], BLOCK)
    ends_BN = np.add.reduceat(weights_BV, starts, axis=1, dtype=np.float64).cumsum(axis=1)
    ids = []
    for weights_V, ends_N, uniform in zip(weights_BV, ends_BN, uniforms_B, strict=True):
        passed = uniform * ends_N[-1]
        block = int(np.searchsorted(ends_N, passed, side="right"))
        inside = weights_V[starts[block] : starts[block] + BLOCK]
        place = np.searchsorted(inside.cumsum(dtype=np.float64), passed - (ends_N[block - 1] if block else 0), side="right")
        ids.append(starts[block] + min(place, np.flatnonzero(inside)[-1]))
    return np.array(ids)


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    """Log-probabilities in nats, at temperature 1."""
    shifted = logits_V.astype(np.float64) - logits_V.max()
    return shifted - np.log(np.exp(shifted).sum())
