"""Which parameters are moved by what, and how fast."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from llm.train.adamw8bit import AdamW8bit
from llm.train.config import OptimizerConfig
from llm.train.muon import Muon


class Kind(NamedTuple):
    """What the parameters of one group have in common."""

    depth: int  # 0 before the blocks, 1 the first block; all 0 where every depth has the same rate
    decays: bool
    muon: bool


def build(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Muon for the matrices inside the blocks and AdamW for the rest, or AdamW or Adam for everything.

    Every parameter group carries its peak learning rate as `peak`. Only matrices decay, and nothing does in Adam.
    """
    members: dict[Kind, list[Parameter]] = {}
    for parameter, kind in _kinds(model, config).items():
        members.setdefault(kind, []).append(parameter)
    top = _num_blocks(model) + 1
    ordered = sorted(members.items(), key=lambda group: (group[0].depth, not group[0].decays))
    muon = [_group(kind, parameters, top, config) for kind, parameters in ordered if kind.muon]
    adam = [_group(kind, parameters, top, config) for kind, parameters in ordered if not kind.muon]
    return [mover(groups, config) for mover, groups in ((_muon, muon), (_adam, adam)) if groups]


def _group(kind: Kind, parameters: list[Parameter], top: int, config: OptimizerConfig) -> dict[str, Any]:
    highest = config.muon_learning_rate if kind.muon else config.adamw_learning_rate
    peak = highest * config.layer_decay ** (top - kind.depth)
    return {"params": parameters, "peak": peak, "lr": peak, "weight_decay": config.weight_decay if kind.decays else 0.0}


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    return Muon(groups, lr=config.muon_learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)


def _adam(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    """Source: AdamW, https://arxiv.org/abs/1711.05101; Adam, https://arxiv.org/abs/1412.6980, is the same without decay."""
    if config.state_bits == 8:
        return AdamW8bit(groups, lr=config.adamw_learning_rate, betas=config.betas, eps=config.epsilon)
    return torch.optim.AdamW(groups, lr=config.adamw_learning_rate, betas=config.betas, eps=config.epsilon, fused=True)


def _kinds(model: nn.Module, config: OptimizerConfig) -> dict[Parameter, Kind]:
    """Of every parameter, a tied one once.

    Embeddings stay with Adam wherever they are: a step sees few of their rows, and orthogonalising would move them all.
    Source: Muon, https://kellerjordan.github.io/posts/muon/; rates by depth, ELECTRA, https://arxiv.org/abs/2003.10555, appendix B.
    """
    depths = _depths([name for name, _ in model.named_parameters()], _num_blocks(model))
    kinds = {}
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2
        embedding = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
        muon = config.kind == "muon" and matrix and not embedding and _block(name) is not None
        kinds[parameter] = Kind(depths[name] if config.layer_decay < 1 else 0, matrix and config.kind != "adam", muon)
    return kinds


def _depths(names: list[str], num_blocks: int) -> dict[str, int]:
    """How deep each parameter stands, from its place in the model: before, in or after the blocks.

    Example:
        >>> _depths(["embedding.weight", "blocks.0.up.weight", "blocks.1.up.weight", "norm.weight"], num_blocks=2)
        {'embedding.weight': 0, 'blocks.0.up.weight': 1, 'blocks.1.up.weight': 2, 'norm.weight': 3}
    """
    depths, outside = {}, 0
    for name in names:
        block = _block(name)
        if block is not None:
            outside = num_blocks + 1
        depths[name] = outside if block is None else block + 1
    return depths


def _num_blocks(model: nn.Module) -> int:
    """Of the whole model, also where a pipeline left this worker only some."""
    return len(cast(nn.ModuleList, model.blocks))


def _block(name: str) -> int | None:
    """Number of the block that a parameter belongs to."""
    found = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def peak_learning_rate(config: OptimizerConfig) -> float:
    """Of the optimizer that moves most of the model; what curves show."""
    return config.muon_learning_rate if config.kind == "muon" else config.adamw_learning_rate


def set_learning_rates(optimizers: list[Optimizer], share: float) -> None:
    """Put every group at this share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
