"""Stage dedup: one copy of every text, and splits that share nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm.artifact import write_json
from llm.data.config import DedupConfig
from llm.data.document import SCHEMA, Books, write_json_lines
from llm.data.hashing import mix
from llm.data.parts import Piece, Workshop, link, shards
from llm.data.similarity.pairs import ShingleSets, relatives
from llm.data.similarity.sketch import Shape, Sketches, band_rows, sketches
from llm.data.similarity.words import bytes_of, hashes
from llm.data.split import SPLITS, require_all
from llm.errors import RecipeError

REASONS = ("", "exact_duplicate", "near_duplicate")
KEPT, EXACT, NEAR = range(3)
DROPPED = "-"  # where the number of a split stands for a document that is kept


@dataclass(frozen=True)
class Corpus:
    """What is known of all documents, shard after shard: D documents, K bands."""

    ids: pa.ChunkedArray
    domains: pa.ChunkedArray
    place_D: NDArray[np.uint64]  # hash of the id: what a draw goes by
    bytes_D: NDArray[np.int64]
    digest_D: NDArray[np.uint64]
    keys_DK: NDArray[np.uint32]
    sets: ShingleSets

    @property
    def borders(self) -> list[int]:
        """Where each shard's documents begin and the last's end."""
        counts = np.bincount(self.sets.shard_T, minlength=len(self.sets.shards))
        return [0, *np.cumsum(counts).tolist()]


@dataclass(frozen=True)
class Fates:
    """What becomes of D documents."""

    split_D: NDArray[np.int64]  # index into SPLITS
    reason_D: NDArray[np.int64]  # index into REASONS
    survivor_D: NDArray[np.int64]  # who stands for it: the document itself, or the best of its cluster


def dedup(cleaned: Path, out: Path, config: DedupConfig, workshop: Workshop) -> dict[str, Any]:
    """Shards `train-*`, `validation-*`, `test-*.parquet`: of exact and near duplicates the longest survives.

    Documents that are merely alike (from `link_threshold` on) are all kept, in one split, so that a test text has no
    close relative among the training texts.

    Raises: DataError if a split stays empty.
    """
    pieces = shards(cleaned, "documents-*.parquet")
    shape = _shape(config)
    sketched = workshop.made("sketches", partial(sketch_shard, shape), pieces, settings=asdict(shape))
    corpus = load([part.path for part in sketched])
    fates = decide(corpus, config)
    kept = fates.reason_D == KEPT
    result = _books(fates).to_dict() | {"splits": require_all((SPLITS[split] for split in fates.split_D[kept]), "dedup")}
    result["splits_by_domain"] = _by_domain(corpus.domains.filter(pa.array(kept)), fates.split_D[kept])
    places = [_places(fates, start, end) for start, end in zip(corpus.borders, corpus.borders[1:], strict=False)]
    split = [Piece((piece.value, place), [piece.identity, place]) for piece, place in zip(pieces, places, strict=True)]
    parts = workshop.made("split", split_shard, split)
    for name in SPLITS:
        for number, path in enumerate(path for part in parts for path in part.files(f"{name}.parquet")):
            link(path, out / f"{name}-{number:05d}.parquet")
    write_json_lines(out / "clusters.jsonl", _clusters(corpus.ids, fates))
    write_json(out / "books.json", result)
    return result


def sketch_shard(shape: Shape, shard: str, out: Path) -> dict[str, Any]:
    """Sketches of one shard's documents, in their order."""
    with pq.ParquetFile(shard) as file, pq.ParquetWriter(out / "documents.parquet", DOCUMENTS) as documents:
        made = [sketches(pa.array([], pa.string()), shape)]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["id", "domain", "text"]).combine_chunks()
            ids, domains, texts = (table[name].chunk(0) for name in ("id", "domain", "text"))
            made.append(sketches(texts, shape))
            facts = [ids, domains, pa.array(_id_hashes(ids)), pc.binary_length(texts).cast(pa.int64()), pa.array(made[-1].digests_T)]
            documents.write_table(pa.Table.from_arrays(facts, schema=DOCUMENTS))
    whole = Sketches.joined(made)
    for name in ("keys_TK", "counts_T", "shingles_S"):
        np.save(out / f"{name}.npy", getattr(whole, name))
    return {"documents": len(whole.digests_T)}


DOCUMENTS = pa.schema(
    [("id", pa.string()), ("domain", pa.string()), ("place", pa.uint64()), ("bytes", pa.int64()), ("digest", pa.uint64())]
)


def load(folders: Sequence[Path]) -> Corpus:
    """The sketches of all shards; shingles stay in their files until a pair is verified."""
    documents = pa.concat_tables([pq.read_table(folder / "documents.parquet") for folder in folders])
    counts = [np.load(folder / "counts_T.npy") for folder in folders]
    sets = ShingleSets(
        shards=[np.load(folder / "shingles_S.npy", mmap_mode="r") for folder in folders],
        shard_T=np.repeat(np.arange(len(folders)), [len(each) for each in counts]),
        start_T=np.concatenate([np.cumsum(each) - each for each in counts]),
        count_T=np.concatenate(counts),
    )
    keys_DK = np.concatenate([np.load(folder / "keys_TK.npy", mmap_mode="r") for folder in folders])
    place_D, bytes_D, digest_D = (documents[name].to_numpy() for name in ("place", "bytes", "digest"))
    return Corpus(documents["id"], documents["domain"], place_D, bytes_D, digest_D, keys_DK, sets)


def decide(corpus: Corpus, config: DedupConfig) -> Fates:
    """Every document's fate, whatever order the documents come in.

    Texts are numbered by their digests, so all that follows depends on contents alone.
    """
    _, first_T, text_D = np.unique(corpus.digest_D, return_index=True, return_inverse=True)
    sets = corpus.sets.chosen(first_T)
    threshold = math.inf if config.exact_only else config.threshold
    cluster_T, family_T = relatives(corpus.keys_DK[first_T], sets, threshold=threshold, at_least=config.link_threshold)
    survivor_D, reason_D = _survivors(corpus, cluster_T[text_D], text_D)
    return Fates(_splits(corpus, family_T[text_D], config), reason_D, survivor_D)


def split_shard(value: tuple[str, str], out: Path) -> dict[str, Any]:
    """One shard's documents that are kept, each in its split; `places` holds the number of each one's split, or a dash."""
    shard, places = value
    place_D = np.frombuffer(places.encode(), "S1")
    counts = {split: places.count(str(number)) for number, split in enumerate(SPLITS)}
    with pq.ParquetFile(shard) as file, ExitStack() as stack:
        compressed = {split: out / f"{split}.parquet" for split in SPLITS if counts[split]}
        writers = {split: stack.enter_context(pq.ParquetWriter(path, SCHEMA, compression="zstd")) for split, path in compressed.items()}
        row = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            here = place_D[row : row + len(table)]
            row += len(table)
            for split, writer in writers.items():
                writer.write_table(table.filter(pa.array(here == str(SPLITS.index(split)).encode())))
    write_json(out / "counts.json", counts)
    return counts


def _shape(config: DedupConfig) -> Shape:
    return Shape(config.shingle_words, config.permutations, band_rows(config.permutations, config.threshold, config.link_threshold))


def _survivors(corpus: Corpus, cluster_D: NDArray[np.int64], text_D: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each cluster the longest document, of equally long ones the one with the smallest id; and why the others go."""
    table = pa.table({"cluster": cluster_D, "bytes": corpus.bytes_D, "id": corpus.ids})
    order = pc.sort_indices(table, sort_keys=[("cluster", "ascending"), ("bytes", "descending"), ("id", "ascending")]).to_numpy()
    best = np.append(True, np.diff(cluster_D[order]) != 0)[: len(order)]
    survivor_D, reason_D = np.empty(len(order), np.int64), np.full(len(order), EXACT)
    survivor_D[order] = order[np.maximum.accumulate(np.where(best, np.arange(len(order)), 0))]
    reason_D[order[np.unique(text_D[order], return_index=True)[1]]] = NEAR
    reason_D[survivor_D] = KEPT
    return survivor_D, reason_D


def _splits(corpus: Corpus, family_D: NDArray[np.int64], config: DedupConfig) -> NDArray[np.int64]:
    """The split of each family, drawn by the smallest hash among its members' ids: few that join a family move it.

    The shares are those of the domain of the document with that hash.
    """
    order = np.lexsort([corpus.place_D, family_D])
    leads = np.append(True, np.diff(family_D[order]) != 0)[: len(order)]
    lead_D = np.empty(len(order), np.int64)
    lead_D[order] = order[leads][np.cumsum(leads) - 1]
    drawn_D = mix(corpus.place_D[lead_D]) / 2**64
    test_D, validation_D = _shares(corpus.domains, config)[:, lead_D]
    numbers = [SPLITS.index(split) for split in ("test", "validation", "train")]
    return np.select([drawn_D < test_D, drawn_D < test_D + validation_D], numbers[:2], numbers[2])


def _shares(domains: pa.ChunkedArray, config: DedupConfig) -> NDArray[np.float64]:
    """Test and validation share of each document's domain; 2, D.

    Raises: RecipeError if a setting names a domain that no document has.
    """
    coded = domains.combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    if strange := sorted(set(config.domain_splits) - set(names)):
        remedy = f"set dedup.domain_splits for some of {', '.join(sorted(names))}"
        raise RecipeError("no document has this domain", value=strange[0], remedy=remedy)
    shares = [config.domain_splits.get(name, config) for name in names]
    return np.array([[each.test_share, each.validation_share] for each in shares]).T[:, coded.indices.to_numpy()]


def _by_domain(domains: pa.ChunkedArray, split_K: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """How many of the kept documents of each domain went into each split."""
    coded = domains.combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()
    counts = {split: np.bincount(codes[split_K == number], minlength=len(coded.dictionary)) for number, split in enumerate(SPLITS)}
    return {name: {split: int(counts[split][code]) for split in SPLITS} for code, name in enumerate(coded.dictionary.to_pylist())}


def _places(fates: Fates, start: int, end: int) -> str:
    """One character for each document of a shard, for a part's identity is made of it."""
    splits = fates.split_D[start:end].astype("S1")
    return np.where(fates.reason_D[start:end] == KEPT, splits, DROPPED.encode()).tobytes().decode()


def _id_hashes(ids: pa.Array) -> NDArray[np.uint64]:
    data, offsets = bytes_of(ids)
    return hashes(data, offsets[:-1], np.diff(offsets))


def _books(fates: Fates) -> Books:
    books = Books(read=len(fates.reason_D), kept=int((fates.reason_D == KEPT).sum()))
    books.dropped.update({REASONS[reason]: count for reason in (EXACT, NEAR) if (count := int((fates.reason_D == reason).sum()))})
    books.check()
    return books


def _clusters(ids: pa.ChunkedArray, fates: Fates) -> Iterator[dict[str, Any]]:
    """Each survivor that stands for others, with them and the reasons."""
    dropped = np.flatnonzero(fates.reason_D != KEPT)
    survivors = fates.survivor_D[dropped]
    names, stand_ins = (ids.take(pa.array(chosen)).to_pylist() for chosen in (dropped, survivors))
    clusters: dict[str, dict[str, Any]] = {}
    for id, reason, survivor, split in zip(names, fates.reason_D[dropped], stand_ins, fates.split_D[survivors], strict=True):
        cluster = clusters.setdefault(survivor, {"survivor": survivor, "split": SPLITS[split], "dropped": {}})
        cluster["dropped"][id] = REASONS[reason]
    return (clusters[survivor] for survivor in sorted(clusters))
