"""Which parameters are moved by what."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from llm.train.config import OptimizerConfig


def build(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Muon for the matrices inside the blocks and AdamW for the rest, or AdamW for everything.

    Every parameter group carries its peak learning rate as `peak`. Only matrices decay.

    Source: Muon, https://kellerjordan.github.io/posts/muon/, which leaves embeddings and head to AdamW.
    """
    muon, decaying, others = _split(model, config)
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        [group | {"peak": config.adamw_learning_rate} for group in groups if group["params"]],
        lr=config.adamw_learning_rate,
        betas=config.betas,
        fused=True,
    )
    if not muon:
        return [adamw]
    rate = config.muon_learning_rate
    return [
        torch.optim.Muon([{"params": muon, "peak": rate}], lr=rate, momentum=config.momentum, weight_decay=config.weight_decay),
        adamw,
    ]


def _split(model: nn.Module, config: OptimizerConfig) -> tuple[list[Parameter], list[Parameter], list[Parameter]]:
    """Parameters for Muon, for AdamW with decay and for AdamW without, a tied one once."""
    muon, decaying, others = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            others.append(parameter)
        elif config.kind == "muon" and name.startswith("blocks."):
            muon.append(parameter)
        else:
            decaying.append(parameter)
    return muon, decaying, others


def peak_learning_rate(config: OptimizerConfig) -> float:
    """Of the optimizer that moves most of the model; what curves show."""
    return config.muon_learning_rate if config.kind == "muon" else config.adamw_learning_rate


def set_learning_rates(optimizers: list[Optimizer], share: float) -> None:
    """Put every group at this share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
