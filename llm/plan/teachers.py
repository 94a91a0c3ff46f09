"""The model that a distillation asks, by its `config.json` alone: without torch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from llm.errors import ArtifactError
from llm.model import shape
from llm.model.config import parse_model
from llm.model.pretrained_config import model_section
from llm.model.shape import Shape
from llm.train.config import TrainConfig


def shape_of(train: TrainConfig) -> Shape | None:
    """The teacher's shape, where the objective has one.

    Raises: ArtifactError if its sizes can't be read.
    """
    folder = getattr(train.objective, "teacher", None)
    return _read(Path(folder)) if folder else None


def flops_per_token(train: TrainConfig, row_tokens: int) -> float:
    """What asking the teacher takes: a forward pass; 0 without one."""
    teacher = shape_of(train)
    return shape.flops_per_token(teacher, row_tokens, backward=False) if teacher else 0.0


@cache
def _read(folder: Path) -> Shape:
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = parse_model(document["model"]) if "model" in document else model_section(document)[1]
        return shape.of(model, int(document["vocab_size"]))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        remedy = "set train.objective.teacher to a folder with config.json and model.safetensors"
        raise ArtifactError("teacher's sizes can't be read", value=f"{path} ({error})", remedy=remedy) from error
