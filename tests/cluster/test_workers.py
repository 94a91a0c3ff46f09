"""Training on real Ray workers: a killed one costs time and nothing else, and our errors arrive as ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from llm.cluster.workers import check_code, check_folder, run
from llm.errors import ArtifactError, DependencyError, DivergenceError
from llm.model.config import DecoderConfig
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.job import TrainJob

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROW_TOKENS, VOCAB_SIZE = 64, 64
PLAIN_WORKER = Path(__file__).parents[1] / "train" / "worker.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for seed, (split, count) in enumerate({"train": 64, "validation": 8}.items()):
        tokens = np.random.default_rng(seed).integers(3, VOCAB_SIZE, count * ROW_TOKENS + 1)
        tokens.astype("<u2").tofile(folder / f"{split}.tokens")
    facts = {"dtype": "uint16", "row_tokens": ROW_TOKENS, "vocab_size": VOCAB_SIZE, "splits": {"train": {}, "validation": {}}}
    (folder / "rows.json").write_text(json.dumps(facts))
    return folder


def make_job(rows: Path, work: Path, **optimizer: object) -> TrainJob:
    model = DecoderConfig(width=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=128, max_positions=ROW_TOKENS)
    settings = {
        "steps": 60,
        "global_batch_size": 16,
        "micro_batch_size": 4,
        "optimizer": optimizer,
        "schedule": {"warmup_steps": 2},
        "precision": "fp32",
        "checkpoint_every_steps": 10,
    }
    return TrainJob(rows, model, TrainConfig.model_validate(settings), 5, work)


def steps(work: Path) -> list[int]:
    path = work / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def kill_a_worker_after(step: int, work: Path, killed: list[int]) -> None:
    """End one training process with SIGKILL as soon as that step is reported."""
    while not any(done >= step for done in steps(work)):
        time.sleep(0.005)
    workers = [process for process in psutil.Process().children(recursive=True) if "RayTrainWorker" in "".join(process.cmdline())]
    os.kill(workers[-1].pid, signal.SIGKILL)
    killed.append(workers[-1].pid)


def train_without_ray(job: TrainJob, folder: Path) -> None:
    """The same job in two plain processes of a gloo group, never interrupted."""
    facts = {"rows": str(job.rows), "work": str(job.work), "seed": job.seed, "stop_before": None}
    facts |= {"model": job.model.model_dump(mode="json"), "train": job.train.model_dump(mode="json")}
    (folder / "attempts.json").write_text(json.dumps([facts]))
    processes = [subprocess.Popen([sys.executable, PLAIN_WORKER, folder, str(rank), "2"]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


def test_a_killed_worker_changes_no_bit(rows: Path, tmp_path: Path, two_workers: ClusterConfig) -> None:
    undisturbed, disturbed = make_job(rows, tmp_path / "undisturbed"), make_job(rows, tmp_path / "disturbed")
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(25, disturbed.work, killed), daemon=True)
    killer.start()
    run(disturbed, two_workers, tmp_path / "ray", "disturbed")
    assert killed
    assert len(steps(disturbed.work)) > 60, "the worker died too late to lose a step"
    assert steps(disturbed.work).count(5) == 1, "the run began again instead of continuing"
    train_without_ray(undisturbed, tmp_path)
    assert steps(undisturbed.work) == list(range(1, 61))
    for name in ("model.safetensors", "history.jsonl"):
        assert (disturbed.work / "final" / name).read_bytes() == (undisturbed.work / "final" / name).read_bytes()


def test_divergence_arrives_as_divergence_and_is_not_tried_again(rows: Path, tmp_path: Path, two_workers: ClusterConfig) -> None:
    job = make_job(rows, tmp_path / "work", kind="adamw", adamw_learning_rate=1e30)
    with pytest.raises(DivergenceError, match="learning_rate lower"):
        run(job, two_workers, tmp_path / "ray", "divergence")
    assert steps(job.work).count(1) == 1


def test_a_worker_that_sees_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="TRAINYARD_HOME"):
        check_folder(tmp_path, "mark")


def test_a_worker_with_other_code_is_refused() -> None:
    with pytest.raises(DependencyError, match="install the same Trainyard"):
        check_code("0" * 64)
