"""One run inside one flow: opened, kept truthful, closed with its summary and its report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from prefect.runtime import flow_run

from flows.processes import Ledger
from flows.reconcile import reconcile
from llm.artifact import Store, named_errors
from llm.plan.check import check
from llm.recipe import load
from llm.run import Run, home, open_run
from llm.stages import nodes
from tasks.report import links, write_report


@contextlib.contextmanager
def session(flow: str, recipe: str, overrides: dict[str, Any] | None) -> Iterator[Run]:
    """A run with everything checked before its first expensive second; its summary tells how it ended.

    Raises: RecipeError, CapacityError, ArtifactError before anything is computed.
    """
    loaded = load(recipe, overrides)
    store = Store(home())
    ledger = Ledger(store)
    reconcile(ledger)
    nodes(flow, loaded.model.architecture)
    check(loaded, store)
    run = open_run(loaded, store, flow)
    with ledger.registered("run", folder=str(run.folder), flow_run=str(flow_run.get_id() or "")):
        try:
            with named_errors(store.root):
                run.write_summary("running")
                yield run
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk must not hide the error that says so
                run.write_summary("failed" if isinstance(error, Exception) else "cancelled", f"{type(error).__name__}: {error}")
            raise
        summary = run.write_summary("completed")
        write_report(run, summary)
        links(run)
