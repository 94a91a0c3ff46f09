"""What a run will do and why, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm.artifact import Artifact, Store
from llm.recipe import Recipe
from llm.run import Run
from llm.stages import GRAPH, differences, nodes


@dataclass(frozen=True)
class Step:
    """One line of a plan."""

    node: str
    state: str  # cached | run
    reasons: tuple[str, ...]
    seconds: float | None  # what the nearest earlier artifact took


def plan(recipe: Recipe, store: Store, flow: str) -> list[Step]:
    """What each stage of a flow would do now. Computes nothing; an artifact that doesn't verify is set aside."""
    run = Run("plan", recipe, store, flow)
    steps: list[Step] = []
    for node in nodes(flow, recipe.model.architecture):
        missing = [parent for parent in GRAPH[node].parents.values() if parent not in run.done]
        earlier = latest(store, node)
        seconds = earlier.manifest["wall_seconds"] if earlier else None
        if missing:
            steps.append(Step(node, "run", tuple(f"parent: {parent}" for parent in missing), seconds))
            continue
        next_job = run.job(node)
        if artifact := store.find(next_job.stage, next_job.key):
            run.done[node] = artifact
            steps.append(Step(node, "cached", (), 0.0))
        else:
            steps.append(Step(node, "run", changes(earlier, next_job.ingredients), seconds))
    return steps


def latest(store: Store, node: str, before: Artifact | None = None) -> Artifact | None:
    """The newest artifact of a node, or the newest that is older than another."""
    found = [artifact for artifact in store.all() if artifact.manifest["node"] == node]
    if before is not None:
        found = [artifact for artifact in found if artifact.manifest["created"] < before.manifest["created"]]
    return max(found, key=lambda artifact: str(artifact.manifest["created"]), default=None)


def changes(earlier: Artifact | None, ingredients: Mapping[str, Any]) -> tuple[str, ...]:
    """What a key was made from, against the nearest earlier artifact of the same node."""
    if earlier is None:
        return ("new: no earlier artifact",)
    return tuple(differences(comparable(earlier.manifest), ingredients)) or ("artifact missing or damaged",)


def comparable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The ingredients of an artifact's key, as its manifest keeps them."""
    ingredients = {name: manifest[name] for name in ("code", "config", "packages", "observed")}
    return ingredients | {"parents": {role: parent["digest"] for role, parent in manifest["parents"].items()}}
