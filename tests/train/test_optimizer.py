"""Which parameter is moved by what."""

from __future__ import annotations

import torch

from llm.model.config import DecoderConfig
from llm.model.decoder import Decoder
from llm.train import optimizer
from llm.train.config import OptimizerConfig


def decoder(*, tied: bool) -> Decoder:
    config = DecoderConfig(width=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=32, tied_embeddings=tied)
    return Decoder(config, 24)


def names(model: Decoder, parameters: list[torch.nn.Parameter]) -> set[str]:
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_identity[id(parameter)] for parameter in parameters}


def test_muon_moves_the_matrices_inside_blocks_and_adamw_the_rest() -> None:
    model = decoder(tied=False)
    muon, adamw = optimizer.build(model, OptimizerConfig())
    decaying, others = adamw.param_groups
    assert all(name.startswith("blocks.") for name in names(model, muon.param_groups[0]["params"]))
    assert len(muon.param_groups[0]["params"]) == 2 * 7
    assert names(model, decaying["params"]) == {"embedding.weight", "head.weight"}
    assert all(name.endswith("norm.weight") for name in names(model, others["params"]))
    assert others["weight_decay"] == 0


def test_every_parameter_is_moved_once() -> None:
    for kind in ("muon", "adamw"):
        model = decoder(tied=True)
        built = optimizer.build(model, OptimizerConfig.model_validate({"kind": kind}))
        moved = [id(parameter) for each in built for group in each.param_groups for parameter in group["params"]]
        assert sorted(moved) == sorted(id(parameter) for parameter in model.parameters())


def test_learning_rates_are_shares_of_the_peaks() -> None:
    built = optimizer.build(decoder(tied=True), OptimizerConfig(muon_learning_rate=0.02, adamw_learning_rate=0.004))
    optimizer.set_learning_rates(built, 0.5)
    assert [[group["lr"] for group in each.param_groups] for each in built] == [[0.01], [0.002, 0.002]]
