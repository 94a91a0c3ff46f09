"""The dashboard and the alerts ask for what the server tells, by the names and labels that it uses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from llm.serve.engine.engine import Load
from llm.serve.engine.generation import Chunk, Generation, Scored, Step
from llm.serve.engine.sampling import Sampling
from llm.serve.observe.metrics import Metrics

FOLDER = Path(__file__).parents[3] / "infra" / "serve"
OWN_LABELS = {"instance", "le"}  # Prometheus' and the histograms'


def dashboard() -> list[str]:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == 12
    return [target["expr"] for panel in panels for target in panel["targets"]]


def alerts() -> list[str]:
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    rules: list[dict[str, Any]] = [rule for group in groups for rule in group["rules"]]
    assert all({"alert", "expr", "labels", "annotations"} <= rule.keys() for rule in rules)
    return [rule["expr"] for rule in rules]


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """Names of labels by name of a sample, of a server that has seen everything once."""
    metrics, version, generation = Metrics(), ("chat", "3"), Generation([1], Sampling(max_tokens=2))
    metrics.serve({version: lambda: Load(0, 0, 1, 0, 1)})
    metrics.watched(version, Step("decode", 1, 1, 0.1))
    generation.queue_seconds = 0.1
    generation.put(Chunk("a", (Scored(1),)))
    generation.put(Chunk("b", (Scored(2),), "length"))
    metrics.finished(version, generation)
    metrics.ended("/v1/completions", "chat", 500, 0.1)
    metrics.happened("chat", "rolled back")
    metrics.samples.labels("lost").inc()
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize("expression", [*dashboard(), *alerts()])
def test_expressions_name_what_is_told(expression: str, told: dict[str, set[str]]) -> None:
    names = set(re.findall(r"\b(?:trainyard|process)_\w+", expression))
    assert names
    assert names <= told.keys()
    for name, selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)=~?\"", selector)) <= told[name]
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", group)}
    assert grouped <= set.union(*(told[name] for name in names)) | OWN_LABELS
    assert expression.count("(") == expression.count(")")
