"""The `cluster.layout` section of a recipe: how one model and one batch are shared out among workers."""

from __future__ import annotations

import math

from pydantic import Field

from llm.config import Section


class LayoutConfig(Section):
    """Degrees of parallelism; their product, with `replicate`, is the number of workers.

    Source: names and order of the mesh follow torchtitan, https://arxiv.org/abs/2410.06511, section 2.1.
    """

    replicate: int | None = Field(default=None, ge=1, description="whole copies of the model; None: as many as the workers allow")
    shard: int = Field(default=1, ge=1, description="workers that share parameters, gradients and optimizer state (FSDP2)")
    pipeline: int = Field(default=1, ge=1, description="stages of consecutive layers (1F1B)")
    context: int = Field(default=1, ge=1, description="parts of every row's sequence")
    tensor: int = Field(default=1, ge=1, description="parts of every matrix, with the sequence shared out between them")
    expert: int = Field(default=1, ge=1, description="groups of experts, over the shard workers")

    @property
    def model_workers(self) -> int:
        """Workers that hold one copy of the model."""
        return math.prod((self.shard, self.pipeline, self.context, self.tensor))

    def readers(self, workers: int) -> int:
        """Workers, or groups of partners, that read rows of their own."""
        return workers * self.shard // self.model_workers
