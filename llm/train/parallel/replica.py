"""One worker's part of the model, and the gradient of one step over all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llm.train.batch import Batch
from llm.train.learner import Learner
from llm.train.parallel.world import World


class Replica:
    """A learner with gradients averaged over workers; in a world of one, the learner itself."""

    def __init__(self, learner: Learner, world: World) -> None:
        self.learner, self.world = learner, world
        self.module: nn.Module = learner
        if world.size > 1:
            self.module = DistributedDataParallel(learner, device_ids=[world.device] if world.device.type == "cuda" else None)

    def rehearse(self, batch: Batch) -> None:
        """Put behind what DistributedDataParallel does differently at first.

        It sorts its gradients into new buckets after the first backward pass, which changes the order of additions
        from then on. After two thrown-away passes the first step of a resumed run adds in the same order as the
        same step of an uninterrupted one.
        """
        if self.world.size > 1:
            for _ in range(2):
                self.accumulate([batch], dict.fromkeys(self.learner.weights, 1.0))
                self.module.zero_grad()

    def accumulate(self, batches: Sequence[Batch], scales: Mapping[str, float]) -> dict[str, float]:
        """Leave the gradient of Σ over terms of scale · sum in the parameters; the sums of this worker, by term.

        DistributedDataParallel averages over workers, hence the factor `size`.
        """
        totals: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with self.synchronised(last=number == len(batches)):
                sums = self.module(batch.to(self.world.device))
                sum(scales[term] * self.world.size * value for term, value in sums.items() if scales[term]).backward()
            totals = {term: totals.get(term, 0.0) + value.detach().double() for term, value in sums.items()}
        return {term: float(total) for term, total in totals.items()}

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """The sums of each batch, by term, without dropout."""
        self.learner.eval()
        sums = [self.learner(batch.to(self.world.device)) for batch in batches]
        self.learner.train()
        return [{term: float(value) for term, value in each.items()} for each in sums]

    def synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between workers only in the last backward pass of a step."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        return contextlib.nullcontext()
