"""When a training ends before its last step, and with what weights."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import ValidationError

from llm.data.rows import Rows
from llm.errors import ArtifactError
from llm.model import weights
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.early_stopping import finished
from llm.train.job import TrainJob
from llm.train.loop import train
from tests.train.conftest import JobMaker
from tests.train.worker import attempt

OVERFITS: dict[str, Any] = {
    "steps": 100,
    "validate_every_steps": 10,
    "checkpoint_every_steps": 5,
    "stop_after_validations": 2,
    "optimizer": {"kind": "adamw", "adamw_learning_rate": 3e-2, "weight_decay": 0.0},
}


def stopped_after(losses: list[float], patience: int | None) -> int | None:
    """How many validations happen before the training is finished, one between steps without any; None: all."""
    settings = {"steps": 100, "global_batch_size": 1, "micro_batch_size": 1, "schedule": {"warmup_steps": 1}}
    train = TrainConfig.model_validate(settings | {"stop_after_validations": patience})
    history: list[dict[str, float]] = []
    for number, loss in enumerate(losses, start=1):
        history += [{"loss": 1.0}, {"loss": 1.0, "validation_loss": loss}]
        if finished(history, train):
            return number
    return None


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([5, 4, 3, 2, 1], 1, None),
        ([5, 4, 4.5, 3], 1, 3),
        ([5, 4, 4.5, 4.2, 3, 2], 3, None),
        ([5, 4, 4.5, 4.2, 4.1, 2], 3, 5),
        ([5, 4, 4, 4], 2, 4),  # as good is not better
        ([5, 6, 7, 8], None, None),
        ([5], 1, None),
    ],
)
def test_it_ends_after_that_many_validations_without_a_better_loss(losses: list[float], patience: int | None, expected: int | None) -> None:
    assert stopped_after(losses, patience) == expected


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def validated(records: list[dict[str, Any]]) -> dict[int, float]:
    return {record["step"]: record["validation_loss"] for record in records if "validation_loss" in record}


def assert_best(job: TrainJob) -> None:
    """The result is what had the best loss of all validations, with its history, and later ones were worse."""
    losses = validated(read(job.work / "metrics.jsonl"))
    best = min(losses, key=lambda step: losses[step])
    assert best == sorted(losses)[-3], "two validations without a better loss end it"
    history = read(job.work / "final" / "history.jsonl")
    assert [record["step"] for record in history] == list(range(1, best + 1))
    assert history[-1]["validation_loss"] == losses[best]
    assert json.loads((job.work / "final" / "log" / "cost.json").read_text())["rows_read"] == best * job.train.global_batch_size
    validation = Rows.open(job.rows, "validation")
    inputs, targets = (torch.from_numpy(part) for part in validation.batch(np.arange(len(validation))))
    logits, _ = weights.load(job.work / "final")(inputs)
    assert losses[best] == pytest.approx(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item(), rel=1e-6)


def assert_same_result(job: TrainJob, other: TrainJob) -> None:
    for name in ("model.safetensors", "history.jsonl"):
        assert (job.work / "final" / name).read_bytes() == (other.work / "final" / name).read_bytes()


@pytest.mark.parametrize("changes", [{}, {"average_decay": 0.5}], ids=["weights", "their average"])
def test_the_result_is_the_best_checkpoint(make_job: JobMaker, changes: dict[str, object]) -> None:
    whole, resumed = (make_job(name, **OVERFITS | changes) for name in ("whole", "resumed"))
    train(whole)
    assert_best(whole)
    last = read(whole.work / "metrics.jsonl")[-1]["step"]
    for stop_before in (8, last - 3, None, None):
        attempt(resumed, stop_before)
        assert (stop_before is None) == (resumed.work / "final").exists()
        if stop_before is None:
            assert_same_result(resumed, whole)


def member(jobs: list[tuple[TrainJob, int | None]], rank: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for job, stop_before in jobs:
        attempt(job, stop_before)
    dist.destroy_process_group()


@pytest.mark.parametrize("layout", [{}, {"shard": 2}], ids=["copies", "shards"])
def test_so_it_is_on_two_workers(make_job: JobMaker, tmp_path: Path, layout: dict[str, int]) -> None:
    cluster = ClusterConfig.model_validate({"workers": 2, "layout": layout})
    whole, resumed = (replace(make_job(name, **OVERFITS), cluster=cluster) for name in ("whole", "resumed"))
    attempts = [(whole, None), (resumed, 43), (resumed, None)]
    fork = multiprocessing.get_context("fork")
    group = [fork.Process(target=member, args=(attempts, rank, tmp_path / "meeting"), daemon=True) for rank in range(2)]
    for process in group:
        process.start()
    for process in group:
        process.join(timeout=120)
    assert [process.exitcode for process in group] == [0, 0]
    assert_best(whole)
    assert_same_result(resumed, whole)


@pytest.mark.parametrize("damaged", ["progress.json", "manifest.json"])
def test_a_best_checkpoint_that_is_damaged_is_not_replaced_by_the_second_best(make_job: JobMaker, damaged: str) -> None:
    job = make_job(**OVERFITS)
    train(job)
    best = job.work / "checkpoints" / f"step-{len(read(job.work / 'final' / 'history.jsonl')):08d}"
    shutil.rmtree(job.work / "final")
    (best / damaged).write_text("")
    with pytest.raises(ArtifactError, match=r"the best checkpoint is damaged: .*; delete .*checkpoints and run the same command again"):
        train(job)
    assert not (job.work / "final").exists()


@pytest.mark.parametrize("asks", [{"stop_after_validations": 2}, {"keep_best": True}], ids=["stops", "keeps"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_rows": 0}, "need a validation loss; set train.validation_rows above 0"),
        ({"validate_every_steps": 10, "checkpoint_every_steps": 4}, "set train.checkpoint_every_steps to a divisor of 10"),
        ({"validate_every_steps": 4, "checkpoint_every_steps": 8}, "set train.checkpoint_every_steps to a divisor of 4"),
    ],
)
def test_a_best_without_a_checkpoint_is_refused(asks: dict[str, object], changes: dict[str, object], message: str) -> None:
    settings = {"steps": 100, "global_batch_size": 1, "micro_batch_size": 1, "schedule": {"warmup_steps": 1}} | changes
    TrainConfig.model_validate(settings)
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(settings | asks)
