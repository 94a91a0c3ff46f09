"""A model as a Hugging Face folder: Llama, Qwen2 or Qwen3 in names and layout, so that transformers opens it as it is.

Source: LlamaConfig and LlamaForCausalLM, https://github.com/huggingface/transformers/tree/main/src/transformers/models/llama;
Qwen2 adds biases to queries, keys and values, Qwen3 norms to queries and keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from llm.artifact import write_json
from llm.errors import ArtifactError, RecipeError
from llm.export.card import write_card
from llm.export.tokenizer import read_tokenizer, write_tokenizer
from llm.model.config import DecoderConfig, LlamaSizes, RopeScaling
from llm.model.decoder import Decoder, head_width
from llm.model.pretrained import LLAMA_LAYER, LLAMA_OUTER, QK_NORM
from llm.model.pretrained_config import rope_of
from llm.model.weights import assemble, read_tensors, write_tensors

ARCHITECTURES: dict[str, dict[str, bool]] = {
    "LlamaForCausalLM": {"attention_bias": False, "qk_norm": False},
    "Qwen2ForCausalLM": {"attention_bias": True, "qk_norm": False},
    "Qwen3ForCausalLM": {"attention_bias": False, "qk_norm": True},
}
BIASED = ("attention.query", "attention.key", "attention.value")
CONFIG_NAMES = {
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "ffn_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_epsilon": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
}


def write(model: Decoder, tokenizer_model: Path, folder: Path, *, card: dict[str, Any]) -> None:
    """Write weights in float32, configuration, tokenizer and model card; see llm/export/card.py for `card`."""
    architecture_of(model.config)
    names, state = weight_names(model.config), model.state_dict()
    weights = {theirs: state[ours].detach().to("cpu", torch.float32).contiguous() for ours, theirs in names.items()}
    write_tensors(folder / "model.safetensors", weights)
    write_config(model, tokenizer_model, folder)
    write_tokenizer(tokenizer_model, folder, context_tokens=model.config.max_positions)
    write_card(model, folder, card)


def write_config(model: Decoder, tokenizer_model: Path, folder: Path) -> None:
    """Write config.json and generation_config.json."""
    ids = special_ids(tokenizer_model)
    write_json(folder / "config.json", {**_llama_config(model), **ids})
    write_json(folder / "generation_config.json", {**ids, "do_sample": False, "max_length": model.config.max_positions})


def special_ids(tokenizer_model: Path) -> dict[str, Any]:
    """The ids that begin and fill up a text, and those that end one: the end of a document and, in a chat, of an answer."""
    tokenizer = read_tokenizer(tokenizer_model)
    return {"bos_token_id": tokenizer.bos, "eos_token_id": [tokenizer.eos, tokenizer.end], "pad_token_id": tokenizer.eos}


def _llama_config(model: Decoder) -> dict[str, Any]:
    config = model.config
    architecture = architecture_of(config)
    return {
        **{theirs: getattr(config, ours) for ours, theirs in CONFIG_NAMES.items()},
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": model.vocab_size,
        "head_dim": head_width(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_theta": config.rope_theta, **_rope_type(config.rope_scaling)},
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": True,
    }


def architecture_of(config: LlamaSizes) -> str:
    """The class of transformers that computes what a decoder of these settings computes.

    Raises: RecipeError if there is none that can be written.
    """
    remedy = "leave export out for this model"
    if not isinstance(config, DecoderConfig):
        raise RecipeError("only decoders can be exported", value=getattr(config, "architecture", None), remedy=remedy)
    if config.qk_norm and config.attention_bias:
        raise RecipeError(
            "no exported architecture has both QK-norm and biases", remedy="set model.qk_norm or model.attention_bias to false"
        )
    settings = {"attention_bias": config.attention_bias, "qk_norm": config.qk_norm}
    return next(name for name, theirs in ARCHITECTURES.items() if theirs == settings)


def _rope_type(scaling: RopeScaling | None) -> dict[str, Any]:
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


def read(folder: Path) -> Decoder:
    """The decoder inside a folder that `write` made: how a champion is scored again.

    Raises: ArtifactError if the folder is incomplete, damaged, or holds a model that llm/model/decoder.py can't express.
    """
    config, vocab_size = _read_config(folder / "config.json")
    theirs = read_tensors(folder / "model.safetensors")
    ours = {other: name for name, other in weight_names(config).items()}
    return assemble(config, vocab_size, {ours.get(name, name): tensor for name, tensor in theirs.items()})


def _read_config(path: Path) -> tuple[DecoderConfig, int]:
    remedy = "export the model again"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (architecture := document["architectures"][0]) not in ARCHITECTURES:
            raise ArtifactError("unknown architecture", value=architecture, remedy=f"one of {', '.join(ARCHITECTURES)} can be read")
        sizes = {ours: document[theirs] for ours, theirs in CONFIG_NAMES.items()} | ARCHITECTURES[architecture]
        head_dim = document["head_dim"] if document["head_dim"] * sizes["num_heads"] != sizes["width"] else None
        _, scaling = rope_of(document)
        return DecoderConfig.model_validate({**sizes, "head_dim": head_dim, "rope_scaling": scaling}), int(document["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ArtifactError("config.json can't be read", value=f"{path} ({error})", remedy=remedy) from error


def weight_names(config: LlamaSizes) -> dict[str, str]:
    """Our parameter names to Llama's; a tied head has no entry, because the file stores it once."""
    weights = LLAMA_LAYER | (QK_NORM if config.qk_norm else {})
    suffixed = [(f"{ours}.weight", f"{theirs}.weight") for theirs, ours in weights.items()]
    if config.attention_bias:
        suffixed += [(f"{ours}.bias", f"{theirs}.bias") for theirs, ours in LLAMA_LAYER.items() if ours in BIASED]
    names = {f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}" for layer in range(config.num_layers) for ours, theirs in suffixed}
    names |= {f"{ours}.weight": f"{theirs}.weight" for theirs, ours in LLAMA_OUTER.items()}
    if config.tied_embeddings:
        del names["head.weight"]
    return names
