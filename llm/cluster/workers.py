"""The training loop on N workers of a Ray cluster.

Ray starts the workers, joins them in a process group and starts them again when one is lost. It carries no data
and no checkpoint: every attempt finds the newest checkpoint in the job's work folder by itself.

A SIGTERM to the driver, and a machine that its owner takes back, become a request in that folder: workers have no
main thread of their own to catch signals in. The first ends the run, the second only this attempt.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import torch
from ray.train import UserCallback
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

import llm
from llm.artifact import sha256_file, sha256_of
from llm.cluster.connect import own_signal_handlers
from llm.errors import ArtifactError, CapacityError, DependencyError, RecipeError, StoppedError, TrainyardError
from llm.train.allocator import keep_freed_memory
from llm.train.config import ClusterConfig
from llm.train.job import TrainJob
from llm.train.loop import train
from llm.train.parallel.check import check_elastic
from llm.train.stop import STOP, on_sigterm, request
from llm.train.watchdog import last_hang

MARK = ".driver"
NODES = ".nodes"
PREEMPTED = "its machine is taken back"
RESIZE_SECONDS = 60.0  # between two looks whether an elastic group could be larger


def run(job: TrainJob, cluster: ClusterConfig, storage: Path, name: str) -> None:
    """`train(job)` on `cluster.workers` workers of the connected cluster; Ray keeps its notes in `storage/name`.

    A lost worker is replaced up to `cluster.max_recoveries` times; with `cluster.min_workers`, those that are left
    go on without it. An error that Trainyard raised on purpose ends the run at once and arrives here as it was raised.

    Raises: CapacityError if the cluster can't place the workers, or loses them too often; what `train` raises.
    """
    check_group(job, cluster)
    job = replace(
        job,
        rows=job.rows.absolute(),
        work=job.work.absolute(),
        initial=job.initial and job.initial.absolute(),
        device="cuda" if wants_gpu(cluster) else "cpu",
    )
    shutil.rmtree(storage / name, ignore_errors=True)
    job.work.mkdir(parents=True, exist_ok=True)
    (job.work / STOP).unlink(missing_ok=True)
    shutil.rmtree(job.work / NODES, ignore_errors=True)
    (job.work / NODES).mkdir()
    mark = secrets.token_hex(8)
    (job.work / MARK).write_text(mark)
    os.environ.update(ray_settings(cluster))
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job, "threads": cluster.threads_per_worker, "mark": mark, "code": code_digest()},
        torch_config=TorchConfig(timeout_s=cluster.collective_timeout_seconds),
        scaling_config=scaling(cluster, job.device),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage.absolute()),
            failure_config=FailureConfig(max_failures=cluster.max_recoveries, controller_failure_limit=cluster.max_recoveries),
            callbacks=[OurErrorsAreFinal()],
        ),
    )
    try:
        with own_signal_handlers(), on_sigterm(lambda: request(job.work, "SIGTERM")), watched(job.work, cluster):
            trainer.fit()
    except TrainingFailedError as error:
        raise translate(error, cluster, job.work) from error
    except SystemExit as exit:  # Ray's answer to Ctrl-C: it stops the workers, then would end this process as if all were well
        raise KeyboardInterrupt from exit


def work(config: dict[str, Any]) -> None:
    """What one worker does: checks that it belongs here, then trains."""
    job: TrainJob = config["job"]
    check_folder(job.work, config["mark"])
    check_code(config["code"])
    context = ray.train.get_context()
    note_node(job.work, context.get_world_rank(), context.get_world_size(), ray.get_runtime_context().get_node_id())
    torch.set_num_threads(config["threads"])
    keep_freed_memory()
    try:
        train(job)
    except StoppedError as stop:
        if stop.value == PREEMPTED:
            raise Preempted(str(stop)) from None
        raise


class Preempted(Exception):
    """Ends an attempt, and only that: Ray starts the workers again where there is room."""


def note_node(work: Path, rank: int, size: int, node: str) -> None:
    """Say in the work folder on which of the cluster's machines this worker runs; a smaller group forgets the ranks it lacks."""
    (work / NODES / str(rank)).write_text(node)
    if rank == 0:
        for path in (work / NODES).iterdir():
            if int(path.name) >= size:
                path.unlink()


def nodes(work: Path) -> set[str]:
    """The machines on which the workers of the job run."""
    return {path.read_text() for path in (work / NODES).iterdir()}


@contextmanager
def watched(work: Path, cluster: ClusterConfig) -> Iterator[None]:
    """Ask for a checkpoint as soon as a machine that runs workers of this job is being drained, on a cluster that others run."""
    over = threading.Event()

    def watch() -> None:
        known: set[str] = set()
        while not over.wait(cluster.poll_seconds):
            with suppress(ray.exceptions.RayError, OSError):  # head or disk is gone for a moment, or for good: the run's business
                draining = nodes(work) & set(ray._private.state.state.get_draining_nodes())
                if draining - known:
                    request(work, PREEMPTED, yields=True)
                known = draining

    watcher = threading.Thread(target=watch, name="drained-machines", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(timeout=10)


def check_group(job: TrainJob, cluster: ClusterConfig) -> None:
    """Refuse groups that can't work, before a worker starts.

    Only a cluster of this machine can't grow: at RAY_ADDRESS, what is missing may be on its way.

    Raises: RecipeError, CapacityError.
    """
    if job.train.global_batch_size < cluster.workers:
        raise RecipeError(
            "batch has fewer rows than workers",
            value=f"{job.train.global_batch_size} rows for {cluster.workers} workers",
            remedy=f"set train.global_batch_size to {cluster.workers} or more",
        )
    check_elastic(cluster)
    found = int(ray.cluster_resources().get("GPU", 0))
    if cluster.use_gpu is True and found < cluster.workers and "RAY_ADDRESS" not in os.environ:
        raise CapacityError(
            "more workers than GPUs",
            value=f"{cluster.workers} workers, {found} GPUs",
            remedy=f"set cluster.workers to {found}" if found else "set cluster.use_gpu to false",
        )


def check_folder(work: Path, mark: str) -> None:
    """Raises: ArtifactError if this worker's view of the work folder isn't the driver's."""
    path = work / MARK
    if not path.exists() or path.read_text() != mark:
        raise ArtifactError(
            "a worker doesn't see the driver's work folder", value=work, remedy="set TRAINYARD_HOME to a folder that all machines share"
        )


def check_code(expected: str) -> None:
    """Raises: DependencyError if this worker runs other code than the driver."""
    if (found := code_digest()) != expected:
        raise DependencyError(
            "a worker runs other code than the driver",
            value=f"{found[:12]} instead of {expected[:12]}",
            remedy="install the same Trainyard on all machines",
        )


def code_digest() -> str:
    """sha256 over names and bytes of the installed sources that a training step runs through."""
    root = Path(llm.__file__).parent
    sources = [*root.glob("train/**/*.py"), *root.glob("model/*.py"), root / "data" / "rows.py"]
    return sha256_of({path.relative_to(root).as_posix(): sha256_file(path) for path in sources})


class OurErrorsAreFinal(UserCallback):
    """Ends the run when a worker raised a TrainyardError that time can't heal: a new attempt would only raise it again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, TrainyardError) and not error.transient:
                raise error


def translate(error: TrainingFailedError, cluster: ClusterConfig, work: Path) -> TrainyardError:
    """The error of ours inside Ray's, or what Ray's means for the recipe, with the hang that a watchdog ended last."""
    cause: Exception = error
    while isinstance(cause, ControllerError):
        cause = cause.controller_failure
    if isinstance(cause, TrainyardError):
        return cause
    if isinstance(cause, WorkerGroupError):
        last = str(next(iter(cause.worker_failures.values()), cause)).strip().splitlines()[-1]
        remedy = "set cluster.max_recoveries higher, or train.micro_batch_size lower"
        if hang := last_hang(work):
            last = f"{hang.said}; {last}"
            remedy = f"read the stacks in {hang.path}; if nothing stood still there, set cluster.step_timeout_seconds higher"
        return CapacityError("training lost its workers too often", value=last, remedy=remedy, transient=True)
    wanted = f"{cluster.workers} workers of {cluster.cpus_per_worker} CPUs; {cause}"
    return CapacityError("the cluster can't place the workers", value=wanted, remedy="set cluster.workers or cluster.cpus_per_worker lower")


def wants_gpu(cluster: ClusterConfig) -> bool:
    """Whether the workers compute on GPUs; `auto` where the cluster has one for each."""
    if cluster.use_gpu == "auto":
        return ray.cluster_resources().get("GPU", 0) >= cluster.workers
    return cluster.use_gpu


def scaling(cluster: ClusterConfig, device: str) -> ScalingConfig:
    """How many workers Ray starts, and what it reserves for each."""
    return ScalingConfig(
        num_workers=cluster.workers if cluster.min_workers is None else (cluster.min_workers, cluster.workers),
        use_gpu=device == "cuda",
        resources_per_worker=resources(cluster, device),
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def resources(cluster: ClusterConfig, device: str) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return {"CPU": float(cluster.cpus_per_worker)} | ({"GPU": 1.0} if device == "cuda" else {})


def ray_settings(cluster: ClusterConfig) -> dict[str, str]:
    """Ray Train's switches, which it reads from the environment: finite waits, quick polls, no change of directory.

    A cluster of this machine is never preempted, so nothing watches for it there.
    """
    return {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(cluster.poll_seconds),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(cluster.collective_timeout_seconds),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(cluster.start_timeout_seconds),
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(cluster.collective_timeout_seconds),
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if "RAY_ADDRESS" in os.environ else "0",
    }
