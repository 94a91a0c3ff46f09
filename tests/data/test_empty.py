"""Nothing to work on is an error with a name, and leaves no artifact behind, so that nothing starts from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.artifact import Store
from llm.data.clean import clean
from llm.data.collect import collect
from llm.data.config import CleanConfig, CollectConfig, DedupConfig
from llm.data.dedup import dedup
from llm.data.parts import Workshop
from llm.data.sources.config import FilesSource
from llm.errors import DataError

CASES: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "no file": ({}, {}, r"the corpus is empty: 0 of 0 readable; set collect\.sources"),
    "no byte": ({"a.txt": "", "b.txt": ""}, {}, r"too much can't be read: 2 of 2 \(empty 2\).*collect\.max_quarantined_share"),
    "no byte, allowed": ({"a.txt": "", "b.txt": ""}, {"max_quarantined_share": 1}, r"the corpus is empty: 0 of 2 readable \(empty 2\);"),
    "no record": ({"a.jsonl": "", "b.csv": "text\n"}, {"max_quarantined_share": 1}, "the corpus is empty"),
}


def refused(store: Store, stage: str, build: Callable[[Path], dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        store.produce(stage, "key", {"parents": {}}, build)
    assert store.find(stage, "key") is None
    assert [path.name for path in (store.root / stage).iterdir() if path.name != ".parts"] == []


@pytest.mark.parametrize("case", CASES)
def test_nothing_to_collect(tmp_path: Path, case: str) -> None:
    files, settings, message = CASES[case]
    (tmp_path / "corpus").mkdir()
    for name, content in files.items():
        (tmp_path / "corpus" / name).write_text(content)
    config, store = CollectConfig(sources=(FilesSource(path=str(tmp_path / "corpus")),), **settings), Store(tmp_path / "store")
    refused(store, "collect", lambda out: collect(config, out, Workshop(store.root / "collect" / ".parts")), message)


def test_nothing_left_by_cleaning_and_too_little_to_split(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "short.txt").write_text("too short to learn from")
    store, collected = Store(tmp_path / "store"), tmp_path / "collected"
    collected.mkdir()
    collect(CollectConfig(sources=(FilesSource(path=str(tmp_path / "corpus")),)), collected, Workshop(tmp_path / "parts"))
    message = r"no document is left after cleaning: .*1; relax the thresholds of clean"
    refused(store, "clean", lambda out: clean(collected, out, CleanConfig(), Workshop(store.root / "clean" / ".parts")), message)
    message = "the (train|validation|test) split is empty: 1 members in all"
    refused(store, "dedup", lambda out: dedup(collected, out, DedupConfig(), Workshop(store.root / "dedup" / ".parts")), message)
