"""A training worker on Ray that stops without dying: the others find out, the group starts again, and no bit changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from llm.cluster.workers import run
from llm.model.config import DecoderConfig
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.loop import TrainJob

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.long]

ROW_TOKENS, VOCAB_SIZE, STEPS = 32, 64, 60
PLAIN_WORKER = Path(__file__).parents[1] / "train" / "worker.py"
SETTINGS = {
    "steps": STEPS,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "schedule": {"warmup_steps": 2},
    "precision": "fp32",
    "checkpoint_every_steps": 10,
    "validation_rows": 0,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for seed, (split, count) in enumerate({"train": 64, "validation": 8}.items()):
        np.random.default_rng(seed).integers(3, VOCAB_SIZE, count * ROW_TOKENS + 1).astype("<u2").tofile(folder / f"{split}.tokens")
    facts = {"dtype": "uint16", "row_tokens": ROW_TOKENS, "vocab_size": VOCAB_SIZE, "splits": {"train": {}, "validation": {}}}
    (folder / "rows.json").write_text(json.dumps(facts))
    return folder


def make_job(rows: Path, work: Path, cluster: ClusterConfig) -> TrainJob:
    model = DecoderConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=64, max_positions=ROW_TOKENS)
    return TrainJob(rows, model, TrainConfig.model_validate(SETTINGS), 5, work, cluster=cluster)


def steps(work: Path) -> list[int]:
    path = work / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def stop_a_worker_after(step: int, rank: int, work: Path, stopped: list[int]) -> None:
    """SIGSTOP to that worker, which its watchdog's log names, as soon as the step is reported."""
    while not any(done >= step for done in steps(work)):
        time.sleep(0.005)
    process = int((work / f"watchdog-{rank}.log").read_text().split("process")[1].split(",")[0])
    os.kill(process, signal.SIGSTOP)
    stopped.append(process)


def train_without_ray(job: TrainJob, folder: Path) -> None:
    """The same job in two plain processes of a gloo group, never interrupted."""
    facts = {"rows": str(job.rows), "work": str(job.work), "seed": job.seed, "stop_before": None}
    facts |= {"model": job.model.model_dump(mode="json"), "train": job.train.model_dump(mode="json")}
    (folder / "attempts.json").write_text(json.dumps([facts]))
    processes = [subprocess.Popen([sys.executable, PLAIN_WORKER, folder, str(rank), "2"]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


@pytest.mark.parametrize("rank", [1, 0])
def test_a_stopped_worker_changes_no_bit(rows: Path, tmp_path: Path, two_workers: ClusterConfig, rank: int) -> None:
    cluster = two_workers.model_copy(update={"step_timeout_seconds": 3.0})
    job = make_job(rows, tmp_path / "disturbed", cluster)
    stopped: list[int] = []
    threading.Thread(target=stop_a_worker_after, args=(25, rank, job.work, stopped), daemon=True).start()
    try:
        run(job, cluster, tmp_path / "ray", "disturbed")
    finally:
        for process in stopped:
            if psutil.pid_exists(process):
                os.kill(process, signal.SIGKILL)
    assert stopped
    assert steps(job.work).count(5) == 1, "the run began again instead of continuing"
    assert "Timeout" in (job.work / f"watchdog-{1 - rank}.log").read_text()
    undisturbed = replace(job, work=tmp_path / "undisturbed")
    train_without_ray(undisturbed, tmp_path)
    for name in ("model.safetensors", "history.jsonl"):
        assert (job.work / "final" / name).read_bytes() == (undisturbed.work / "final" / name).read_bytes()
