"""litgpt's GPT with a Llama configuration in the common steps."""

from __future__ import annotations

import torch
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy
from steps import case, measure
from torch import Tensor

given, weights = case()
model = GPT(
    Config(
        name="llama",
        block_size=given.row_tokens,
        padded_vocab_size=given.vocab_size,
        vocab_size=given.vocab_size,
        n_layer=given.layers,
        n_head=given.heads,
        n_query_groups=given.heads,
        n_embd=given.width,
        intermediate_size=given.ffn_width,
        rotary_percentage=1.0,
        rope_base=10_000,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-5,
        mlp_class_name="LLaMAMLP",
    )
).train()
model.lm_head.weight = model.transformer.wte.weight

NAMES = {"attention_norm": "norm_1", "feed_forward_norm": "norm_2", "attention.output": "attn.proj", "feed_forward.gate": "mlp.fc_1",
         "feed_forward.up": "mlp.fc_2", "feed_forward.down": "mlp.proj"}  # fmt: skip
mapped = {"transformer.wte.weight": weights["embedding.weight"], "lm_head.weight": weights["head.weight"]}
mapped["transformer.ln_f.weight"] = weights["norm.weight"]
for layer in range(given.layers):
    ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
    parts = [weights[f"{ours}attention.{part}.weight"] for part in ("query", "key", "value")]
    mapped[f"{theirs}attn.qkv.weight"] = torch.cat(parts)
    mapped |= {f"{theirs}{name}.weight": weights[f"{ours}{part}.weight"] for part, name in NAMES.items()}
model.load_state_dict(mapped)
run = torch.compile(model) if given.compile else model


def loss(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean nats per token, by the library's own loss."""
    return chunked_cross_entropy(run(tokens_BT), targets_BT)


measure(given, model, loss)
