"""A model and what it learns by, as the one module that is replicated, sharded and compiled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm.train import precision
from llm.train.batch import Batch
from llm.train.objective.kinds import Objective


class Learner(nn.Module):
    """From a batch to the summed terms of the loss."""

    def __init__(self, model: nn.Module, objective: Objective, dtype: torch.dtype, z_loss_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.objective, self.dtype = model, objective, dtype
        self.weights = {"z": z_loss_weight, **objective.weights}

    def counts(self, batch: Batch) -> dict[str, int]:
        """By term, what its sum is divided by; what isn't counted on its own counts per target."""
        return dict.fromkeys(self.weights, batch.counted) | self.objective.counts(batch)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """By term, its sum over the batch."""
        with precision.autocast(batch.targets_BT.device, self.dtype):
            return self.objective.sums(self.model, batch)
