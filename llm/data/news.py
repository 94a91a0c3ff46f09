"""What a collection holds that the one before it didn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.data.selection import INDEX

FATES = ("new", "changed", "gone", "same")


def news(previous: Path | None, index: pa.Table) -> dict[str, Any]:
    """How many documents are new, changed, gone and the same since an earlier collection, in all and by kind of source."""
    before = pq.read_table(previous / "index.parquet", schema=INDEX) if previous else INDEX.empty_table()
    old, new = (table.select(["id", "source", "sha256"]) for table in (before, index))
    both = old.join(new, keys="id", join_type="full outer", left_suffix="_old", right_suffix="_new")
    was, now = both["sha256_old"], both["sha256_new"]
    cases = pc.make_struct(pc.is_null(was), pc.is_null(now), pc.equal(was, now))
    facts = pa.table(
        {"fate": pc.case_when(cases, "new", "gone", "same", "changed"), "source": pc.coalesce(both["source_new"], both["source_old"])}
    )
    sources: dict[str, dict[str, int]] = {source: dict.fromkeys(FATES, 0) for source in sorted(pc.unique(facts["source"]).to_pylist())}
    for row in facts.group_by(["source", "fate"]).aggregate([([], "count_all")]).to_pylist():
        sources[row["source"]][row["fate"]] = row["count_all"]
    return {**{fate: sum(counts[fate] for counts in sources.values()) for fate in FATES}, "sources": sources}
