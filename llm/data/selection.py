"""Which documents make up a collection: within the quotas of their sources, and what was seen before and is gone since."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm.data.document import read_documents, write_shards
from llm.data.hashing import share
from llm.data.parts import Part, Piece, Workshop, shards

INDEX = pa.schema([("id", pa.string()), ("source", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())])


@dataclass(frozen=True)
class Batch:
    """Documents that lie together: their shards, what identifies the content of these, the index, and which of them are chosen."""

    shards: tuple[str, ...]
    identity: Any
    index: pa.Table
    chosen: NDArray[np.bool_]

    @property
    def chosen_index(self) -> pa.Table:
        """The lines of the index of what is chosen."""
        return self.index.filter(pa.array(self.chosen))


def all_of(part: Part) -> Batch:
    """Every document of a part, with its index."""
    paths = part.files("documents-*.parquet")
    index = pq.read_table(part.path / "index.parquet", schema=INDEX)
    return Batch(tuple(map(str, paths)), [part.sha256(path.name) for path in paths], index, np.ones(len(index), bool))


def within_quota(batches: Sequence[Batch], max_documents: int | None, max_bytes: int | None) -> list[Batch]:
    """The batches of one source, with what its quota takes.

    Those with the smallest hashes of their ids: a sample of everything, and mostly the same one tomorrow. A document that
    doesn't fit into what is left of the bytes is passed over.
    """
    if max_documents is None and max_bytes is None:
        return list(batches)
    index = joined(batch.index for batch in batches)
    ids, sizes = index["id"].to_pylist(), index["bytes"].to_pylist()
    chosen, left, left_bytes = np.zeros(len(ids), bool), max_documents or len(ids), max_bytes or sum(sizes)
    for place in sorted(range(len(ids)), key=lambda place: (share(ids[place], "quota"), ids[place])):
        if left and sizes[place] <= left_bytes:
            chosen[place], left, left_bytes = True, left - 1, left_bytes - sizes[place]
    borders = np.cumsum([len(batch.index) for batch in batches])[:-1]
    return [replace(batch, chosen=each) for batch, each in zip(batches, np.split(chosen, borders), strict=True)]


def gone_since(previous: Path, present: pa.Array, partly_known: Collection[str] = ()) -> list[Batch]:
    """What an earlier collection holds of which the sources know no longer: its shards that have such documents.

    Of kinds of sources that are only `partly_known`, nothing counts as gone.
    """
    index, batches, begin = pq.read_table(previous / "index.parquet", schema=INDEX), [], 0
    for shard in shards(previous, "documents-*.parquet"):
        lines = index.slice(begin, pq.read_metadata(shard.value).num_rows)
        here = pc.or_(
            pc.is_in(lines["id"], value_set=present), pc.is_in(lines["source"], value_set=pa.array(sorted(partly_known), pa.string()))
        )
        chosen = ~np.asarray(here, bool)
        batches += [Batch((shard.value,), [shard.identity], lines, chosen)] if chosen.any() else []
        begin += len(lines)
    return batches


def chosen_shards(batches: Sequence[Batch], workshop: Workshop) -> Iterator[Path]:
    """The shards of the chosen documents, in order; those that are chosen as a whole stay as they are."""
    partial = [batch for batch in batches if not batch.chosen.all()]
    pieces = [Piece((batch.shards, batch.chosen), [batch.identity, np.packbits(batch.chosen).tobytes().hex()]) for batch in partial]
    made = dict(zip(map(id, partial), workshop.made("selected", select, pieces), strict=True))
    for batch in batches:
        yield from made[id(batch)].files("documents-*.parquet") if id(batch) in made else map(Path, batch.shards)


def select(value: tuple[tuple[str, ...], NDArray[np.bool_]], out: Path) -> dict[str, Any]:
    """The chosen documents of some shards."""
    paths, chosen = value
    documents = (document for path in paths for document in read_documents(Path(path)))
    kept = write_shards(out, (document for document, keep in zip(documents, chosen, strict=True) if keep))
    (out / "counts.json").write_text(json.dumps({"kept": kept}))
    return {"kept": kept}


def joined(indices: Iterable[pa.Table]) -> pa.Table:
    """One index after the other."""
    return pa.concat_tables([INDEX.empty_table(), *indices])
