"""Try settings: the trials of a sweep, each a training of its own."""

from __future__ import annotations

import contextlib
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from llm.sweep.population import next_generation
from llm.sweep.result import Result
from llm.sweep.settings import Sweep
from llm.sweep.trial import Outcome, Trial, outcome
from tasks.policy import time_may_heal


@task(
    name="sweep",
    task_run_name="sweep.{planned.config.name}",
    cache_policy=NO_CACHE,  # the store knows which trials have finished
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_condition_fn=time_may_heal,
    tags={"train"},
)
def try_settings(planned: Sweep, first: tuple[Trial, ...], out: Path) -> list[tuple[Trial, Outcome]]:
    """Train every candidate that the store doesn't hold yet, on Ray workers, and collect what became of all."""
    generations = planned.config.generations if planned.config.search == "population" else 1
    found: list[tuple[Trial, Outcome]] = []
    trials = first
    with contextlib.ExitStack() as stack:
        for _ in range(generations):
            outcomes = _turn(planned, trials, out, stack)
            found += zip(trials, outcomes, strict=True)
            trials = next_generation(planned.config, trials, outcomes) if generations > 1 else ()
            if not trials:
                break
    return found


def _turn(planned: Sweep, trials: tuple[Trial, ...], out: Path, stack: contextlib.ExitStack) -> list[Outcome]:
    """Give each of these trials its turn; Ray is started for the first ones that need it, and left to the stack."""
    errors: dict[int, str] = {}
    if any(trial.find() is None for trial in trials):
        from llm.cluster.connect import connected
        from llm.cluster.tune import search

        stack.enter_context(connected(planned.cluster, trials[0].store.root))
        errors = search(trials, planned.config, planned.cluster, out / "ray")
    return [outcome(trial, errors.get(trial.number, "")) for trial in trials]


def show(found: Result, out: Path) -> None:
    """A table of the trials and a link to the sweep's page, in Prefect."""
    rows = [{**outcome.settings, "state": outcome.state, found.config.metric: str(outcome.value)} for outcome in found.outcomes]
    create_table_artifact(rows, key=f"sweep-{found.config.name}".replace(".", "-"), description=f"trials of sweep {found.config.name}")
    create_link_artifact((out / "report.html").as_uri(), key="sweep-report", link_text="report", description=f"sweep {found.config.name}")
