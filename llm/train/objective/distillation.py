"""Distillation: the next token, and a teacher's opinion of every possible one.

Source: https://arxiv.org/abs/1503.02531, section 2: gradients of softened targets are scaled by the temperature's square.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.data.rows import IGNORED, Rows
from llm.train.batch import Batch
from llm.train.objective.config import DistillationConfig
from llm.train.objective.next_token import NextToken

CHUNK = 1024  # tokens whose logits, of both models, are in memory at once


class Distillation:
    """Cross-entropy in nats of every counted target, and the divergence of the student from its teacher there."""

    extra_ids = 0

    def __init__(self, config: DistillationConfig, teacher: nn.Module, *, document_mask: bool = False) -> None:
        self.config, self.data = config, NextToken(document_mask=document_mask)
        self.teacher: Any = teacher.requires_grad_(False).eval()
        self.weights: Mapping[str, float] = {
            "loss": 1.0 - config.teacher_weight,
            "divergence": config.teacher_weight * config.temperature**2,
        }

    def batch(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], seed: int) -> Batch:
        """These rows, as for the next token."""
        return self.data.batch(rows, indices, places, seed)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Both terms are means over counted targets."""
        return {"loss": batch.counted, "divergence": batch.counted}

    def sums(self, model: Any, batch: Batch, *, z_loss: bool = False) -> dict[str, Tensor]:
        """Summed nats of both terms; the loss is stated even where the teacher alone decides."""
        counted_BT = batch.targets_BT != IGNORED
        with torch.no_grad():
            taught_ND = self.teacher.to(batch.targets_BT.device).features(**batch.inputs)[counted_BT]
        x_ND, targets_N = model.features(**batch.inputs)[counted_BT], batch.targets_BT[counted_BT]
        chunks = zip(x_ND.split(CHUNK), taught_ND.split(CHUNK), targets_N.split(CHUNK), strict=True)
        sums = [checkpoint(self.compare, model.head, *chunk, use_reentrant=False) for chunk in chunks]
        loss, divergence, squares = torch.stack(sums).sum(dim=0)
        return {"loss": loss, "divergence": divergence} | ({"z": squares} if z_loss else {})

    def compare(self, head: nn.Linear, x_ND: Tensor, taught_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Summed nats of the targets, Kullback–Leibler divergence at the temperature, and squared log-sums of the logits."""
        logits_NV, T = head(x_ND).float(), self.config.temperature
        opinion_NV = F.log_softmax(self.teacher.head(taught_ND).float() / T, dim=-1)
        divergence = F.kl_div(F.log_softmax(logits_NV / T, dim=-1), opinion_NV, reduction="sum", log_target=True)
        nats = F.cross_entropy(logits_NV, targets_N, reduction="sum")
        return torch.stack((nats, divergence, logits_NV.logsumexp(dim=-1).square().sum()))
