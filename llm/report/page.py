"""One self-contained HTML page per run: no script, no font, no picture from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.report import facts
from llm.report.lineage import graph
from llm.report.template import filled


def write(run: Mapping[str, Any], store: Path, out: Path) -> None:
    """Write the page of a run from its summary and the artifacts that it names; paths are shown relative to `store`.

    What a run doesn't have (a tuned model, a champion) or no longer has (a deleted artifact) leaves its section out.
    """
    stages = facts.stages_of(run)
    values = {
        "run": run,
        "tiles": facts.tiles(run, stages),
        "curves": facts.curves(stages),
        "funnel": facts.funnel(stages),
        "scores": facts.scores(run, stages),
        "samples": facts.samples(stages),
        "releases": facts.releases(run, stages),
        "lineage": graph(facts.nodes(stages)) if stages else None,
        "costs": facts.costs(stages),
        "environment": facts.environment(stages),
        "relative": lambda path: path.removeprefix(f"{store}/"),
    }
    filters = {"duration": facts.duration, "quantity": facts.quantity}
    out.write_text(filled(Path(__file__).parent, values, filters=filters), encoding="utf-8")
