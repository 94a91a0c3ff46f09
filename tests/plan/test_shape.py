"""What a layer keeps and multiplies, against autograd's hooks and torch's own counter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llm.data.rows import Rows
from llm.model import families, shape, sizes
from llm.model.config import EncoderDecoderConfig, ModelConfig, parse_model
from llm.train.objective import kinds
from tests.plan.conftest import GPT2, LLAMA, MOE, T5, settings

B, T = 3, 32
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "wide heads": LLAMA | {"head_dim": 32},
    "query and key norms": LLAMA | {"qk_norm": True, "num_kv_heads": 1},
    "dropout": LLAMA | {"dropout": 0.1},
    "dropout of scores": GPT2 | {"dropout": 0.1},
    "mixture": MOE,
    "gpt2": GPT2,
    "bert": GPT2 | {"architecture": "encoder"},
}


def kept_bytes(config: ModelConfig, *, bf16: bool) -> int:
    """Bytes that the hooks see the forward pass keep, a storage once, parameters left out."""
    torch.manual_seed(0)
    model: Any = families.build(config, 64).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        if (place := tensor.untyped_storage().data_ptr()) not in parameters:
            storages[place] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = [torch.randint(0, 64, (B, T)) for _ in range(1 + isinstance(config, EncoderDecoderConfig))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.features(*tokens)
    return sum(storages.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_layer_keeps_what_autograd_keeps(name: str, bf16: bool) -> None:
    one, two = (parse_model(MODELS[name] | {"num_layers": count}) for count in (1, 2))
    layer = shape.of(one, 64).layers[0]
    casts = 2 * (layer.matrices - (64 * 4 if name == "mixture" else 0)) if bf16 else 0  # the router stays float32
    expected = B * T * layer.saved.bytes(2 if bf16 else 4) + scores_bytes(layer) + casts
    assert kept_bytes(two, bf16=bf16) - kept_bytes(one, bf16=bf16) == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("feed_forward", ["gated_gelu", "relu"])
@pytest.mark.parametrize("side", ["num_layers", "num_decoder_layers"])
def test_a_layer_of_t5_keeps_what_autograd_keeps(side: str, feed_forward: str, dropout: float, bf16: bool) -> None:
    sizes = T5 | {"num_layers": 1, "num_decoder_layers": 1, "feed_forward": feed_forward, "dropout": dropout}
    one, two = (parse_model(sizes | {side: count}) for count in (1, 2))
    layer = shape.of(one, 64).layers[side == "num_decoder_layers"]
    expected = B * T * layer.saved.bytes(2 if bf16 else 4) + scores_bytes(layer) + 2 * layer.matrices * bf16
    assert kept_bytes(two, bf16=bf16) - kept_bytes(one, bf16=bf16) == pytest.approx(expected, rel=0.002)


def scores_bytes(layer: shape.Layer) -> float:
    """Of an attention that no fused kernel of a CPU computes."""
    return 4 * B * T * T * layer.scores * layer.score_copies


@pytest.mark.parametrize("name", MODELS)
def test_layers_have_the_parameters_of_the_module(name: str) -> None:
    config = parse_model(MODELS[name] | {"num_layers": 3})
    blocks = sum(parameter.numel() for path, parameter in families.build(config, 64).named_parameters() if "blocks." in path)
    whole = shape.of(config, 64)
    assert whole.blocks == blocks
    assert whole.parameters == sizes.parameters(config, 64)


SPANS: dict[str, Any] = {"kind": "spans"}
LEARNT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "next token": (LLAMA, {"kind": "next_token"}),
    "spans of one sequence": (LLAMA, SPANS),
    "mixture": (LLAMA, {"kind": "mixture", "parts": [{"share": 1, "objective": SPANS}, {"share": 1, "objective": {"kind": "next_token"}}]}),
    "masked": (GPT2 | {"architecture": "encoder"}, {"kind": "masked"}),
    "narrow embeddings": (GPT2 | {"architecture": "encoder", "embedding_width": 16}, {"kind": "masked"}),
    "t5": (T5, SPANS),
    "uneven t5": (T5 | {"head_dim": 32, "num_decoder_layers": 3, "feed_forward": "relu"}, SPANS | {"share": 0.3}),
    "electra": (
        GPT2
        | {"architecture": "electra", "embedding_width": 32, "generator": {"width": 32, "num_layers": 1, "num_heads": 2, "ffn_width": 64}},
        {"kind": "replaced"},
    ),
}


@pytest.mark.parametrize("name", LEARNT)
def test_arithmetic_is_what_torch_counts(name: str) -> None:
    """Of attention as plain products, which multiply the masked half of a causal row as well."""
    sizes_of_it, objective_of_it = LEARNT[name]
    config, train = parse_model(sizes_of_it | {"num_layers": 2, "max_positions": 512}), settings(objective=objective_of_it)
    places, V, T = np.arange(4), 300, 256
    rows = Rows(np.random.default_rng(0).integers(3, V, 4 * T + 1).astype(np.uint16), None, T, V)
    objective = kinds.build(train, config.architecture, V, T)
    model = families.build(config, V + objective.extra_ids)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        for batch in kinds.batches(objective, rows, places, places, seed=0):
            terms = objective.sums(model, batch)
            torch.stack([term for term in terms.values() if term.requires_grad]).sum().backward()
    whole = replace(shape.of(config, V + objective.extra_ids, train.objective), causal=False)
    assert shape.flops_per_token(whole, T) * 4 * T == pytest.approx(counter.get_total_flops(), rel=0.015)
