"""The model that a distillation asks, by its `config.json` alone: without torch."""

from __future__ import annotations

from llm.model import shape
from llm.model.shape import Shape
from llm.plan import origins
from llm.train.config import TrainConfig


def shape_of(train: TrainConfig) -> Shape | None:
    """The teacher's shape, where the objective has one.

    Raises: ArtifactError if its sizes can't be read.
    """
    folder = getattr(train.objective, "teacher", None)
    return shape.of(*origins.sizes_of(folder, "train.objective.teacher")) if folder else None


def flops_per_token(train: TrainConfig, row_tokens: int) -> float:
    """What asking the teacher takes: a forward pass; 0 without one."""
    teacher = shape_of(train)
    return shape.flops_per_token(teacher, row_tokens, backward=False) if teacher else 0.0
