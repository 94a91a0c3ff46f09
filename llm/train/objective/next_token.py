"""Next token: what every decoder learns first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.data.rows import Rows
from llm.train.batch import Batch
from llm.train.objective.cross_entropy import cross_entropy


class NextToken:
    """Cross-entropy in nats of every counted target, given the tokens before it."""

    extra_ids = 0
    weights: Mapping[str, float] = {"loss": 1.0}

    def __init__(self, *, document_mask: bool = False) -> None:
        self.document_mask = document_mask

    def batch(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], seed: int) -> Batch:
        """These rows; nothing is drawn, so neither places nor seed matter."""
        tokens_BT, targets_BT = map(torch.from_numpy, rows.batch(indices))
        return Batch({"tokens_BT": tokens_BT} | documents(tokens_BT, rows.bos, wanted=self.document_mask), targets_BT, {})

    def counts(self, batch: Batch) -> dict[str, int]:
        """What the summed terms are divided by."""
        return {"loss": batch.counted}

    def sums(self, model: Any, batch: Batch, *, z_loss: bool = False) -> dict[str, Tensor]:
        """Summed, because only a sum adds up exactly over micro-batches and workers."""
        return token_terms(model, model.features(**batch.inputs), batch.targets_BT, z_loss=z_loss)


def documents(tokens_BT: Tensor, bos: int, *, wanted: bool) -> dict[str, Tensor]:
    """Number of the document that each token belongs to, as the model's input of that name; nothing if not wanted."""
    return {"documents_BT": (tokens_BT == bos).cumsum(dim=1)} if wanted else {}


def token_terms(model: Any, x_BTD: Tensor, targets_BT: Tensor, *, z_loss: bool) -> dict[str, Tensor]:
    """Summed nats of the counted targets under the model's head, and the squared log-sums for the z-loss.

    Source: z-loss, PaLM, https://arxiv.org/abs/2204.02311, section 5.
    """
    nats, squares = cross_entropy(x_BTD.flatten(0, 1), model.head.weight, model.head.bias, targets_BT.flatten(), z_loss=z_loss)
    return {"loss": nats, "z": squares} if z_loss else {"loss": nats}
