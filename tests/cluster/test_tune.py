"""Trials on a real cluster: halving stops the worse ones, and a repeated search trains nothing again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm.artifact import Artifact, Store
from llm.cluster.tune import search
from llm.sweep.settings import Sweep, load_sweep
from llm.sweep.trial import Trial, outcome, read_records

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.long]

OVERRIDES = {
    "train.steps": 160,
    "train.validate_every_steps": 20,
    "train.checkpoint_every_steps": 20,
    "train.optimizer.kind": "adamw",
    "cluster.use_gpu": False,
}


@pytest.fixture
def planned(copied: Any, tmp_path: Path) -> tuple[Sweep, tuple[Trial, ...], Path]:
    """Three learning rates, the best one first, so that halving has something to stop."""
    sweep = {
        "name": "rates",
        "recipe": str(copied.recipe),
        "settings": {"train.optimizer.adamw_learning_rate": {"values": [0.01, 0.00001, 0.00002]}},
        "search": "grid",
    }
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(sweep))
    planned, store = load_sweep(str(tmp_path / "rates.yaml"), OVERRIDES), Store(copied.home)
    rows: Artifact = next(artifact for artifact in store.all() if artifact.manifest["node"] == "data.tokenize")
    return planned, planned.trials(store, tmp_path, rows.ref), tmp_path / "ray"


def test_halving_stops_the_worse_trials_and_stops_them_again(planned: tuple[Sweep, tuple[Trial, ...], Path]) -> None:
    sweep, trials, storage = planned
    halving = sweep.config.model_copy(update={"search": "asha", "trials": 3, "reduction_factor": 2})
    assert search(trials, halving, sweep.cluster, storage) == {}
    first = [outcome(trial) for trial in trials]
    assert [found.state for found in first] == ["finished", "stopped", "stopped"]
    assert first[0].curve[-1][0] == 160
    assert all(found.curve[-1][0] < 160 for found in first[1:])

    (artifact,) = (found for trial in trials if (found := trial.find()))
    assert search(trials, halving, sweep.cluster, storage) == {}
    assert [outcome(trial) for trial in trials] == first
    assert trials[0].find() == artifact
    for trial in trials[1:]:
        steps = [record["step"] for record in read_records(trial.work / "metrics.jsonl")]
        assert steps == sorted(set(steps)), "a stopped trial was trained again"


def test_a_trial_that_diverges_has_failed_and_the_others_go_on(planned: tuple[Sweep, tuple[Trial, ...], Path]) -> None:
    sweep, trials, storage = planned
    recipe = trials[1].job.recipe
    train = recipe["train"] | {"steps": 20, "optimizer": recipe["train"]["optimizer"] | {"adamw_learning_rate": 1e30}}
    broken = Trial(1, trials[1].settings, replaced(trials[1], recipe | {"train": train}), "validation_loss")
    short = Trial(
        0, trials[0].settings, replaced(trials[0], trials[0].job.recipe | {"train": recipe["train"] | {"steps": 20}}), "validation_loss"
    )
    failed = search([short, broken], sweep.config, sweep.cluster, storage)
    assert list(failed) == [1]
    assert failed[1].startswith("DivergenceError: training diverged at step")
    assert [outcome(trial, failed.get(trial.number, "")).state for trial in (short, broken)] == ["finished", "failed"]


def replaced(trial: Trial, recipe: dict[str, Any]) -> Any:
    """The trial's job with another recipe, under a key of its own."""
    return replace(trial.job, recipe=recipe, key=f"{trial.job.key}-short")
