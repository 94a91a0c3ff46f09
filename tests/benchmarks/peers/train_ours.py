"""Trainyard's model, head and learner in the common steps."""

from __future__ import annotations

import torch
from steps import case, measure
from torch import Tensor

from llm.model.config import DecoderConfig, Gpt2Config
from llm.model.decoder import Decoder
from llm.model.gpt2 import Gpt2
from llm.train.allocator import keep_freed_memory
from llm.train.batch import Batch
from llm.train.learner import Learner
from llm.train.objective.next_token import NextToken

keep_freed_memory()
given, weights = case()
sizes = {"width": given.width, "num_layers": given.layers, "num_heads": given.heads, "max_positions": given.row_tokens}
if given.family == "gpt2":
    model: torch.nn.Module = Gpt2(Gpt2Config(ffn_width=4 * given.width, **sizes), given.vocab_size)
else:
    model = Decoder(DecoderConfig(num_kv_heads=given.heads, ffn_width=given.ffn_width, **sizes), given.vocab_size)
model.load_state_dict(weights)
if given.compile:
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile()
learner = Learner(model, NextToken(), torch.bfloat16 if given.dtype == "bf16" else torch.float32).train()


def loss(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean nats per token."""
    return learner(Batch({"tokens_BT": tokens_BT}, targets_BT, {}))["loss"] / targets_BT.numel()


measure(given, model, loss)
