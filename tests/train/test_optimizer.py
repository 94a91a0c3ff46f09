"""Which parameter is moved by what, and how far: against PyTorch's plain loops."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from llm.model import families
from llm.model.config import DecoderConfig, ModelConfig
from llm.model.decoder import Decoder
from llm.train import optimizer
from llm.train.config import OptimizerConfig

SIZES: dict[str, Any] = {"width": 16, "num_layers": 2, "num_heads": 4, "ffn_width": 32}
LLAMA = SIZES | {"num_kv_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "decoder": LLAMA,
    "moe": LLAMA | {"num_experts": 3, "experts_per_token": 2, "num_shared_experts": 1},
    "gpt2": SIZES,
    "encoder": SIZES | {"embedding_width": 8, "next_sentence": True},
    "encoder_decoder": SIZES,
    "electra": SIZES | {"embedding_width": 8, "generator": SIZES | {"width": 8}},
}


def decoder(*, tied: bool) -> Decoder:
    config = DecoderConfig(width=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=32, tied_embeddings=tied)
    return Decoder(config, 24)


def of_family(architecture: str) -> nn.Module:
    config = TypeAdapter(ModelConfig).validate_python({"architecture": architecture} | FAMILIES[architecture])
    return families.build(config, 24)


def names(model: nn.Module, parameters: Sequence[nn.Parameter]) -> set[str]:
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_identity[id(parameter)] for parameter in parameters}


def test_examples() -> None:
    assert doctest.testmod(optimizer).failed == 0


def test_muon_moves_the_matrices_inside_blocks_and_adamw_the_rest() -> None:
    model = decoder(tied=False)
    muon, adamw = optimizer.build(model, OptimizerConfig())
    decaying, others = adamw.param_groups
    assert all(name.startswith("blocks.") for name in names(model, muon.param_groups[0]["params"]))
    assert len(muon.param_groups[0]["params"]) == 2 * 7
    assert names(model, decaying["params"]) == {"embedding.weight", "head.weight"}
    assert all(name.endswith("norm.weight") for name in names(model, others["params"]))
    assert others["weight_decay"] == 0


def test_embeddings_stay_with_adamw_wherever_they_are() -> None:
    model = nn.Module()
    model.embedding = nn.Embedding(5, 4)
    model.blocks = nn.ModuleList(nn.ModuleDict({"positions": nn.Embedding(3, 4), "up": nn.Linear(4, 8)}) for _ in range(2))
    muon, adamw = optimizer.build(model, OptimizerConfig())
    assert names(model, muon.param_groups[0]["params"]) == {"blocks.0.up.weight", "blocks.1.up.weight"}
    assert "blocks.0.positions.weight" in names(model, adamw.param_groups[0]["params"])


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("settings", [{"kind": "muon"}, {"kind": "adamw"}, {"kind": "adam"}, {"layer_decay": 0.7}, {"state_bits": 8}])
def test_every_parameter_of_every_family_is_moved_once(architecture: str, settings: dict[str, Any]) -> None:
    model = of_family(architecture)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    built = optimizer.build(model, OptimizerConfig.model_validate(settings))
    moved = [id(parameter) for each in built for group in each.param_groups for parameter in group["params"]]
    assert sorted(moved) == sorted(id(parameter) for parameter in model.parameters())
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for each in built:
        each.step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_learning_rates_are_shares_of_the_peaks() -> None:
    built = optimizer.build(decoder(tied=True), OptimizerConfig(muon_learning_rate=0.02, adamw_learning_rate=0.004))
    optimizer.set_learning_rates(built, 0.5)
    assert [[group["lr"] for group in each.param_groups] for each in built] == [[0.01], [0.002, 0.002]]


@pytest.mark.parametrize(("kind", "decay"), [("adamw", 0.3), ("adam", 0.3)])
def test_it_steps_as_torch_does_one_parameter_at_a_time(kind: str, decay: float) -> None:
    """AdamW decays matrices; Adam decays nothing, neither in the gradient nor beside it."""
    settings = {"kind": kind, "adamw_learning_rate": 0.01, "weight_decay": decay, "betas": (0.8, 0.9), "epsilon": 1e-6}
    found, expected = decoder(tied=False), decoder(tied=False)
    expected.load_state_dict(found.state_dict())
    (ours,) = optimizer.build(found, OptimizerConfig.model_validate(settings))
    plain: list[torch.optim.Optimizer] = []
    for parameter in expected.parameters():
        kwargs: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "foreach": False, "fused": False}
        if kind == "adam":
            plain.append(torch.optim.Adam([parameter], **kwargs))
        else:
            plain.append(torch.optim.AdamW([parameter], weight_decay=decay if parameter.dim() > 1 else 0.0, **kwargs))
    for step in range(5):
        torch.manual_seed(step)
        for one, other in zip(found.parameters(), expected.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for each in (ours, *plain):
            each.step()
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_deeper_layers_learn_slower_by_the_same_factor() -> None:
    model = of_family("encoder")
    built = optimizer.build(model, OptimizerConfig(kind="muon", muon_learning_rate=1.0, adamw_learning_rate=1.0, layer_decay=0.5))
    peaks = {name: group["peak"] for each in built for group in each.param_groups for name in names(model, group["params"])}
    for name, peak in peaks.items():
        blocks = {"blocks.0.": 0.25, "blocks.1.": 0.5, "embeddings.": 0.125, "projection.": 0.125}
        assert peak == next((share for start, share in blocks.items() if name.startswith(start)), 1.0), name


def test_a_stage_of_a_pipeline_has_the_rates_of_the_whole_model() -> None:
    config = OptimizerConfig(layer_decay=0.5, muon_learning_rate=1.0, adamw_learning_rate=1.0)
    model = decoder(tied=False)
    for elsewhere in ("blocks.1", "norm", "head"):
        model.set_submodule(elsewhere, nn.Identity())
    peaks = {
        name: group["peak"]
        for each in optimizer.build(model, config)
        for group in each.param_groups
        for name in names(model, group["params"])
    }
    assert {name.split(".")[0]: peak for name, peak in peaks.items()} == {"embedding": 0.125, "blocks": 0.25}
