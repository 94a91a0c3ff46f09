"""Training on real Ray workers: a killed one costs time and nothing else, and our errors arrive as ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llm.cluster.workers import NODES, check_code, check_folder, nodes, note_node, run
from llm.errors import ArtifactError, DependencyError, DivergenceError
from llm.train.config import ClusterConfig
from llm.train.job import TrainJob

PLAIN_WORKER = Path(__file__).parents[1] / "train" / "worker.py"

JobMaker = Callable[..., TrainJob]
Steps = Callable[[Path], list[int]]
After = Callable[[int, Path], None]


def kill_a_worker(killed: list[int]) -> None:
    """End one training process with SIGKILL."""
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


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_changes_no_bit(make_job: JobMaker, steps: Steps, after: After, tmp_path: Path, two_workers: ClusterConfig) -> None:
    undisturbed, disturbed = make_job(tmp_path / "undisturbed"), make_job(tmp_path / "disturbed")
    killed: list[int] = []
    killer = threading.Thread(target=lambda: (after(25, disturbed.work), kill_a_worker(killed)), daemon=True)
    killer.start()
    run(disturbed, two_workers, tmp_path / "ray", "disturbed")
    assert killed
    assert len(steps(disturbed.work)) > 60, "the worker died too late to lose a step"
    assert steps(disturbed.work).count(5) == 1, "the run began again instead of continuing"
    assert len(list((disturbed.work / NODES).iterdir())) == 2
    train_without_ray(undisturbed, tmp_path)
    assert steps(undisturbed.work) == list(range(1, 61))
    for name in ("model.safetensors", "history.jsonl"):
        assert (disturbed.work / "final" / name).read_bytes() == (undisturbed.work / "final" / name).read_bytes()


@pytest.mark.usefixtures("ray_cluster")
def test_divergence_arrives_as_divergence_and_is_not_tried_again(
    make_job: JobMaker, steps: Steps, tmp_path: Path, two_workers: ClusterConfig
) -> None:
    job = make_job(tmp_path / "work", optimizer={"kind": "adamw", "adamw_learning_rate": 1e30}, guard={"max_rollbacks": 0})
    with pytest.raises(DivergenceError, match="learning_rate lower"):
        run(job, two_workers, tmp_path / "ray", "divergence")
    assert steps(job.work).count(1) == 1


def test_a_worker_that_sees_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="TRAINYARD_HOME"):
        check_folder(tmp_path, "mark")


def test_a_worker_with_other_code_is_refused() -> None:
    with pytest.raises(DependencyError, match="install the same Trainyard"):
        check_code("0" * 64)


def test_the_machines_of_a_job_are_those_of_its_latest_group(tmp_path: Path) -> None:
    (tmp_path / NODES).mkdir()
    for rank, node in enumerate(("a", "b", "b")):
        note_node(tmp_path, rank, 3, node)
    assert nodes(tmp_path) == {"a", "b"}
    for rank in range(2):
        note_node(tmp_path, rank, 2, "c")
    assert nodes(tmp_path) == {"c"}
