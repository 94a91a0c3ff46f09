"""collect → clean → dedup → tokenize → audit."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.session import session
from llm.run import Run
from tasks.policy import execute
from tasks.prepare import audit, clean, collect, dedup, tokenize
from tasks.report import funnel


@flow(name="prepare")
def prepare(recipe: str = "tiny", overrides: dict[str, Any] | None = None) -> str:
    """Raw text to training rows."""
    with session("prepare", recipe, overrides) as run:
        prepare_data(run)
    return str(run.folder)


def prepare_data(run: Run) -> None:
    """The stages that turn text into rows."""
    execute(run, collect, "data")
    execute(run, clean, "data")
    execute(run, dedup, "data")
    execute(run, tokenize, "data")
    execute(run, audit, "data")
    funnel(run)
