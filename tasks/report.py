"""What a person sees of a run in Prefect: funnel, scores and links, and the page in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact

from llm.run import Run


def funnel(run: Run) -> None:
    """A table of how many documents each data stage read, kept and dropped, by reason."""
    rows = []
    for node in ("data.collect", "data.clean", "data.dedup"):
        books = json.loads((run.done[node].path / "books.json").read_text())
        rows.append({"stage": node, "read": books["read"], "kept": books["kept"], "reason": ""})
        for fate in ("dropped", "quarantined"):
            rows += [{"stage": node, fate: count, "reason": reason} for reason, count in sorted(books[fate].items())]
    rows += _news(run)
    create_table_artifact(rows, key="funnel", description=f"documents of run {run.id}")


def _news(run: Run) -> list[dict[str, Any]]:
    """A row with what has changed in the sources since the last run, if this one looked at them anew."""
    path = run.done["data.collect"].path / "log" / "news.json"
    if run.stages["data.collect"]["state"] != "computed" or not path.exists():
        return []
    news = json.loads(path.read_text(encoding="utf-8"))
    facts = [f"{news[fate]} {fate}" for fate in ("new", "changed", "gone", "same")]
    facts += [f"{count} files skipped ({suffix})" for suffix, count in news.get("skipped_files", {}).items()]
    return [{"stage": "data.collect", "reason": ", ".join(facts)}]


def scores(run: Run, group: str) -> None:
    """A table of a model's scores per domain."""
    found = json.loads((run.done[f"{group}.evaluate"].path / "scores.json").read_text())
    names = ("loss", "perplexity", "bits_per_byte")
    domains = {"all": found, **found["by_domain"]}
    rows = [{"domain": domain, **{name: round(values[name], 4) for name in names}} for domain, values in domains.items()]
    rows.append({"domain": "Kneser–Ney bigram", "bits_per_byte": round(found["baseline"]["kneser_ney"]["bits_per_byte"], 4)})
    create_table_artifact(rows, key=f"scores-{group}", description=f"test scores of run {run.id}")


def write_report(run: Run, summary: dict[str, Any]) -> Path:
    """The run's page: one self-contained HTML file."""
    from llm.report import write

    page = run.folder / "report.html"
    write(summary, run.store.root, page)
    return page


def links(run: Run) -> None:
    """A link to the run's page."""
    create_link_artifact((run.folder / "report.html").as_uri(), key="report", link_text="report", description=f"report of run {run.id}")
