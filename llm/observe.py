"""What a stage's key depends on outside the store: sources of text, and the present champion.

Each function answers a small JSON-able value; an equal answer means that nothing has changed out there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.artifact import sha256_of

if TYPE_CHECKING:
    from llm.artifact import Artifact, Ref, Store
    from llm.recipe import Recipe


def sources(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """Names, sizes and hashes of all that `collect` would read; with `keep_seen`, also which collection it would start from."""
    from llm.data.collect import snapshot

    found = snapshot(recipe.collect)
    return found | {"seen": _seen(store, recipe.name, found)} if recipe.collect.keep_seen else found


def _seen(store: Store, name: str, found: Mapping[str, Any]) -> str:
    """Digest of the last collection; where the sources are still as they were for it, of the one that it started from.

    So its key stays what it was until something changes out there.
    """
    last = last_collection(store, name)
    if last is None:
        return ""
    met = last.manifest["observed"]
    if "seen" in met and sha256_of(met["sources"]) == sha256_of(found["sources"]) and (not met["seen"] or _with_digest(store, met["seen"])):
        return str(met["seen"])
    return last.ref.digest


def previous_collection(store: Store, name: str, observed: Mapping[str, Any]) -> Path | None:
    """The folder of the collection that a new one is compared with, or starts from."""
    found = _with_digest(store, observed["seen"]) if "seen" in observed else last_collection(store, name)
    return found.path if found else None


def last_collection(store: Store, name: str) -> Artifact | None:
    """The newest artifact of collect that a run of this recipe made."""
    return max(
        (found for found in _collections(store) if found.manifest["run"].split("-", 2)[-1].rpartition("-")[0] == name),
        key=lambda found: str(found.manifest["created"]),
        default=None,
    )


def _with_digest(store: Store, digest: str) -> Artifact | None:
    return next((found for found in _collections(store) if found.ref.digest == digest), None)


def _collections(store: Store) -> Iterator[Artifact]:
    return (found for found in store.all() if found.ref.stage == "collect" and "run" in found.manifest)


def judges(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """The hashes of what `clean` learns from and looks for: examples, lists of words, evaluation sets."""
    from llm.data.filters.corpus import snapshot

    return snapshot(recipe.clean, recipe.evaluate.sets)


def origins(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """The hashes of the weights that training starts from and of those that teach it, where the recipe names some."""
    from llm.data.hashing import weight_fingerprints

    train = recipe.finetune.train if node.startswith("tuned.") else recipe.train
    named = {"initial": train.initial, "teacher": getattr(train.objective, "teacher", None)}
    return {role: weight_fingerprints(Path(folder)) for role, folder in named.items() if folder}


def vocabulary(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """The hash of the tokenizer that the recipe imports, if it does."""
    from llm.data.hashing import fingerprints
    from llm.data.vocabulary.imported import imported_file

    if recipe.tokenize.tokenizer.kind != "imported":
        return {}
    path = imported_file(recipe.tokenize.tokenizer)
    return {"files": fingerprints([(path.name, path)])}


def pairs(recipe: Recipe, store: Store, node: str, parents: Mapping[str, Ref]) -> dict[str, Any]:
    """The hashes of the conversations, where the recipe names their file, and of the sets that they may share nothing with."""
    from llm.data import chat, labelled

    held_back = [labelled.snapshot(each) for each in recipe.evaluate.sets]
    return chat.snapshot(recipe.finetune.chat) | ({"sets": held_back} if held_back else {}) | origins(recipe, store, node, parents)


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
