"""Context parallelism: every worker holds a part of each sequence, and attention gathers the keys and values of the others.

Source: Llama 3, https://arxiv.org/abs/2407.21783, section 3.3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_single_autograd
from torch.overrides import TorchFunctionMode

from llm.train.parallel.layout import Layout


def cut_sequence(model: Any, layout: Layout) -> None:
    """Let embeddings look up the positions of this worker alone, and blocks turn heads by their context part's angles."""

    def own_tokens(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][:, layout.positions(args[0].shape[1])],)

    def own_angles(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_angles(arg, layout) if isinstance(arg, tuple) else arg for arg in args)

    for name in ("embedding", "position_embedding"):
        if hasattr(model, name):
            getattr(model, name).register_forward_pre_hook(own_tokens)
    for block in model.blocks:
        block.register_forward_pre_hook(own_angles)


def _angles(rotation: tuple[Tensor, ...], layout: Layout) -> tuple[Tensor, ...]:
    positions = layout.context_positions(rotation[0].shape[2])
    return tuple(part[:, :, positions] for part in rotation)


class WholeContext(TorchFunctionMode):
    """Inside it, causal attention reaches tokens that other workers hold."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self.attend(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **rest: Any,
    ) -> Tensor:
        """Each of this worker's two chunks of queries on the keys and values up to its own end."""
        parts, rank = self.layout.sizes["cp"], self.layout.ranks["cp"]
        key, value = self.gather(key), self.gather(value)
        attended = []
        for chunk, queries in zip((rank, 2 * parts - 1 - rank), query.chunk(2, dim=2), strict=True):
            length = queries.shape[2]
            end = (chunk + 1) * length
            mask = torch.ones(length, end, dtype=torch.bool, device=query.device).tril(end - length)
            attended.append(F.scaled_dot_product_attention(queries, key[:, :, :end], value[:, :, :end], mask, dropout_p, **rest))
        return torch.cat(attended, dim=2)

    def gather(self, part: Tensor) -> Tensor:
        """Keys or values of the whole sequence, in its order; B, heads, S, C."""
        parts = self.layout.sizes["cp"]
        held = [chunk for rank in range(parts) for chunk in (rank, 2 * parts - 1 - rank)]
        chunks = all_gather_single_autograd(part.contiguous(), 2, self.layout.group("cp")).chunk(2 * parts, dim=2)
        return torch.cat([chunks[held.index(chunk)] for chunk in range(2 * parts)], dim=2)
