"""Parameter counts: arithmetic against the modules, and both against what was published."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers as hf

from llm.model import families
from llm.model.config import parse_model
from llm.model.decoder import count_parameters
from llm.model.sizes import active_parameters, parameters
from llm.recipe import RECIPES, load

SMALL: dict[str, dict[str, Any]] = {
    "decoder": {"width": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 48},
    "moe": {"width": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 24, "num_experts": 4, "experts_per_token": 2},
    "gpt2": {"width": 32, "num_layers": 3, "num_heads": 4, "ffn_width": 48},
    "encoder": {"width": 32, "num_layers": 3, "num_heads": 4, "ffn_width": 48},
    "encoder_decoder": {"width": 32, "num_layers": 3, "num_heads": 4, "ffn_width": 48},
    "electra": {
        "width": 32,
        "num_layers": 3,
        "num_heads": 4,
        "ffn_width": 48,
        "embedding_width": 16,
        "generator": {"width": 24, "num_layers": 2, "num_heads": 2, "ffn_width": 40},
    },
}
VARIANTS = [
    *[(architecture, {}) for architecture in SMALL],
    *[(architecture, {"tied_embeddings": tied}) for architecture in SMALL if architecture != "electra" for tied in (True, False)],
    *[(architecture, {"attention_bias": True, "qk_norm": True, "head_dim": 12}) for architecture in ("decoder", "moe")],
    ("moe", {"num_shared_experts": 2, "balance": "bias"}),
    ("encoder", {"embedding_width": 16, "next_sentence": True}),
    ("encoder", {"embedding_width": 16, "tied_embeddings": False}),
    ("encoder_decoder", {"feed_forward": "relu", "head_dim": 12, "num_decoder_layers": 1}),
    ("electra", {"embedding_width": 32}),
    ("electra", {"embedding_width": 24}),
]


def built(config: Any, vocab_size: int) -> Any:
    with torch.device("meta"):
        return families.build(config, vocab_size)


@pytest.mark.parametrize(("architecture", "changes"), VARIANTS)
def test_arithmetic_counts_what_is_built(architecture: str, changes: dict[str, Any]) -> None:
    config = parse_model({"architecture": architecture, **SMALL[architecture], **changes})
    assert parameters(config, 61) == count_parameters(built(config, 61))


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_arithmetic_counts_what_recipes_build(name: str) -> None:
    recipe = load(name)
    assert parameters(recipe.model, recipe.tokenize.vocab_size) == count_parameters(built(recipe.model, recipe.tokenize.vocab_size))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-350m", 354_823_168),
        ("llama-1b", 1_235_814_400),
        ("llama-8b", 8_030_261_248),
        ("llama-70b", 70_553_706_496),
    ],
)
def test_recipes_have_the_published_size(name: str, published: int) -> None:
    recipe = load(name)
    assert parameters(recipe.model, recipe.tokenize.vocab_size) == published


def test_mixtral_has_the_published_size() -> None:
    mixtral = {"width": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "ffn_width": 14336, "tied_embeddings": False}
    config = parse_model({"architecture": "moe", **mixtral, "num_experts": 8, "experts_per_token": 2})
    assert parameters(config, 32_000) == count_parameters(built(config, 32_000)) == 46_702_792_704
    assert round(active_parameters(config, 32_000) / 1e9, 1) == 12.9  # https://arxiv.org/abs/2401.04088, section 1


def test_bert_is_as_large_as_that_of_transformers() -> None:
    with torch.device("meta"):
        whole, masked = hf.BertForPreTraining(hf.BertConfig()), hf.BertForMaskedLM(hf.BertConfig())
    config = load("bert-base").model
    assert parameters(config, 30_522) == whole.num_parameters() == 110_106_428
    assert parameters(config.model_copy(update={"next_sentence": False}), 30_522) == masked.num_parameters() == 109_514_298


def test_t5_is_as_large_as_that_of_transformers() -> None:
    """transformers 5 ties the head of every T5; version 1.1 was published with one of its own."""
    sizes = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu", "vocab_size": 32_128}
    with torch.device("meta"):
        tied = hf.T5ForConditionalGeneration(hf.T5Config(**sizes))
    assert tied.lm_head.weight is tied.shared.weight
    assert parameters(load("t5-base").model, 32_128) == tied.num_parameters() + 32_128 * 768 == 247_577_856


def test_electra_is_as_large_as_those_of_transformers() -> None:
    """ELECTRA-small: two models of transformers over one set of embeddings, the smaller a quarter as wide."""
    small = {"architecture": "electra", "width": 256, "num_layers": 12, "num_heads": 4, "ffn_width": 1024, "embedding_width": 128}
    generator = {"width": 64, "num_layers": 12, "num_heads": 1, "ffn_width": 256}
    with torch.device("meta"):
        judge = hf.ElectraForPreTraining(hf.ElectraConfig())
        writer = hf.ElectraForMaskedLM(hf.ElectraConfig(hidden_size=64, num_attention_heads=1, intermediate_size=256))
    shared = sum(parameter.numel() for parameter in judge.electra.embeddings.parameters())
    expected = judge.num_parameters() + writer.num_parameters() - shared
    assert parameters(parse_model({**small, "generator": generator}), 30_522) == expected


def test_a_token_of_a_dense_model_meets_all_of_it() -> None:
    config = load("tiny").model
    assert active_parameters(config, 4096) == parameters(config, 4096)


def test_counting_needs_no_torch() -> None:
    code = "import llm.model.sizes, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
