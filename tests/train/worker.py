"""One process of a group that makes the attempts in FOLDER/attempts.json: worker.py FOLDER RANK SIZE."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llm.model.config import parse_model
from llm.train.config import TrainConfig
from llm.train.guard import Action
from llm.train.job import TrainJob
from llm.train.loop import Attempt, watch
from llm.train.parallel.world import World


class Interrupted(Exception):
    """Stands for the end of a process in the middle of a run."""


class Stopping(Attempt):
    """An attempt that ends before a step."""

    stop_before: int | None = None

    def update(self, step: int) -> tuple[dict[str, Any], Action]:
        if step == self.stop_before:
            raise Interrupted
        return super().update(step)


def attempt(job: TrainJob, stop_before: int | None) -> None:
    job.work.mkdir(exist_ok=True)
    world = World.current("cpu")
    with watch(job, world) as dog:
        run = Stopping(job, world, dog)
        run.stop_before = stop_before
        try:
            run.run()
        except Interrupted:
            assert stop_before
        run.close()


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    for facts in json.loads((folder / "attempts.json").read_text()):
        model, settings = parse_model(facts["model"]), TrainConfig.model_validate(facts["train"])
        job = TrainJob(Path(facts["rows"]), model, settings, facts["seed"], Path(facts["work"]), device="cpu")
        attempt(job, facts["stop_before"])
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
