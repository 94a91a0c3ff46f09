"""One process of a group that trains every case in FOLDER/cases.json: layout_worker.py FOLDER RANK SIZE."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from llm.data.rows import Rows, order
from llm.model import families
from llm.model.config import parse_model
from llm.train import optimizer
from llm.train.batch import Batch
from llm.train.config import TrainConfig
from llm.train.learner import Learner
from llm.train.objective.next_token import NextToken
from llm.train.parallel.check import check
from llm.train.parallel.config import LayoutConfig
from llm.train.parallel.gradient import clip_norm
from llm.train.parallel.layout import Layout
from llm.train.parallel.replica import Replica
from llm.train.parallel.sharing import whole_weights
from llm.train.parallel.world import World

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # stages of a pipeline have different parameter groups


class Run:
    """The loop's arithmetic and nothing else: batch, gradient, clipping, step."""

    def __init__(self, case: dict[str, Any], rows: Path) -> None:
        self.train = TrainConfig.model_validate(case["train"])
        self.rows = Rows.open(rows, "train")
        self.objective = NextToken(document_mask=self.train.document_mask)
        model, degrees, world = parse_model(case["model"]), LayoutConfig.model_validate(case["layout"]), World.current("cpu")
        check(degrees, model, self.train, self.rows.row_tokens, world.size)
        self.layout = Layout.over(world, degrees)
        torch.manual_seed(1)
        self.model = families.build(model, self.rows.vocab_size).train()
        for block in self.model.blocks:
            block.checkpointing = self.train.activation_checkpointing
        self.learner = Learner(self.model, self.objective, torch.float32, self.train.z_loss_weight)
        self.replica = Replica(self.learner, self.layout)
        self.optimizers = optimizer.build(self.model, self.train.optimizer)
        first = np.zeros(1, np.int64)
        self.replica.rehearse(self.objective.batch(self.rows, first, first, 1))

    def batches(self, first: int, count: int) -> list[Batch]:
        indices = order(first, count, rows=len(self.rows), seed=1)
        own, size = self.layout.part(np.arange(count)), self.train.micro_batch_size
        parts = [own[place : place + size] for place in range(0, len(own), size)]
        return [self.objective.batch(self.rows, indices[part], part, 1) for part in parts]

    def counted(self, batches: list[Batch]) -> float:
        return self.layout.sum(sum(self.learner.counts(batch)["loss"] for batch in batches))[0]

    def step(self, number: int) -> list[float]:
        """Loss and norm of the gradient."""
        batches = self.batches(number * self.train.global_batch_size, self.train.global_batch_size)
        counted = self.counted(batches)
        scales = {term: weight / counted for term, weight in self.learner.weights.items()}
        loss = self.layout.sum(self.replica.accumulate(batches, scales)["loss"])[0] / counted
        norm = clip_norm(self.model.parameters(), self.train.clip_norm, self.layout)
        for each in self.optimizers:
            each.step()
        self.model.zero_grad()
        return [loss, norm]

    def validate(self) -> float:
        batches = self.batches(0, 5)
        return self.layout.sum(sum(sums["loss"] for sums in self.replica.evaluate(batches)))[0] / self.counted(batches)

    @torch.no_grad()
    def validate_others(self) -> float:
        """The loss of halved weights, put back afterwards: what validating an average of the weights does."""
        for parameter in self.model.parameters():
            parameter.mul_(0.5)
        loss = self.validate()
        for parameter in self.model.parameters():
            parameter.mul_(2.0)
        return loss

    def state(self) -> dict[str, Any]:
        weights, moments = get_state_dict(self.model, self.optimizers, options=FLAT)
        return {"model": weights, "optimizer": moments}

    def save(self, folder: Path) -> None:
        state_dict_saver.save(self.state(), checkpoint_id=folder, no_dist=self.layout.world.size == 1)

    def load(self, folder: Path) -> None:
        state = self.state()
        state_dict_loader.load(state, checkpoint_id=folder, no_dist=self.layout.world.size == 1)
        set_state_dict(self.model, self.optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=FLAT)

    def result(self, curve: list[list[float]]) -> dict[str, Any]:
        """What the test compares, on the first worker."""
        return {"curve": curve, "validation": self.validate(), "weights": whole_weights(self.model, self.layout)}


def run(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train `case`, validating after each step; with a checkpoint half-way, or from there on.

    It is left half-way if the case is `kept`; a case that `resumes` another begins with that one's.
    """
    training, steps = Run(case, folder / "rows"), case["train"]["steps"]
    half, curve = steps // 2, []
    if case["resumes"]:
        training.load(folder / f"{case['resumes']}-checkpoint")
    for number in range(half if case["resumes"] else 0, steps):
        curve.append([*training.step(number), training.validate_others()])
        if case["kept"] and number + 1 == half:
            training.save(folder / f"{case['name']}-checkpoint")
    return training.result(curve)


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    for case in json.loads((folder / "cases.json").read_text()):
        result = run(case, folder)
        if rank == 0:
            torch.save(result, folder / f"{case['name']}.pt")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
