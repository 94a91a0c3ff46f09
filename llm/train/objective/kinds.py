"""Every objective by its kind, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm.data.rows import Rows
from llm.train.batch import Batch
from llm.train.config import TrainConfig
from llm.train.objective.next_token import NextToken


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

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """By term, its sum over the batch."""
        ...


def build(train: TrainConfig, vocab_size: int) -> Objective:
    """The objective of a `train` section, over a tokenizer's vocabulary."""
    config = train.objective
    match config.kind:
        case "next_token":
            return NextToken(document_mask=train.document_mask)
        case _:
            raise NotImplementedError(config.kind)
