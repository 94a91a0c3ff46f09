"""Rows that spoil a training, in the real loop: it goes back, reads on behind them, and ends the same after any interruption."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.data.rows import order
from llm.errors import DivergenceError
from llm.model import weights
from llm.train.job import TrainJob
from llm.train.loop import train

JobMaker = Callable[..., TrainJob]

ROWS, ROW_TOKENS, VOCAB_SIZE, BATCH, SEED = 400, 16, 48, 4, 7
SPOILED_STEPS = (38, 39, 40)
SETTINGS: dict[str, Any] = {
    "steps": 60,
    "global_batch_size": BATCH,
    "micro_batch_size": BATCH,
    "checkpoint_every_steps": 10,
    "keep_checkpoints": 10,
    "optimizer": {"adamw_learning_rate": 1e-2},
    "guard": {"window_steps": 16, "spike_deviations": 10.0},
}


def spoiled_rows(folder: Path, spoiled_steps: tuple[int, ...]) -> Path:
    """A language of three tokens in turn, but for the rows that these steps read: those are noise.

    The first token of such a row is the last target of the row before, and stays as it was.
    """
    random = np.random.default_rng(3)
    tokens = (3 + np.arange(ROWS * ROW_TOKENS + 1) % 3).astype("<u2")
    for step in spoiled_steps:
        for row in order((step - 1) * BATCH, BATCH, rows=ROWS, seed=SEED):
            tokens[row * ROW_TOKENS + 1 : (row + 1) * ROW_TOKENS] = random.integers(6, VOCAB_SIZE, ROW_TOKENS - 1)
    folder.mkdir()
    tokens.tofile(folder / "train.tokens")
    tokens[: 9 * ROW_TOKENS + 1].tofile(folder / "validation.tokens")
    facts = {"dtype": "uint16", "row_tokens": ROW_TOKENS, "vocab_size": VOCAB_SIZE, "splits": {"train": {}, "validation": {}}}
    (folder / "rows.json").write_text(json.dumps(facts))
    return folder


def history(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "final" / "history.jsonl").read_text().splitlines()]


def guard_after(step: int, work: Path) -> dict[str, Any]:
    return json.loads((work / "checkpoints" / f"step-{step:08d}" / "progress.json").read_text())["guard"]


def test_nothing_is_wrong_with_a_healthy_run(make_job: JobMaker, tmp_path: Path) -> None:
    """Long enough for the guard as it comes, over the phase in which the gradient's norm grows by a factor of ten."""
    job = make_job(rows=spoiled_rows(tmp_path / "rows", ()), **SETTINGS | {"steps": 200, "guard": {"window_steps": 16}})
    train(job)
    assert [record for record in history(job.work) if "reason" in record or "alerts" in record] == []


def test_a_step_of_noise_is_skipped_and_named(make_job: JobMaker, tmp_path: Path) -> None:
    job = make_job(rows=spoiled_rows(tmp_path / "rows", SPOILED_STEPS[:1]), **SETTINGS)
    train(job)
    (skipped,) = [record for record in history(job.work) if "reason" in record]
    assert skipped["step"] == 38
    assert skipped["rows"] == order(37 * BATCH, BATCH, rows=ROWS, seed=SEED).tolist()
    assert guard_after(60, job.work)["rollbacks"] == 0


@pytest.fixture
def recovered(make_job: JobMaker, tmp_path: Path) -> TrainJob:
    """A run over three steps of noise, the last of them at a checkpoint."""
    job = make_job("whole", rows=spoiled_rows(tmp_path / "rows", SPOILED_STEPS), **SETTINGS)
    train(job)
    return job


def test_steps_of_noise_in_a_row_are_done_again_with_the_rows_behind_them(recovered: TrainJob) -> None:
    state = guard_after(60, recovered.work)
    assert (state["rollbacks"], state["skipped_rows"]) == (1, 10 * BATCH)
    assert json.loads((recovered.work / "final" / "log" / "cost.json").read_text())["rows_read"] == 70 * BATCH
    assert [record["step"] for record in history(recovered.work)] == list(range(1, 61))
    assert max(record["loss"] for record in history(recovered.work)[30:]) < 1.5
    lines = [json.loads(line) for line in (recovered.work / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "reason" in line] == list(SPOILED_STEPS)
    assert [line["step"] for line in lines].count(31) == 2


def test_a_run_that_goes_on_from_any_of_its_checkpoints_ends_the_same(recovered: TrainJob, make_job: JobMaker) -> None:
    for step in (20, 30, 40, 50):
        resumed = make_job(f"from-{step}", rows=recovered.rows, **SETTINGS)
        for earlier in range(10, step + 1, 10):
            name = f"checkpoints/step-{earlier:08d}"
            shutil.copytree(recovered.work / name, resumed.work / name)
        train(resumed)
        for name in ("model.safetensors", "history.jsonl"):
            assert (resumed.work / "final" / name).read_bytes() == (recovered.work / "final" / name).read_bytes(), (step, name)


def test_noise_without_end_stops_the_run_with_finite_weights(make_job: JobMaker, tmp_path: Path) -> None:
    job = make_job(rows=spoiled_rows(tmp_path / "rows", tuple(range(38, 101))), **SETTINGS)
    with pytest.raises(DivergenceError, match=r"diverged at step 3\d.*after 3 returns"):
        train(job)
    assert not (job.work / "final").exists()
    newest = max((job.work / "checkpoints").glob("step-*"))
    assert guard_after(30, job.work)["unhealthy_since"] is None
    assert newest.name == "step-00000030"


def test_a_rate_that_is_far_too_high_leaves_finite_weights(make_job: JobMaker) -> None:
    job = make_job(checkpoint_every_steps=1, optimizer={"kind": "adamw", "adamw_learning_rate": 1e30}, guard={"max_rollbacks": 1})
    with pytest.raises(DivergenceError, match="after 1 returns"):
        train(job)
    assert list((job.work / "checkpoints").glob("step-*"))


def test_the_final_weights_are_finite(recovered: TrainJob) -> None:
    model = weights.load(recovered.work / "final")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_storage_that_goes_away_now_and_then_changes_nothing(make_job: JobMaker, tmp_path: Path) -> None:
    settings = SETTINGS | {"checkpoint_every_steps": 2}
    whole, shaken = (make_job(work, rows=spoiled_rows(tmp_path / f"rows of {work}", ()), **settings) for work in ("whole", "shaken"))
    train(whole)
    outages = threading.Thread(target=take_away, args=(shaken.work, (5, 20, 40)))
    outages.start()
    train(shaken)
    outages.join()
    for name in ("final/model.safetensors", "final/history.jsonl"):
        assert (whole.work / name).read_bytes() == (shaken.work / name).read_bytes(), name
    assert all((shaken.work / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists() for step in (58, 60)), "and none stayed away"
    assert [json.loads(line)["step"] for line in told(shaken.work)] == list(range(1, 61))


def take_away(work: Path, steps: tuple[int, ...]) -> None:
    """Once each of these steps is told, the folder is not there for a second."""
    for step in steps:
        while len(told(work)) < step:
            time.sleep(0.001)
        work.rename(work.with_name("away"))
        time.sleep(1)
        work.with_name("away").rename(work)


def told(work: Path) -> list[str]:
    file = work / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []
