"""A model as a Hugging Face folder: `LlamaForCausalLM` in names and layout, so that transformers opens it as it is.

Source: LlamaConfig and LlamaForCausalLM, https://github.com/huggingface/transformers/tree/main/src/transformers/models/llama.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from llm.artifact import write_json
from llm.data.tokenizer import BOS, EOS
from llm.errors import ArtifactError
from llm.export.card import write_card
from llm.export.tokenizer import read_tokenizer, write_tokenizer
from llm.model.config import DecoderConfig, LlamaSizes
from llm.model.decoder import Decoder, head_width
from llm.model.pretrained import LLAMA_LAYER, LLAMA_OUTER
from llm.model.weights import assemble, read_tensors, write_tensors

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
    names = weight_names(model.config)
    state = model.state_dict()
    weights = {theirs: state[ours].detach().to("cpu", torch.float32).contiguous() for ours, theirs in names.items()}
    write_tensors(folder / "model.safetensors", weights)
    write_config(model, tokenizer_model, folder)
    write_tokenizer(tokenizer_model, folder, context_tokens=model.config.max_positions)
    write_card(model, folder, card)


def write_config(model: Decoder, tokenizer_model: Path, folder: Path) -> None:
    """Write config.json and generation_config.json."""
    ids = {"bos_token_id": BOS, "eos_token_id": stop_ids(tokenizer_model), "pad_token_id": EOS}
    write_json(folder / "config.json", {**_llama_config(model), **ids})
    write_json(folder / "generation_config.json", {**ids, "do_sample": False, "max_length": model.config.max_positions})


def stop_ids(tokenizer_model: Path) -> list[int]:
    """Ids that end a generation: the end of a document and, in a chat, the end of an answer."""
    return [EOS, read_tokenizer(tokenizer_model).end]


def _llama_config(model: Decoder) -> dict[str, Any]:
    config = model.config
    return {
        **{theirs: getattr(config, ours) for ours, theirs in CONFIG_NAMES.items()},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "head_dim": head_width(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": True,
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
        if document["architectures"] != ["LlamaForCausalLM"]:
            raise ArtifactError("unknown architecture", value=document["architectures"], remedy="only LlamaForCausalLM can be read")
        return DecoderConfig(**{ours: document[theirs] for ours, theirs in CONFIG_NAMES.items()}), int(document["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ArtifactError("config.json can't be read", value=f"{path} ({error})", remedy=remedy) from error


def weight_names(config: LlamaSizes) -> dict[str, str]:
    """Our parameter names to Llama's; a tied head has no entry, because the file stores it once."""
    names = {
        f"blocks.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
        for layer in range(config.num_layers)
        for theirs, ours in LLAMA_LAYER.items()
    }
    names |= {f"{ours}.weight": f"{theirs}.weight" for theirs, ours in LLAMA_OUTER.items()}
    if config.tied_embeddings:
        del names["head.weight"]
    return names
