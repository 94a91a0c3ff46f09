from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.artifact import Store, content_digest, describe
from llm.data.clean import clean
from llm.data.collect import collect
from llm.data.config import CleanConfig, CollectConfig, DedupConfig
from llm.data.dedup import dedup
from llm.data.document import read_shards
from llm.data.news import news
from llm.data.parts import Workshop
from llm.data.selection import INDEX
from llm.data.sources import files
from llm.data.sources.config import FilesSource
from llm.observe import previous_collection, sources
from llm.recipe import Recipe, load

MINI = Path(__file__).parent.parent / "mini.yaml"
CONFIG = DedupConfig(validation_share=0.1, test_share=0.1)


def index(**texts: str) -> pa.Table:
    """An index of documents whose source is the first letter of their id."""
    return pa.Table.from_pylist([{"id": id, "source": id[0], "bytes": 1, "sha256": text} for id, text in texts.items()], INDEX)


def test_each_document_is_new_changed_gone_or_the_same(tmp_path: Path) -> None:
    pq.write_table(index(a1="x", a2="x", b1="x", b2="x", b3="x"), tmp_path / "index.parquet")
    found = news(tmp_path, index(b3="x", a1="x", a2="y", a4="x", b1="x"))
    assert found == {
        "new": 1,
        "changed": 1,
        "gone": 1,
        "same": 3,
        "sources": {
            "a": {"new": 1, "changed": 1, "gone": 0, "same": 1},
            "b": {"new": 0, "changed": 0, "gone": 1, "same": 2},
        },
    }
    assert news(None, index(a1="x"))["new"] == 1


class Nights:
    """Raw text to splits, night after night in one store."""

    def __init__(self, root: Path, corpus: Path) -> None:
        self.root, self.source = root, FilesSource(path=str(corpus), domain="code")
        self.last: Path | None = None

    def run(self, name: str) -> dict[str, str]:
        """Digests of what the stages make of the corpus as it is now."""
        folders = {stage: self.root / stage / name for stage in ("collect", "clean", "dedup")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        shops = {stage: Workshop(self.root / stage / ".parts") for stage in folders}
        collect(CollectConfig(sources=(self.source,)), folders["collect"], shops["collect"], self.last)
        clean(folders["collect"], folders["clean"], CleanConfig(), shops["clean"])
        dedup(folders["clean"], folders["dedup"], CONFIG, shops["dedup"])
        self.last = folders["collect"]
        return {stage: content_digest(describe(folder)) for stage, folder in folders.items()}

    def parts(self, stage: str) -> set[str]:
        return {path.name for path in (self.root / stage / ".parts").iterdir()}


def test_a_night_works_on_what_is_new_and_ends_like_a_run_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", 40_000)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-f]*.py"))
    for module in modules[:-3]:
        (corpus / module.name).write_bytes(module.read_bytes())
    nights = Nights(tmp_path / "store", corpus)
    nights.run("1")
    before = {stage: nights.parts(stage) for stage in ("collect", "clean", "dedup")}
    for module in modules[-3:]:
        (corpus / module.name).write_bytes(module.read_bytes())
    changed = corpus / modules[10].name
    changed.write_bytes(changed.read_bytes() + b"\n# a line more\n")
    (corpus / modules[20].name).unlink()
    copied = modules[30].read_text()
    (corpus / "zz_copy.py").write_text(copied)
    second = nights.run("2")
    assert second == Nights(tmp_path / "fresh", corpus).run("2")
    found = json.loads((tmp_path / "store" / "collect" / "2" / "log" / "news.json").read_text())
    assert {fate: found[fate] for fate in ("new", "changed", "gone")} == {"new": 4, "changed": 1, "gone": 1}
    assert found["same"] == len(modules) - 3 - 2
    made = {stage: len(nights.parts(stage) - before[stage]) for stage in before}
    assert 1 <= made["collect"] <= 6, "a piece for each change at most"
    shards = len(before["collect"]) + made["collect"]
    assert made["clean"] <= 3 * made["collect"] + shards, "repaired, scanned and filtered; which phrases are rare is asked of every shard"
    assert made["dedup"] < len(before["dedup"]) / 2
    assert "zz_copy" not in "".join(
        document.id for split in ("train", "validation", "test") for document in read_shards(nights.root / "dedup" / "2", split)
    ), "a new copy of what an earlier night brought is dropped"
    assert nights.run("3") == second
    assert {stage: len(nights.parts(stage) - before[stage]) for stage in before} == made, "nothing is made where nothing has changed"


def collected(store: Store, recipe: Recipe, name: str, number: int) -> dict[str, Any]:
    """What is observed before a collection that a run of the recipe then commits."""
    observed = sources(recipe, store, "data.collect", {})
    previous = previous_collection(store, recipe.name, observed)

    def build(out: Path) -> dict[str, Any]:
        return collect(recipe.collect, out, Workshop(store.root / "collect" / ".parts"), previous)

    run = f"20260101-00000{number}-{recipe.name}-abcd"
    store.produce("collect", name, {"observed": observed, "run": run, "parents": {}, "node": "data.collect"}, build)
    return observed


def test_keeping_what_was_seen_comes_to_rest(tmp_path: Path) -> None:
    corpus, store = tmp_path / "corpus", Store(tmp_path / "store")
    corpus.mkdir()
    settings = {"collect.sources": [{"kind": "files", "path": str(corpus)}], "collect.keep_seen": True}
    recipe = load(str(MINI), settings | {"name": "nightly-news"})
    (corpus / "a.txt").write_text("one")
    first = collected(store, recipe, "1", 1)
    assert first["seen"] == ""
    assert sources(recipe, store, "data.collect", {}) == first, "the same key, as long as nothing changes"
    (corpus / "a.txt").rename(corpus / "b.txt")
    second = collected(store, recipe, "2", 2)
    assert second["seen"] == next(found.ref.digest for found in store.all() if found.ref.key == "1")
    assert sources(recipe, store, "data.collect", {}) == second
    assert [document.id for document in read_shards(store.path("collect", "2"))] == ["files:corpus/b.txt", "files:corpus/a.txt"]
    other = load(str(MINI), settings | {"name": "news"})
    assert sources(other, store, "data.collect", {})["seen"] == "", "another recipe has seen nothing"
    assert previous_collection(store, "nightly-news", {}) == store.path("collect", "2")
