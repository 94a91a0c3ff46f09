"""What a recipe says of a source holds for its documents, unless they say otherwise themselves."""

from __future__ import annotations

import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from llm.data.clean import clean
from llm.data.collect import collect
from llm.data.config import CleanConfig, CollectConfig
from llm.data.document import Document, read_shards
from llm.data.filters.config import LicenceConfig
from llm.data.parts import Workshop
from llm.data.sources.config import FilesSource, HuggingFaceSource, InstalledSource, Source, SqlSource, WarcSource
from llm.data.sources.warc import write_warc

TEXT = "The harbour lay quiet that morning, and only two boats had left before dawn. " * 4
OWN = {"text": TEXT, "license": "Apache-2.0", "language": "fr"}
ONLY_LICENSED = CleanConfig(rules=(), min_characters=1, licences=LicenceConfig(drop_unknown=True))


def plain(home: Path) -> Path:
    """A folder of files, each of which is read by another part of the code."""
    (home / "corpus").mkdir(parents=True)
    (home / "corpus" / "a.txt").write_text(TEXT)
    (home / "corpus" / "b.html").write_text(f"<html><body><p>{TEXT}</p></body></html>")
    (home / "corpus" / "c.py").write_text("width = 2\n" * 20)
    with zipfile.ZipFile(home / "corpus" / "d.zip", "w") as archive:
        archive.writestr("e.txt", TEXT)
    return home / "corpus"


def records(home: Path) -> Path:
    """A folder with a table, one of whose records names its own licence."""
    (home / "set").mkdir(parents=True)
    (home / "set" / "part.jsonl").write_text("\n".join(map(json.dumps, ({"text": TEXT}, OWN))))
    return home / "set"


def saved(home: Path) -> Path:
    """A data set that `datasets` reads record by record."""
    datasets.Dataset.from_list([{"text": TEXT, "license": "", "language": ""}, OWN]).save_to_disk(str(home / "saved"))
    return home / "saved"


def archived(home: Path) -> Path:
    """A web archive with a page."""
    home.mkdir()
    write_warc(home / "pages.warc", [("http://a/", "text/plain", TEXT.encode(), "2026-01-31T12:00:00Z")])
    return home / "pages.warc"


def stored(home: Path) -> str:
    """The URL of a database with a row."""
    home.mkdir()
    with sqlite3.connect(home / "rows.db") as database:
        database.execute("create table rows (id integer primary key, text text)")
        database.execute("insert into rows values (1, ?)", (TEXT,))
    return f"sqlite:///{home / 'rows.db'}"


SOURCES: dict[str, Callable[[Path], Source]] = {
    "plain files": lambda home: FilesSource(path=str(plain(home))),
    "tables": lambda home: FilesSource(path=str(records(home))),
    "web archive": lambda home: WarcSource(path=str(archived(home))),
    "data set": lambda home: HuggingFaceSource(path=str(records(home))),
    "saved data set": lambda home: HuggingFaceSource(path=str(saved(home))),
    "installed": lambda home: InstalledSource(max_documents=2),
    "database": lambda home: SqlSource(url=stored(home), table="rows"),
}


def collected(out: Path, source: Source, shop: Workshop) -> list[Document]:
    out.mkdir()
    collect(CollectConfig(sources=(source,)), out, shop)
    return list(read_shards(out))


def told(document: Document, before: Document) -> tuple[str, str]:
    """The licence and the language that a document should have, by what it had before its source said anything."""
    return before.license or "MIT", before.language or "de"


@pytest.mark.parametrize("case", SOURCES)
def test_a_licence_and_a_language_hold_for_what_names_none(tmp_path: Path, case: str) -> None:
    source, shop = SOURCES[case](tmp_path / "home"), Workshop(tmp_path / "parts")
    silent = collected(tmp_path / "silent", source, shop)
    named = collected(tmp_path / "named", source.model_copy(update={"license": "MIT", "language": "de"}), shop)
    assert [each.id for each in named] == [each.id for each in silent]
    assert [(each.license, each.language) for each in named] == [told(*pair) for pair in zip(named, silent, strict=True)]
    assert {each.license for each in named} <= {"MIT", "Apache-2.0"}


def kept(collected: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    return clean(collected, out, ONLY_LICENSED, Workshop(out.with_name(f"{out.name}-parts")))


@pytest.mark.parametrize("case", ["plain files", "web archive", "data set", "installed"])
def test_only_what_has_a_licence_passes_a_filter_that_asks_for_one(tmp_path: Path, case: str) -> None:
    source, shop = SOURCES[case](tmp_path / "home"), Workshop(tmp_path / "parts")
    documents = collected(tmp_path / "named", source.model_copy(update={"license": "CC BY 4.0"}), shop)
    books = kept(tmp_path / "named", tmp_path / "licensed")
    assert (books["kept"], books["dropped"]) == (len(documents), {})


def test_what_a_record_says_of_itself_goes_before_its_source(tmp_path: Path) -> None:
    source = FilesSource(path=str(records(tmp_path / "home")), license="ask the owner")
    collected(tmp_path / "named", source, Workshop(tmp_path / "parts"))
    books = kept(tmp_path / "named", tmp_path / "licensed")
    assert (books["kept"], books["dropped"]) == (1, {"licence_unknown": 1})
