"""Expert parallelism: every worker holds some experts of each layer, and tokens travel to theirs and back.

Source: GShard, https://arxiv.org/abs/2006.16668, section 3.2.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.tensor import Shard, distribute_tensor

from llm.model.moe import Experts, experts_of, swiglu_by_expert
from llm.train.parallel.layout import Layout

MATRICES = ("gate", "up", "down")


def spread_experts(model: nn.Module, layout: Layout) -> set[nn.Parameter]:
    """Leave this worker its share of every layer's experts; the parameters that are shared out so."""
    mesh, spread = layout.mesh["dp_shard"], set()
    for experts in experts_of(model):
        for name in MATRICES:
            parameter = nn.Parameter(distribute_tensor(getattr(experts, name).detach(), mesh, [Shard(0)]))
            setattr(experts, name, parameter)
            spread.add(parameter)
        experts.dispatch = partial(compute_elsewhere, experts, mesh.get_group())
    return spread


def compute_elsewhere(experts: Experts, group: ProcessGroup, sorted_AD: Tensor, counts: list[int]) -> Tensor:
    """What Experts.compute answers, each stretch of tokens computed by the worker that holds its expert.

    Shapes: counts are dealt out as workers × experts of a worker; tokens arrive by sender, then expert.
    """
    workers = group.size()
    leaving_WE = torch.tensor(counts, device=sorted_AD.device).view(workers, -1)
    coming_WE = torch.empty_like(leaving_WE)
    dist.all_to_all_single(coming_WE, leaving_WE, group=group)
    leaving, coming = leaving_WE.sum(dim=1).tolist(), coming_WE.sum(dim=1).tolist()
    arrived_AD = all_to_all_single_autograd(sorted_AD.contiguous(), coming, leaving, group)
    order_A = _by_expert(coming_WE)
    mine = [getattr(experts, name).to_local() for name in MATRICES]
    answered_AD = swiglu_by_expert(arrived_AD[order_A], coming_WE.sum(dim=0).tolist(), *mine)
    returned_AD: Tensor = all_to_all_single_autograd(answered_AD[order_A.argsort()].contiguous(), leaving, coming, group)
    return returned_AD


def _by_expert(counts_WE: Tensor) -> Tensor:
    """Order that brings tokens, lying by sender and then expert, together by expert."""
    workers, count = counts_WE.shape
    experts_A = torch.arange(count, device=counts_WE.device).repeat(workers).repeat_interleave(counts_WE.flatten())
    return experts_A.argsort(stable=True)
