"""nanoGPT's model in the common steps."""

from __future__ import annotations

import sys

import torch
from nanogpt_source import source
from steps import case, measure
from torch import Tensor

sys.path.insert(0, str(source()))
from model import GPT, GPTConfig

given, weights = case()
model = GPT(
    GPTConfig(
        block_size=given.row_tokens,
        vocab_size=given.vocab_size,
        n_layer=given.layers,
        n_head=given.heads,
        n_embd=given.width,
        dropout=0.0,
        bias=True,
    )
).train()
NAMES = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2", "attention.output": "attn.c_proj", "feed_forward.up": "mlp.c_fc",
         "feed_forward.down": "mlp.c_proj"}  # fmt: skip
mapped = {"transformer.wte.weight": weights["embedding.weight"], "lm_head.weight": weights["head.weight"]}
mapped["transformer.wpe.weight"] = weights["position_embedding.weight"]
for kind in ("weight", "bias"):
    mapped[f"transformer.ln_f.{kind}"] = weights[f"norm.{kind}"]
    for layer in range(given.layers):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        parts = [weights[f"{ours}attention.{part}.{kind}"] for part in ("query", "key", "value")]
        mapped[f"{theirs}attn.c_attn.{kind}"] = torch.cat(parts)
        mapped |= {f"{theirs}{name}.{kind}": weights[f"{ours}{part}.{kind}"] for part, name in NAMES.items()}
model.load_state_dict(mapped)
run = torch.compile(model) if given.compile else model


def loss(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean nats per token, by the model's own loss."""
    return run(tokens_BT, targets_BT)[1]


measure(given, model, loss)
