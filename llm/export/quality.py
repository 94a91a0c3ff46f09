"""What a smaller graph loses against the trained model.

Axes: N rows of text, T tokens of a row, P places of it that are asked about, V answers to choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Logits = Callable[..., np.ndarray]  # a question's `given`, in order → logits_PV


class Question(NamedTuple):
    """What a model is given, and the right answer at every place that is asked about."""

    given: tuple[np.ndarray, ...]
    answers_P: np.ndarray


@dataclass(frozen=True)
class Quality:
    """One graph beside the model that it was made from, on the same questions."""

    perplexity: float
    perplexity_increase: float  # as a share: 0.005 is half a per cent
    greedy_agreement: float  # share of places at which both find the same answer likeliest
    max_logit_difference: float


def next_tokens(rows_NT: np.ndarray) -> list[Question]:
    """Every token of a row but the first, from those before it."""
    return [Question((row_T[:-1],), row_T[1:]) for row_T in rows_NT]


def measure(reference: Logits, candidates: Mapping[str, Logits], questions: Iterable[Question]) -> dict[str, Quality]:
    """The quality of each candidate."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in candidates}
    for given, answers_P in questions:
        expected_PV = reference(*given)
        expected_loss = loss(expected_PV, answers_P)
        for name, candidate in candidates.items():
            logits_PV = candidate(*given)
            agreement = float((logits_PV.argmax(-1) == expected_PV.argmax(-1)).mean())
            found[name].append((loss(logits_PV, answers_P), expected_loss, agreement, float(np.abs(logits_PV - expected_PV).max())))
    return {name: _quality(np.array(values)) for name, values in found.items()}


def _quality(values_N4: np.ndarray) -> Quality:
    """From both losses, the agreement and the largest difference of each question; both losses are added up in one order."""
    found_loss, expected_loss, agreement, _ = values_N4.mean(axis=0)
    return Quality(
        perplexity=float(np.exp(found_loss)),
        perplexity_increase=float(np.expm1(found_loss - expected_loss)),
        greedy_agreement=float(agreement),
        max_logit_difference=float(values_N4[:, 3].max()),
    )


def loss(logits_PV: np.ndarray, answers_P: np.ndarray) -> float:
    """Mean nats per place, in float64.

    Example:
        >>> round(loss(np.zeros((2, 4)), np.array([0, 3])), 6) == round(float(np.log(4)), 6)
        True
    """
    shifted_PV = logits_PV.astype(np.float64) - logits_PV.max(axis=-1, keepdims=True)
    chosen_P = np.take_along_axis(shifted_PV, answers_P[:, None], axis=-1)[:, 0]
    return float((np.log(np.exp(shifted_PV).sum(axis=-1)) - chosen_P).mean())
