"""A decoder as one GGUF file, for llama.cpp and what is built on it: sizes, tokenizer, chat template and weights together.

    f32    as trained
    f16    matrices in half precision
    q8_0   matrices in blocks of 32 bytes with one scale each

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType, TokenType

from llm.data.tokenizer import Tokenizer
from llm.data.vocabulary.library import Library
from llm.data.vocabulary.pieces import Pieces
from llm.data.vocabulary.symbols import CHAT
from llm.errors import RecipeError
from llm.export import variants
from llm.export.config import ExportConfig, GgufKind
from llm.export.gguf_architecture import REMEDY, architecture_of
from llm.export.parity import causal
from llm.export.quality import Logits, measure, next_tokens
from llm.export.tokenizer import CHAT_TEMPLATE, read_tokenizer
from llm.model.config import DecoderConfig, Gpt2Config
from llm.model.decoder import head_width

NAMES = {
    "embedding": "token_embd",
    "position_embedding": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}
TURNED = ("attention.query", "attention.key")  # what rotary positions turn
TYPES: Mapping[GgufKind, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
Q8_BLOCK = 32


def export(model: Any, tokenizer_file: Path, tokenized: Path, folder: Path, config: ExportConfig, *, name: str) -> dict[str, Any]:
    """Write a file of every kind that the recipe asks for, and judge the weights that each holds: the facts of each.

    Raises: as `write` does; DivergenceError if a file misses its gate.
    """
    questions, facts = next_tokens(variants.rows(tokenized, "test", config)), dict[str, Any]()
    for kind in config.gguf:
        path = folder / f"{name}-{kind}.gguf"
        write(model, tokenizer_file, path, kind, name=name)
        (quality,) = measure(_logits(model), {kind: _logits(restored(model, path))}, questions).values()
        variants.check(kind, quality, getattr(config.gates, kind), setting="export.gguf")
        facts[kind] = {"file": path.name, "bytes": path.stat().st_size, **asdict(quality)}
    return facts


def _logits(model: Any) -> Logits:
    return lambda ids_T: causal.reference(model, ids_T.tolist())


def write(model: Any, tokenizer_file: Path, path: Path, kind: GgufKind, *, name: str) -> None:
    """Write the file.

    Raises: RecipeError if llama.cpp computes no such model, or splits no text as this tokenizer does.
    """
    architecture = architecture_of(model.config)
    writer = GGUFWriter(path, architecture)
    try:
        writer.add_name(name)
        writer.add_file_type(TYPES[kind][1])
        _add_sizes(writer, model)
        _add_tokenizer(writer, read_tokenizer(tokenizer_file))
        for tensor_name, array in tensors(model, turned=architecture == "llama"):
            _add_tensor(writer, tensor_name, array, TYPES[kind][0])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_sizes(writer: GGUFWriter, model: Any) -> None:
    config = model.config
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.num_heads)
    if isinstance(config, Gpt2Config):
        writer.add_layer_norm_eps(config.norm_epsilon)
        return
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_dimension_count(head_width(config))
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling and config.rope_scaling.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def tensors(model: Any, *, turned: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight under its name in the file; `turned` ones are in the order of rows that llama.cpp's Llama expects."""
    config = model.config
    for name, array in _weights(model).items():
        stored_name, part = _stored(name)
        yield stored_name, interleaved(array, heads=_heads(config, part)) if turned and part in TURNED else array
    if isinstance(config, DecoderConfig) and config.rope_scaling and config.rope_scaling.kind == "llama3":
        yield "rope_freqs.weight", frequency_divisors(model)


def restored(model: Any, path: Path) -> Any:
    """A copy of the model with the weights that its file holds, as they come out of their blocks: what llama.cpp computes with."""
    stored = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in gguf.GGUFReader(path).tensors}
    turned, weights = architecture_of(model.config) == "llama", dict[str, np.ndarray]()
    for name, array in _weights(model).items():
        stored_name, part = _stored(name)
        found = stored[stored_name].reshape(array.shape)
        weights[name] = apart(found, heads=_heads(model.config, part)) if turned and part in TURNED else found
    if isinstance(model.config, Gpt2Config):
        for layer, suffix in product(range(model.config.num_layers), ("weight", "bias")):
            joined = weights.pop(f"blocks.{layer}.attention.qkv.{suffix}")
            for part, each in zip(("query", "key", "value"), np.split(joined, 3), strict=True):
                weights[f"blocks.{layer}.attention.{part}.{suffix}"] = each
    if model.config.tied_embeddings:
        weights["head.weight"] = weights["embedding.weight"]
    found_model = copy.deepcopy(model)
    found_model.load_state_dict({name: torch.from_numpy(np.array(array, np.float32)) for name, array in weights.items()})
    return found_model


def _stored(name: str) -> tuple[str, str]:
    """A weight's name in the file, and the part of the model that it belongs to."""
    place, _, suffix = name.rpartition(".")
    layer, part = place.split(".", 2)[1:] if place.startswith("blocks.") else (None, place)
    return f"{NAMES[part]}.{suffix}" if layer is None else f"blk.{layer}.{NAMES[part]}.{suffix}", part


def _heads(config: Any, part: str) -> int:
    return int(config.num_heads if part == "attention.query" else config.num_kv_heads)


def _weights(model: Any) -> dict[str, np.ndarray]:
    """The model's own weights by name, a tied head left out, and GPT-2's queries, keys and values as one matrix."""
    weights = {name: tensor.detach().float().cpu().numpy() for name, tensor in model.state_dict().items()}
    if model.config.tied_embeddings:
        del weights["head.weight"]
    if isinstance(model.config, Gpt2Config):
        for layer, suffix in product(range(model.config.num_layers), ("weight", "bias")):
            parts = [weights.pop(f"blocks.{layer}.attention.{part}.{suffix}") for part in ("query", "key", "value")]
            weights[f"blocks.{layer}.attention.qkv.{suffix}"] = np.concatenate(parts)
    return weights


def interleaved(array: np.ndarray, *, heads: int) -> np.ndarray:
    """Rows of queries or keys so that those which are turned together lie side by side.

    Here, and in transformers, row i of a head is turned with row i + half of it; in llama.cpp's Llama with row i + 1.

    Example:
        >>> interleaved(np.arange(8), heads=2).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def apart(array: np.ndarray, *, heads: int) -> np.ndarray:
    """What `interleaved` made, as it was before.

    Example:
        >>> apart(interleaved(np.arange(8), heads=2), heads=2).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def frequency_divisors(model: Any) -> np.ndarray:
    """What each rotary frequency is divided by: the angle at position 1 without stretching over that with it."""
    cosine, sine = model.rotation(torch.ones(1, 1))
    half = head_width(model.config) // 2
    stretched = torch.atan2(sine, cosine).flatten()[:half].double()
    plain = model.config.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
    return (plain / stretched).float().numpy()


def _add_tensor(writer: GGUFWriter, name: str, array: np.ndarray, kind: GGMLQuantizationType) -> None:
    """Matrices in the kind that is asked for, as far as their rows allow; positions, norms and biases stay as they are."""
    if array.ndim < 2 or name.startswith("position_embd"):
        kind = GGMLQuantizationType.F32
    elif kind == GGMLQuantizationType.Q8_0 and array.shape[1] % Q8_BLOCK:
        kind = GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """The vocabulary, what llama.cpp needs to split text as we do, and how a chat is written."""
    vocabulary = tokenizer.vocabulary
    if isinstance(vocabulary, Pieces):
        _add_pieces(writer, vocabulary)
    elif isinstance(vocabulary, Library):
        _add_merges(writer, vocabulary)
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.eos)
    writer.add_eot_token_id(tokenizer.end)
    writer.add_pad_token_id(tokenizer.eos)
    if tokenizer.unknown is not None:
        writer.add_unk_token_id(tokenizer.unknown)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_pieces(writer: GGUFWriter, source: Pieces) -> None:
    """SentencePiece: pieces with scores, of which the best pair is merged first.

    Raises: RecipeError if the model chooses pieces in another way.
    """
    if source.kind not in ("bpe", "char") or not source.plain:
        raise RecipeError("llama.cpp splits text in no such way", value=f"tokenizer {source.kind}", remedy=REMEDY)
    ids = range(source.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([source.piece(id) for id in ids])
    writer.add_token_scores([source.processor.get_score(id) for id in ids])
    writer.add_token_types([_type(source, id) for id in ids])
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)


def _type(source: Pieces, id: int) -> TokenType:
    """Chat tokens are control tokens in GGUF: user-defined ones would be found in what a user types."""
    processor = source.processor
    if processor.is_unknown(id):
        return TokenType.UNKNOWN
    if processor.is_control(id) or source.piece(id) in CHAT:
        return TokenType.CONTROL
    return TokenType.BYTE if processor.is_byte(id) else TokenType.UNUSED if processor.is_unused(id) else TokenType.NORMAL


def _add_merges(writer: GGUFWriter, source: Library) -> None:
    """Byte-level BPE as GPT-2 splits text: merges in their order.

    Raises: RecipeError if text is split or normalised in another way before merging.
    """
    facts: dict[str, Any] = json.loads(source.content)
    before = facts["pre_tokenizer"] or {}
    like_gpt2 = before.get("type") == "ByteLevel" and not before.get("add_prefix_space") and before.get("use_regex", True)
    if facts["model"]["type"] != "BPE" or facts["normalizer"] or not like_gpt2:
        raise RecipeError("GGUF names no way of splitting text like this tokenizer's", value=source.kind, remedy=REMEDY)
    special = {token["id"] for token in facts["added_tokens"] if token["special"]}
    added = {token["id"] for token in facts["added_tokens"]}
    kinds = {**dict.fromkeys(added, TokenType.USER_DEFINED), **dict.fromkeys(special, TokenType.CONTROL)}
    merges = [each if isinstance(each, str) else " ".join(each) for each in facts["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([source.piece(id) for id in range(source.vocab_size)])
    writer.add_token_types([kinds.get(id, TokenType.NORMAL) for id in range(source.vocab_size)])
    writer.add_token_merges(merges)
