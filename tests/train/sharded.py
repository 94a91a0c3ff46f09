"""One process of a group that loads a checkpoint, takes a step and saves, its parameters in shards: sharded.py FOLDER RANK SIZE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llm.train.checkpoint import Checkpoints
from llm.train.parallel.world import World
from llm.train.retention import Retention


def whole(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{size}", rank=rank, world_size=size)
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    world = World(rank, size, torch.device("cpu"))
    checkpoints = Checkpoints(folder / "checkpoints", "fingerprint", 1, Retention(), world, background=True)
    history = (checkpoints.restore(model, [optimizer], average) or {"history": []})["history"]
    loaded = tensors(model, optimizer, average)
    loss = model(torch.linspace(-1, 1, 16).view(2, 8)).square().mean()
    loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter.detach(), 0.5)
    history.append({"step": len(history) + 1, "loss": loss.item()})
    saved = tensors(model, optimizer, average)
    checkpoints.save(len(history), model, [optimizer], {"history": history}, average)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # training goes on while the copy is being written
    checkpoints.wait()
    if rank == 0:
        torch.save({"loaded": loaded, "saved": saved, "loss": loss.item()}, folder / f"seen-{len(history)}")
    checkpoints.close()
    if size > 1:
        dist.destroy_process_group()


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> list[Tensor]:
    moments = [value for parameter in model.parameters() for value in optimizer.state.get(parameter, {}).values()]
    return [whole(tensor) for tensor in (*model.parameters(), *average.values(), *moments)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
