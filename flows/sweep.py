"""prepare → many small trainings → the best settings as a recipe."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.prepare import prepare_data
from flows.session import session
from llm.sweep.population import recommended
from llm.sweep.result import folder, result, write
from llm.sweep.settings import load_sweep
from tasks.sweep import show, try_settings


@flow(name="sweep")
def sweep(file: str = "small", overrides: dict[str, Any] | None = None) -> str:
    """Settings tried on one and the same data; the folder with report and recommended recipe."""
    planned = load_sweep(file, overrides)
    with session("sweep", planned.config.recipe, overrides) as run:
        prepare_data(run)
        trials = planned.trials(run.store, run.folder, run.done["data.tokenize"].ref)
        out = folder(run.store, planned.config, trials)
        tried = try_settings(planned, trials, out)
        found = result(planned.config, [outcome for _, outcome in tried])
        best = next(trial for trial, outcome in tried if outcome is found.best)
        write(found, recommended(planned.recipe, best), out)
        show(found, out)
    return str(out)
