"""A worker that learns in little memory: starved.py WORK MEETING RANK SIZE MEBIBYTES; the last are its address space, 0 is plenty.

It ends with status 75 after an error that the next attempt may heal.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from llm.errors import CapacityError
from llm.train.micro_batch import fitting_size, within_memory
from llm.train.parallel.world import World

STEPS, ROWS, TOKENS, WIDTH, VOCAB = 4, 32, 128, 8, 2048  # the logits of all rows take 32 MiB, and as much again in backward
RESTART = 75


def starve(mebibytes: int) -> None:
    """Leave this process so much address space beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def exchange(world: World) -> None:
    """So many collectives at once that every thread of gloo has its part in them."""
    if world.size > 1:
        for work in [dist.all_reduce(torch.zeros(1), async_op=True) for _ in range(64)]:
            work.wait()


def learn(work: Path, world: World, mebibytes: int) -> None:
    """A few steps of plain gradient descent on rows of which every worker has its part; prints losses and rows per pass."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(VOCAB, WIDTH), torch.nn.Linear(WIDTH, VOCAB))
    own_BT1 = torch.randint(VOCAB, (ROWS, TOKENS + 1)).tensor_split(world.size)[world.rank]

    def gradient(rows: int) -> float:
        model.zero_grad()
        total = 0.0
        for part_BT1 in own_BT1.split(rows):
            loss = F.cross_entropy(model(part_BT1[:, :-1]).flatten(0, 1), part_BT1[:, 1:].flatten(), reduction="sum") / (ROWS * TOKENS)
            loss.backward()
            total += loss.item()
        return total

    gradient(1)  # what any step needs is there before the limit: memory that can't be had ends a thread's first use of a library
    exchange(world)
    if mebibytes:
        starve(mebibytes)
    rows, losses = fitting_size(work, ROWS), []
    for _ in range(STEPS):
        own, rows = within_memory(gradient, rows, work, world)
        losses.append(world.sum(own)[0])
        for parameter in model.parameters():
            if world.size > 1:
                dist.all_reduce(parameter.grad)
            parameter.data -= 0.5 * parameter.grad
    if world.rank == 0:
        print(json.dumps({"losses": losses, "rows": rows}))


def main(work: Path, meeting: Path, rank: int, size: int, mebibytes: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        learn(work, World(rank, size, torch.device("cpu")), mebibytes)
        if size > 1:
            dist.destroy_process_group()
    except CapacityError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(RESTART if error.transient else 1)  # the usual end of an interpreter needs memory as well


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
