"""A program of its own: a flow whose task counts four pieces, on a Prefect server of its own: counting.py HOME."""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, task

from flows.services import prefect_api
from llm.artifact import Store
from llm.stages import Job
from tasks import progress

JOB = Job("data.clean", "clean", "key", {}, {}, {}, "", "")


@task
def work() -> list[int]:
    """Four pieces, handed on."""
    return list(progress.counted(JOB, iter(range(4)), 4))


@flow
def prepare() -> list[int]:
    """One task."""
    return work()


if __name__ == "__main__":
    progress.ARTIFACT_EVERY_SECONDS = 0.0
    with prefect_api(Store(Path(sys.argv[1]))):
        assert prepare() == [0, 1, 2, 3]
