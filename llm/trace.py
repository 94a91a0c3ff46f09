"""Where a document went: kept, dropped or quarantined and why, in which rows, and which models were trained on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.artifact import Artifact, Store
from llm.data.split import SPLITS


@dataclass(frozen=True)
class Station:
    """What became of a document in one artifact."""

    depth: int  # artifacts between it and the collection
    artifact: str  # <stage>/<key>
    fate: str


@dataclass(frozen=True)
class Fate:
    """What an artifact did with a document, and whether it went on from there."""

    text: str
    goes_on: bool = False


NEXT = {
    "collect": ("clean",),
    "clean": ("dedup",),
    "dedup": ("tokenize",),
    "tokenize": ("pretrain",),
    "pretrain": ("finetune", "export"),
    "finetune": ("export",),
    "export": ("promote",),
    "promote": (),
}


def trace(store: Store, id: str) -> list[Station]:
    """The way of a document through every artifact of the store that met it, from its collections on, oldest first."""
    everything = sorted(store.all(), key=lambda found: str(found.manifest["created"]))
    collections = [found for found in everything if found.ref.stage == "collect"]
    return [station for found in collections for station in _followed(everything, found, None, id, 0)]


def near(store: Store, text: str, most: int = 20) -> list[str]:
    """Ids of the collected documents that contain a text, the first by name."""
    found: set[str] = set()
    for artifact in store.all():
        if artifact.ref.stage == "collect":
            ids = pq.read_table(artifact.path / "index.parquet", columns=["id"])["id"]
            found.update(ids.filter(pc.match_substring(ids, text)).to_pylist())
            for name in ("dropped.jsonl", "quarantine.jsonl"):
                found.update(line["id"] for line in _lines(artifact.path / name, text) if text in line["id"])
    return sorted(found)[:most]


def _followed(everything: list[Artifact], here: Artifact, before: Artifact | None, id: str, depth: int) -> Iterator[Station]:
    """What an artifact did with a document, and what those did that were made from it."""
    stage = here.ref.stage
    fate = FATES[stage](here, before, id)
    if fate is None:
        return
    if fate.text:
        yield Station(depth, f"{stage}/{here.ref.key}", fate.text)
    if fate.goes_on:
        for found in everything:
            parents = {(parent["stage"], parent["digest"]) for parent in found.manifest["parents"].values()}
            if found.ref.stage in NEXT[stage] and (stage, here.ref.digest) in parents:
                yield from _followed(everything, found, here, id, depth + bool(fate.text))


def _collected(here: Artifact, before: Artifact | None, id: str) -> Fate | None:
    index = pq.read_table(here.path / "index.parquet", filters=pc.field("id") == id).to_pylist()
    if index:
        return Fate(f"kept, {index[0]['bytes']} bytes from {index[0]['source']}", goes_on=True)
    for fate, name in (("dropped", "dropped.jsonl"), ("quarantined", "quarantine.jsonl")):
        if line := _line(here.path / name, id):
            return Fate(f"{fate}, {line['reason']}")
    return None


def _cleaned(here: Artifact, before: Artifact | None, id: str) -> Fate | None:
    if line := _line(here.path / "dropped.jsonl", id):
        return Fate(f"dropped, {line['reason']} (score {line['score']:g})")
    kept = any(pc.index(_ids(shard), id).as_py() >= 0 for shard in sorted(here.path.glob("documents-*.parquet")))
    return Fate("kept", goes_on=True) if kept else None


def _deduped(here: Artifact, before: Artifact | None, id: str) -> Fate | None:
    cluster = next(_clusters(here.path, id), None)
    if cluster and id in cluster["dropped"]:
        return Fate(f"dropped, {cluster['dropped'][id]}; {cluster['survivor']} stands for it, in {cluster['split']}")
    split, _ = _place(here.path, id)
    others = f", stands for {len(cluster['dropped'])} more" if cluster else ""
    return Fate(f"kept in {split}{others}", goes_on=True) if split else None


def _tokenized(here: Artifact, before: Artifact | None, id: str) -> Fate | None:
    assert before is not None
    split, number = _place(before.path, id)
    facts = json.loads((here.path / "rows.json").read_text(encoding="utf-8"))
    borders, row_tokens = np.fromfile(here.path / f"{split}.borders", "<i8"), facts["row_tokens"]
    begin = int(borders[number])
    end = int(borders[borders > begin].min(initial=facts["splits"][split]["rows"] * row_tokens))
    packed = (here.path / f"{split}.mask").exists()  # then a row ends with a document, and what a row can't hold is cut
    first, last = begin // row_tokens, begin // row_tokens if packed else max(begin, end - 1) // row_tokens
    rows = f"row {first}" if first == last else f"rows {first} to {last}"
    held_out = "" if split == "train" else "; held out, so no model was trained on it"
    return Fate(f"{rows} of {split}, from token {begin} on{held_out}", goes_on=split == "train")


def _pretrained(here: Artifact, before: Artifact | None, id: str) -> Fate | None:
    assert before is not None
    train = here.manifest["config"]["train"]
    rows = json.loads((before.path / "rows.json").read_text(encoding="utf-8"))["splits"]["train"]["rows"]
    return Fate(f"trained on {train['steps'] * train['global_batch_size']} rows drawn from these {rows}", goes_on=True)


def _finetuned(here: Artifact, before: Artifact | None, id: str) -> Fate | None:
    pairs = sum(line["id"].startswith(f"{id}:") for line in _lines(here.path / "chat" / "pairs-train.jsonl", id))
    return Fate(f"tuned from this model, with {pairs} pairs made of the document", goes_on=True)


def _exported(here: Artifact, before: Artifact | None, id: str) -> Fate | None:
    return Fate("", goes_on=True)


def _promoted(here: Artifact, before: Artifact | None, id: str) -> Fate | None:
    decision = json.loads((here.path / "decision.json").read_text(encoding="utf-8"))
    return Fate(f"{decision['model']} version {decision['version']}{', made champion' if decision['champion'] else ''}")


FATES: dict[str, Callable[[Artifact, Artifact | None, str], Fate | None]] = {
    "collect": _collected,
    "clean": _cleaned,
    "dedup": _deduped,
    "tokenize": _tokenized,
    "pretrain": _pretrained,
    "finetune": _finetuned,
    "export": _exported,
    "promote": _promoted,
}


def _place(deduped: Path, id: str) -> tuple[str, int]:
    """The split of a document and its number there; no split if it isn't there."""
    for split in SPLITS:
        before = 0
        for shard in sorted(deduped.glob(f"{split}-*.parquet")):
            ids = _ids(shard)
            if (number := pc.index(ids, id).as_py()) >= 0:
                return split, before + number
            before += len(ids)
    return "", -1


def _ids(shard: Path) -> pa.ChunkedArray:
    return pq.read_table(shard, columns=["id"])["id"]


def _clusters(deduped: Path, id: str) -> Iterator[dict[str, Any]]:
    """The cluster that a document belongs to."""
    return (line for line in _lines(deduped / "clusters.jsonl", id) if line["survivor"] == id or id in line["dropped"])


def _line(path: Path, id: str) -> dict[str, Any] | None:
    """The record of a document."""
    return next((line for line in _lines(path, id) if line["id"] == id), None)


def _lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """The records that hold a text somewhere; none if there is no such file."""
    if path.is_file():
        wanted = json.dumps(text, ensure_ascii=False)[1:-1]
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if wanted in line)
