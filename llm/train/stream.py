"""The sample stream: which rows a step reads, the same on any number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm.data.rows import Rows, order
from llm.train.batch import Batch
from llm.train.objective import kinds
from llm.train.objective.kinds import Objective
from llm.train.objective.mixture import Mixture
from llm.train.parallel.layout import Layout


@dataclass(frozen=True)
class Stream:
    """Batches of a rows artifact as a pure function of place and seed: a resumed or resized run skips and repeats nothing."""

    rows: Rows
    validation_rows: Rows
    objective: Objective | Mixture
    seed: int
    layout: Layout

    @classmethod
    def open(cls, folder: Path, objective: Objective | Mixture, seed: int, layout: Layout) -> Stream:
        """The stream over the training and validation splits in `folder`."""
        return cls(Rows.open(folder, "train"), Rows.open(folder, "validation"), objective, seed, layout)

    def indices(self, first: int, count: int) -> NDArray[np.int64]:
        """Training rows at the places first … first + count - 1."""
        return order(first, count, rows=len(self.rows), seed=self.seed)

    def training(self, first: int, count: int, size: int) -> list[Batch]:
        """This worker's micro-batches, of `size` rows at most, of the step that reads those places."""
        return self._batches(self.rows, self.indices(first, count), np.arange(first, first + count), size)

    def validation(self, count: int, size: int) -> list[Batch]:
        """This worker's micro-batches of the first `count` validation rows."""
        places = np.arange(min(count, len(self.validation_rows)))
        return self._batches(self.validation_rows, places, places, size)

    def sample(self) -> Batch:
        """A batch of one row, for every worker the same."""
        first = np.zeros(1, dtype=np.int64)
        return kinds.batches(self.objective, self.rows, first, first, self.seed)[0]

    def _batches(self, rows: Rows, indices: NDArray[np.int64], places: NDArray[np.int64], size: int) -> list[Batch]:
        own = self.layout.part(np.arange(len(indices)))
        parts = [own[first : first + size] for first in range(0, len(own), size)]
        return [batch for part in parts for batch in kinds.batches(self.objective, rows, indices[part], places[part], self.seed)]
