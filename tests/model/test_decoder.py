"""The decoder against transformers' Llama with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from llm.model.config import ModelConfig
from llm.model.decoder import Decoder, count_parameters, rope, rotate

VOCAB_SIZE = 61


def config(**changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {"width": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 48, "max_positions": 64}
    return ModelConfig(**(sizes | changes))


def llama(model: Decoder) -> LlamaForCausalLM:
    """transformers' model with this decoder's sizes and weights, mapped name by name."""
    sizes = model.config
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=sizes.width,
            intermediate_size=sizes.ffn_width,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            max_position_embeddings=sizes.max_positions,
            rms_norm_eps=sizes.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
            tie_word_embeddings=sizes.tied_embeddings,
        )
    )
    names = {
        "embedding": "model.embed_tokens",
        "blocks": "model.layers",
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
        "attention": "self_attn",
        "feed_forward": "mlp",
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "output": "o_proj",
        "gate": "gate_proj",
        "up": "up_proj",
        "down": "down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    }
    mapped = {".".join(names.get(part, part) for part in name.split(".")): tensor for name, tensor in model.state_dict().items()}
    peer.load_state_dict(mapped)
    return peer.eval()


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 4}, {"num_kv_heads": 1, "tied_embeddings": False}, {"rope_theta": 500.0}])
def test_logits_are_those_of_llama(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Decoder(config(**changes), VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms away from 1, and scores that tell heads apart
        tokens_BT = torch.randint(0, VOCAB_SIZE, (3, 40))
        torch.testing.assert_close(model(tokens_BT)[0], llama(model)(tokens_BT).logits, rtol=0, atol=1e-5)


def test_a_later_token_changes_no_earlier_logit() -> None:
    torch.manual_seed(0)
    model = Decoder(config(), VOCAB_SIZE).eval()
    tokens_BT = torch.randint(0, VOCAB_SIZE, (1, 20))
    changed_BT = tokens_BT.clone()
    changed_BT[0, 12] = (tokens_BT[0, 12] + 1) % VOCAB_SIZE
    before, after = model(tokens_BT)[0], model(changed_BT)[0]
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_a_past_gives_the_logits_of_the_whole() -> None:
    torch.manual_seed(0)
    model = Decoder(config(), VOCAB_SIZE).eval()
    tokens_BT = torch.randint(0, VOCAB_SIZE, (2, 20))
    _, past = model(tokens_BT[:, :13])
    continued_BTV, _ = model(tokens_BT[:, 13:], past=past)
    torch.testing.assert_close(continued_BTV, model(tokens_BT)[0][:, 13:], rtol=0, atol=1e-6)


def test_rotated_scores_depend_on_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16)

    def score(place: int, other: int) -> float:
        turned = [rotate(x, rope(torch.tensor([[at]]), 16, 10_000.0)) for x, at in ((query, place), (key, other))]
        return (turned[0] * turned[1]).sum().item()

    assert score(3, 1) == pytest.approx(score(45, 43), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-4)


def test_parameters_are_counted_once() -> None:
    per_block = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32
    assert count_parameters(Decoder(config(), VOCAB_SIZE)) == VOCAB_SIZE * 32 + 3 * per_block + 32
    assert count_parameters(Decoder(config(tied_embeddings=False), VOCAB_SIZE)) == 2 * VOCAB_SIZE * 32 + 3 * per_block + 32


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"num_heads": 5}, "model.num_heads"),
        ({"num_kv_heads": 3}, "model.num_kv_heads"),
        ({"num_heads": 32, "num_kv_heads": 32}, "model.width"),
    ],
)
def test_sizes_that_do_not_divide_name_what_to_set(changes: dict[str, Any], setting: str) -> None:
    with pytest.raises(ValidationError, match=f"set {setting}"):
        config(**changes)
