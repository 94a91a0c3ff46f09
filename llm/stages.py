"""The graph as data: every stage, what its key depends on, and where it stands between raw text and registry.

A stage's key is the sha256 of its name, its code, the settings that it reads, the content of its parents, the
versions of the libraries that shape its output, and what it observes outside the store (files, the champion).
Equal keys mean equal results; `trainyard why` names the part that differs.
"""

from __future__ import annotations

import importlib.metadata
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm import observe
from llm.artifact import Ref, Store, sha256_of
from llm.code import code_digests
from llm.errors import RecipeError
from llm.recipe import Recipe

Observer = Callable[[Recipe, Store, str, Mapping[str, Ref]], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """What a stage is made of."""

    code: tuple[str, ...]  # the modules that hold it; what they import belongs to it too
    reads: tuple[str, ...]  # sections and settings of the recipe that shape its output
    packages: tuple[str, ...] = ()  # libraries whose version shapes its output
    observes: Observer | None = None  # looks outside the store; its answer is part of the key


STAGES = {
    "collect": Stage(
        ("llm.data.collect",),
        ("collect",),
        ("pyarrow", "charset-normalizer", "datasets", "fastwarc", "fsspec", "lxml", "protego", "sqlalchemy", "zstandard"),
        observe.sources,
    ),
    "clean": Stage(
        ("llm.data.clean",),
        ("clean", "evaluate.sets"),
        (
            "ftfy",
            "trafilatura",
            "lxml",
            "py3langid",
            "numpy",
            "pyarrow",
            "scikit-learn",
            "charset-normalizer",
            "zstandard",
            "fsspec",
            "unicodedata",
        ),
        observe.judges,
    ),
    "dedup": Stage(("llm.data.dedup",), ("dedup",), ("numpy", "pyarrow", "scipy", "unicodedata")),
    "tokenize": Stage(("llm.data.encode",), ("tokenize",), ("sentencepiece", "tokenizers", "numpy", "pyarrow"), observe.vocabulary),
    "audit": Stage(
        ("llm.data.audit.audit",),
        ("audit", "name"),
        ("scikit-learn", "scipy", "vaderSentiment", "numpy", "pyarrow", "jinja2", "pyyaml", "unicodedata"),
    ),
    "pretrain": Stage(("llm.train.loop",), ("model", "train", "seed"), ("torch",), observe.origins),
    "finetune": Stage(
        ("llm.train.loop", "llm.data.chat", "llm.data.filters.contamination"),
        ("finetune", "seed", "evaluate.sets", "clean.contamination"),
        ("torch", "sentencepiece", "unicodedata"),
        observe.pairs,
    ),
    "evaluate": Stage(("llm.evaluate.evaluate",), ("evaluate", "seed"), ("torch", "sentencepiece")),
    "export": Stage(
        ("llm.export.export",), ("export", "name", "audit.license"), ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")
    ),
    "promote": Stage(("llm.promote",), ("promote", "name"), (), observe.champion),
}


@dataclass(frozen=True)
class Node:
    """A stage at one place of the life cycle; `parents` are the nodes whose artifacts it reads, by role."""

    stage: str
    parents: Mapping[str, str] = field(default_factory=dict)


GRAPH = {
    "data.collect": Node("collect"),
    "data.clean": Node("clean", {"collected": "data.collect"}),
    "data.dedup": Node("dedup", {"cleaned": "data.clean"}),
    "data.tokenize": Node("tokenize", {"deduped": "data.dedup"}),
    "data.audit": Node(
        "audit", {"collected": "data.collect", "cleaned": "data.clean", "deduped": "data.dedup", "tokenized": "data.tokenize"}
    ),
    "base.pretrain": Node("pretrain", {"tokenized": "data.tokenize"}),
    "base.evaluate": Node("evaluate", {"trained": "base.pretrain", "tokenized": "data.tokenize", "deduped": "data.dedup"}),
    "base.export": Node("export", {"trained": "base.pretrain", "tokenized": "data.tokenize"}),
    "base.promote": Node(
        "promote", {"exported": "base.export", "evaluated": "base.evaluate", "tokenized": "data.tokenize", "deduped": "data.dedup"}
    ),
    "tuned.finetune": Node("finetune", {"trained": "base.pretrain", "tokenized": "data.tokenize", "deduped": "data.dedup"}),
    "tuned.evaluate": Node(
        "evaluate", {"trained": "tuned.finetune", "base": "base.pretrain", "tokenized": "data.tokenize", "deduped": "data.dedup"}
    ),
    "tuned.export": Node("export", {"trained": "tuned.finetune", "tokenized": "data.tokenize"}),
    "tuned.promote": Node(
        "promote", {"exported": "tuned.export", "evaluated": "tuned.evaluate", "tokenized": "data.tokenize", "deduped": "data.dedup"}
    ),
}

FLOWS = {
    "prepare": tuple(node for node in GRAPH if node.startswith("data.")),
    "pretrain": tuple(node for node in GRAPH if not node.startswith("tuned.")),
    "finetune": tuple(node for node in GRAPH if node not in ("base.evaluate", "base.export", "base.promote")),
    "lifecycle": tuple(GRAPH),
    "sweep": (*(node for node in GRAPH if node.startswith("data.")), "base.pretrain"),
}


RETENTION = {"keep_checkpoints", "keep_every_steps", "keep_best"}  # settings of training that change nothing in its result
SCORED = ("decoder", "gpt2", "moe")  # what writes text, and so has bits per byte, a place in the registry and a chat model


def nodes(flow: str, architecture: str) -> tuple[str, ...]:
    """The places that a flow passes through for an architecture.

    Raises: RecipeError if the flow needs more of it than there is.
    """
    if architecture in SCORED:
        return FLOWS[flow]
    if any(node.startswith("tuned.") for node in FLOWS[flow]):
        remedy = f"run the flow pretrain, or set model.architecture to one of {', '.join(SCORED)}"
        raise RecipeError(f"the flow {flow} needs an architecture that writes text", value=architecture, remedy=remedy)
    return tuple(node for node in FLOWS[flow] if node not in ("base.evaluate", "base.promote"))


@dataclass(frozen=True)
class Job:
    """One stage of one run, ready to be looked up or computed: a frozen value that travels into a task."""

    node: str
    stage: str
    key: str
    ingredients: dict[str, Any]  # what the key was made from
    parents: dict[str, Ref]
    recipe: dict[str, Any]
    store: str
    run: str  # the run's folder


def job(recipe: Recipe, store: Store, run_folder: Path, node: str, parents: Mapping[str, Ref]) -> Job:
    """The job of a node whose parents' artifacts are known."""
    name = GRAPH[node].stage
    stage = STAGES[name]
    settings = recipe.model_dump(mode="json")
    keyed = recipe.model_dump(mode="json", exclude={"train": RETENTION, "finetune": {"train": RETENTION}})
    ingredients = {
        "code": code_digests(*stage.code),
        "config": {path: _setting(keyed, path) for path in stage.reads},
        "parents": {role: parent.digest for role, parent in parents.items()},
        "packages": {package: version(package) for package in stage.packages},
        "observed": stage.observes(recipe, store, node, parents) if stage.observes else {},
    }
    key = sha256_of({"stage": name, "group": node.split(".")[0], **ingredients})[:20]
    return Job(node, name, key, ingredients, dict(parents), settings, str(store.root), str(run_folder))


def version(package: str) -> str:
    """Of a library, or of the tables of characters that this Python brings."""
    return unicodedata.unidata_version if package == "unicodedata" else importlib.metadata.version(package)


def fingerprint(settings: Mapping[str, Any], node: str) -> str:
    """Short sha256 of the settings that a node and all before it read: equal for recipes that differ elsewhere only."""
    waiting, read = [node], set[str]()
    while waiting:
        place = GRAPH[waiting.pop()]
        waiting.extend(place.parents.values())
        read.update(STAGES[place.stage].reads)
    return sha256_of({path: _setting(settings, path) for path in sorted(read)})[:12]


def _setting(recipe: Mapping[str, Any], path: str) -> Any:
    value: Any = recipe
    for part in path.split("."):
        value = value[part]
    return value


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What changed between two keys' ingredients, a line each: `config: train.steps 300 → 400`."""
    old, new = dict(_leaves(before, ())), dict(_leaves(after, ()))
    changed = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    return list(dict.fromkeys(_change(path, old.get(path), new.get(path)) for path in changed))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every plain value inside a nested one, with the names that lead to it; list items go by their id or path."""
    if isinstance(value, Mapping):
        named = list(value.items())
    elif isinstance(value, list):
        named = [
            (item.get("id") or item.get("path") or str(index) if isinstance(item, Mapping) else str(index), item)
            for index, item in enumerate(value)
        ]
    else:
        yield path, value
        return
    for name, item in named:
        yield from _leaves(item, (*path, str(name)))


def _change(path: tuple[str, ...], old: Any, new: Any) -> str:
    kind, *names = path
    if kind == "code":
        return f"code: {names[0].replace('.', '/')}.py"
    if kind == "parents":
        return f"parent: {names[0]}"
    if kind == "observed" and names[-1] in ("sha256", "bytes", "id", "path"):
        return f"source: {names[-2]} {'is new' if old is None else 'is gone' if new is None else 'has changed'}"
    return f"{kind}: {'.'.join(names)} {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
