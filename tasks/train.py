"""Pretrain and fine-tune: the one place that chooses whether the loop runs in this process or on Ray workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from prefect import task

from llm.artifact import Store
from llm.recipe import Recipe
from llm.run import refs
from llm.stages import Job
from llm.train.config import TrainConfig
from tasks.policy import policy, produce
from tasks.progress import followed


@task(**policy("pretrain"))
def pretrain(job: Job) -> dict[str, str]:
    """Train the recipe's model on the tokenized rows, from random weights or from those that it names."""
    recipe, rows = Recipe.model_validate(job.recipe), refs(job.parents)["tokenized"]
    return produce(job, lambda out: _train(job, recipe, recipe.train, rows, out))


@task(**policy("finetune"))
def finetune(job: Job) -> dict[str, str]:
    """Train the base model on conversations, with the loss on answers only."""
    from llm.data.chat import build as build_chat
    from llm.data.filters.contamination import finder

    recipe, parents = Recipe.model_validate(job.recipe), refs(job.parents)

    def build(out: Path) -> dict[str, Any]:
        chat = out / "chat"
        chat.mkdir()
        contaminated = finder(recipe.evaluate.sets, recipe.clean.contamination)
        pairs = build_chat(parents["deduped"], parents["tokenized"], chat, recipe.finetune.chat, contaminated)
        return {"pairs": pairs, **_train(job, recipe, recipe.finetune.train, chat, out, initial=parents["trained"])}

    return produce(job, build)


def _train(job: Job, recipe: Recipe, config: TrainConfig, rows: Path, out: Path, initial: Path | None = None) -> dict[str, Any]:
    """Train in the key's work folder, where the checkpoints of a killed attempt wait, and hand over the result."""
    import torch

    from llm.train.job import TrainJob
    from llm.train.loop import train

    work = Store(Path(job.store)).work(job.stage, job.key)
    training = TrainJob(
        rows=rows,
        model=recipe.model,
        train=config,
        seed=recipe.seed,
        work=work,
        initial=initial or (Path(config.initial).absolute() if config.initial else None),
        device=recipe.cluster.device,
        cluster=recipe.cluster,
    )
    with followed(job, work, config.steps):
        if recipe.cluster.in_process:
            torch.set_num_threads(recipe.cluster.threads_per_worker)
            train(training)
        else:
            from llm.cluster.connect import connected
            from llm.cluster.workers import run

            with connected(recipe.cluster, Path(job.store)):
                run(training, recipe.cluster, work / "ray", job.stage)
    shutil.copytree(work / "final", out, dirs_exist_ok=True)
    cost = json.loads((out / "log" / "cost.json").read_text())
    elsewhere = {} if recipe.cluster.in_process else {"worker_cpu_seconds": sum(cost["worker_cpu_seconds"])}
    return {
        **elsewhere,
        "workers": cost["workers"],
        "device": cost["device"],
        "gpu_seconds": cost["seconds"] * cost["workers"] * (cost["device"] == "cuda"),
    }
