"""prepare → pretrain → evaluate → export → promote."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows.prepare import prepare_data
from flows.session import session
from llm.run import Run
from llm.stages import SCORED
from tasks.evaluate import evaluate
from tasks.policy import execute
from tasks.release import export, promote
from tasks.report import scores
from tasks.train import pretrain as pretrain_stage


@flow(name="pretrain")
def pretrain(recipe: str = "tiny", overrides: dict[str, Any] | None = None) -> str:
    """Raw text to a registered base model."""
    with session("pretrain", recipe, overrides) as run:
        base_model(run)
    return str(run.folder)


def base_model(run: Run) -> None:
    """The stages from raw text to a registered base model."""
    prepare_data(run)
    execute(run, pretrain_stage, "base")
    release(run, "base")


def release(run: Run, group: str) -> None:
    """Score a trained model, export it and put it before the registry: as much of that as its architecture has."""
    architecture = run.recipe.model.architecture
    if architecture in SCORED:
        execute(run, evaluate, group)
        scores(run, group)
    execute(run, export, group)
    if architecture in SCORED:
        execute(run, promote, group)
    else:
        get_run_logger().warning("%s has no score of text: this run ends with an export and nothing in the registry", architecture)
