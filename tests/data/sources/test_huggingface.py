from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.data.document import Document
from llm.data.sources.config import HuggingFaceSource
from llm.data.sources.huggingface import pieces, read
from llm.errors import RecipeError


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
    moved = (tmp_path / "set").rename(tmp_path / "elsewhere")
    assert [piece.identity for piece in pieces(HuggingFaceSource(path=str(moved)), tmp_path)][:3] == before


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
