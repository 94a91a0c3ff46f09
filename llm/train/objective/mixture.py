"""Several objectives over one stream of rows.

Source: a mixture of denoisers, UL2, https://arxiv.org/abs/2205.05131, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llm.data.rows import Rows
from llm.train.batch import Batch
from llm.train.objective.draws import uniform

if TYPE_CHECKING:
    from llm.train.objective.kinds import Objective

CHOICE = 30  # purpose of a draw


class Mixture:
    """Each row by one objective, drawn by share from its place in the stream; the loss is the mean over all counted targets."""

    def __init__(self, objectives: Sequence[Objective], shares: Sequence[float]) -> None:
        self.objectives, self.edges = objectives, np.cumsum(shares) / sum(shares)
        self.extra_ids = max(objective.extra_ids for objective in objectives)
        self.weights: Mapping[str, float] = {"loss": 1.0}

    def batches(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], seed: int) -> list[Batch]:
        """The rows of each objective that any of them falls to."""
        choice = np.searchsorted(self.edges, uniform(places, 1, seed=seed, purpose=CHOICE)[:, 0], side="right")
        return [
            replace(objective.batch(rows, indices[choice == part], places[choice == part], seed), part=part)
            for part, objective in enumerate(self.objectives)
            if (choice == part).any()
        ]

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets, whatever their objective."""
        return {"loss": batch.counted}

    def sums(self, model: Any, batch: Batch, *, z_loss: bool = False) -> dict[str, Tensor]:
        """The terms of the batch's own objective."""
        return self.objectives[batch.part].sums(model, batch, z_loss=z_loss)
