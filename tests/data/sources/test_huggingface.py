from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import httpx
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HfHubHTTPError

from llm.data.collect import collect
from llm.data.config import CollectConfig
from llm.data.document import Document, read_shards
from llm.data.parts import Workshop
from llm.data.sources.config import HuggingFaceSource
from llm.data.sources.huggingface import pieces, read
from llm.errors import RecipeError, SourceError


def table(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        path.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))


def found(source: HuggingFaceSource, home: Path) -> list[tuple[str, str]]:
    documents = [document for piece in pieces(source, home) for document in read(source, piece.value)]
    assert all(isinstance(document, Document) for document in documents)
    return [(document.id, document.text) for document in documents if isinstance(document, Document)]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("names", [("train-0", "train-1", "train-2"), ("b", "a", "c"), ("train/x", "train/y", "train/z")])
def test_a_file_is_a_piece_and_numbers_are_those_of_the_whole_set(tmp_path: Path, suffix: str, names: tuple[str, ...]) -> None:
    folder = tmp_path / "set"
    for name, count in zip(names, (3, 5, 2), strict=True):
        table(folder / f"{name}.{suffix}", [f"{name} {number}" for number in range(count)])
    if "train" in names[0]:
        table(folder / f"{names[0].replace('train', 'test')}.{suffix}", ["held out"])
    source = HuggingFaceSource(path=str(folder))
    assert len(pieces(source, tmp_path)) == 3
    whole = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert found(source, tmp_path) == [(f"huggingface:set/train#{number}", text) for number, text in enumerate(whole["text"])]
    capped = source.model_copy(update={"max_documents": 4})
    assert len(pieces(capped, tmp_path)) == 1
    assert found(capped, tmp_path) == found(source, tmp_path)[:4]


def test_a_file_that_comes_last_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    for number in range(3):
        table(tmp_path / "set" / f"{number}.parquet", [f"{number} a", f"{number} b"])
    source = HuggingFaceSource(path=str(tmp_path / "set"))
    before = [piece.identity for piece in pieces(source, tmp_path)]
    table(tmp_path / "set" / "3.parquet", ["more"])
    assert [piece.identity for piece in pieces(source, tmp_path)][:3] == before
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "set").rename(tmp_path / "elsewhere" / "set")
    assert [piece.identity for piece in pieces(HuggingFaceSource(path=str(moved)), tmp_path)][:3] == before


def test_a_link_that_leads_to_the_next_version_gives_that_ones_ids(tmp_path: Path) -> None:
    shop, link = Workshop(tmp_path / "parts"), tmp_path / "latest"
    for version in ("v1", "v2"):
        table(tmp_path / version / "train.parquet", ["the same text"])
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / version)
        (tmp_path / f"out {version}").mkdir()
        collect(CollectConfig(sources=(HuggingFaceSource(path=str(link)),)), tmp_path / f"out {version}", shop)
        assert [document.id for document in read_shards(tmp_path / f"out {version}")] == [f"huggingface:{version}/train#0"]


def reasons(source: HuggingFaceSource, home: Path) -> list[tuple[str, str]]:
    read_all = [each for piece in pieces(source, home) for each in read(source, piece.value)]
    return [(each.id.partition("#")[2], each.text if isinstance(each, Document) else f"! {each.reason}") for each in read_all]


@pytest.mark.parametrize("capped", [False, True])
def test_a_damaged_line_is_quarantined_and_the_others_keep_their_numbers(tmp_path: Path, capped: bool) -> None:
    for name in ("0", "1"):
        table(tmp_path / "set" / f"{name}.jsonl", [f"{name} a", f"{name} b", f"{name} c"])
    first = tmp_path / "set" / "0.jsonl"
    first.write_bytes(first.read_bytes().replace(b'{"text": "0 b"}', b'{"text": "0 \xff'))
    source = HuggingFaceSource(path=str(tmp_path / "set"), max_documents=5 if capped else None)
    expected = [("0", "0 a"), ("1", "! corrupt_line"), ("2", "0 c"), ("3", "1 a"), ("4", "1 b"), ("5", "1 c")]
    assert reasons(source, tmp_path) == expected[: 5 if capped else 6]


@pytest.mark.parametrize("where", ["end", "middle", "all"])
def test_a_damaged_file_is_quarantined_and_the_next_one_is_read(tmp_path: Path, where: str) -> None:
    for name in ("0", "1"):
        table(tmp_path / "set" / f"{name}.parquet", [f"{name} a", f"{name} b"])
    first = tmp_path / "set" / "0.parquet"
    data = first.read_bytes()
    first.write_bytes({"end": data[:-30], "middle": data[:4] + bytes(60) + data[64:], "all": b""}[where])
    start = 2 if where == "middle" else 1
    found = reasons(HuggingFaceSource(path=str(tmp_path / "set")), tmp_path)
    assert found == [("0", "! corrupt"), (str(start), "1 a"), (str(start + 1), "1 b")]


def test_a_text_above_the_limit_is_quarantined(tmp_path: Path) -> None:
    table(tmp_path / "set" / "0.jsonl", ["small", "x" * 1000])
    source = HuggingFaceSource(path=str(tmp_path / "set"), max_document_bytes=500)
    assert reasons(source, tmp_path) == [("0", "small"), ("1", "! too_large")]


def test_damage_that_datasets_meets_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text('text,other\n"a",1\n"b",2,3,4\n')
    with pytest.raises(SourceError, match="a data set is damaged: .*set") as damaged:
        found(HuggingFaceSource(path=str(tmp_path / "set")), tmp_path)
    assert not damaged.value.transient


@pytest.mark.parametrize(
    ("failure", "transient"),
    [
        (OSError("Server Disconnected"), True),
        (TimeoutError("The read operation timed out"), True),
        (httpx.ReadError("connection reset"), True),
        (HfHubHTTPError("busy", response=httpx2.Response(503, request=httpx2.Request("GET", "https://hub"))), True),
        (HfHubHTTPError("gated", response=httpx2.Response(403, request=httpx2.Request("GET", "https://hub"))), False),
        (pa.ArrowInvalid("damaged page"), False),
    ],
)
def test_a_hub_that_fails_on_the_way(monkeypatch: pytest.MonkeyPatch, failure: Exception, transient: bool) -> None:
    def records() -> Iterator[dict[str, str]]:
        yield {"text": "first"}
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **settings: datasets.IterableDataset.from_generator(records))
    source = HuggingFaceSource(path="owner/name", revision="0" * 40)
    reading = read(source, pieces(source, Path())[0].value)
    first = next(reading)
    assert first == Document("huggingface:owner/name/train#0", "first", "huggingface")
    with pytest.raises(SourceError) as failed:
        next(reading)
    assert failed.value.transient is transient


def test_a_split_or_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    table(tmp_path / "set" / "train.parquet", ["text"])
    for settings in ({"split": "dev"}, {"name": "other"}):
        with pytest.raises(RecipeError, match="the data set can't be used"):
            found(HuggingFaceSource(path=str(tmp_path / "set"), **settings), tmp_path)


@pytest.mark.parametrize("beside", [False, True])
def test_code_beside_the_data_is_never_executed(tmp_path: Path, beside: bool) -> None:
    folder, mark = tmp_path / "set", tmp_path / "executed"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(mark)!r}, 'w')\n")
    if beside:
        table(folder / "train.parquet", ["text"])
        (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n")
    with pytest.raises(RecipeError, match="scripts are no longer supported"):
        found(HuggingFaceSource(path=str(folder)), tmp_path)
    assert not mark.exists()
