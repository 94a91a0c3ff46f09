"""A group that shrinks and grows: 2 → 1 → 2 workers, and what is learned is what a group of one size learns."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from llm.train.config import ClusterConfig
from llm.train.job import TrainJob
from llm.train.stop import request

DRIVER, GPUS = (Path(__file__).parent / name for name in ("driver.py", "gpus.py"))


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head without room for workers, to which machines are added."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def drive(job: TrainJob, cluster: ClusterConfig, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "run").write_bytes(pickle.dumps((job, cluster)))
    with (folder / "log").open("w") as log:
        return subprocess.Popen([sys.executable, DRIVER, folder], env=os.environ | environment, stdout=log, stderr=log)


def sizes(work: Path) -> list[int]:
    """How many workers committed the checkpoints, in the order of their steps, repetitions left out."""
    manifests = [json.loads(path.read_text()) for path in sorted((work / "checkpoints").glob("step-*/manifest.json"))]
    return [size for size, _ in itertools.groupby(manifest["workers"] for manifest in manifests)]


def wait_for(wanted: list[int], work: Path, driver: subprocess.Popen[bytes]) -> None:
    """Return once groups of these sizes have committed checkpoints, one after the other."""
    deadline = time.monotonic() + 200
    while sizes(work) != wanted:
        assert driver.poll() is None, "the training ended"
        assert time.monotonic() < deadline, f"{sizes(work)} instead of {wanted}"
        time.sleep(0.1)


def history(work: Path) -> list[dict[str, float]]:
    """What the newest checkpoint says of its steps."""
    newest = max((work / "checkpoints").glob("step-*"))
    return [json.loads(line) for line in (newest / "history.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_two_one_two_workers(make_job: Callable[..., TrainJob], after: Callable[[int, Path], None], nodes: Cluster, tmp_path: Path) -> None:
    """A machine dies and another one joins: the losses are those of one worker, so no row was skipped or repeated."""
    changes: dict[str, object] = {
        "steps": 100_000,
        "checkpoint_every_steps": 5,
        "keep_every_steps": 5,
        "validation_rows": 0,
        "global_batch_size": 4,
    }
    changes |= {"optimizer": {"kind": "adamw"}}  # Muon makes more of a rounding error than this test allows
    job, alone = make_job(tmp_path / "work", **changes), make_job(tmp_path / "alone", **changes)
    elastic = ClusterConfig(workers=2, min_workers=1, use_gpu=False, poll_seconds=0.2, start_timeout_seconds=15)
    lost, _ = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
    driver = drive(job, elastic, tmp_path / "elastic", RAY_ADDRESS=nodes.address, RESIZE_SECONDS="1")
    try:
        wait_for([2], job.work, driver)
        nodes.remove_node(lost, allow_graceful=False)
        wait_for([2, 1], job.work, driver)
        nodes.add_node(num_cpus=1)
        wait_for([2, 1, 2], job.work, driver)
        request(job.work, "the test has seen enough")
        assert driver.wait(timeout=60) == 1
        found = history(job.work)
        driver = drive(alone, ClusterConfig(use_gpu=False), tmp_path / "lonely", RAY_ADDRESS=nodes.address)
        after(len(found), alone.work)
        request(alone.work, "the test has seen enough")
        assert driver.wait(timeout=60) == 1
    finally:
        driver.kill()
    wanted = history(alone.work)[: len(found)]
    for name in ("step", "tokens"):
        assert [record[name] for record in found] == [record[name] for record in wanted]
    assert [record["loss"] for record in found] == pytest.approx([record["loss"] for record in wanted], rel=1e-5)


@pytest.mark.long
def test_a_machine_that_is_taken_back_costs_no_step(
    make_job: Callable[..., TrainJob],
    after: Callable[[int, Path], None],
    steps: Callable[[Path], list[int]],
    nodes: Cluster,
    tmp_path: Path,
) -> None:
    """A checkpoint of the step at hand, and the run goes on at the next one on another machine."""
    job = make_job(tmp_path / "work", steps=100_000, checkpoint_every_steps=100_000, validation_rows=0, global_batch_size=4)
    leaving = nodes.add_node(num_cpus=1)
    driver = drive(job, ClusterConfig(use_gpu=False, poll_seconds=0.2), tmp_path / "driver", RAY_ADDRESS=nodes.address)
    try:
        after(5, job.work)
        nodes.add_node(num_cpus=1)
        drain = ["drain-node", "--address", nodes.address, "--node-id", leaving.node_id, "--deadline-remaining-seconds", "300"]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "wanted back"]
        subprocess.run([Path(sys.executable).with_name("ray"), *drain, *reason], check=True, timeout=100)
        wait_for([1], job.work, driver)
        after(len(steps(job.work)) + 20, job.work)
        request(job.work, "the test has seen enough")
        assert driver.wait(timeout=60) == 1
    finally:
        driver.kill()
    assert len(list((job.work / "checkpoints").glob("step-*"))) == 2
    assert steps(job.work) == list(range(1, len(steps(job.work)) + 1))


def test_each_worker_gets_a_gpu_of_its_own_and_no_group_starts_without(make_job: Callable[..., TrainJob], tmp_path: Path) -> None:
    """In a Ray that believes in two GPUs, on a machine that has none."""
    (tmp_path / "job").write_bytes(pickle.dumps(make_job(tmp_path / "work", global_batch_size=4)))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    answer = subprocess.run([sys.executable, GPUS, tmp_path], env=variables, capture_output=True, text=True, timeout=200, check=True)
    facts = json.loads(answer.stdout.splitlines()[-1])
    assert sorted(facts["gpus"]) == [["0"], ["1"]]
    assert facts["refused"] == [
        "more workers than GPUs: 3 workers, 2 GPUs; set cluster.workers to 2",
        "batch has fewer rows than workers: 4 rows for 5 workers; set train.global_batch_size to 5 or more",
        "workers that hold parts of one model can't come and go: 2; set cluster.min_workers to null",
    ]
