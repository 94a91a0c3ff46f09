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
    parameters = list(parameters)
    if not layout.shares_parameters:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    pieces = [(layout.holders(parameter), local(parameter.grad)) for parameter in parameters if parameter.grad is not None]
    squares = torch.zeros((), dtype=torch.float64, device=layout.world.device)
    for holders, group in groupby(sorted(pieces, key=lambda piece: piece[0]), key=lambda piece: piece[0]):
        norms = torch._foreach_norm([gradient for _, gradient in group])
        squares += torch.stack(list(norms)).double().square().sum() / holders
    norm = layout.world.sum(squares)[0] ** 0.5
    if not norm <= limit:
        torch._foreach_mul_([gradient for _, gradient in pieces], limit / (norm + 1e-6))
    return norm


def local(tensor: Tensor) -> Tensor:
    """The piece of it that this worker holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
