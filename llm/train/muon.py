"""Muon: momentum whose singular values are all made about 1 before it moves a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter
from torch.optim import Optimizer

ITERATIONS = 5
A, B, C = 3.4445, -4.7750, 2.0315  # of the polynomial A x + B x³ + C x⁵, steep at 0: singular values end near 1, not at it
BATCH_ELEMENTS = 2**20  # larger batches of matrices gain nothing over one matrix at a time


class Muon(Optimizer):
    """Moves matrices, and each matrix of a stack such as the experts of a layer, along their orthogonalised momentum.

    It does what torch.optim.Muon does, and beyond that takes stacks and sharded parameters, and multiplies matrices of
    one shape together: those of a small model are too small for one product each to fill the chip.

    Source: https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(self, params: Any, *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure is ever called
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            rate, decay = group["lr"], 1 - group["lr"] * group["weight_decay"]
            for parameters in _batches([parameter for parameter in group["params"] if parameter.grad is not None]):
                momenta = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
                rows, columns = momenta.shape[-2:]
                for parameter, direction in zip(parameters, orthogonalised(momenta), strict=True):
                    parameter.mul_(decay).add_(_sharded_as(parameter, direction), alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def _momentum(self, parameter: Parameter, momentum: float) -> Tensor:
        """Nesterov's look ahead from the running mean of gradients; a sharded one whole."""
        state, gradient = self.state[parameter], cast(Tensor, parameter.grad)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        ahead = gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum).bfloat16()
        return ahead.full_tensor() if isinstance(ahead, DTensor) else ahead


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ, by Newton–Schulz iterations in bfloat16.

    Shapes: (…, rows, columns) in and out. The iteration multiplies by rows × rows matrices, so it runs on the wide side.
    """
    X = matrices.bfloat16().reshape(-1, *matrices.shape[-2:])
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = torch.bmm(X, X.mT)
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), X, beta=A)
    return (X.mT if tall else X).reshape(matrices.shape)


def _batches(parameters: list[Parameter]) -> Iterator[list[Parameter]]:
    """Parameters of one shape together, within BATCH_ELEMENTS; the order depends on nothing but theirs."""
    by_shape: dict[torch.Size, list[Parameter]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, alike in by_shape.items():
        size = max(1, BATCH_ELEMENTS // shape.numel())
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


def _sharded_as(parameter: Parameter, whole: Tensor) -> Tensor:
    """This worker's part of a tensor that every worker has computed."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
