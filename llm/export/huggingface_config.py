"""The `config.json` of transformers for each of our architectures: llm/model/pretrained_config.py the other way round.

A configuration is trusted only as far as it reads back as the model that it was written for (`check_expressible`), so
that what a class of transformers can't compute is refused and never written as something close to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llm.errors import ArtifactError, RecipeError
from llm.model.config import (
    ElectraConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    Gpt2Config,
    LlamaSizes,
    ModelConfig,
    MoeConfig,
    RopeScaling,
)
from llm.model.pretrained_config import model_section

Document = dict[str, Any]
OF_TRAINING = {"dropout", "balance", "balance_weight", "bias_rate", "z_weight", "capacity_factor", "generator"}  # no answer depends on them


def document(config: ModelConfig, vocab_size: int, ids: Mapping[str, Any]) -> Document:
    """A model's sizes as transformers names them; the nearest class where none computes the same."""
    architecture, sizes = WRITERS[config.architecture](config)
    kind = MODEL_TYPES[architecture]
    types = {"dtype": "float32", "torch_dtype": "float32"}  # the second is what older versions read
    return {**sizes, **ids, **types, "architectures": [architecture], "model_type": kind, "vocab_size": vocab_size}


def check_expressible(config: ModelConfig, written: Document) -> None:
    """Refuse a model that no class of transformers computes.

    Raises: RecipeError with the settings in question.
    """
    try:
        back = _answering(model_section(written)[1])
    except ArtifactError as error:
        raise RecipeError("no class of transformers computes this model", value=str(error.value), remedy="serve its ONNX folder") from error
    ours = _answering(config)
    if differing := [f"model.{name} {ours[name]}" for name in ours if ours[name] != back.get(name)]:
        remedy = "change that, or serve its ONNX folder"
        raise RecipeError("no class of transformers computes this model", value=", ".join(differing), remedy=remedy)


def _answering(config: ModelConfig) -> Document:
    """The settings that a model's answers depend on, defaults spelled out."""
    settings = config.model_dump(mode="json", exclude=OF_TRAINING)
    if isinstance(config, LlamaSizes):
        settings["head_dim"] = _head_dim(config)
    if isinstance(config, MoeConfig):
        settings["selection_bias"] = config.balance == "bias"
    if isinstance(config, EncoderConfig):
        settings["embedding_width"] = config.embedding_width or config.width
    if isinstance(config, EncoderDecoderConfig):
        settings |= {"head_dim": _head_dim(config), "num_decoder_layers": config.num_decoder_layers or config.num_layers}
    return settings


def _decoder(config: LlamaSizes) -> tuple[str, Document]:
    architecture = "Qwen3ForCausalLM" if config.qk_norm else "Qwen2ForCausalLM" if config.attention_bias else "LlamaForCausalLM"
    return architecture, {**_llama_sizes(config), "intermediate_size": config.ffn_width}


def _moe(config: MoeConfig) -> tuple[str, Document]:
    shared = {**_llama_sizes(config), "num_experts_per_tok": config.experts_per_token, "router_aux_loss_coef": config.balance_weight}
    if config.normalised_shares and not config.qk_norm:
        return "MixtralForCausalLM", {**shared, "intermediate_size": config.ffn_width, "num_local_experts": config.num_experts}
    return "Qwen3MoeForCausalLM", {
        **shared,
        "intermediate_size": config.ffn_width,
        "moe_intermediate_size": config.ffn_width,
        "num_experts": config.num_experts,
        "norm_topk_prob": config.normalised_shares,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _llama_sizes(config: LlamaSizes) -> Document:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": _head_dim(config),
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **_rope_type(config.rope_scaling)},
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "use_cache": True,
    }


def _rope_type(scaling: RopeScaling | None) -> Document:
    if scaling is None:
        return {"rope_type": "default"}
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }


def _gpt2(config: Gpt2Config) -> tuple[str, Document]:
    return "GPT2LMHeadModel", {
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_width,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": "gelu_new",
        "tie_word_embeddings": config.tied_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "use_cache": True,
    }


def _encoder(config: EncoderConfig) -> tuple[str, Document]:
    """A generator of ELECTRA is a BERT whose embeddings may be narrower."""
    if config.embedding_width not in (None, config.width):
        return "ElectraForMaskedLM", {**_bert_sizes(config), "embedding_size": config.embedding_width}
    return "BertForPreTraining" if config.next_sentence else "BertForMaskedLM", _bert_sizes(config)


def _electra(config: ElectraConfig) -> tuple[str, Document]:
    return "ElectraForPreTraining", {**_bert_sizes(config), "embedding_size": config.embedding_width}


def _bert_sizes(config: EncoderConfig | ElectraConfig) -> Document:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_segments,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def _t5(config: EncoderDecoderConfig) -> tuple[str, Document]:
    return "T5ForConditionalGeneration", {
        "d_model": config.width,
        "d_kv": _head_dim(config),
        "d_ff": config.ffn_width,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers or config.num_layers,
        "num_heads": config.num_heads,
        "feed_forward_proj": config.feed_forward.replace("_", "-"),
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "dropout_rate": config.dropout,
        "tie_word_embeddings": config.tied_embeddings,
        "is_encoder_decoder": True,
        "use_cache": True,
    }


def _head_dim(config: LlamaSizes | EncoderDecoderConfig) -> int:
    return config.head_dim or config.width // config.num_heads


WRITERS: Mapping[str, Callable[[Any], tuple[str, Document]]] = {
    "decoder": _decoder,
    "gpt2": _gpt2,
    "moe": _moe,
    "encoder": _encoder,
    "encoder_decoder": _t5,
    "electra": _electra,
}
MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "GPT2LMHeadModel": "gpt2",
    "BertForMaskedLM": "bert",
    "BertForPreTraining": "bert",
    "ElectraForMaskedLM": "electra",
    "ElectraForPreTraining": "electra",
    "T5ForConditionalGeneration": "t5",
}
