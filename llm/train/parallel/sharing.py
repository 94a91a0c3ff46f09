"""How a learner is shared out among the workers of a layout, from the inside out.

Source: PyTorch FSDP, https://arxiv.org/abs/2304.11277; its per-parameter form (FSDP2) composed with the other
dimensions of the mesh: torchtitan, https://arxiv.org/abs/2410.06511, section 2.1.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llm.train.learner import Learner
from llm.train.parallel.context import cut_sequence
from llm.train.parallel.expert import spread_experts
from llm.train.parallel.layout import Layout
from llm.train.parallel.pipeline import Stage
from llm.train.parallel.tensor import cut_matrices


def share_out(learner: Learner, layout: Layout) -> nn.Module:
    """The module to call instead of the learner, on this worker's device: layers, sequence, matrices, experts and parameters cut as the
    layout says.

    A model that no worker holds whole comes to the device piece by piece, since the whole need not fit there.
    """
    if not layout.shares_parameters:
        learner.to(layout.world.device)
    if layout.world.size == 1:
        return learner
    module: nn.Module = Stage(learner, layout) if layout.sizes["pp"] > 1 else learner
    if layout.cuts_sequence:
        cut_sequence(learner.model, layout)
    if layout.sizes["tp"] > 1:
        cut_matrices(learner.model, layout)
    if not layout.shares_parameters:
        devices = [layout.world.device] if layout.world.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, process_group=layout.replicas.get_group())
    spread = spread_experts(learner.model, layout) if layout.degrees.expert > 1 else set()
    if layout.world.size > layout.sizes["pp"]:
        share_parameters(module, learner, layout, spread)
    for tensor in (*learner.parameters(), *learner.buffers()):
        if not isinstance(tensor, DTensor):  # which is where its mesh is
            tensor.data = tensor.detach().to(layout.world.device)
    return module


def share_parameters(module: nn.Module, learner: Learner, layout: Layout, spread: set[nn.Parameter]) -> None:
    """FSDP2: each block on its own, then what no block holds; `spread` parameters stay as they are.

    Gradients are added up, not averaged: the loss is divided by counts over all workers already.
    """
    on_gpu_in_bf16 = layout.world.device.type == "cuda" and learner.dtype == torch.bfloat16
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if on_gpu_in_bf16 else MixedPrecisionPolicy()
    policy = MixedPrecisionPolicy(policy.param_dtype, policy.reduce_dtype, cast_forward_inputs=False)
    for block in getattr(learner.model, "blocks", []):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=layout.shards, mp_policy=policy, ignored_params=spread)
    fully_shard(module, mesh=layout.outer_shards, mp_policy=policy, ignored_params=spread)
    for part in _shared(module):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def only_last_reduces(module: nn.Module, *, last: bool) -> None:
    """Add gradients up over the workers of one copy in every backward pass, over copies in the last alone."""
    for part in _shared(module):
        part.set_requires_all_reduce(last, recurse=False)


def let_go(module: nn.Module) -> None:
    """Free gathered parameters that no backward pass will free: weights may change before the next forward pass."""
    for part in _shared(module):
        part.reshard()


def _shared(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def whole_weights(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Every tensor of the model in full, on the CPU of worker 0; elsewhere nothing that is of use.

    Collective: a tensor at a time is put together on all workers, and pipeline stages hand theirs to the first.
    """
    weights = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if layout.leads_stage:
            weights[name] = full.detach().cpu()
    if layout.sizes["pp"] == 1 or not layout.leads_stage:
        return weights
    group = layout.group("pp")
    stages: list[dict[str, Tensor]] = [{}] * layout.sizes["pp"]
    dist.gather_object(weights, stages if layout.world.rank == 0 else None, dst=dist.get_global_rank(group, 0), group=group)
    return {name: tensor for stage in stages for name, tensor in stage.items()}
