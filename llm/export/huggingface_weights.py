"""Weights under transformers' names: the tables of llm/model/pretrained.py, read from right to left."""

from __future__ import annotations

import re
from typing import Any

import torch

from llm.errors import RecipeError
from llm.model.config import EncoderDecoderConfig
from llm.model.pretrained import NAMES, Names, Weights
from llm.model.weights import tied

ROOTS = {"gpt2": "transformer.", "bert": "bert.", "electra": "electra.", "electra_encoder": "electra."}
HEADS = ("cls.", "lm_head", "generator_", "discriminator_")  # beside the root, not below it


def weights(model: Any, kind: str) -> Weights:
    """A model's weights in float32, named as the class of transformers of this kind names them; a tied one is left out.

    Raises: RecipeError if there is a weight that the class has no place for.
    """
    aliases, ours = tied(model), model.state_dict()
    kept = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in ours.items() if name not in aliases}
    if kind == "gpt2":
        kept = _join_gpt2(kept)
    if kind in ("mixtral", "qwen3_moe"):
        kept = _unstack_experts(kept)
    if kind == "electra":
        kept = {name: tensor for name, tensor in kept.items() if not _is_generators(name, model.config.generator.num_layers)}
    names = NAMES[kind]
    return {_their_name(name, names, kind, model.config): tensor.contiguous() for name, tensor in kept.items()}


def _their_name(name: str, names: Names, kind: str, config: Any) -> str:
    module, _, suffix = name.rpartition(".")
    if found := re.fullmatch(r"blocks\.(\d+)\.(.*)", module):
        their = _in_layer(int(found[1]), found[2], names, config)
    else:
        their = next((theirs for theirs, ours in names.outer.items() if ours == module), None)
    if their is None:
        raise RecipeError("no class of transformers has a place for a weight", value=name, remedy="serve its ONNX folder")
    return f"{'' if their.startswith(HEADS) else ROOTS.get(kind, '')}{their}.{suffix}"


def _in_layer(layer: int, part: str, names: Names, config: Any) -> str | None:
    """The module of a layer, by the last of the prefixes that begin at or before it."""
    first = names.first_layer(config)
    prefix = max((prefix for prefix in names.layers if first.get(prefix, 0) <= layer), key=lambda prefix: first.get(prefix, 0))
    theirs = [their for their, our in names.layers[prefix].items() if our == part]
    if not theirs:
        return None
    gated = isinstance(config, EncoderDecoderConfig) and config.feed_forward == "gated_gelu"
    return f"{prefix}{layer - first.get(prefix, 0)}.{theirs[-1 if gated else 0]}"  # only T5 has two names for one part


def _join_gpt2(weights: Weights) -> Weights:
    """GPT-2 keeps query, key and value in one matrix, and every matrix of a layer transposed."""
    joined: Weights = {}
    for name, tensor in weights.items():
        if ".attention.query." in name:
            parts = [weights[name.replace("query", part)] for part in ("query", "key", "value")]
            name, tensor = name.replace("query", "query_key_value"), torch.cat(parts)
        elif ".attention.key." in name or ".attention.value." in name:
            continue
        joined[name] = tensor.T if name.startswith("blocks.") and tensor.dim() == 2 else tensor
    return joined


def _unstack_experts(weights: Weights) -> Weights:
    """Row 3 of `feed_forward.gate` is `feed_forward.experts.3.gate.weight`."""
    single: Weights = {}
    for name, tensor in weights.items():
        path, _, part = name.rpartition(".")
        if path.endswith(".feed_forward") and tensor.dim() == 3:
            single |= {f"{path}.experts.{expert}.{part}.weight": rows for expert, rows in enumerate(tensor)}
        else:
            single[name] = tensor
    return single


def _is_generators(name: str, num_layers: int) -> bool:
    """Whether a weight of ELECTRA belongs to the generator, which isn't published with the discriminator."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) < num_layers if found else name.startswith(("generator_projection.", "transform.", "head."))
