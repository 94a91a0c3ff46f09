"""A public checkpoint in Hugging Face format as one of our models: `config_of(folder)`, `load(folder)`.

Only `config.json` and safetensors are read, so opening a folder of unknown origin runs no code of it. What the
architectures of llm/model can't express is refused with the setting that asks for it.

Source: the modeling and configuration files of https://github.com/huggingface/transformers/tree/main/src/transformers/models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from llm.errors import ArtifactError
from llm.model import families
from llm.model.config import ElectraConfig, EncoderConfig, EncoderDecoderConfig, ModelConfig
from llm.model.pretrained_config import REMEDY, model_section
from llm.model.weights import assemble, read_tensors

Weights = dict[str, Tensor]

LLAMA_OUTER = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "head"}
LLAMA_ATTENTION = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "post_attention_layernorm": "feed_forward_norm",
}
LLAMA_LAYER = LLAMA_ATTENTION | {
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}
QK_NORM = {"self_attn.q_norm": "attention.query_norm", "self_attn.k_norm": "attention.key_norm"}
BERT_LAYER = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "feed_forward_norm",
}
BERT_EMBEDDINGS = {
    "embeddings.word_embeddings": "embeddings.tokens",
    "embeddings.position_embeddings": "embeddings.positions",
    "embeddings.token_type_embeddings": "embeddings.segments",
    "embeddings.LayerNorm": "embeddings.norm",
}
T5_LAYER = {
    "layer.0.layer_norm": "attention_norm",
    "layer.0.SelfAttention.q": "attention.query",
    "layer.0.SelfAttention.k": "attention.key",
    "layer.0.SelfAttention.v": "attention.value",
    "layer.0.SelfAttention.o": "attention.output",
}
T5_CROSS = {
    "layer.1.layer_norm": "cross_attention_norm",
    "layer.1.EncDecAttention.q": "cross_attention.query",
    "layer.1.EncDecAttention.k": "cross_attention.key",
    "layer.1.EncDecAttention.v": "cross_attention.value",
    "layer.1.EncDecAttention.o": "cross_attention.output",
}


def _t5_feed_forward(place: int) -> dict[str, str]:
    """T5's feed-forward net, which is the second part of an encoder's layer and the third of a decoder's."""
    ours = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
    named = {f"layer.{place}.DenseReluDense.{their}": f"feed_forward.{our}" for their, our in ours.items()}
    return named | {f"layer.{place}.layer_norm": "feed_forward_norm"}


@dataclass(frozen=True)
class Names:
    """Their modules' names to ours; what matches `ignored` holds no weights of ours."""

    outer: Mapping[str, str]
    layers: Mapping[str, Mapping[str, str]]  # by prefix before the layer's number
    ignored: str = r"rotary_emb\.inv_freq$|position_ids$"
    first_layer: Callable[[Any], Mapping[str, int]] = field(default=lambda config: {})  # by prefix, our number of their layer 0
    finish: Callable[[Weights], Weights] = field(default=lambda weights: weights)


def _split_gpt2(weights: Weights) -> Weights:
    """GPT-2 keeps query, key and value in one matrix, and every matrix of a layer transposed."""
    split: Weights = {}
    for name, tensor in weights.items():
        ours = tensor.T if name.startswith("blocks.") and tensor.dim() == 2 else tensor
        if "query_key_value" in name:
            for part, piece in zip(("query", "key", "value"), ours.chunk(3), strict=True):
                split[name.replace("query_key_value", part)] = piece
        else:
            split[name] = ours
    return split


def _stack_experts(weights: Weights) -> Weights:
    """One tensor for all experts of a layer: `feed_forward.experts.3.gate.weight` is row 3 of `feed_forward.gate`."""
    stacks: dict[str, dict[int, Tensor]] = {}
    rest: Weights = {}
    for name, tensor in weights.items():
        if found := re.fullmatch(r"(.*)\.experts\.(\d+)\.(\w+)\.weight", name):
            stacks.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = tensor
        else:
            rest[name] = tensor
    return rest | {name: torch.stack([rows[expert] for expert in sorted(rows)]) for name, rows in stacks.items()}


def _experts(prefix: str, gate: str, up: str, down: str, num_experts: int = 1024) -> dict[str, str]:
    """Names of a layer's router and experts."""
    ours = {gate: "gate", up: "up", down: "down"}
    named = {f"{prefix}.experts.{e}.{their}": f"feed_forward.experts.{e}.{our}" for e in range(num_experts) for their, our in ours.items()}
    return LLAMA_ATTENTION | QK_NORM | named | {f"{prefix}.gate": "feed_forward.router"}


LLAMA = Names(LLAMA_OUTER, {"model.layers.": LLAMA_LAYER | QK_NORM})
BERT_IGNORED = r"position_ids$|predictions\.decoder\.|generator_lm_head\.weight$"
NAMES: Mapping[str, Names] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "mixtral": Names(LLAMA_OUTER, {"model.layers.": _experts("block_sparse_moe", "w1", "w3", "w2")}, finish=_stack_experts),
    "qwen3_moe": Names(LLAMA_OUTER, {"model.layers.": _experts("mlp", "gate_proj", "up_proj", "down_proj")}, finish=_stack_experts),
    "gpt2": Names(
        {"wte": "embedding", "wpe": "position_embedding", "ln_f": "norm", "lm_head": "head"},
        {
            "h.": {
                "ln_1": "attention_norm",
                "attn.c_attn": "attention.query_key_value",
                "attn.c_proj": "attention.output",
                "ln_2": "feed_forward_norm",
                "mlp.c_fc": "feed_forward.up",
                "mlp.c_proj": "feed_forward.down",
            }
        },
        ignored=r"\.attn\.(masked_)?bias$",
        finish=_split_gpt2,
    ),
    "bert": Names(
        {
            **BERT_EMBEDDINGS,
            "cls.predictions.transform.dense": "transform.dense",
            "cls.predictions.transform.LayerNorm": "transform.norm",
            "cls.predictions": "head",  # its bias; the matrix is the embedding
            "pooler.dense": "pooler",
            "cls.seq_relationship": "next_sentence",
        },
        {"encoder.layer.": BERT_LAYER},
        ignored=BERT_IGNORED,
    ),
    "electra_encoder": Names(
        {
            **BERT_EMBEDDINGS,
            "embeddings_project": "projection",
            "generator_predictions.dense": "transform.dense",
            "generator_predictions.LayerNorm": "transform.norm",
            "generator_lm_head": "head",
        },
        {"encoder.layer.": BERT_LAYER},
        ignored=BERT_IGNORED,
    ),
    "electra": Names(
        {
            **BERT_EMBEDDINGS,
            "embeddings_project": "projection",
            "discriminator_predictions.dense": "verdict_dense",
            "discriminator_predictions.dense_prediction": "verdict",
        },
        {"encoder.layer.": BERT_LAYER},
        ignored=BERT_IGNORED,
        first_layer=lambda config: {"encoder.layer.": config.generator.num_layers},
    ),
    "t5": Names(
        {
            "shared": "embedding",
            "encoder.final_layer_norm": "encoder_norm",
            "decoder.final_layer_norm": "norm",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "encoder_positions",
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias": "decoder_positions",
            "lm_head": "head",
        },
        {"encoder.block.": T5_LAYER | _t5_feed_forward(1), "decoder.block.": T5_LAYER | T5_CROSS | _t5_feed_forward(2)},
        ignored=r"embed_tokens\.weight$|EncDecAttention\.relative_attention_bias",
        first_layer=lambda config: {"decoder.block.": config.num_layers},
    ),
}
ROOT = re.compile(r"^(transformer|bert|electra)\.")  # published files have it or not
OLD_SUFFIXES = {"gamma": "weight", "beta": "bias"}  # of BERT's norms


def config_of(folder: Path) -> ModelConfig:
    """The `model` section that describes the checkpoint in `folder`; its dropout is 0, because that is a setting of training.

    Raises: ArtifactError if the folder holds no checkpoint that llm/model can express.
    """
    return _read(folder)[1]


def vocab_size_of(folder: Path) -> int:
    """Rows of the checkpoint's embedding."""
    return _read(folder)[2]


def load(folder: Path) -> Any:
    """The checkpoint's model with its weights in float32, on the CPU, in evaluation mode.

    An ELECTRA checkpoint is the discriminator; its generator starts from random weights.

    Raises: ArtifactError if a file is missing or damaged, or holds what llm/model can't express.
    """
    kind, config, vocab_size = _read(folder)
    weights = _renamed(_tensors(folder), NAMES[kind], config)
    if isinstance(config, ElectraConfig):
        weights = families.build(config, vocab_size).state_dict() | weights
        weights["head.weight"] = weights["embeddings.tokens.weight"]
    elif config.tied_embeddings:
        weights.pop("head.weight", None)
    elif isinstance(config, EncoderDecoderConfig) and "head.weight" not in weights:
        raise ArtifactError("T5 with a tied head that isn't scaled can't be read", value=str(folder), remedy=REMEDY)
    if isinstance(config, EncoderConfig) and not config.next_sentence:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(("pooler.", "next_sentence."))}
    return assemble(config, vocab_size, weights, REMEDY)


def _read(folder: Path) -> tuple[str, ModelConfig, int]:
    """Which table of names, which sizes, how large a vocabulary."""
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return *model_section(document), int(document["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ArtifactError(
            "public checkpoint's config.json can't be read", value=f"{path} ({' '.join(str(error).split())})", remedy=REMEDY
        ) from error


def _tensors(folder: Path) -> Weights:
    """Every tensor of a folder, from one file or from the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return read_tensors(folder / "model.safetensors", REMEDY)
    if not index.is_file():
        pickled = next(iter(sorted(folder.glob("*.bin"))), None)
        fact = "checkpoint is pickled, and unpickling could run any code" if pickled else "folder holds no safetensors"
        raise ArtifactError(fact, value=str(pickled or folder), remedy="get the checkpoint's safetensors files")
    try:
        shards = sorted({Path(name).name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError("index of shards can't be read", value=f"{index} ({error})", remedy=REMEDY) from error
    return {name: tensor for shard in shards for name, tensor in read_tensors(folder / shard, REMEDY).items()}


def _renamed(theirs: Weights, names: Names, config: ModelConfig) -> Weights:
    """Their weights under our names in float32. A name that no table knows is kept, so that assembling refuses it."""
    ignored = re.compile(names.ignored)
    first = names.first_layer(config)
    ours = {_our_name(name, names, first): tensor.float() for name, tensor in theirs.items() if not ignored.search(name)}
    return names.finish(ours)


def _our_name(name: str, names: Names, first: Mapping[str, int]) -> str:
    module, _, suffix = ROOT.sub("", name).rpartition(".")
    suffix = OLD_SUFFIXES.get(suffix, suffix)
    if module in names.outer:
        return f"{names.outer[module]}.{suffix}"
    for prefix, layers in names.layers.items():
        number, _, part = module.removeprefix(prefix).partition(".")
        if module.startswith(prefix) and part in layers:
            return f"blocks.{int(number) + first.get(prefix, 0)}.{layers[part]}.{suffix}"
    return name
