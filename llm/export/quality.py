"""What a smaller graph loses against the trained model, and how fast it writes.

Axes: N rows of text, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from llm.export.parity.loaded import CachedGraph

Logits = Callable[[np.ndarray], np.ndarray]  # ids_T → logits_TV


@dataclass(frozen=True)
class Quality:
    """One graph beside the model that it was made from, on the same rows of text."""

    perplexity: float
    perplexity_increase: float  # as a share: 0.005 is half a per cent
    greedy_agreement: float  # share of positions after which both find the same token likeliest
    max_logit_difference: float


def measure(reference: Logits, candidates: Mapping[str, Logits], rows_NT: np.ndarray) -> dict[str, Quality]:
    """The quality of each candidate; every token of a row but the first is predicted from those before it."""
    expected_losses: list[float] = []
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
    for row_T in rows_NT:
        ids_T, targets_T = row_T[:-1], row_T[1:]
        expected_TV = reference(ids_T)
        expected_losses.append(loss(expected_TV, targets_T))
        for name, candidate in candidates.items():
            logits_TV = candidate(ids_T)
            agreement = float((logits_TV.argmax(-1) == expected_TV.argmax(-1)).mean())
            found[name].append((loss(logits_TV, targets_T), agreement, float(np.abs(logits_TV - expected_TV).max())))
    return {name: _quality(float(np.mean(expected_losses)), np.array(values)) for name, values in found.items()}


def _quality(expected_loss: float, values_N3: np.ndarray) -> Quality:
    found_loss, agreement, _ = values_N3.mean(axis=0)
    return Quality(
        perplexity=float(np.exp(found_loss)),
        perplexity_increase=float(np.expm1(found_loss - expected_loss)),
        greedy_agreement=float(agreement),
        max_logit_difference=float(values_N3[:, 2].max()),
    )


def loss(logits_TV: np.ndarray, targets_T: np.ndarray) -> float:
    """Mean nats per token, in float64.

    Example:
        >>> round(loss(np.zeros((2, 4)), np.array([0, 3])), 6) == round(float(np.log(4)), 6)
        True
    """
    shifted_TV = logits_TV.astype(np.float64) - logits_TV.max(axis=-1, keepdims=True)
    chosen_T = np.take_along_axis(shifted_TV, targets_T[:, None], axis=-1)[:, 0]
    return float((np.log(np.exp(shifted_TV).sum(axis=-1)) - chosen_T).mean())


def through_cache(graph: CachedGraph) -> Logits:
    """A graph's logits of a row whose second half follows on the cache of the first, so that both ways in are judged."""

    def logits(ids_T: np.ndarray) -> np.ndarray:
        half = (len(ids_T) + 1) // 2
        first, cache = graph.run(ids_T[None, :half], graph.empty_cache())
        second, _ = graph.run(ids_T[None, half:], cache)
        return np.concatenate((first[0], second[0]))

    return logits


def tokens_per_second(graph: CachedGraph, prompt_T: np.ndarray, *, tokens: int) -> float:
    """How fast one text is written, token by token behind a prompt: the best of three attempts."""
    return max(_speed(graph, prompt_T, tokens) for _ in range(3))


def _speed(graph: CachedGraph, prompt_T: np.ndarray, tokens: int) -> float:
    logits, cache = graph.run(prompt_T[None], graph.empty_cache())
    start = time.perf_counter()
    for _ in range(tokens):
        logits, cache = graph.run(logits[:, -1:].argmax(axis=-1), cache)
    return tokens / (time.perf_counter() - start)
