"""Whether this machine can carry a run, before it costs anything."""

from __future__ import annotations

import os
import shutil

import psutil

from llm.artifact import Store, named_errors
from llm.errors import CapacityError, DataError, RecipeError
from llm.model import sizes
from llm.plan import machine, memory, origins
from llm.plan.machine import Machine
from llm.recipe import Recipe
from llm.stages import SCORED
from llm.train import devices
from llm.train.config import TrainConfig
from llm.train.parallel import check as layout_check

FREE_DISK_BYTES = 200_000_000  # kept free for logs, databases and the system
TEXT_COPIES = 6  # raw, repaired, clean, deduplicated, token rows, the one being written
WEIGHT_COPIES = 10  # two checkpoints with optimizer state (3 each), final weights, two exports, one being written
PACKED = (".gz", ".zst", ".parquet")  # files whose size says little about their text
BYTES_PER_PIECE = 4  # a vocabulary of V pieces can't be learnt from fewer than about 4 V bytes of text


def check(recipe: Recipe, store: Store) -> None:
    """Refuse a run that can't succeed here, before it costs anything.

    Raises: CapacityError (memory, disk, GPUs), DataError (no text), RecipeError (layout, initial weights or teacher that
    don't fit, vocabulary or rows too large for the text), ArtifactError (store read-only, weights missing).
    """
    with named_errors(store.root):
        store.root.mkdir(parents=True, exist_ok=True)
        probe = store.root / ".writable"
        probe.touch()
        probe.unlink()
    _check_layout(recipe)
    _check_origins(recipe)
    _check_gpus(recipe)
    _check_precision(recipe)
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


def predicted(recipe: Recipe, train: TrainConfig, here: Machine) -> memory.Memory:
    """Memory of one worker of a recipe on this kind of machine."""
    layout = recipe.cluster.layout
    worker = memory.Worker(
        device=here.device,
        bf16=here.bf16(train.precision),
        layout=layout,
        replicas=recipe.cluster.workers // layout.model_workers,
        copies_state=recipe.cluster.async_checkpoints,
        heap_share=memory.HEAP_SHARE if here.device == "cpu" else 0.0,
    )
    return memory.predict(recipe.model, recipe.tokenize.vocab_size, recipe.tokenize.row_tokens, train, worker)


def _trainings(recipe: Recipe) -> dict[str, TrainConfig]:
    """The sections that a flow may train by: what doesn't write text is never finetuned."""
    return {"train": recipe.train} | ({"finetune.train": recipe.finetune.train} if recipe.model.architecture in SCORED else {})


def _check_layout(recipe: Recipe) -> None:
    cluster, row_tokens = recipe.cluster, recipe.tokenize.row_tokens
    layout_check.check_elastic(cluster)
    for train in _trainings(recipe).values():
        layout_check.check(cluster.layout, recipe.model, train, row_tokens, cluster.workers)


def _check_gpus(recipe: Recipe) -> None:
    wanted, (names, _) = recipe.cluster.workers, machine.gpus()
    if recipe.cluster.use_gpu is True and "RAY_ADDRESS" not in os.environ and len(names) < wanted:
        remedy = f"set cluster.workers to {len(names)}" if names else "set cluster.use_gpu to false, or RAY_ADDRESS to a cluster"
        raise CapacityError("more workers than GPUs", value=f"{wanted} workers, {len(names)} GPUs here", remedy=remedy)


def _check_origins(recipe: Recipe) -> None:
    for section, train in _trainings(recipe).items():
        origins.check(train, recipe.model, recipe.tokenize, section)


def _check_precision(recipe: Recipe) -> None:
    """Of float8, which not every chip multiplies; machines of another cluster are known once it is joined."""
    if "RAY_ADDRESS" in os.environ and recipe.cluster.use_gpu is not False:
        return
    gpu = machine.this(recipe.cluster).gpu
    if gpu and devices.multiplies_float8(gpu) is not False:
        return
    for section, train in _trainings(recipe).items():
        if train.precision == "fp8":
            remedy = f"set {section}.precision to bf16, or train on an H100 or later"
            raise CapacityError("this machine doesn't multiply float8", value=gpu or "cpu", remedy=remedy)


def _check_memory(recipe: Recipe) -> None:
    if "RAY_ADDRESS" in os.environ:  # other machines train
        return
    here, tensor = machine.this(recipe.cluster), recipe.cluster.layout.tensor
    for section, train in _trainings(recipe).items():
        needed = predicted(recipe, train, here)
        if here.device == "cuda":
            memory.check(needed, here.gpu_memory_bytes, section=section, tensor=tensor)
        elif recipe.cluster.use_gpu is not True:
            memory.check(needed, psutil.virtual_memory().total, section=section, workers=recipe.cluster.workers, tensor=tensor)


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
    weights = 4 * sizes.parameters(recipe.model, recipe.tokenize.vocab_size)
    held = sum(file["bytes"] for artifact in store.all() for file in artifact.manifest["files"].values())
    needed = FREE_DISK_BYTES + max(0, TEXT_COPIES * (text_bytes or 0) + 2 * WEIGHT_COPIES * weights - held)
    free = shutil.disk_usage(store.root).free
    if free < needed:
        raise CapacityError(
            "too little disk for this run",
            value=f"{free / 1e9:.2f} GB free of {needed / 1e9:.2f} GB needed at {store.root}",
            remedy="run `trainyard gc`, or set TRAINYARD_HOME to a larger disk",
        )
