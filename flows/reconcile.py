"""After a crash: what Prefect, the summaries and the store say is made true again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.processes import Ledger, Process
from llm.artifact import write_json


def reconcile(ledger: Ledger) -> list[str]:
    """Mark runs whose process is gone as crashed and remove what they were writing; the ids of those runs."""
    dead = [process for process in ledger.all() if not process.alive]
    runs = [process for process in dead if process.role == "run"]
    if runs:
        with get_client(sync_client=True) as client:
            for process in runs:
                _mark_crashed(client, process)
    for process in dead:
        process.path.unlink(missing_ok=True)
    ledger.store.sweep()
    return [Path(process.facts["folder"]).name for process in runs]


def _mark_crashed(client: SyncPrefectClient, process: Process) -> None:
    """Say in Prefect and in summary.json that a run died."""
    message = f"process {process.pid} is gone; the same command continues from what it had committed"
    if flow_run := process.facts["flow_run"]:
        state: State[None] = Crashed(message=message)
        with contextlib.suppress(ObjectNotFound):  # the run was told to another server
            known = client.read_flow_run(flow_run).state
            if known is None or not known.is_final():
                client.set_flow_run_state(flow_run, state, force=True)
        for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))):
            if task_run.state is not None and not task_run.state.is_final():
                client.set_task_run_state(task_run.id, state, force=True)
    path = Path(process.facts["folder"]) / "summary.json"
    if path.is_file():
        summary = json.loads(path.read_text())
        if summary["state"] == "running":
            write_json(path, summary | {"state": "crashed", "error": message})
