"""The learning rate of every step."""

from __future__ import annotations

import math

from llm.errors import RecipeError
from llm.train.config import TrainConfig


def cosine(step: int, *, warmup_steps: int, total_steps: int, peak: float, floor: float) -> float:
    """Learning rate at `step` (1 is the first): linear warm-up to `peak`, then half a cosine down to `floor`.

    A pure function of the step, so that a resumed run cannot drift.

    Source: SGDR, https://arxiv.org/abs/1608.03983, eq. 5, without restarts.
    Raises: RecipeError if warmup_steps >= total_steps: there would be no decay.
    Example:
        >>> cosine(5, warmup_steps=10, total_steps=110, peak=1.0, floor=0.1)
        0.5
        >>> cosine(10, warmup_steps=10, total_steps=110, peak=1.0, floor=0.1)
        1.0
        >>> cosine(110, warmup_steps=10, total_steps=110, peak=1.0, floor=0.1)
        0.1
    """
    if warmup_steps >= total_steps:
        raise RecipeError(
            "warm-up leaves no decay", value=f"{warmup_steps} of {total_steps} steps", remedy="set train.schedule.warmup_steps lower"
        )
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


def share(train: TrainConfig, step: int) -> float:
    """The part of its peak that every learning rate has at `step`."""
    schedule = train.schedule
    return cosine(step, warmup_steps=schedule.warmup_steps, total_steps=train.steps, peak=1.0, floor=schedule.floor_share)
