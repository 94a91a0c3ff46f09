"""What a run will do and why, and whether this machine can carry it, before anything starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from llm.artifact import Artifact, Store, named_errors
from llm.errors import CapacityError, DataError, RecipeError
from llm.model.config import ModelConfig
from llm.recipe import FinetuneConfig, Recipe
from llm.run import Run
from llm.stages import FLOWS, GRAPH, differences
from llm.train.config import TrainConfig

FREE_DISK_BYTES = 200_000_000  # kept free for logs, databases and the system
TEXT_COPIES = 5  # raw, clean, deduplicated, token rows, the one being written
WEIGHT_COPIES = 10  # two checkpoints with optimizer state (3 each), final weights, two exports, one being written
PACKED = (".gz", ".zst", ".parquet")  # files whose size says little about their text
BYTES_PER_PIECE = 4  # a vocabulary of V pieces can't be learnt from fewer than about 4 V bytes of text


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
    for node in FLOWS[flow]:
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


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """Trainable numbers of a decoder, without building it."""
    attention = model.width * (model.width // model.num_heads) * (2 * model.num_heads + 2 * model.num_kv_heads)
    layer = attention + 3 * model.width * model.ffn_width + 2 * model.width
    return model.num_layers * layer + model.width + vocab_size * model.width * (1 if model.tied_embeddings else 2)


def training_bytes(recipe: Recipe, train: TrainConfig) -> int:
    """Memory of one worker, roughly: weights, gradients and two optimizer states in fp32, activations and logits.

    Source: activations per layer as in https://arxiv.org/abs/2205.05198, eq. 2, without dropout masks.
    """
    model, rows = recipe.model, train.micro_batch_size
    tokens = rows * recipe.tokenize.row_tokens
    states = 16 * parameters(model, recipe.tokenize.vocab_size)
    activations = tokens * model.num_layers * (34 * model.width + 5 * model.num_heads * recipe.tokenize.row_tokens)
    logits = 3 * 4 * tokens * recipe.tokenize.vocab_size
    return states + activations + logits


def check(recipe: Recipe, store: Store) -> None:
    """Refuse a run that can't succeed here, before it costs anything.

    Raises: CapacityError (memory, disk), DataError (no text), RecipeError (vocabulary or rows too large for the
    text), ArtifactError (store read-only).
    """
    with named_errors(store.root):
        store.root.mkdir(parents=True, exist_ok=True)
        probe = store.root / ".writable"
        probe.touch()
        probe.unlink()
    text_bytes = available_text_bytes(recipe)
    _check_text(recipe, text_bytes)
    _check_memory(recipe)
    _check_disk(recipe, store, text_bytes)


def available_text_bytes(recipe: Recipe) -> int | None:
    """Bytes of text that the sources hold; None where that is known only once they are read (hub, compressed files)."""
    from llm.data.collect import snapshot

    total = 0
    for source in snapshot(recipe.collect)["sources"]:
        items = source.get("documents", source.get("files"))
        if items is None or any(str(item.get("path", "")).endswith(PACKED) for item in items):
            return None
        total += sum(item["bytes"] for item in items)
    return total


def _check_memory(recipe: Recipe) -> None:
    if "RAY_ADDRESS" in os.environ:  # other machines train
        return
    finetune: FinetuneConfig = recipe.finetune
    for section, train in (("train", recipe.train), ("finetune.train", finetune.train)):
        needed, have = training_bytes(recipe, train) * recipe.cluster.workers, psutil.virtual_memory().total
        if recipe.cluster.use_gpu is not True and needed > have:
            raise CapacityError(
                f"training needs more memory than this machine has ({recipe.cluster.workers} workers)",
                value=f"{needed / 2**30:.1f} GiB of {have / 2**30:.1f} GiB",
                remedy=f"lower {section}.micro_batch_size or model.width, or point RAY_ADDRESS at a larger cluster",
            )


def _check_text(recipe: Recipe, text_bytes: int | None) -> None:
    if text_bytes is None:
        return
    if text_bytes == 0:
        raise DataError("sources hold no text", value="0 bytes", remedy="check the paths under collect.sources")
    if text_bytes < recipe.tokenize.vocab_size * BYTES_PER_PIECE:
        raise RecipeError(
            f"vocabulary of {recipe.tokenize.vocab_size} pieces is larger than the text supports",
            value=f"{text_bytes} bytes of text",
            remedy=f"set tokenize.vocab_size to at most {text_bytes // BYTES_PER_PIECE}, or add text",
        )
    smallest = text_bytes * min(recipe.dedup.validation_share, recipe.dedup.test_share)
    if smallest < recipe.tokenize.row_tokens:
        raise RecipeError(
            f"rows of {recipe.tokenize.row_tokens} tokens are longer than the data of the smallest split",
            value=f"{smallest:.0f} bytes of text",
            remedy="set tokenize.row_tokens lower, or add text",
        )


def _check_disk(recipe: Recipe, store: Store, text_bytes: int | None) -> None:
    weights = 4 * parameters(recipe.model, recipe.tokenize.vocab_size)
    held = sum(file["bytes"] for artifact in store.all() for file in artifact.manifest["files"].values())
    needed = FREE_DISK_BYTES + max(0, TEXT_COPIES * (text_bytes or 0) + 2 * WEIGHT_COPIES * weights - held)
    free = shutil.disk_usage(store.root).free
    if free < needed:
        raise CapacityError(
            "too little disk for this run",
            value=f"{free / 1e9:.2f} GB free of {needed / 1e9:.2f} GB needed at {store.root}",
            remedy="run `trainyard gc`, or set TRAINYARD_HOME to a larger disk",
        )
