"""pretrain, then finetune: raw text to a served model."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.finetune import tuned_model
from flows.pretrain import base_model
from flows.session import session


@flow(name="lifecycle")
def lifecycle(recipe: str = "tiny", overrides: dict[str, Any] | None = None) -> str:
    """Raw text to a base model and a chat model, both scored, exported and registered."""
    with session("lifecycle", recipe, overrides) as run:
        base_model(run)
        tuned_model(run)
    return str(run.folder)
