"""What a stage's key depends on outside the store: sources of text, and the present champion.

Each function answers a small JSON-able value; an equal answer means that nothing has changed out there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm.artifact import Ref, Store
    from llm.recipe import Recipe


def sources(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """Names, sizes and hashes of all that `collect` would read."""
    from llm.data.collect import snapshot

    return snapshot(recipe.collect)


def origins(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """The hashes of the weights that training starts from and of those that teach it, where the recipe names some."""
    from llm.data.hashing import weight_fingerprints

    train = recipe.finetune.train if node.startswith("tuned.") else recipe.train
    named = {"initial": train.initial, "teacher": getattr(train.objective, "teacher", None)}
    return {role: weight_fingerprints(Path(folder)) for role, folder in named.items() if folder}


def pairs(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """The hash of the file of conversations, where the recipe names one."""
    from llm.data.chat import snapshot

    return snapshot(recipe.finetune.chat) | origins(recipe, store, node, parents)


def champion(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """Which champion a candidate would meet; what it met then, if the candidate has become the champion since."""
    from llm.registry import of_store

    standing = of_store(store).standing(model_name(recipe.name, node))
    if standing["digest"] == parents["exported"].digest:
        return dict(standing["met"])
    return {"champion": standing["version"], "generation": standing["generation"]}


def model_name(recipe: str, node: str) -> str:
    """`<recipe>-base` or `<recipe>-chat`."""
    return f"{recipe}-{'base' if node.startswith('base.') else 'chat'}"
