"""What a training leaves behind: the folder `final/` with the model, its history, and in log/ what it cost and its traces."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llm import artifact
from llm.failpoint import failpoint
from llm.model import weights
from llm.train.checkpoint import HISTORY, write_history
from llm.train.parallel.layout import Layout
from llm.train.parallel.sharing import whole_weights
from llm.train.profile import TRACES
from llm.train.state import State

FINAL = "final"


def write(state: State, layout: Layout, work: Path, cost: dict[str, Any]) -> None:
    """Leave `work/final`, whole or not at all; every worker calls it."""
    with state.averaged():
        tensors = whole_weights(state.model, layout)
        layout.world.first(lambda: _write(state, tensors, work, cost))


def _write(state: State, tensors: dict[str, Any], work: Path, cost: dict[str, Any]) -> None:
    temporary, final = work / f".tmp-{FINAL}", work / FINAL
    for old in (temporary, final):
        shutil.rmtree(old, ignore_errors=True)
    (temporary / "log").mkdir(parents=True)
    weights.save(state.model, temporary, tensors)
    write_history(temporary / HISTORY, state.history)
    artifact.write_json(temporary / "log" / "cost.json", cost)
    for trace in work.glob(TRACES):
        shutil.copy2(trace, temporary / "log")
    failpoint("final")
    temporary.rename(final)
