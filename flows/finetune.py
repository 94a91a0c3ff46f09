"""prepare → pretrain → finetune → evaluate → export → promote; a base model that the store holds is not trained again."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.prepare import prepare_data
from flows.pretrain import release
from flows.session import session
from llm.run import Run
from tasks.policy import execute
from tasks.train import finetune as finetune_stage
from tasks.train import pretrain as pretrain_stage


@flow(name="finetune")
def finetune(recipe: str = "tiny", overrides: dict[str, Any] | None = None) -> str:
    """A base model to a registered chat model."""
    with session("finetune", recipe, overrides) as run:
        prepare_data(run)
        execute(run, pretrain_stage, "base")
        tuned_model(run)
    return str(run.folder)


def tuned_model(run: Run) -> None:
    """The stages from a base model to a registered chat model."""
    execute(run, finetune_stage, "tuned")
    release(run, "tuned")
