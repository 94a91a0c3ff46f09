"""transformers' LlamaForCausalLM in the common steps."""

from __future__ import annotations

import torch
from steps import case, measure
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {
    "embedding": "model.embed_tokens", "blocks": "model.layers", "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm", "attention": "self_attn", "feed_forward": "mlp", "query": "q_proj",
    "key": "k_proj", "value": "v_proj", "output": "o_proj", "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
    "norm": "model.norm", "head": "lm_head",
}  # fmt: skip

given, weights = case()
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=given.vocab_size,
        hidden_size=given.width,
        intermediate_size=given.ffn_width,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.heads,
        max_position_embeddings=given.row_tokens,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
).train()
model.load_state_dict({".".join(NAMES.get(part, part) for part in name.split(".")): tensor for name, tensor in weights.items()})
run = torch.compile(model) if given.compile else model


def loss(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean nats per token, by the library's own loss."""
    return run(input_ids=tokens_BT, labels=targets_BT, shift_labels=targets_BT).loss


measure(given, model, loss)
