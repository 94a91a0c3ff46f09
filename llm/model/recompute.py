"""Activation checkpointing: what a layer keeps for the backward pass, and what it computes again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

Checkpointing = Literal["none", "selective", "full"]

aten = torch.ops.aten
MATMULS = [
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def checkpointed(layer: Callable[..., Tensor], kept: Checkpointing, *inputs: object) -> Tensor:
    """layer(*inputs), of which the backward pass finds everything, the outputs of matrix products, or the inputs alone.

    `selective` computes norms, activations and rotations again, which costs little beside the products that it keeps.

    Source: selective recomputation, https://arxiv.org/abs/2205.05198, section 5.
    """
    if kept == "none" or not torch.is_grad_enabled():
        return layer(*inputs)
    contexts = partial(create_selective_checkpoint_contexts, MATMULS) if kept == "selective" else noop_context_fn
    output: Tensor = checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)
    return output
