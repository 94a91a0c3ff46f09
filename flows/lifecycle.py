"""pretrain, then finetune: raw text to a served model."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.prepare import prepare_data
from flows.pretrain import release
from flows.session import session
from tasks.policy import execute
from tasks.train import finetune as finetune_stage
from tasks.train import pretrain as pretrain_stage


@flow(name="lifecycle")
def lifecycle(recipe: str = "tiny", overrides: dict[str, Any] | None = None) -> str:
    """Raw text to a base model and a chat model, both scored, exported and registered."""
    with session("lifecycle", recipe, overrides) as run:
        prepare_data(run)
        execute(run, pretrain_stage, "base")
        release(run, "base")
        execute(run, finetune_stage, "tuned")
        release(run, "tuned")
    return str(run.folder)
