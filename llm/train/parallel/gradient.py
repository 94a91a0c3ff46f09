"""The norm of a gradient whose pieces lie on many workers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llm.train.parallel.layout import Layout


@torch.no_grad()
def clip_norm(parameters: Iterable[nn.Parameter], limit: float, layout: Layout) -> float:
    """The norm of the whole gradient, on every worker alike; a larger one than `limit` is scaled down to it.

    Each piece counts once, however many workers hold it.
    """
    pieces = [(layout.holders(parameter), local(parameter.grad)) for parameter in parameters if parameter.grad is not None]
    gradients = [gradient for _, gradient in pieces]
    norm = _norm_over_workers(pieces, layout) if layout.shares_parameters else float(nn.utils.get_total_norm(gradients))
    if not norm <= limit:  # a second pass over all of them, which most steps don't need
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm


def _norm_over_workers(pieces: list[tuple[int, Tensor]], layout: Layout) -> float:
    """Of pieces, each with how many workers hold it."""
    squares = torch.zeros((), dtype=torch.float64, device=layout.world.device)
    for holders, group in groupby(sorted(pieces, key=lambda piece: piece[0]), key=lambda piece: piece[0]):
        norms = torch._foreach_norm([gradient for _, gradient in group])
        squares += torch.stack(list(norms)).double().square().sum() / holders
    return float(layout.world.sum(squares)[0] ** 0.5)


def local(tensor: Tensor) -> Tensor:
    """The piece of it that this worker holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
