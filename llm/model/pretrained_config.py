"""The `config.json` of a public checkpoint as a `model` section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llm.errors import ArtifactError
from llm.model.config import ModelConfig, parse_model

REMEDY = "get the checkpoint again, or choose another one"
Document = Mapping[str, Any]


def model_section(document: Document) -> tuple[str, ModelConfig]:
    """Which table of weight names a checkpoint follows, and its sizes.

    Raises: ArtifactError if the checkpoint needs what llm/model can't express.
    """
    kind = document["model_type"]
    if kind not in READERS:
        raise ArtifactError(
            "architecture of the public checkpoint is unknown", value=kind, remedy=f"one of {', '.join(READERS)} can be read"
        )
    section = READERS[kind](document)
    names = "electra_encoder" if kind == "electra" and section["architecture"] == "encoder" else kind
    return names, parse_model(section)


def _llama(document: Document) -> dict[str, Any]:
    _require(document, "hidden_act", "silu")
    _require(document, "mlp_bias", False)
    _require(document, "attention_bias", False)
    window = document.get("sliding_window") if document.get("use_sliding_window", True) else None
    longest = document["max_position_embeddings"]
    theta, scaling = rope_of(document)
    return {
        "architecture": "decoder",
        "width": document["hidden_size"],
        "num_layers": document["num_hidden_layers"],
        "num_heads": document["num_attention_heads"],
        "num_kv_heads": document.get("num_key_value_heads") or document["num_attention_heads"],
        "head_dim": document.get("head_dim"),
        "ffn_width": document["intermediate_size"],
        "max_positions": min(longest, window or longest),  # within the window, attention is what it is without one
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_epsilon": document["rms_norm_eps"],
        "tied_embeddings": document.get("tie_word_embeddings", False),
    }


def _qwen2(document: Document) -> dict[str, Any]:
    return _llama(document) | {"attention_bias": True}


def _qwen3(document: Document) -> dict[str, Any]:
    return _llama(document) | {"qk_norm": True}


def _mixtral(document: Document) -> dict[str, Any]:
    return _llama(document) | {
        "architecture": "moe",
        "num_experts": document["num_local_experts"],
        "experts_per_token": document["num_experts_per_tok"],
        "normalised_shares": True,
    }


def _qwen3_moe(document: Document) -> dict[str, Any]:
    _require(document, "decoder_sparse_step", 1)
    if document.get("mlp_only_layers"):
        _require(document, "mlp_only_layers", [])
    return _llama(document) | {
        "architecture": "moe",
        "qk_norm": True,
        "ffn_width": document["moe_intermediate_size"],
        "num_experts": document.get("num_experts") or document["num_local_experts"],
        "experts_per_token": document["num_experts_per_tok"],
        "normalised_shares": document.get("norm_topk_prob", False),
    }


def _gpt2(document: Document) -> dict[str, Any]:
    _require(document, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    _require(document, "scale_attn_by_inverse_layer_idx", False)
    _require(document, "add_cross_attention", False)
    return {
        "architecture": "gpt2",
        "width": document["n_embd"],
        "num_layers": document["n_layer"],
        "num_heads": document["n_head"],
        "ffn_width": document.get("n_inner") or 4 * document["n_embd"],
        "max_positions": document["n_positions"],
        "norm_epsilon": document["layer_norm_epsilon"],
        "tied_embeddings": document.get("tie_word_embeddings", True),
    }


def _bert(document: Document) -> dict[str, Any]:
    _require(document, "hidden_act", "gelu")
    _require(document, "position_embedding_type", "absolute")
    _require(document, "tie_word_embeddings", True)
    return {
        "architecture": "encoder",
        "width": document["hidden_size"],
        "num_layers": document["num_hidden_layers"],
        "num_heads": document["num_attention_heads"],
        "ffn_width": document["intermediate_size"],
        "max_positions": document["max_position_embeddings"],
        "num_segments": document["type_vocab_size"],
        "norm_epsilon": document["layer_norm_eps"],
        "next_sentence": "BertForPreTraining" in (document.get("architectures") or []),
    }


def _electra(document: Document) -> dict[str, Any]:
    """A generator is an encoder; a discriminator gets a generator of a quarter of its width, as published (table 6)."""
    section = _bert(document) | {"embedding_width": document["embedding_size"]}
    del section["next_sentence"]
    if "ElectraForMaskedLM" in (document.get("architectures") or []):
        return section
    heads = max(1, section["num_heads"] // 4)
    quarter = max(8, section["width"] // 4 // heads * heads)
    sizes = {"width": quarter, "num_layers": section["num_layers"], "num_heads": heads, "ffn_width": max(8, section["ffn_width"] // 4)}
    return section | {"architecture": "electra", "generator": sizes}


def _t5(document: Document) -> dict[str, Any]:
    _require(document, "feed_forward_proj", "relu", "gated-gelu")
    scaled = document.get("scale_decoder_outputs", document.get("tie_word_embeddings", True))
    return {
        "architecture": "encoder_decoder",
        "width": document["d_model"],
        "num_layers": document["num_layers"],
        "num_decoder_layers": document.get("num_decoder_layers"),
        "num_heads": document["num_heads"],
        "head_dim": document["d_kv"],
        "ffn_width": document["d_ff"],
        "feed_forward": document.get("feed_forward_proj", "relu").replace("-", "_"),
        "relative_buckets": document["relative_attention_num_buckets"],
        "relative_max_distance": document.get("relative_attention_max_distance", 128),
        "max_positions": document.get("n_positions", 512),
        "norm_epsilon": document["layer_norm_epsilon"],
        "tied_embeddings": scaled,
    }


READERS: Mapping[str, Callable[[Document], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gpt2": _gpt2,
    "bert": _bert,
    "electra": _electra,
    "t5": _t5,
}


def rope_of(document: Document) -> tuple[float, dict[str, Any] | None]:
    """Base and stretching of the rotary positions, as newer or older configurations write them."""
    parameters = document.get("rope_parameters") or {}
    scaling = document.get("rope_scaling") or parameters
    theta = float(parameters.get("rope_theta") or document.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, {"kind": "linear", "factor": scaling["factor"]}
    if kind == "llama3":
        copied = {name: scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor")}
        return theta, {"kind": "llama3", "original_max_positions": scaling["original_max_position_embeddings"], **copied}
    raise ArtifactError("stretching of positions is unknown", value=kind, remedy="llama3, linear and default can be read")


def _require(document: Document, setting: str, *values: object) -> None:
    """Refuse a checkpoint whose setting isn't one of these; a missing one has the first value."""
    value = document.get(setting, values[0])
    if value not in values:
        raise ArtifactError("public checkpoint needs what this architecture can't express", value=f"{setting} = {value}", remedy=REMEDY)
