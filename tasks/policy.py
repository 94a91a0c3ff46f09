"""Under which policy a stage runs: cache key, retries by error class, timeouts."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from prefect import Task, get_run_logger
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from llm.artifact import Artifact, Ref, Store
from llm.errors import TrainyardError
from llm.provenance import provenance
from llm.run import Run
from llm.stages import Job

HOURS = {
    "collect": 12,
    "clean": 12,
    "dedup": 12,
    "tokenize": 12,
    "audit": 6,
    "pretrain": 24 * 30,
    "finetune": 24 * 7,
    "evaluate": 12,
    "export": 6,
    "promote": 2,
}


def policy(stage: str) -> dict[str, Any]:
    """Options of a stage's Prefect task.

    The cache key is the artifact's key, so that Prefect shows `Cached` for what the store already holds.
    """
    return {
        "name": stage,
        "task_run_name": "{job.node}",
        "cache_key_fn": lambda context, parameters: f"{parameters['job'].stage}-{parameters['job'].key}",
        "persist_result": True,
        "result_serializer": "json",
        "retries": 3,
        "retry_delay_seconds": exponential_backoff(backoff_factor=2),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": time_may_heal,
        "timeout_seconds": timedelta(hours=HOURS[stage]).total_seconds(),
        "tags": {"train"} if stage in ("pretrain", "finetune") else set(),  # for a limit on trainings; asking for it takes 0.2 s
    }


def time_may_heal(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry lost workers, networks and storage; never a bad recipe, bad data, divergence or a damaged store."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, TrainyardError):
        return error.transient
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] == "ray"


def produce(job: Job, build: Callable[[Path], dict[str, Any]]) -> dict[str, str]:
    """The reference of the job's artifact, which `build` fills if the store doesn't hold it yet."""
    return Store(Path(job.store)).produce(job.stage, job.key, provenance(job), build).ref.as_dict()


def execute(run: Run, task: Task[..., Any], group: str) -> Artifact:
    """Run one stage as a Prefect task and record what it produced.

    Prefect's cached answer counts only while the store's artifact verifies: a deleted or damaged one is made again.
    """
    node, begin = f"{group}.{task.name}", time.monotonic()
    job = run.job(node)
    held = run.store.find(job.stage, job.key)
    results = run.store.root / "prefect" / "results"
    answer = task.with_options(refresh_cache=held is None, result_storage=results)(job)
    ref = Ref(**cast(dict[str, str], answer))
    artifact = held or run.store.find(ref.stage, ref.key)
    assert artifact is not None, ref
    state, seconds = "cached" if held else "computed", time.monotonic() - begin
    run.record(node, artifact, state=state, seconds=seconds)
    get_run_logger().info("%s %s in %.1f s: %s", node, state, seconds, artifact.path)
    print(f"{node:15} {state:8} {seconds:7.1f} s  {ref.stage}/{ref.key}", flush=True)
    return artifact
