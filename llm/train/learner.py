"""A model and what it learns by, as the one module that is replicated, sharded and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm.model.moe import Moe
from llm.train import precision
from llm.train.batch import Batch
from llm.train.objective.kinds import Objective
from llm.train.objective.mixture import Mixture


class Learner(nn.Module):
    """From a batch to the summed terms of the loss."""

    def __init__(self, model: Any, objective: Objective | Mixture, dtype: torch.dtype, z_loss_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.objective, self.dtype = model, objective, dtype
        self.routed = isinstance(model, Moe)  # its routers add terms of their own, per token
        self.z_loss = z_loss_weight > 0
        self.weights = dict(objective.weights)
        if self.z_loss:
            self.weights["z"] = z_loss_weight
        if self.routed:
            self.weights |= model.auxiliary_weights

    def counts(self, batch: Batch) -> dict[str, int]:
        """By term, what its sum is divided by."""
        routed = dict.fromkeys(self.model.auxiliary_weights, batch.tokens) if self.routed else {}
        return {"z": batch.counted, **routed, **self.objective.counts(batch)}

    def statistics(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """What the routers did in the passes of a step, over all layers; `total` adds a tensor up over the workers.

        An expert's largest share of a layer's assignments, nats of choice per token, and the share of assignments that found
        no room, where experts have a capacity.
        """
        if not self.routed:
            return {}
        found = self.model.router_statistics(total)
        shares = {"router_largest_share": float(found["shares_LE"].max()), "router_entropy": float(found["entropy_L"].mean())}
        if self.model.config.capacity_factor is None:
            return shares
        return shares | {"router_dropped_share": float(found["dropped_L"].sum() / found["assigned_L"].sum())}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """By term, its sum over the batch."""
        with precision.autocast(batch.targets_BT.device, self.dtype):
            sums = self.objective.sums(self.model, batch, z_loss=self.z_loss)
        return {**sums, **self.model.auxiliary()} if self.routed else sums
