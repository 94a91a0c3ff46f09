"""Tensor parallelism: every worker holds some heads and some feed-forward columns, and in between a part of the sequence.

Source: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; sequence parallelism, https://arxiv.org/abs/2205.05198, section 4.2.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llm.train.parallel.layout import Layout

OTHER_ARGUMENTS = {"decoder": 3, "gpt2": 2}  # of attention, behind the residual stream


def cut_matrices(model: Any, layout: Layout) -> None:
    """Leave this worker its columns of what reads the residual stream and its rows of what writes to it.

    Embedding, last norm and head stay whole: each worker embeds and scores its own part of the sequence, which keeps the
    logits as small as a cut through the vocabulary would.
    """
    mesh, others = layout.mesh["tp"], OTHER_ARGUMENTS[model.config.architecture]
    for block in model.blocks:
        parallelize_module(block, mesh, {name: style for name, style in _styles(others).items() if _has(block, name)})


def _styles(others: int) -> dict[str, ParallelStyle]:
    """How each part of a block is cut. The whole sequence is gathered before attention and feed-forward, and scattered behind them."""
    columns, rows = ColwiseParallel(), RowwiseParallel(output_layouts=Shard(1))
    per_head = SequenceParallel(sequence_dim=1, use_local_output=True)  # B, heads, T, C: sharded by heads
    return {
        "attention_norm": SequenceParallel(use_local_output=True),
        "attention": _gathered(others),
        "attention.query": columns,
        "attention.key": columns,
        "attention.value": columns,
        "attention.query_norm": per_head,
        "attention.key_norm": per_head,
        "attention.output": rows,
        "feed_forward_norm": SequenceParallel(use_local_output=True),
        "feed_forward": _gathered(0),
        "feed_forward.gate": columns,
        "feed_forward.up": columns,
        "feed_forward.down": rows,
    }


def _gathered(others: int) -> PrepareModuleInput:
    rest = (None,) * others
    return PrepareModuleInput(input_layouts=(Shard(1), *rest), desired_input_layouts=(Replicate(), *rest))


def _has(module: nn.Module, name: str) -> bool:
    """Whether there is something to cut: an Identity, or a layer on another pipeline stage, has no parameters."""
    try:
        return any(True for _ in module.get_submodule(name).parameters())
    except AttributeError:
        return False
