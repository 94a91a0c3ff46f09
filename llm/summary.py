"""summary.json: what a run produced, gathered from its artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.artifact import Artifact


def summary(done: Mapping[str, Artifact], stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Stages, metrics, exports, parity and registry of the nodes that are done; absent nodes leave no key."""
    facts: dict[str, Any] = {"stages": {}, "metrics": {}, "exports": {}, "parity": {}}
    for node, stage in stages.items():
        group, name = node.split(".")
        facts["stages"].setdefault(group, {})[name] = dict(stage)
    for group in ("base", "tuned"):
        if evaluated := done.get(f"{group}.evaluate"):
            scores = _read(evaluated.path / "scores.json")
            baseline = scores.pop("baseline", {})
            facts["metrics"][group] = scores
            facts.setdefault("baseline", {"kneser_ney_bits_per_byte": baseline["kneser_ney"]["bits_per_byte"]})
        if exported := done.get(f"{group}.export"):
            folders = [exported.path / name for name in ("huggingface", "onnx") if (exported.path / name).is_dir()]
            facts["exports"][group] = {folder.name: str(folder) for folder in folders}
            parity = _read(exported.path / "parity.json")
            facts["parity"][group] = {name: parity[name] for name in ("max_logit_difference", "greedy_tokens_equal") if name in parity}
        if promoted := done.get(f"{group}.promote"):
            decision = _read(promoted.path / "decision.json")
            facts.setdefault("registry", {})[group] = decision
    if "registry" in facts:  # the run's own answer is its last model
        last = facts["registry"].get("tuned") or facts["registry"]["base"]
        facts["registry"] |= {name: last[name] for name in ("model", "version", "champion")}
    return facts


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
