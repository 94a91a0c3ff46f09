"""Pipeline parallelism: consecutive layers on consecutive workers, micro-batches on their way through them.

Source: one forward, one backward (1F1B): PipeDream-Flush, https://arxiv.org/abs/2006.09503, section 2.2; Megatron-LM,
https://arxiv.org/abs/2104.04473, section 2.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import P2POp

from llm.train import precision
from llm.train.batch import Batch
from llm.train.learner import Learner
from llm.train.parallel.layout import Layout

Sums = dict[str, Tensor]


class Received(nn.Module):
    """Stands for an embedding on an earlier stage: its output is what came from there."""

    x_BTD: Tensor

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.x_BTD


class Elsewhere(nn.Module):
    """Stands for a part on another stage."""

    def forward(self, x_BTD: Tensor, *rest: object) -> Tensor:
        return x_BTD


class Nothing(nn.Module):
    """Stands for what an earlier stage has added already."""

    def forward(self, *rest: object) -> float:
        return 0.0


class Stage(nn.Module):
    """A learner that holds some consecutive layers, under their names in the whole model.

    Example: the second of two stages of a model of four layers has `blocks.2`, `blocks.3`, `norm` and `head`.
    """

    def __init__(self, learner: Learner, layout: Layout) -> None:
        super().__init__()
        self.learner, self.layout = learner, layout
        stage, stages = layout.ranks["pp"], layout.sizes["pp"]
        self.first, self.last = stage == 0, stage == stages - 1
        model = learner.model
        layers = len(model.blocks)
        for layer in range(layers):
            if layer * stages // layers != stage:
                model.blocks[layer] = Elsewhere()
        if not self.first:
            stand_ins = {"embedding": Received(), "position_embedding": Nothing(), "dropout": Elsewhere()}
            for name in stand_ins.keys() & dict(model.named_children()).keys():
                setattr(model, name, stand_ins[name])
        if not self.last:
            model.norm, model.head = Elsewhere(), Elsewhere()

    def forward(self, batch: Batch, x_BTD: Tensor | None) -> Tensor | Sums:
        """The residual stream behind this stage's layers, in float32; on the last stage the sums of the loss."""
        model = self.learner.model
        if not self.first:
            model.embedding.x_BTD = x_BTD
        if self.last:
            return self.learner(batch)
        with precision.autocast(self.layout.world.device, self.learner.dtype):
            features_BTD: Tensor = model.features(**batch.inputs)
        return features_BTD.float()

    def received(self, batch: Batch) -> Tensor:
        """Room for what another stage sends about these rows."""
        B, T = batch.inputs["tokens_BT"].shape
        return torch.empty(B, len(self.layout.positions(T)), self.learner.model.config.width, device=self.layout.world.device)

    def exchange(
        self, *, up: Tensor | None = None, down: Tensor | None = None, above: Tensor | None = None, below: Tensor | None = None
    ) -> None:
        """Send `up` to the next stage and `down` to the one before, and fill `above` and `below` with what those send, all at once.

        At once, because stages that each waited for the other to receive would wait for ever. There is nobody beyond
        either end, so the first stage and the last ignore what would go there.
        """
        group, stage = self.layout.group("pp"), self.layout.ranks["pp"]
        wanted: list[tuple[Callable[..., Any], Tensor | None, int]] = [
            (dist.isend, up, 1),
            (dist.irecv, above, 1),
            (dist.isend, down, -1),
            (dist.irecv, below, -1),
        ]
        present = [
            P2POp(action, tensor.contiguous(), dist.get_global_rank(group, stage + step), group)
            for action, tensor, step in wanted
            if tensor is not None and not (self.last if step == 1 else self.first)
        ]
        for work in dist.batch_isend_irecv(present) if present else []:
            work.wait()

    def run(self, batches: Sequence[Batch], backward: Callable[[int, Tensor | Sums, Tensor | None], None]) -> list[Sums]:
        """Every micro-batch forwards and backwards through all stages; the sums of each, empty but on the last stage.

        `backward(number, output, gradient)` runs a micro-batch backwards from this stage's output.
        """
        ahead = min(self.layout.sizes["pp"] - 1 - self.layout.ranks["pp"], len(batches))
        waiting: deque[tuple[int, Tensor | None, Tensor | Sums]] = deque()
        results: list[Sums] = []

        def forwards(number: int, x_BTD: Tensor) -> Tensor | None:
            leaf = None if self.first else x_BTD.requires_grad_()
            output = self(batches[number], leaf)
            waiting.append((number, leaf, output))
            results.append({term: value.detach() for term, value in output.items()} if self.last else {})
            return None if self.last else output.detach()

        def backwards(gradient: Tensor | None) -> Tensor | None:
            number, leaf, output = waiting.popleft()
            backward(number, output, gradient)
            return None if leaf is None else leaf.grad

        for number in range(ahead):
            self.exchange(below=(x_BTD := self.received(batches[number])))
            self.exchange(up=forwards(number, x_BTD))
        if ahead < len(batches):
            self.exchange(below=(x_BTD := self.received(batches[ahead])))
        for number in range(ahead, len(batches)):
            self.exchange(up=forwards(number, x_BTD), above=(gradient := self.received(batches[number - ahead])))
            done = backwards(gradient)
            x_BTD = self.received(batches[min(number + 1, len(batches) - 1)])
            self.exchange(down=done, below=x_BTD if number + 1 < len(batches) else None)
        for number in range(len(batches) - ahead, len(batches)):
            self.exchange(above=(gradient := self.received(batches[number])))
            self.exchange(down=backwards(gradient))
        return results

    def evaluate(self, batch: Batch) -> Sums:
        """The sums of one batch, empty but on the last stage."""
        self.exchange(below=(x_BTD := self.received(batch)))
        output = self(batch, x_BTD)
        if isinstance(output, dict):
            return output
        self.exchange(up=output)
        return {}
