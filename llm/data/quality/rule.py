"""What a rule is, and how its score meets a threshold."""

from __future__ import annotations

from collections.abc import Callable

from llm.data.config import CleanConfig
from llm.data.quality.text import Text

Rule = Callable[[Text, CleanConfig], float | None]  # the score that it objects to, or None


def above(score: float, limit: float) -> float | None:
    """An objection to more than the limit."""
    return score if score > limit else None


def below(score: float, limit: float) -> float | None:
    """An objection to less than the limit."""
    return score if score < limit else None


def outside(score: float, least: float, most: float) -> float | None:
    """An objection to what is not between two limits."""
    return None if least <= score <= most else score
