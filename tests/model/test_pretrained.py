"""Public checkpoints: transformers' own models, saved by transformers, opened by us, logit for logit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.errors import ArtifactError
from llm.model.config import RopeScaling
from llm.model.pretrained import config_of, load

VOCAB_SIZE = 61
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def published(model: str, folder: Path, **sizes: Any) -> Any:
    """A randomly weighted model of transformers, and the folder that it saves itself to."""
    torch.manual_seed(0)
    theirs = getattr(hf, model)(getattr(hf, model).config_class(vocab_size=VOCAB_SIZE, **sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms away from 1, biases from 0, scores that tell heads apart
    theirs.save_pretrained(folder)
    return theirs


def tokens(rows: int = 3, length: int = 40, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("LlamaForCausalLM", LLAMA),
        ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
        ("LlamaForCausalLM", LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}, "head_dim": 12}),
        ("MistralForCausalLM", LLAMA | {"sliding_window": 48}),
        ("Qwen2ForCausalLM", LLAMA | {"tie_word_embeddings": True}),
        ("Qwen3ForCausalLM", LLAMA | {"head_dim": 16}),
        ("MixtralForCausalLM", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Qwen3MoeForCausalLM", LLAMA | {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False}),
        ("Qwen3MoeForCausalLM", LLAMA | {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True}),
        ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    ],
)
@torch.inference_mode()
def test_decoders_have_the_logits_of_transformers(model: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    theirs = published(model, tmp_path, **sizes)
    ours, expected = load(tmp_path), theirs(tokens()).logits
    close(ours(tokens())[0], expected)
    close(ours.head(ours.features(tokens())), expected)
    assert ours.config == config_of(tmp_path)


@torch.inference_mode()
def test_documents_in_a_row_are_documents_alone(tmp_path: Path) -> None:
    theirs = published("GPT2LMHeadModel", tmp_path, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ours, documents_BT = load(tmp_path), torch.tensor([[0] * 15 + [1] * 25])
    logits_BTV = ours.head(ours.features(tokens(1), documents_BT=documents_BT))
    close(logits_BTV[:, :15], theirs(tokens(1)[:, :15]).logits)
    close(logits_BTV[:, 15:], theirs(tokens(1)[:, 15:]).logits)


@torch.inference_mode()
def test_gpt2_continues_from_a_past(tmp_path: Path) -> None:
    theirs = published("GPT2LMHeadModel", tmp_path, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ours = load(tmp_path)
    _, past = ours(tokens()[:, :13])
    close(ours(tokens()[:, 13:], past=past)[0], theirs(tokens()).logits[:, 13:])


@torch.inference_mode()
def test_bert_has_the_logits_of_transformers(tmp_path: Path) -> None:
    theirs = published("BertForPreTraining", tmp_path, **BERT)
    ours, segments_BT = load(tmp_path), (torch.arange(40) > 20).long().expand(3, -1)
    mask_BT = (torch.arange(40) < torch.tensor([40, 33, 7])[:, None]).long()
    expected = theirs(tokens(), token_type_ids=segments_BT, attention_mask=mask_BT)
    x_BTD = ours.encode(tokens(), segments_BT=segments_BT, documents_BT=mask_BT)
    close(ours.head(ours.transform(x_BTD))[mask_BT.bool()], expected.prediction_logits[mask_BT.bool()])
    close(ours.follows(x_BTD), expected.seq_relationship_logits)
    close(ours(tokens()), theirs(tokens()).prediction_logits)


@torch.inference_mode()
def test_bert_without_the_second_head(tmp_path: Path) -> None:
    theirs = published("BertForMaskedLM", tmp_path, **BERT)
    close(load(tmp_path)(tokens()), theirs(tokens()).logits)


@pytest.mark.parametrize("embedding_size", [16, 32])
@torch.inference_mode()
def test_electra_tells_what_transformers_tells(embedding_size: int, tmp_path: Path) -> None:
    theirs = published("ElectraForPreTraining", tmp_path / "discriminator", **BERT, embedding_size=embedding_size)
    mask_BT = (torch.arange(40) < torch.tensor([40, 33, 7])[:, None]).long()
    ours, expected = load(tmp_path / "discriminator"), theirs(tokens(), attention_mask=mask_BT).logits
    close(ours(tokens(), documents_BT=mask_BT)[mask_BT.bool()], expected[mask_BT.bool()])
    assert ours.head(ours.features(tokens())).shape == (3, 40, VOCAB_SIZE)
    assert ours.head.weight is ours.embedding.weight
    generator = published("ElectraForMaskedLM", tmp_path / "generator", **BERT, embedding_size=embedding_size)
    close(load(tmp_path / "generator")(tokens()), generator(tokens()).logits)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_t5_has_the_logits_of_transformers(feed_forward: str, tied: bool, tmp_path: Path) -> None:
    theirs = published("T5ForConditionalGeneration", tmp_path, **T5, feed_forward_proj=feed_forward, tie_word_embeddings=tied)
    if not tied:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB_SIZE, 32))
        theirs.save_pretrained(tmp_path)
    mask_BS = (torch.arange(40) < torch.tensor([40, 33, 7])[:, None]).long()
    decoder_BT, ours = tokens(length=30, seed=2), load(tmp_path)
    assert ours.config.tied_embeddings == tied
    close(ours(tokens(), decoder_BT), theirs(input_ids=tokens(), decoder_input_ids=decoder_BT).logits)
    logits_BTV = ours(tokens(), decoder_BT, documents_BS=mask_BS, decoder_documents_BT=torch.ones_like(decoder_BT))
    close(logits_BTV, theirs(input_ids=tokens(), attention_mask=mask_BS, decoder_input_ids=decoder_BT).logits)


@torch.inference_mode()
def test_shards_are_read_as_one(tmp_path: Path) -> None:
    theirs = published("LlamaForCausalLM", tmp_path, **LLAMA)
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    close(load(tmp_path)(tokens())[0], theirs(tokens()).logits)
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(ArtifactError, match="weights can't be read"):
        load(tmp_path)


@torch.inference_mode()
def test_bert_was_published_with_other_names(tmp_path: Path) -> None:
    """gamma and beta, positions as a buffer, and heads that a masked model ignores."""
    theirs = published("BertForPreTraining", tmp_path, **BERT)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(old | {"bert.embeddings.position_ids": torch.arange(48)[None]}, tmp_path / "model.safetensors")
    change(tmp_path, architectures=["BertForMaskedLM"])
    close(load(tmp_path)(tokens()), theirs(tokens()).prediction_logits)


@torch.inference_mode()
def test_gpt2_was_published_with_other_names(tmp_path: Path) -> None:
    """No prefix, and the causal mask as a buffer."""
    theirs = published("GPT2LMHeadModel", tmp_path, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    old = {name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(old | {"h.0.attn.bias": torch.ones(1, 1, 64, 64).tril()}, tmp_path / "model.safetensors")
    close(load(tmp_path)(tokens())[0], theirs(tokens()).logits)


@torch.inference_mode()
def test_t5_was_published_with_copies(tmp_path: Path) -> None:
    """The embedding three times, and a bias that no attention reads."""
    theirs = published("T5ForConditionalGeneration", tmp_path, **T5)
    old = load_file(tmp_path / "model.safetensors")
    copies = {f"{side}.embed_tokens.weight": old["shared.weight"].clone() for side in ("encoder", "decoder")}
    unread = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 4)}
    save_file(old | copies | unread | {"lm_head.weight": old["shared.weight"].clone()}, tmp_path / "model.safetensors")
    close(load(tmp_path)(tokens(), tokens(seed=2)), theirs(input_ids=tokens(), decoder_input_ids=tokens(seed=2)).logits)


def test_older_configurations_write_positions_apart(tmp_path: Path) -> None:
    published("LlamaForCausalLM", tmp_path, **LLAMA, rope_parameters=LLAMA3)
    expected = config_of(tmp_path)
    scaling = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    change(tmp_path, rope_parameters=None, rope_theta=10_000.0, rope_scaling=scaling)
    assert config_of(tmp_path) == expected
    assert expected.rope_scaling is not None
    change(tmp_path, rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=500_000.0)
    assert config_of(tmp_path).rope_scaling == RopeScaling(kind="linear", factor=2.0)
    assert config_of(tmp_path).rope_theta == 500_000


@torch.inference_mode()
def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    published("LlamaForCausalLM", tmp_path, **LLAMA).bfloat16().save_pretrained(tmp_path)
    ours, theirs = load(tmp_path), hf.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    close(ours(tokens())[0], theirs(tokens()).logits)


def test_an_index_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    published("LlamaForCausalLM", tmp_path / "inside", **LLAMA)
    (tmp_path / "inside" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (tmp_path / "inside" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(ArtifactError, match="weights can't be read"):
        load(tmp_path / "inside")


def change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_pickled_checkpoint_is_never_opened(tmp_path: Path) -> None:
    published("LlamaForCausalLM", tmp_path, **LLAMA)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"pickled.*pytorch_model.bin; get the checkpoint's safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "mamba"}, "unknown: mamba; one of llama"),
        ({"hidden_act": "relu"}, "hidden_act = relu"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "unknown: yarn"),
        ({"hidden_size": None}, "config.json can't be read"),
        ({"hidden_size": 64}, "weights don't fit"),
        ({"num_hidden_layers": 1}, "weights don't fit"),
        ({"num_hidden_layers": 3}, "weights don't fit"),
    ],
)
def test_what_cannot_be_expressed_is_refused_in_one_line(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    published("LlamaForCausalLM", tmp_path, **LLAMA)
    change(tmp_path, **settings)
    with pytest.raises(ArtifactError) as caught:
        load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="config.json can't be read"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="config.json can't be read"):
        config_of(tmp_path)


@pytest.mark.parametrize("window", [16, None])
def test_positions_end_where_a_window_would_change_attention(window: int | None, tmp_path: Path) -> None:
    published("MistralForCausalLM", tmp_path, **LLAMA, sliding_window=window)
    assert config_of(tmp_path).max_positions == (window or 64)
