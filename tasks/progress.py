"""Work made visible while it is done: a bar on a terminal, lines elsewhere, a progress artifact in Prefect."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import get_run_context
from prefect.exceptions import PrefectException
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llm.metrics import append
from llm.report.remarks import remarks
from llm.stages import Job

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LINE_EVERY_SECONDS = 10.0  # between two lines where there is no terminal
ARTIFACT_EVERY_SECONDS = 2.0


@contextlib.contextmanager
def followed(job: Job, work: Path, steps: int) -> Iterator[None]:
    """Follow `work/metrics.jsonl`, which the training loop writes, while the block runs."""
    path, stop = work / "metrics.jsonl", threading.Event()
    position = path.stat().st_size if path.is_file() else 0  # before the block writes: a thread that starts late misses nothing
    thread = threading.Thread(target=copy_context().run, args=(_follow, job, path, position, steps, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def counted(job: Job, pieces: Iterator[Any], total: int) -> Iterator[Any]:
    """The same pieces as they are finished; whoever waits longer than a moment sees how many of `total` are."""
    artifact, due = None, time.monotonic() + ARTIFACT_EVERY_SECONDS
    for number, piece in enumerate(pieces, start=1):
        if time.monotonic() >= due or (artifact and number == total):
            due = time.monotonic() + ARTIFACT_EVERY_SECONDS
            print(f"{job.node:15} {number} of {total} pieces", flush=True)
            with _told():
                artifact = artifact or _new_artifact(job, "pieces")
                update_progress_artifact(artifact, progress=100.0 * number / total, description=f"{number} of {total} pieces of {job.node}")
        yield piece


def _follow(job: Job, path: Path, position: int, steps: int, stop: threading.Event) -> None:
    """Hand every record beyond a position to the screen, to Prefect and to the run's metrics."""
    with _display(job.node, steps) as display:
        artifact = _Artifact(job, steps)
        last, ended = None, False
        while not ended:
            ended = stop.wait(POLL_SECONDS)
            records, position = _read(path, position)
            for record in records:
                append(Path(job.run) / "metrics.jsonl", {"node": job.node, **record})
                last = record
                for remark in remarks(record):
                    display.tell(remark)
            if last and (records or ended):
                display.show(last)
                _show(artifact, last, last=ended)


def _show(artifact: _Artifact, record: dict[str, Any], *, last: bool) -> None:
    """Tell Prefect."""
    with _told():
        artifact.show(record, last=last)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """A server that is away for a moment must not end long work."""
    try:
        yield
    except (httpx.HTTPError, PrefectException):
        log.warning("progress could not be told to Prefect", exc_info=True)


def _new_artifact(job: Job, units: str) -> UUID:
    """A progress artifact of the task that runs, at nothing.

    Raises: MissingContextError where none runs: Prefect would start a server to hold it, and leave that behind.
    """
    get_run_context()
    description = f"{units} of {job.node}"
    return cast(UUID, create_progress_artifact(progress=0.0, key=f"progress-{job.stage}", description=description))


def _read(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """Records that are complete beyond a position, and the position behind them."""
    if not path.is_file():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        lines = file.read().split(b"\n")
    whole, records = lines[:-1], []
    for line in whole:
        with contextlib.suppress(ValueError):  # torn by a kill: the attempt that follows writes that step again
            records.append(json.loads(line))
    return records, position + sum(len(line) + 1 for line in whole)


class Display(Protocol):
    """Where a person reads progress."""

    def show(self, record: dict[str, Any]) -> None: ...

    def tell(self, remark: str) -> None: ...


@contextlib.contextmanager
def _display(name: str, steps: int) -> Iterator[Display]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(name)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        yield _Bar(progress, name, steps)


class _Bar:
    def __init__(self, progress: Progress, name: str, steps: int) -> None:
        self.progress, self.bar = progress, progress.add_task(name, total=steps, facts="starting workers")

    def show(self, record: dict[str, Any]) -> None:
        self.progress.update(self.bar, completed=record["step"], facts=_facts(record))

    def tell(self, remark: str) -> None:
        self.progress.console.print(f"{self.progress.tasks[self.bar].description}  {remark}", markup=False)


class _Lines:
    def __init__(self, name: str) -> None:
        self.name, self.due, self.shown = name, 0.0, 0

    def show(self, record: dict[str, Any]) -> None:
        if record["step"] != self.shown and (record["seconds"] >= self.due or record["step"] == record["steps"]):
            self.due, self.shown = record["seconds"] + LINE_EVERY_SECONDS, record["step"]
            print(f"{self.name}  step {record['step']}/{record['steps']}  {_facts(record)}", flush=True)

    def tell(self, remark: str) -> None:
        print(f"{self.name}  {remark}", flush=True)


def _facts(record: dict[str, Any]) -> str:
    """What stands beside the bar; a step that was not applied says why."""
    told = record["reason"] if "reason" in record else f"loss {record['loss']:.3f}"
    return f"{told}  {record['tokens_per_second']:,.0f} tokens/s"


class _Artifact:
    """The progress artifact of the task that runs."""

    def __init__(self, job: Job, steps: int) -> None:
        self.steps, self.due, self.id = steps, 0.0, _new_artifact(job, "steps")

    def show(self, record: dict[str, Any], *, last: bool) -> None:
        if last or record["seconds"] >= self.due:
            self.due = record["seconds"] + ARTIFACT_EVERY_SECONDS
            update_progress_artifact(self.id, progress=100.0 * record["step"] / self.steps, description=_facts(record))
