"""One run: a frozen recipe, a store, and the record of what its stages produced."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from llm.artifact import Artifact, Ref, Store, named_errors, write_json
from llm.metrics import append
from llm.recipe import Recipe
from llm.stages import GRAPH, Job, job
from llm.summary import summary


def home() -> Path:
    """Where everything is kept: $TRAINYARD_HOME, or `.trainyard` in the working directory."""
    return Path(os.environ.get("TRAINYARD_HOME") or ".trainyard").absolute()


@dataclass
class Run:
    """A run on its way through the graph; its folder is STORE/runs/<id>/."""

    id: str
    recipe: Recipe
    store: Store
    flow: str
    started: float = field(default_factory=time.monotonic)
    done: dict[str, Artifact] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.store.root / "runs" / self.id

    def job(self, node: str) -> Job:
        """The next job; its parents must have been recorded."""
        return job(
            self.recipe, self.store, self.folder, node, {role: self.done[parent].ref for role, parent in GRAPH[node].parents.items()}
        )

    def record(self, node: str, artifact: Artifact, *, state: str, seconds: float) -> None:
        """Note that a node's artifact is there, `computed` now or `cached` from before."""
        self.done[node] = artifact
        self.stages[node] = {"key": artifact.ref.key, "state": state, "seconds": round(seconds, 3), "path": str(artifact.path)}
        append(self.folder / "metrics.jsonl", {"node": node, "event": state, "key": artifact.ref.key, "seconds": round(seconds, 3)})
        self.write_summary("running")

    def write_summary(self, state: str, error: str = "") -> dict[str, Any]:
        """Write summary.json: what the run has produced so far, for machines."""
        facts = summary(self.done, self.stages) | {
            "run_id": self.id,
            "flow": self.flow,
            "recipe": self.recipe.name,
            "fingerprint": self.recipe.fingerprint,
            "state": state,
            "wall_seconds": round(time.monotonic() - self.started, 3),
            "report": str(self.folder / "report.html"),
        }
        write_json(self.folder / "summary.json", facts | ({"error": error} if error else {}))
        return facts


def open_run(recipe: Recipe, store: Store, flow: str) -> Run:
    """Begin a run: its folder, the resolved recipe in it, and `runs/latest` pointing to it.

    Raises: ArtifactError if the store can't be written.
    """
    run = Run(f"{datetime.now():%Y%m%d-%H%M%S}-{recipe.name}-{secrets.token_hex(2)}", recipe, store, flow)
    with named_errors(run.folder):
        run.folder.mkdir(parents=True)
        (run.folder / "recipe.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
        link = run.folder.parent / f".latest-{secrets.token_hex(4)}"
        link.symlink_to(run.id)
        link.replace(run.folder.parent / "latest")
    return run


def refs(parents: dict[str, Ref]) -> dict[str, Path]:
    """The folders of a job's parents, by role."""
    return {role: Path(parent.path) for role, parent in parents.items()}
