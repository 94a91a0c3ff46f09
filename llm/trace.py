"""Where a document went: kept, dropped or quarantined and why, in which rows, and which models were trained on it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from llm.artifact import Artifact, Store
from llm.data.mixture import Blend
from llm.data.rows import Rows, order
from llm.data.split import SPLITS
from llm.train import schedule
from llm.train.config import TrainConfig

READ_AT_ONCE = 2**20  # places of a sample stream

Way = tuple[Artifact, ...]  # an artifact, and behind it those from which it was made, back to a collection


@dataclass(frozen=True)
class Station:
    """What became of a document in one artifact."""

    depth: int  # artifacts between it and the collection
    artifact: str  # <stage>/<key>
    fate: str


@dataclass(frozen=True)
class Fate:
    """What an artifact did with a document, nothing worth telling if `text` is empty, and into which stages it went on from there."""

    text: str
    next: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stand:
    """Where a document stands in the rows of its split."""

    split: str
    begin: int  # its first token
    rows: range  # none if the stream's tail, which fills no row, is all of it
    cut: bool  # whether packing gave its rest rows of its own, which nothing names


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
    return [station for found in collections for station in _followed(everything, (found,), id, 0)]


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


def _followed(everything: list[Artifact], way: Way, id: str, depth: int) -> Iterator[Station]:
    """What the way's last artifact did with a document, and what those did that were made from it."""
    here = way[0]
    fate = FATES[here.ref.stage](way, id)
    if fate is None:
        return
    if fate.text:
        yield Station(depth, f"{here.ref.stage}/{here.ref.key}", fate.text)
    for found in everything:
        parents = {(parent["stage"], parent["digest"]) for parent in found.manifest["parents"].values()}
        if found.ref.stage in fate.next and (here.ref.stage, here.ref.digest) in parents:
            yield from _followed(everything, (found, *way), id, depth + bool(fate.text))


def _collected(way: Way, id: str) -> Fate | None:
    index = pq.read_table(way[0].path / "index.parquet", filters=pc.field("id") == id).to_pylist()
    if index:
        return Fate(f"kept, {index[0]['bytes']} bytes from {index[0]['source']}", NEXT["collect"])
    for fate, name in (("dropped", "dropped.jsonl"), ("quarantined", "quarantine.jsonl")):
        if line := _line(way[0].path / name, id):
            return Fate(f"{fate}, {line['reason']}")
    return None


def _cleaned(way: Way, id: str) -> Fate | None:
    if line := _line(way[0].path / "dropped.jsonl", id):
        return Fate(f"dropped, {line['reason']} (score {line['score']:g})")
    kept = any(pc.index(_ids(shard), id).as_py() >= 0 for shard in sorted(way[0].path.glob("documents-*.parquet")))
    return Fate("kept", NEXT["clean"]) if kept else None


def _deduped(way: Way, id: str) -> Fate | None:
    cluster = next(_clusters(way[0].path, id), None)
    if cluster and id in cluster["dropped"]:
        return Fate(f"dropped, {cluster['dropped'][id]}; {cluster['survivor']} stands for it, in {cluster['split']}")
    split, _ = _place(way[0].path, id)
    others = f", stands for {len(cluster['dropped'])} more" if cluster else ""
    return Fate(f"kept in {split}{others}", NEXT["dedup"]) if split else None


def _tokenized(way: Way, id: str) -> Fate | None:
    tokenized, deduped, *_ = way
    found = _stand(deduped.path, tokenized.path, id)
    held_out, after = ("", NEXT["tokenize"]) if found.split == "train" else ("; held out, so no model was trained on it", ())
    if not found.rows:
        return Fate(f"in no row of {found.split}: the tail of its tokens, from {found.begin} on, fills none{held_out}", after)
    place = f"row {found.rows[0]}" if len(found.rows) == 1 else f"rows {found.rows[0]} to {found.rows[-1]}"
    rest = ", its rest in rows of its own" if found.cut else ""
    return Fate(f"{place} of {found.split}, from token {found.begin} on{rest}{held_out}", after)


def _pretrained(way: Way, id: str) -> Fate | None:
    """A model that read none of the document still leads to those tuned from it: they may have read pairs made of it."""
    trained, tokenized, deduped, *_ = way
    found = _stand(deduped.path, tokenized.path, id)
    if not found.rows:
        return Fate("", ("finetune",))
    try:
        times, places = _times_read(tokenized.path, trained.path, found.rows)
    except ValidationError:
        return Fate("trained with settings that this version doesn't know, so its rows are not counted", NEXT["pretrain"])
    seen, among = np.count_nonzero(times), f"among {places} readings of {_facts(tokenized.path)['splits']['train']['rows']} rows"
    if not seen and not found.cut:
        return Fate(f"read none of it, {among}", ("finetune",))
    first, count = found.rows[0], len(found.rows)
    part = f"{seen} of its {count} rows, together {times.sum()} times" if count > 1 else f"row {first} {times[0]} times"
    return Fate(f"read {part}, {among}", NEXT["pretrain"])


def _finetuned(way: Way, id: str) -> Fate | None:
    pairs = sum(line["id"].startswith(f"{id}:") for line in _lines(way[0].path / "chat" / "pairs-train.jsonl", id))
    before = _pretrained(way[1:], id)
    if not pairs and (before is None or before.next != NEXT["pretrain"]):
        return None
    return Fate(f"tuned from this model, with {pairs} pairs made of the document", NEXT["finetune"])


def _exported(way: Way, id: str) -> Fate | None:
    return Fate("", NEXT["export"])


def _promoted(way: Way, id: str) -> Fate | None:
    decision = json.loads((way[0].path / "decision.json").read_text(encoding="utf-8"))
    return Fate(f"{decision['model']} version {decision['version']}{', made champion' if decision['champion'] else ''}")


FATES: dict[str, Callable[[Way, str], Fate | None]] = {
    "collect": _collected,
    "clean": _cleaned,
    "dedup": _deduped,
    "tokenize": _tokenized,
    "pretrain": _pretrained,
    "finetune": _finetuned,
    "export": _exported,
    "promote": _promoted,
}


def _stand(deduped: Path, tokenized: Path, id: str) -> Stand:
    """Where a document stands. In packed rows, the one that it begins in: a row ends with a document."""
    split, number = _place(deduped, id)
    facts = _facts(tokenized)
    borders, row_tokens = np.fromfile(tokenized / f"{split}.borders", "<i8"), facts["row_tokens"]
    begin, stream_end = int(borders[number]), facts["splits"][split]["rows"] * row_tokens
    if begin >= stream_end:
        return Stand(split, begin, range(0), cut=False)
    end, first = int(borders[borders > begin].min(initial=stream_end)), begin // row_tokens
    if not (tokenized / f"{split}.mask").exists():
        return Stand(split, begin, range(first, -(-end // row_tokens)), cut=False)
    piece = slice(begin, min(end, (first + 1) * row_tokens))
    counted = np.flatnonzero(np.memmap(tokenized / f"{split}.mask", "u1", "r")[piece])  # padding doesn't count
    tokens = np.memmap(tokenized / f"{split}.tokens", facts["dtype"], "r")[piece]
    return Stand(split, begin, range(first, first + 1), cut=bool(tokens[counted.max(initial=0)] != facts["eos"]))


@functools.lru_cache(maxsize=16)
def _times_read(tokenized: Path, trained: Path, wanted: range) -> tuple[NDArray[np.int64], int]:
    """How often a training read each of these rows, and how many it read in all: its sample stream, computed once more.

    Raises: ValidationError if the training had settings that this version doesn't know.
    """
    config = json.loads((trained / "manifest.json").read_text(encoding="utf-8"))["config"]
    train, seed, rows = TrainConfig.model_validate(config["train"]), config["seed"], Rows.open(tokenized, "train")
    places, times, begin = _places(train, trained), np.zeros(len(wanted), np.int64), 0
    if train.mixture:
        blend = Blend.plan(rows.groups, train.mixture, schedule.first_place(train, train.steps + 1), seed)
    else:  # whole epochs read every row once
        times, begin = times + places // len(rows), places // len(rows) * len(rows)
    for first in range(begin, places, READ_AT_ONCE):
        count = min(READ_AT_ONCE, places - first)
        found = blend.indices(first, count) if train.mixture else order(first, count, rows=len(rows), seed=seed)
        found = found[(found >= wanted.start) & (found < wanted.stop)]
        times += np.bincount(found - wanted.start, minlength=len(wanted))
    return times, places


def _places(train: TrainConfig, trained: Path) -> int:
    """Rows that a training has read, those included that its guard refused."""
    cost = json.loads((trained / "log" / "cost.json").read_text(encoding="utf-8"))
    with (trained / "history.jsonl").open(encoding="utf-8") as steps:
        return int(cost.get("rows_read") or schedule.first_place(train, 1 + sum(1 for _ in steps)))


def _facts(tokenized: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((tokenized / "rows.json").read_text(encoding="utf-8"))
    return facts


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
