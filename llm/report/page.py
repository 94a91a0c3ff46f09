"""One self-contained HTML page per run: no script, no font, no picture from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from llm.report import facts
from llm.report.lineage import graph

HERE = Path(__file__).parent


def write(run: Mapping[str, Any], store: Path, out: Path) -> None:
    """Write the page of a run from its summary and the artifacts that it names; paths are shown relative to `store`.

    What a run doesn't have (a tuned model, a champion) or no longer has (a deleted artifact) leaves its section out.
    """
    stages = facts.stages_of(run)
    page = _template().render(
        run=run,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        tiles=facts.tiles(run, stages),
        curves=facts.curves(stages),
        funnel=facts.funnel(stages),
        scores=facts.scores(run, stages),
        samples=facts.samples(stages),
        releases=facts.releases(run),
        lineage=graph(facts.nodes(stages)) if stages else None,
        costs=facts.costs(stages),
        environment=facts.environment(stages),
        relative=lambda path: path.removeprefix(f"{store}/"),
    )
    out.write_text(page, encoding="utf-8")


def _template() -> jinja2.Template:
    """The page, which escapes every value that isn't one of our own drawings."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": facts.duration, "quantity": facts.quantity}
    return environment.get_template("page.html")
