"""A program of its own, with a Prefect server of its own: a flow that counts four pieces and follows two steps: counting.py HOME."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from prefect import flow, task

from flows.services import prefect_api
from llm.artifact import Store
from llm.metrics import append
from llm.stages import Job
from tasks import progress

JOB = Job("data.clean", "clean", "key", {}, {}, {}, "", "")


@task
def work() -> list[int]:
    """Four pieces, handed on."""
    return list(progress.counted(JOB, iter(range(4)), 4))


class Late(threading.Thread):
    """A thread that a busy machine runs only after its starter has gone on."""

    def run(self) -> None:
        time.sleep(0.2)
        super().run()


@task
def steps(home: Path) -> None:
    """Two records of a training, the second with an alert."""
    job = replace(JOB, node="base.pretrain", stage="pretrain", run=str(home))
    work = home / "work"
    work.mkdir()
    with patch("threading.Thread", Late), progress.followed(job, work, 2):
        for step in (1, 2):
            record = {"step": step, "steps": 2, "seconds": 0.5 * step, "loss": 3.0, "tokens_per_second": 10}
            append(work / "metrics.jsonl", record | ({"alerts": ["loss rises"]} if step == 2 else {}))


@flow
def prepare(home: Path) -> list[int]:
    """Both tasks."""
    steps(home)
    return work()


if __name__ == "__main__":
    progress.ARTIFACT_EVERY_SECONDS = 0.0
    with prefect_api(Store(Path(sys.argv[1]))):
        assert prepare(Path(sys.argv[1])) == [0, 1, 2, 3]
