"""The loop in one process: it learns, counts tokens exactly, continues, and stops with a named error."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from llm.artifact import content_digest, describe
from llm.data.rows import Rows, order
from llm.errors import ArtifactError, DataError, DivergenceError, RecipeError
from llm.model import weights
from llm.model.config import DecoderConfig, parse_model
from llm.model.decoder import Decoder
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.job import TrainJob
from llm.train.loop import train
from tests.train.golden import MODELS

JobMaker = Callable[..., TrainJob]


def history(job: TrainJob) -> list[dict[str, float]]:
    return [json.loads(line) for line in (job.work / "final" / "history.jsonl").read_text().splitlines()]


def test_it_learns_a_chain_to_near_its_entropy(make_job: JobMaker) -> None:
    job = make_job(steps=150, checkpoint_every_steps=1000, optimizer={"adamw_learning_rate": 1e-2})
    train(job)
    entropy = -sum(p * np.log(p) for p in (0.7, 0.2, 0.1))
    first, last = history(job)[0], history(job)[-1]
    assert first["loss"] > 3.5
    assert entropy - 0.1 < last["validation_loss"] < entropy + 0.6


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_micro_batches_do_not_change_the_loss(make_job: JobMaker, masked_rows: Path, kind: str) -> None:
    jobs = [make_job(f"micro-{size}", rows=masked_rows, micro_batch_size=size, optimizer={"kind": kind}, steps=4) for size in (8, 3)]
    for job in jobs:
        train(job)
    whole, parts = ([record["loss"] for record in history(job)] for job in jobs)
    assert parts == pytest.approx(whole, rel=1e-5 if kind == "adamw" else 1e-3)  # Muon rounds to bfloat16 within a step


def test_the_first_loss_is_the_mean_over_counted_targets(make_job: JobMaker, masked_rows: Path) -> None:
    job = make_job(rows=masked_rows, steps=3, validation_rows=0)
    train(job)
    rows = Rows.open(masked_rows, "train")
    inputs, targets = (torch.from_numpy(part) for part in rows.batch(order(0, 8, rows=len(rows), seed=job.seed)))
    torch.manual_seed(job.seed)
    logits, _ = Decoder(job.model, rows.vocab_size)(inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert history(job)[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert history(job)[0]["tokens"] == int((targets != -100).sum())


def test_validation_is_the_mean_over_the_validation_rows(make_job: JobMaker, rows: Path) -> None:
    job = make_job()
    train(job)
    validation = Rows.open(rows, "validation")
    inputs, targets = (torch.from_numpy(part) for part in validation.batch(np.arange(len(validation))))
    logits, _ = weights.load(job.work / "final")(inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert [record["step"] for record in history(job) if "validation_loss" in record] == [5, 10, 12]
    assert history(job)[-1]["validation_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_metrics_are_the_history_with_a_clock(make_job: JobMaker) -> None:
    job = make_job()
    train(job)
    metrics = [json.loads(line) for line in (job.work / "metrics.jsonl").read_text().splitlines()]
    for line, record in zip(metrics, history(job), strict=True):
        assert {name: line[name] for name in record} == record
        assert line["steps"] == 12
        assert line["tokens_per_second"] > 0
        assert line["memory_bytes"] > 2**20
        assert 0 <= line["mfu"] < 1


def test_a_trace_is_in_the_result_and_outside_its_content(make_job: JobMaker) -> None:
    plain, traced = make_job("plain"), replace(make_job("traced"), cluster=ClusterConfig(profile_steps=(11, 40)))
    train(plain)
    train(traced)
    with gzip.open(traced.work / "final" / "log" / "trace-0.json.gz") as file:
        assert any(event.get("name") == "aten::mm" for event in json.load(file)["traceEvents"])
    assert (traced.work / "final" / "log" / "trace-0.txt").read_text()
    first, second = (content_digest(describe(job.work / "final")) for job in (plain, traced))
    assert first == second


@pytest.mark.parametrize("steps", [(20, 10), (0, 3)])
def test_a_trace_of_no_step_is_refused(steps: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match=f"no step lies from {steps[0]} to {steps[1]}; set cluster.profile_steps"):
        ClusterConfig(profile_steps=steps)


def test_fine_tuning_starts_from_the_initial_weights(make_job: JobMaker) -> None:
    base = make_job("base")
    train(base)
    tuned = make_job("tuned", initial=base.work / "final", steps=1, schedule={"warmup_steps": 0})
    train(tuned)
    assert history(tuned)[0]["loss"] < history(base)[0]["loss"] - 0.1


def test_dropped_assignments_are_told_where_experts_have_a_capacity(make_job: JobMaker) -> None:
    experts = parse_model(MODELS["moe"] | {"max_positions": 16})
    tight, free = (make_job(name, steps=2, schedule={"warmup_steps": 0}) for name in ("tight", "free"))
    tight = replace(tight, model=experts.model_copy(update={"capacity_factor": 0.5}))
    free = replace(free, model=experts)
    train(tight)
    train(free)
    for record in history(tight):  # with half of what even shares need, at least half finds no room
        assert 0.5 <= record["router_dropped_share"] < 1
    assert all("router_dropped_share" not in record for record in history(free))


@pytest.mark.parametrize(
    "changes", [{}, {"average_decay": 0.9}, {"stop_after_validations": 1, "checkpoint_every_steps": 5, "ramp": {"rows": 4, "steps": 9}}]
)
def test_no_step_hands_the_initial_weights_on(make_job: JobMaker, changes: dict[str, object]) -> None:
    base = make_job("base", steps=3)
    train(base)
    job = make_job("handed on", initial=base.work / "final", **changes)
    settings = job.train.model_dump() | {"steps": 0, "initial": str(base.work / "final")}
    job = replace(job, train=TrainConfig.model_validate(settings))
    for _ in range(2):  # the second attempt finds nothing to go on from, and needs nothing
        train(job)
        for name in ("model.safetensors", "config.json"):
            assert (job.work / "final" / name).read_bytes() == (base.work / "final" / name).read_bytes()
        assert history(job) == []
        assert json.loads((job.work / "final" / "log" / "cost.json").read_text())["rows_read"] == 0


def test_initial_weights_of_another_size_are_refused(make_job: JobMaker) -> None:
    base = make_job("base", steps=3)
    train(base)
    wider = DecoderConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=32, max_positions=16)
    with pytest.raises(ArtifactError, match="other sizes"):
        train(replace(make_job("tuned", initial=base.work / "final"), model=wider))


def test_divergence_names_the_step_and_keeps_the_last_checkpoint(make_job: JobMaker) -> None:
    job = make_job(steps=100, checkpoint_every_steps=1, optimizer={"kind": "adamw", "adamw_learning_rate": 1e30})
    with pytest.raises(DivergenceError, match=r"diverged at step (2|3).*learning_rate lower"):
        train(job)
    assert not (job.work / "final").exists()
    assert list((job.work / "checkpoints").glob("step-*"))


def test_a_checkpoint_of_another_job_is_refused(make_job: JobMaker) -> None:
    train(make_job())
    with pytest.raises(ArtifactError, match="another job"):
        train(make_job(seed=8))


def test_a_finished_run_only_writes_its_result_again(make_job: JobMaker) -> None:
    job = make_job()
    train(job)
    before = (job.work / "final" / "model.safetensors").read_bytes()
    train(job)
    assert (job.work / "final" / "model.safetensors").read_bytes() == before
    assert len((job.work / "metrics.jsonl").read_text().splitlines()) == 12


def test_sizes_that_do_not_fit_are_refused(make_job: JobMaker, tmp_path: Path, rows: Path) -> None:
    short = make_job().model.model_copy(update={"max_positions": 8})
    with pytest.raises(RecipeError, match=r"model\.max_positions"):
        train(replace(make_job(), model=short))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "rows.json").write_text((rows / "rows.json").read_text())
    for split in ("train", "validation"):
        np.ones(1, dtype="<u2").tofile(empty / f"{split}.tokens")
    with pytest.raises(DataError, match="no training row"):
        train(make_job(rows=empty))


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"schedule": {"warmup_steps": 12}}, "train.schedule.warmup_steps"),
        ({"micro_batch_size": 9}, "train.micro_batch_size"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "train.optimizer.betas"),
    ],
)
def test_impossible_settings_name_what_to_set(changes: dict[str, object], setting: str) -> None:
    settings: dict[str, object] = {"steps": 12, "global_batch_size": 8, "micro_batch_size": 8, "schedule": {"warmup_steps": 2}}
    with pytest.raises(ValidationError, match=f"set {setting}"):
        TrainConfig.model_validate(settings | changes)
