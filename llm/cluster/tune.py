"""The trials of a sweep on a Ray cluster: Ray Tune starts them, a few at a time, and stops those that fall behind.

Tune keeps no state of ours. What a trial has reached lies in the store and is reported again before it trains on, so
a sweep that was killed is simply run again: finished trials answer at once, stopped ones are stopped where they were.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from llm.cluster.connect import own_signal_handlers
from llm.cluster.workers import check_code, code_digest, resources, wants_gpu
from llm.errors import TrainyardError
from llm.sweep.config import SweepConfig
from llm.sweep.trial import Trial, measured
from llm.train.config import ClusterConfig

TUNE_SETTINGS = {  # read from the environment
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own records are the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the flow as it does elsewhere
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output prints even when told not to
}


def search(trials: Sequence[Trial], config: SweepConfig, cluster: ClusterConfig, storage: Path) -> dict[int, str]:
    """Give every trial its turn on the connected cluster; why the failed ones failed, by number.

    A trial that Trainyard refuses, for example because it diverges, has failed; one that lost its process is started
    again, up to `cluster.max_recoveries` times.
    """
    shutil.rmtree(storage, ignore_errors=True)
    os.environ.update(TUNE_SETTINGS)
    device, code = "cuda" if wants_gpu(cluster) else "cpu", code_digest()

    def run(point: dict[str, Any]) -> None:
        check_code(code)
        torch.set_num_threads(cluster.threads_per_worker)
        report(trials[point["trial"]], device)

    tuner = tune.Tuner(
        tune.with_resources(run, resources(cluster, device)),
        param_space={"trial": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(
            metric=config.metric,
            mode="min",
            scheduler=scheduler(config, trials),
            max_concurrent_trials=config.parallel,
            reuse_actors=config.search != "asha",  # the process of a stopped trial must end
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage.absolute()),
            failure_config=tune.FailureConfig(max_failures=cluster.max_recoveries),
            verbose=0,
        ),
    )
    with own_signal_handlers():
        results = tuner.fit()
    shutil.rmtree(storage, ignore_errors=True)
    failed = {
        trials[(result.config or {})["trial"]].number: failure(result) for result in (results[place] for place in range(len(results)))
    }
    return {number: error for number, error in failed.items() if error}


def failure(result: tune.Result) -> str:
    """Why a trial failed, in one line; empty if it didn't."""
    return " ".join(str(result.error or (result.metrics or {}).get("error", "")).split())


def report(trial: Trial, device: str) -> None:
    """Train one trial on this worker and tell Tune the metric at each validation."""
    try:
        for step, value in measured(trial, device):
            tune.report({"step": step, trial.metric: value})
    except TrainyardError as error:
        tune.report({"step": 0, trial.metric: float("inf"), "error": f"{type(error).__name__}: {error}"})


def scheduler(config: SweepConfig, trials: Sequence[Trial]) -> TrialScheduler:
    """Who goes on after a validation: with asha, the best one in `reduction_factor` of each rung; else all.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, algorithm 2, https://arxiv.org/abs/1810.05934.
    """
    if config.search != "asha":
        return FIFOScheduler()
    train = trials[0].recipe.train
    return ASHAScheduler(
        time_attr="step",
        grace_period=train.validate_every_steps,
        max_t=train.steps + 1,  # at max_t Tune ends a trial's process, which must commit its model first
        reduction_factor=config.reduction_factor,
    )
