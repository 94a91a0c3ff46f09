"""Stage dedup: one copy of every text, and splits that share nothing."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm.artifact import write_json
from llm.data.config import DedupConfig
from llm.data.document import Books, Document, read_documents, write_documents, write_json_lines
from llm.data.parts import Piece, Workshop, link, shards
from llm.data.similarity import Shingles, roots, shingles, similar_pairs, words
from llm.data.split import SPLITS, require_all, split_of


@dataclass(frozen=True, slots=True)
class Print:
    """A document's fingerprint."""

    id: str
    size: int
    digest: bytes
    shingles: Shingles


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a document: kept in `split`, or dropped for `reason` in favour of `survivor`."""

    id: str
    split: str
    survivor: str
    reason: str = ""


def dedup(cleaned: Path, out: Path, config: DedupConfig, workshop: Workshop) -> dict[str, Any]:
    """Shards `train-*`, `validation-*`, `test-*.parquet`: of exact and near duplicates the longest survives.

    Documents that are merely alike (from `link_threshold` on) are all kept, in one split, so that a test text has no
    close relative among the training texts.

    Raises: DataError if a split stays empty.
    """
    pieces = shards(cleaned, "documents-*.parquet")
    printed = workshop.made("prints", partial(print_shard, config.shingle_words), pieces, settings=config.shingle_words)
    prints = [_load_prints(part.path) for part in printed]
    fates = decide([each for shard in prints for each in shard], config)
    kept = {fate.id: fate.split for fate in fates if not fate.reason}
    result = _books(fates).to_dict() | {"splits": require_all(kept.values(), "dedup")}
    places = [[kept.get(each.id, "") for each in shard] for shard in prints]
    parts = workshop.made(
        "split", split_shard, [Piece((piece.value, place), [piece.identity, place]) for piece, place in zip(pieces, places, strict=True)]
    )
    for split in SPLITS:
        for number, path in enumerate(path for part in parts for path in part.files(f"{split}.parquet")):
            link(path, out / f"{split}-{number:05d}.parquet")
    write_json_lines(out / "clusters.jsonl", _clusters(fates))
    write_json(out / "books.json", result)
    return result


def print_shard(shingle_words: int, shard: str, out: Path) -> dict[str, Any]:
    """The fingerprints of one shard's documents, in their order."""
    prints = [_print(document, shingle_words) for document in read_documents(Path(shard))]
    borders = np.cumsum([0, *(len(each.shingles) for each in prints)])
    np.save(out / "shingles.npy", np.concatenate([each.shingles for each in prints] or [np.empty(0, np.uint64)]))
    np.save(out / "borders.npy", borders)
    write_json(out / "documents.json", [[each.id, each.size, each.digest.hex()] for each in prints])
    return {"documents": len(prints)}


def split_shard(value: tuple[str, list[str]], out: Path) -> dict[str, Any]:
    """One shard's documents that are kept, each in its split; `places` names the split of each, or nothing."""
    shard, places = value
    for split in sorted(set(places) - {""}):
        members = (document for document, place in zip(read_documents(Path(shard)), places, strict=True) if place == split)
        write_documents(out / f"{split}.parquet", members)
    write_json(out / "counts.json", {split: places.count(split) for split in SPLITS})
    return {split: places.count(split) for split in SPLITS}


def _load_prints(folder: Path) -> list[Print]:
    shingles, borders = np.load(folder / "shingles.npy", mmap_mode="r"), np.load(folder / "borders.npy")
    facts = json.loads((folder / "documents.json").read_text(encoding="utf-8"))
    return [
        Print(id, size, bytes.fromhex(digest), shingles[start:end])
        for (id, size, digest), start, end in zip(facts, borders[:-1], borders[1:], strict=True)
    ]


def decide(prints: list[Print], config: DedupConfig) -> list[Fate]:
    """Every document's fate, whatever order the documents come in.

    Sorted by preference (longest first, then by id), the root of a cluster is its survivor.
    """
    prints = sorted(prints, key=lambda each: (-each.size, each.id))
    firsts = {each.digest: each for each in reversed(prints)}
    distinct = [each for each in prints if firsts[each.digest] is each]
    sets = [each.shingles for each in distinct]
    pairs = list(similar_pairs(sets, threshold=config.threshold, at_least=config.link_threshold, permutations=config.permutations))
    survivors = roots(len(distinct), ((i, j) for i, j, similarity in pairs if similarity >= config.threshold))
    families = roots(len(distinct), ((i, j) for i, j, _ in pairs))
    fates = {}
    for each, survivor, family in zip(distinct, survivors, families, strict=True):
        split = split_of(distinct[family].id, validation_share=config.validation_share, test_share=config.test_share)
        reason = "" if distinct[survivor] is each else "near_duplicate"
        fates[each.digest] = Fate(each.id, split, distinct[survivor].id, reason)
    return [fates[each.digest] if firsts[each.digest] is each else _copy(each, fates[each.digest]) for each in prints]


def _copy(copy: Print, original: Fate) -> Fate:
    return Fate(copy.id, original.split, original.survivor, "exact_duplicate")


def _print(document: Document, shingle_words: int) -> Print:
    tokens = words(document.text)
    digest = hashlib.sha256(" ".join(tokens).encode()).digest()
    return Print(document.id, len(document.text), digest, shingles(tokens, shingle_words))


def _books(fates: list[Fate]) -> Books:
    books = Books()
    for fate in fates:
        if fate.reason:
            books.drop(fate.reason)
        else:
            books.keep()
    books.check()
    return books


def _clusters(fates: list[Fate]) -> Iterator[dict[str, Any]]:
    """Each survivor that stands for others, with them and the reasons."""
    clusters: dict[str, list[Fate]] = defaultdict(list)
    for fate in fates:
        clusters[fate.survivor].append(fate)
    for survivor, members in sorted(clusters.items()):
        dropped = {fate.id: fate.reason for fate in members if fate.reason}
        if dropped:
            yield {"survivor": survivor, "split": members[0].split, "dropped": dropped}
