from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llm.artifact import content_digest, describe
from llm.data.collect import collect
from llm.data.config import CollectConfig
from llm.data.document import read_shards
from llm.data.parts import Workshop
from llm.data.sources import files
from llm.data.sources.config import FilesSource, HuggingFaceSource, InstalledSource, Source, WarcSource
from llm.data.sources.warc import write_warc
from llm.errors import DataError

TEXTS = {f"{number:03d}": f"{number} " * (1 + number % 7) for number in range(60)}


@pytest.fixture(autouse=True)
def _many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", 100)


def written(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def taken(out: Path, *sources: Source, shop: Workshop | None = None, **settings: Any) -> set[str]:
    """Ids that a collection of these sources holds, after its books and lists are found to agree."""
    out.mkdir()
    previous = settings.pop("previous", None)
    books = collect(CollectConfig(sources=sources, **settings), out, shop or Workshop(out.with_name(f"{out.name}-parts")), previous)
    documents = list(read_shards(out))
    index = pq.read_table(out / "index.parquet").to_pylist()
    assert [(line["id"], line["bytes"]) for line in index] == [(each.id, len(each.text.encode())) for each in documents]
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in dropped} <= {"over_quota"}
    assert books == {
        "read": len(documents) + len(dropped),
        "kept": len(documents),
        "dropped": {"over_quota": len(dropped)} if dropped else {},
        "quarantined": {},
    }
    return {document.id for document in documents}


def digest(out: Path) -> str:
    return content_digest(describe(out))


def test_a_quota_takes_a_sample_that_hardly_moves(tmp_path: Path) -> None:
    folder = written(tmp_path / "corpus", TEXTS)
    source = FilesSource(path=str(folder), max_documents=20)
    first = taken(tmp_path / "first", source)
    assert len(first) == 20
    places = sorted(int(id[-7:-4]) for id in first)
    assert places[0] < 15 and places[-1] >= 45, "a sample of everything, not its beginning"  # noqa: PT018
    written(folder, {f"x{number}": "more" for number in range(6)})
    second = taken(tmp_path / "second", source)
    assert len(second) == 20
    assert second - first == {id for id in second if "/x" in id}, "what is not new was chosen before"
    assert len(taken(tmp_path / "fewer", source.model_copy(update={"max_documents": 10})) - second) == 0


def test_a_quota_of_bytes_is_used_and_never_exceeded(tmp_path: Path) -> None:
    source = FilesSource(path=str(written(tmp_path / "corpus", TEXTS)), max_bytes=300)
    ids = taken(tmp_path / "out", source)
    size = sum(len(TEXTS[id[-7:-4]]) for id in ids)
    assert 300 - max(map(len, TEXTS.values())) < size <= 300
    both = taken(tmp_path / "both", source.model_copy(update={"max_documents": 5}))
    assert len(both) == 5
    assert both < ids


def test_each_source_has_a_quota_of_its_own(tmp_path: Path) -> None:
    capped = FilesSource(path=str(written(tmp_path / "a", TEXTS)), max_documents=3)
    whole = FilesSource(path=str(written(tmp_path / "b", TEXTS)))
    ids = taken(tmp_path / "out", capped, whole)
    assert sum(id.startswith("files:a/") for id in ids) == 3
    assert sum(id.startswith("files:b/") for id in ids) == len(TEXTS)


def test_another_quota_reads_nothing_again(tmp_path: Path) -> None:
    folder, shop = written(tmp_path / "corpus", TEXTS), Workshop(tmp_path / "parts")
    taken(tmp_path / "all", FilesSource(path=str(folder)), shop=shop)
    parts = {path.name for path in shop.folder.iterdir()}
    (folder / "000.txt").touch()
    taken(tmp_path / "none", FilesSource(path=str(folder), max_documents=60), shop=shop)
    assert {path.name for path in shop.folder.iterdir()} == parts
    taken(tmp_path / "half", FilesSource(path=str(folder), max_documents=30), shop=shop)
    made = {path.name for path in shop.folder.iterdir()} - parts
    assert made
    assert all((shop.folder / name / "counts.json").exists() for name in made), "only selections were made"


def backwards(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """A map whose results come last first."""
    return map(function, reversed(items))


def test_the_order_of_the_workers_changes_nothing(tmp_path: Path) -> None:
    source = FilesSource(path=str(written(tmp_path / "corpus", TEXTS)), max_documents=17, max_bytes=200)
    for name, spread in (("one", None), ("other", backwards)):
        shop = Workshop(tmp_path / f"{name}-parts", spread=spread) if spread else None
        taken(tmp_path / name, source, shop=shop)
    assert digest(tmp_path / "one") == digest(tmp_path / "other")


def test_a_quota_that_takes_nothing_is_an_empty_corpus(tmp_path: Path) -> None:
    source = FilesSource(path=str(written(tmp_path / "corpus", {"long": "more than a byte"})), max_bytes=1)
    with pytest.raises(DataError, match="the corpus is empty: 0 of 1"):
        taken(tmp_path / "out", source)


def test_what_was_seen_is_kept_when_its_source_has_dropped_it(tmp_path: Path) -> None:
    folder, shop = written(tmp_path / "corpus", {"a": "old", "b": "stays", "c": "old too"}), Workshop(tmp_path / "parts")
    source = FilesSource(path=str(folder))
    taken(tmp_path / "1", source, shop=shop, keep_seen=True)
    for name in ("a", "c"):
        (folder / f"{name}.txt").unlink()
    written(folder, {"b": "stays, changed", "d": "comes"})
    names = {f"files:corpus/{name}.txt" for name in "abcd"}
    assert taken(tmp_path / "2", source, shop=shop, keep_seen=True, previous=tmp_path / "1") == names
    texts = {document.id[-5]: document.text for document in read_shards(tmp_path / "2")}
    assert texts == {"a": "old", "b": "stays, changed", "c": "old too", "d": "comes"}
    (folder / "d.txt").unlink()
    written(folder, {"a": "is back"})
    assert taken(tmp_path / "3", source, shop=shop, keep_seen=True, previous=tmp_path / "2") == names
    texts = {document.id[-5]: document.text for document in read_shards(tmp_path / "3")}
    assert texts == {"a": "is back", "b": "stays, changed", "c": "old too", "d": "comes"}
    news = json.loads((tmp_path / "3" / "log" / "news.json").read_text())
    assert (news["gone"], news["kept_though_gone"], news["changed"], news["same"]) == (2, 2, 1, 1)
    assert taken(tmp_path / "4", source, shop=shop, previous=tmp_path / "3") == {f"files:corpus/{name}.txt" for name in "ab"}


def test_what_is_over_the_quota_or_unreadable_is_not_gone(tmp_path: Path) -> None:
    folder = written(tmp_path / "corpus", TEXTS)
    source = FilesSource(path=str(folder), max_documents=20)
    first = taken(tmp_path / "1", source, keep_seen=True)
    bad = next(iter(sorted(first)))
    (folder / bad.rpartition("/")[2]).write_bytes(b"\0")
    out = tmp_path / "2"
    out.mkdir()
    collect(CollectConfig(sources=(source,), keep_seen=True), out, Workshop(tmp_path / "parts"), tmp_path / "1")
    second = {document.id for document in read_shards(out)}
    assert bad not in second
    assert len(second) == 20


def capped_sources(home: Path) -> dict[str, tuple[Source, dict[str, int]]]:
    """A source of each kind whose caps hide documents, and a smaller cap of it."""
    (home / "set").mkdir(parents=True)
    (home / "set" / "part.jsonl").write_text("\n".join(json.dumps({"text": f"text {number}"}) for number in range(9)))
    (home / "archives").mkdir()
    for number in range(4):
        write_warc(home / "archives" / f"{number}.warc", [(f"http://a/{number}", "text/plain", b"a page", "2026-01-31T12:00:00Z")])
    return {
        "huggingface": (HuggingFaceSource(path=str(home / "set"), max_documents=6), {"max_documents": 2}),
        "huggingface by bytes": (HuggingFaceSource(path=str(home / "set"), max_bytes=36), {"max_bytes": 12}),
        "installed": (InstalledSource(domains=("docs",), max_documents=6), {"max_documents": 2}),
        "warc": (WarcSource(path=str(home / "archives"), max_files=4), {"max_files": 2}),
    }


@pytest.mark.parametrize("case", ["huggingface", "huggingface by bytes", "installed", "warc"])
def test_what_a_smaller_cap_leaves_out_is_not_taken_for_gone(tmp_path: Path, case: str) -> None:
    source, smaller = capped_sources(tmp_path / "sources")[case]
    gone = FilesSource(path=str(written(tmp_path / "corpus", {"a": "is gone later", "b": "stays"})))
    first = taken(tmp_path / "1", source, gone, keep_seen=True)
    (tmp_path / "corpus" / "a.txt").unlink()
    second = taken(tmp_path / "2", source.model_copy(update=smaller), gone, keep_seen=True, previous=tmp_path / "1")
    assert len(first) - 2 > len(second) - 2 == 2
    assert {"files:corpus/a.txt", "files:corpus/b.txt"} < second < first


def test_what_is_gone_from_a_data_set_without_a_cap_is_kept(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    source = HuggingFaceSource(path=str(tmp_path / "set"))
    for name, count in (("1", 5), ("2", 2)):
        (tmp_path / "set" / "part.jsonl").write_text("\n".join(json.dumps({"text": f"text {number}"}) for number in range(count)))
        previous = tmp_path / "1" if name == "2" else None
        assert len(taken(tmp_path / name, source, keep_seen=True, previous=previous)) == 5
