"""Optimizers and average on parameters that FSDP2 shares out between two workers, against the same on whole ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.multiprocessing.spawn import spawn
from torch.optim import Optimizer

from llm.model.config import MoeConfig
from llm.model.moe import Moe
from llm.train import optimizer
from llm.train.average import Average
from llm.train.config import OptimizerConfig

WORKERS = 2
SETTINGS = ({"kind": "muon", "muon_learning_rate": 0.1}, {"kind": "adamw", "state_bits": 8, "adamw_learning_rate": 0.05})


def build(settings: dict[str, object], *, sharded: bool) -> tuple[Moe, list[Optimizer], Average]:
    torch.manual_seed(0)
    config = MoeConfig(width=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=24, num_experts=3, experts_per_token=2)
    model = Moe(config, 25)  # neither 25 tokens nor 3 experts halve
    if sharded:
        mesh = init_device_mesh("cpu", (WORKERS,))
        for part in (*model.blocks, model):
            fully_shard(part, mesh=mesh)
    return model, optimizer.build(model, OptimizerConfig.model_validate(settings)), Average(model, 0.5)


def step(number: int, model: Moe, optimizers: list[Optimizer], average: Average) -> None:
    """An update by gradients that depend on nothing but its number."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = gradient
    for each in optimizers:
        each.step()
    average.update(first=number == 1)
    model.zero_grad()


def work(rank: int, folder: Path) -> None:
    """Three steps, then a checkpoint of what two workers hold."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORKERS)
    for number, settings in enumerate(SETTINGS):
        model, optimizers, average = build(settings, sharded=True)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        for count in (1, 2, 3):
            step(count, model, optimizers, average)
        weights, moments = get_state_dict(model, optimizers)
        state_dict_saver.save({"model": weights, "optimizer": moments, "average": average.tensors}, checkpoint_id=folder / str(number))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    spawn(work, (folder,), nprocs=WORKERS)
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_two_workers_hold_what_one_has_and_one_goes_on_from_it(checkpoints: Path, number: int) -> None:
    whole = build(SETTINGS[number], sharded=False)
    for count in (1, 2, 3):
        step(count, *whole)
    model, optimizers, average = build(SETTINGS[number], sharded=False)
    weights, moments = get_state_dict(model, optimizers)
    state = {"model": weights, "optimizer": moments, "average": average.tensors}
    state_dict_loader.load(state, checkpoint_id=checkpoints / str(number), no_dist=True)
    set_state_dict(model, optimizers, model_state_dict=weights, optim_state_dict=moments)
    for _ in range(2):
        for name, parameter in whole[0].named_parameters():
            assert torch.equal(model.get_parameter(name), parameter), name
            assert torch.equal(average.tensors[name], whole[2].tensors[name]), name
        step(4, *whole)
        step(4, model, optimizers, average)
