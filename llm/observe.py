"""What a stage's key depends on outside the store: sources of text, and the present champion.

Each function answers a small JSON-able value; an equal answer means that nothing has changed out there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm.artifact import Ref, Store
    from llm.recipe import Recipe


def sources(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """Names, sizes and hashes of all that `collect` would read."""
    from llm.data.collect import snapshot

    return snapshot(recipe.collect)


def pairs(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """The hash of the file of conversations, where the recipe names one."""
    from llm.data.chat import snapshot

    return snapshot(recipe.finetune.chat)


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
