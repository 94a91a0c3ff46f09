"""The decoder against transformers' Llama, Qwen2 and Qwen3 with the same weights."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from llm.model.config import DecoderConfig, RopeScaling
from llm.model.decoder import Block, Decoder, count_parameters, head_width, rope, rotate
from llm.model.recompute import MATMULS, Checkpointing

VOCAB_SIZE = 61


def config(**changes: Any) -> DecoderConfig:
    sizes: dict[str, Any] = {"width": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 48, "max_positions": 64}
    return DecoderConfig(**(sizes | changes))


FAMILIES: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def twin(model: Decoder, family: str = "llama") -> Any:
    """transformers' model with this decoder's sizes and weights, mapped name by name."""
    sizes = model.config
    scaling = {"rope_type": "default"}
    if sizes.rope_scaling is not None:
        names = {"kind": "rope_type", "original_max_positions": "original_max_position_embeddings"}
        scaling = {names.get(name, name): value for name, value in sizes.rope_scaling.model_dump().items()}
    settings, architecture = FAMILIES[family]
    peer = architecture(
        settings(
            vocab_size=model.vocab_size,
            hidden_size=sizes.width,
            intermediate_size=sizes.ffn_width,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            head_dim=head_width(sizes),
            max_position_embeddings=sizes.max_positions,
            rms_norm_eps=sizes.norm_epsilon,
            rope_parameters={"rope_theta": sizes.rope_theta, **scaling},
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
        "query_norm": "q_norm",
        "key_norm": "k_norm",
        "gate": "gate_proj",
        "up": "up_proj",
        "down": "down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    }
    mapped = {".".join(names.get(part, part) for part in name.split(".")): tensor for name, tensor in model.state_dict().items()}
    peer.load_state_dict(mapped)
    return peer.eval()


def shaken(model: Decoder) -> Decoder:
    """Norms away from 1, biases away from 0, and scores that tell heads apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


LLAMA3 = RopeScaling(kind="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_max_positions=16)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"num_kv_heads": 4}),
        ("llama", {"num_kv_heads": 1, "tied_embeddings": False}),
        ("llama", {"rope_theta": 500.0}),
        ("llama", {"head_dim": 12}),
        ("llama", {"rope_scaling": LLAMA3}),
        ("llama", {"rope_scaling": RopeScaling(kind="linear", factor=3)}),
        ("qwen2", {"attention_bias": True}),
        ("qwen3", {"qk_norm": True, "head_dim": 16}),
    ],
)
def test_logits_are_those_of_transformers(family: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = shaken(Decoder(config(**changes), VOCAB_SIZE))
    tokens_BT = torch.randint(0, VOCAB_SIZE, (3, 40))
    with torch.no_grad():
        expected = twin(model, family)(tokens_BT).logits
        torch.testing.assert_close(model(tokens_BT)[0], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.head(model.features(tokens_BT)), expected, rtol=0, atol=1e-5)


def test_llama3_scaling_stretches_each_kind_of_wave() -> None:
    """Fast waves stay, slow ones are divided by the factor, and some lie between, at Llama 3.1's own numbers."""
    scaling = RopeScaling(kind="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_max_positions=8192)
    place = torch.tensor([[1]])
    plain, scaled = (rope(place, 128, 500_000.0, each)[1][0, 0, 0, :64].asin() for each in (None, scaling))
    ratio = plain / scaled
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(8, rel=1e-4)
    assert ((ratio > 1.01) & (ratio < 7.99)).any()


def test_a_document_is_read_as_if_alone() -> None:
    torch.manual_seed(0)
    model = shaken(Decoder(config(), VOCAB_SIZE))
    tokens_BT = torch.randint(0, VOCAB_SIZE, (2, 20))
    documents_BT = torch.tensor([[0] * 7 + [1] * 13, [3] * 20])
    together = model.features(tokens_BT, documents_BT)
    for row, part in ((0, slice(0, 7)), (0, slice(7, 20)), (1, slice(0, 20))):
        alone = model.features(tokens_BT[row : row + 1, part])
        torch.testing.assert_close(together[row : row + 1, part], alone, rtol=0, atol=1e-5)


class Products(TorchDispatchMode):
    """Counts matrix products and attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counted += func in MATMULS
        return func(*args, **(kwargs or {}))


def gradients(checkpointing: Checkpointing) -> tuple[list[torch.Tensor], int]:
    """Of all parameters, with dropout, in bfloat16, and how many products the backward pass began anew."""
    torch.manual_seed(0)
    model = Decoder(config(dropout=0.2), VOCAB_SIZE)
    for block in cast(list[Block], model.blocks):
        block.checkpointing = checkpointing
    tokens_BT = torch.randint(0, VOCAB_SIZE, (2, 20))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.features(tokens_BT).square().mean()
    with Products() as products:
        loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], products.counted


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_recomputing_changes_no_gradient(checkpointing: Checkpointing) -> None:
    (expected, _), (found, _) = gradients("none"), gradients(checkpointing)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_selective_recomputes_no_product() -> None:
    none, selective, full = gradients("none")[1], gradients("selective")[1], gradients("full")[1]
    assert selective == none < full


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    model = Decoder(config(dropout=0.5), VOCAB_SIZE)
    tokens_BT = torch.randint(0, VOCAB_SIZE, (2, 20))
    assert not torch.equal(model.features(tokens_BT), model.features(tokens_BT))
    model.eval()
    assert torch.equal(model.features(tokens_BT), model.features(tokens_BT))


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
