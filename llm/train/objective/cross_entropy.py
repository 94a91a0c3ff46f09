"""Linear layer and softmax cross-entropy of the output head, a chunk of positions at a time.

N positions, D model width, V vocabulary. M is 1, or 2 with z-loss: gradients of the nats, then of the squares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm.data.rows import IGNORED

CHUNK_LOGITS = 2**26  # 2,048 positions at a vocabulary of 32,768; fewer multiply slower, more only take memory
CACHED_FLOATS = 2**19  # fill a core's second-level cache, in which a softmax runs in a third of the time


def cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, *, z_loss: bool = True
) -> tuple[Tensor, Tensor]:
    """Summed nats of the counted targets, and their summed squared log-sums of the logits.

    The logits of all positions never exist together, and positions that don't count are never multiplied. Without
    `z_loss` the squares are a bare number, which saves two matrix products of five.
    """
    counted_N = (targets_N != IGNORED).nonzero().flatten()
    if len(counted_N) < len(targets_N):
        x_ND, targets_N = x_ND.index_select(0, counted_N), targets_N.index_select(0, counted_N)
    nats, squares = CrossEntropy.apply(x_ND, weight_VD, bias_V, targets_N, z_loss, torch.is_grad_enabled())
    return nats, squares


class CrossEntropy(torch.autograd.Function):
    """The two sums; each chunk is differentiated in the forward pass, while its logits are at hand.

    Source: Liger, https://arxiv.org/abs/2410.10989, section 3.2.
    """

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, z_loss: bool, differentiate: bool
    ) -> tuple[Tensor, Tensor]:
        device, (V, D), M = x_ND.device.type, weight_VD.shape, (1 + z_loss) * differentiate
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
        exact = torch.promote_types(dtype, torch.float32)
        grad_x_MND = x_ND.new_empty(M, *x_ND.shape)
        grad_weight_MDV = x_ND.new_zeros(M if ctx.needs_input_grad[1] else 0, D, V, dtype=exact)
        grad_bias_MV = x_ND.new_zeros(M if ctx.needs_input_grad[2] else 0, V, dtype=exact)
        nats, squares = x_ND.new_zeros(2, dtype=exact)
        weight = weight_VD.to(dtype)
        size = max(1, CHUNK_LOGITS // V)
        buffer = x_ND.new_empty(min(size, len(targets_N)), V, dtype=dtype)  # fresh pages cost as much as the product that fills them
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets_N), size):
                rows = slice(start, start + size)
                x, targets_N1 = x_ND[rows].to(dtype), targets_N[rows, None]
                logits_NV = torch.mm(x, weight.t(), out=buffer[: len(x)])
                if bias_V is not None:
                    logits_NV += bias_V
                picked_N1 = logits_NV.gather(1, targets_N1).to(exact)
                gradient_NV, log_sums_N1 = softmax_minus_one_hot(logits_NV, targets_N1, exact)
                nats += (log_sums_N1 - picked_N1).sum()
                squares += log_sums_N1.square().sum()
                for term in range(M):
                    if term == 1:  # of the squares: 2 · log-sum · softmax
                        gradient_NV.scatter_(1, targets_N1, (picked_N1 - log_sums_N1).exp().to(dtype)).mul_(2 * log_sums_N1)
                    grad_x_MND[term, rows] = gradient_NV @ weight
                    for grad_weight_DV in grad_weight_MDV[term : term + 1]:
                        add(grad_weight_DV, x.t().contiguous() @ gradient_NV)
                    for grad_bias_V in grad_bias_MV[term : term + 1]:
                        grad_bias_V += gradient_NV.sum(0, dtype=exact)
        ctx.save_for_backward(grad_x_MND, grad_weight_MDV, grad_bias_MV)
        ctx.dtypes = weight_VD.dtype, bias_V.dtype if bias_V is not None else None
        if not z_loss:
            ctx.mark_non_differentiable(squares)
        return nats, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nats: Tensor, grad_squares: Tensor) -> tuple[Tensor | None, ...]:
        grad_x_MND, grad_weight_MDV, grad_bias_MV = ctx.saved_tensors
        slopes_M = torch.stack((grad_nats, grad_squares))[: len(grad_x_MND)]
        grad_x, grad_weight, grad_bias = (
            torch.tensordot(slopes_M.to(gradient.dtype), gradient, dims=1) if len(gradient) else None
            for gradient in (grad_x_MND, grad_weight_MDV, grad_bias_MV)
        )
        return grad_x, None if grad_weight is None else grad_weight.t(), grad_bias, None, None, None


def softmax_minus_one_hot(logits_NV: Tensor, targets_N1: Tensor, exact: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nats' gradient in place of the logits, and the logits' log-sums, computed in `exact`.

    On a CPU by few rows at a time, which stay in its cache from the first pass to the last.
    """
    size = max(1, CACHED_FLOATS // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else max(1, len(logits_NV))
    log_sums = []
    for rows_NV, rows_N1 in zip(logits_NV.split(size), targets_N1.split(size), strict=True):
        shares_NV = rows_NV.to(exact)
        most_N1 = shares_NV.amax(dim=1, keepdim=True)
        total_N1 = shares_NV.sub_(most_N1).exp_().sum(dim=1, keepdim=True)
        shares_NV.div_(total_N1).scatter_add_(1, rows_N1, shares_NV.new_full(rows_N1.shape, -1))
        rows_NV.copy_(shares_NV)
        log_sums.append(most_N1 + total_N1.log())
    return logits_NV, torch.cat(log_sums)


def add(total_DV: Tensor, part_DV: Tensor) -> None:
    """total += part. A sum of two types converts number by number on a CPU, unless it is converted first, within the cache."""
    size = max(1, 2 * CACHED_FLOATS // total_DV.shape[1]) if total_DV.device.type == "cpu" else len(total_DV)
    for rows, more in zip(total_DV.split(size), part_DV.split(size), strict=True):
        rows += more.to(rows.dtype)
