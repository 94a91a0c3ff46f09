"""The sample stream: which rows a step reads, the same on any number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.mixture import Blend
from llm.data.rows import Rows, order
from llm.train import schedule
from llm.train.batch import Batch
from llm.train.job import TrainJob
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
    blend: Blend | None = None  # none: every row is read equally often

    @classmethod
    def open(cls, job: TrainJob, objective: Objective | Mixture, layout: Layout) -> Stream:
        """The stream over the training and validation splits of a job's rows.

        Raises: RecipeError if the rows can't be mixed as `train.mixture` says.
        """
        rows, validation_rows = Rows.open(job.rows, "train"), Rows.open(job.rows, "validation")
        mixture, places = job.train.mixture, schedule.first_place(job.train, job.train.steps + 1)
        blend = Blend.plan(rows.groups, mixture, places, job.seed) if mixture else None
        return cls(rows, validation_rows, objective, job.seed, layout, blend)

    def indices(self, first: int, count: int) -> NDArray[np.int64]:
        """Training rows at the places first … first + count - 1."""
        return self.blend.indices(first, count) if self.blend else order(first, count, rows=len(self.rows), seed=self.seed)

    def realised(self, place: int) -> dict[str, Any]:
        """What a mixture has read before `place`, by group; nothing without one."""
        return {"mixture": self.blend.realised(place)} if self.blend else {}

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
