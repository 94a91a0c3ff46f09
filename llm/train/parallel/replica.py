"""One worker's part of the model, and the gradient of one step over all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from llm.train.batch import Batch
from llm.train.learner import Learner
from llm.train.parallel.context import WholeContext
from llm.train.parallel.layout import Layout
from llm.train.parallel.pipeline import Stage, Sums
from llm.train.parallel.sharing import let_go, only_last_reduces, share_out

Share = tuple[Batch, float]  # a micro-batch, and 1, or 0 where a worker only keeps the others company


class Replica:
    """A learner with gradients added up over workers; in a world of one, the learner itself.

    `learner.model` keeps the names of its parameters; what of them this worker holds is up to the layout.
    """

    def __init__(self, learner: Learner, layout: Layout) -> None:
        self.learner, self.layout = learner, layout
        self.module = share_out(learner, layout)
        self.spare: Batch | None = None

    def rehearse(self, batch: Batch) -> None:
        """Put behind what DistributedDataParallel does differently at first, and keep `batch` for keeping company.

        It sorts its gradients into new buckets after the first backward pass, which changes the order of additions
        from then on. After two thrown-away passes the first step of a resumed run adds in the same order as the
        same step of an uninterrupted one.
        """
        self.spare = batch
        if isinstance(self.module, DistributedDataParallel):
            for _ in range(2):
                self.accumulate([batch], dict.fromkeys(self.learner.weights, 1.0))
                self.module.zero_grad()

    def accumulate(
        self, batches: Sequence[Batch], scales: Mapping[str, float], mark: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Leave the gradient of Σ over terms of scale · sum in the parameters; the sums that this worker and its partners made, by term.

        `mark` is called before the first micro-batch and after each, where they come one after another.
        """
        shares = self.level(batches)
        with self.attention():
            if isinstance(self.module, Stage):
                results = self.through_stages(self.module, shares, scales)
            else:
                mark()
                results = []
                for share in shares:
                    results.append(self.both_ways(share, scales, last=share is shares[-1]))
                    mark()
        return self.totals(results, shares)

    def both_ways(self, share: Share, scales: Mapping[str, float], *, last: bool) -> Sums:
        """One micro-batch forwards and backwards; its sums."""
        self.learner.train(share[1] > 0)  # or routers would count the tokens of a batch that only keeps company
        with self.synchronised(last=last):
            sums: Sums = self.module(share[0])
            self.loss(sums, share, scales).backward()
        return {term: value.detach() for term, value in sums.items()}

    def through_stages(self, stage: Stage, shares: Sequence[Share], scales: Mapping[str, float]) -> list[Sums]:
        """All micro-batches forwards and backwards through a pipeline; their sums, empty but on its last stage."""

        def backward(number: int, output: Tensor | Sums, gradient: Tensor | None) -> None:
            with self.synchronised(last=number == len(shares) - 1):
                if isinstance(output, dict):
                    self.loss(output, shares[number], scales).backward()
                else:
                    output.backward(gradient)

        return stage.run([batch for batch, _ in shares], backward)

    def loss(self, sums: Sums, share: Share, scales: Mapping[str, float]) -> Tensor:
        """What is differentiated. DistributedDataParallel averages over workers, the others add up."""
        factor = share[1] * (self.layout.world.size if isinstance(self.module, DistributedDataParallel) else 1)
        return torch.stack([scales[term] * factor * value for term, value in sums.items() if scales[term]]).sum()

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], mark: Callable[[], None] = lambda: None) -> list[dict[str, float]]:
        """The sums of each batch, by term, without dropout; `mark` is called before each."""
        self.learner.eval()
        shares, sums = self.level(batches), list[Sums]()
        with self.attention():
            for batch, _ in shares:
                mark()
                sums.append(self.module.evaluate(batch) if isinstance(self.module, Stage) else self.learner(batch))
        let_go(self.module)
        self.learner.train()
        return [self.totals([each], [share]) for each, share in zip(sums, shares, strict=True)]

    def level(self, batches: Sequence[Batch]) -> list[Share]:
        """This worker's part of each micro-batch, as many on every worker that another one waits for."""
        shares = [(self.own(batch), 1.0) for batch in batches]
        if self.layout.waits:
            missing = self.layout.most(len(shares)) - len(shares)
            shares += [(self.own(self.spare), 0.0) for _ in range(missing) if self.spare is not None]
        return shares

    def own(self, batch: Batch) -> Batch:
        """The batch with the targets that this worker scores."""
        batch = batch.to(self.layout.world.device)
        if not self.layout.cuts_sequence:
            return batch
        return replace(batch, targets_BT=batch.targets_BT[:, self.layout.positions(batch.targets_BT.shape[1])])

    def totals(self, results: Sequence[Sums], shares: Sequence[Share]) -> dict[str, float]:
        """By term of the loss, its sum over these micro-batches, on this worker and its partners alike."""
        zero = torch.zeros((), dtype=torch.float64, device=self.layout.world.device)
        terms = list(self.learner.weights)
        by_term = [
            sum((sums[term].double() * share for sums, (_, share) in zip(results, shares, strict=True) if term in sums), zero)
            for term in terms
        ]
        return dict(zip(terms, self.layout.sum_of_partners(*by_term), strict=True))

    def attention(self) -> AbstractContextManager[object]:
        """Attention that reaches the whole sequence, where workers hold parts of it."""
        return WholeContext(self.layout) if self.layout.sizes["cp"] > 1 else contextlib.nullcontext()

    def synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between copies of the model only in the last backward pass of a step."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        only_last_reduces(self.module, last=last)
        return contextlib.nullcontext()
