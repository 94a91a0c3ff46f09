"""Every objective by its kind, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm.data.rows import Rows
from llm.errors import RecipeError
from llm.model import origin
from llm.train.batch import Batch
from llm.train.config import TrainConfig
from llm.train.objective.config import DistillationConfig, MaskedConfig, MixtureConfig, NextTokenConfig, ReplacedConfig, SpansConfig
from llm.train.objective.distillation import Distillation
from llm.train.objective.masked import Masked
from llm.train.objective.mixture import Mixture
from llm.train.objective.next_token import NextToken
from llm.train.objective.replaced import Replaced
from llm.train.objective.spans import Spans


class Objective(Protocol):
    """What training lowers: Σ over terms of weight · (sum over the global batch) / (count over the global batch)."""

    extra_ids: int  # token ids that it needs behind the tokenizer's vocabulary
    weights: Mapping[str, float]  # by term; "loss" is the one that curves show

    def batch(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], seed: int) -> Batch:
        """These rows made ready. `places` are their positions in the sample stream: with the seed they decide whatever is drawn."""
        ...

    def counts(self, batch: Batch) -> dict[str, int]:
        """By term, what its sum is divided by."""
        ...

    def sums(self, model: Any, batch: Batch, *, z_loss: bool = False) -> dict[str, Tensor]:
        """By term, its sum over the batch; with `z_loss` also `z`, the squared log-sums of the logits."""
        ...


def build(train: TrainConfig, architecture: str, vocab_size: int, row_tokens: int) -> Objective | Mixture:
    """The objective of a `train` section, for rows over a tokenizer's vocabulary.

    Raises: RecipeError if a teacher has another vocabulary, ArtifactError if it can't be read.
    """
    match train.objective:
        case MixtureConfig(parts=parts):
            objectives = [_single(part.objective, train, architecture, vocab_size, row_tokens) for part in parts]
            return Mixture(objectives, [part.share for part in parts])
        case DistillationConfig() as config:
            teacher = origin.load(Path(config.teacher))
            if teacher.vocab_size != vocab_size:
                raise RecipeError(
                    "teacher has another vocabulary than the rows",
                    value=f"{teacher.vocab_size} instead of {vocab_size} ids",
                    remedy="set train.objective.teacher to a model of this tokenizer",
                )
            return Distillation(config, teacher, document_mask=train.document_mask)
        case config:
            return _single(config, train, architecture, vocab_size, row_tokens)


def _single(
    config: NextTokenConfig | MaskedConfig | SpansConfig | ReplacedConfig,
    train: TrainConfig,
    architecture: str,
    vocab_size: int,
    row_tokens: int,
) -> Objective:
    match config:
        case NextTokenConfig():
            return NextToken(document_mask=train.document_mask)
        case MaskedConfig():
            return Masked(config, vocab_size, document_mask=train.document_mask)
        case SpansConfig():
            return Spans(config, vocab_size, row_tokens=row_tokens, encoder_decoder=architecture == "encoder_decoder")
        case ReplacedConfig():
            return Replaced(config, vocab_size, document_mask=train.document_mask)


def batches(objective: Objective | Mixture, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], seed: int) -> list[Batch]:
    """These rows made ready: as one batch, or as one for each objective of a mixture."""
    if isinstance(objective, Mixture):
        return objective.batches(rows, indices, places, seed)
    return [objective.batch(rows, indices, places, seed)]
