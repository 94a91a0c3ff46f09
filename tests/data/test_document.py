from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.document import Books, Document, read_documents, read_shards, write_documents, write_shards
from llm.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DOCUMENTS = st.lists(
    st.builds(Document, id=TEXT, text=TEXT, source=TEXT, domain=TEXT, meta=st.dictionaries(TEXT, TEXT, max_size=2)), max_size=12
)


@given(st.lists(st.tuples(st.sampled_from("kdq"), st.sampled_from(string.ascii_lowercase[:4]))))
def test_books_balance_whatever_happens(events: list[tuple[str, str]]) -> None:
    books = Books()
    for kind, reason in events:
        {"k": lambda _: books.keep(), "d": books.drop, "q": books.quarantine}[kind](reason)
    books.check()
    assert books.read == len(events)
    assert Books.from_dict(books.to_dict()) == books


def test_books_that_lose_a_document_are_refused() -> None:
    with pytest.raises(DataError, match=r"balance.*3 read, 2 accounted"):
        Books(read=3, kept=2).check()


@settings(max_examples=25, deadline=None)
@given(DOCUMENTS)
def test_shards_give_back_every_document_in_order(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> None:
    folder = tmp_path_factory.mktemp("shards")
    assert write_shards(folder, documents, shard_bytes=60) == len(documents)
    assert list(read_shards(folder)) == documents


def test_the_same_documents_are_the_same_bytes(tmp_path: Path) -> None:
    documents = [Document(id=str(number), text="text " * number, source="files", meta={"b": "1", "a": "2"}) for number in range(500)]
    for name in ("one", "two"):
        write_documents(tmp_path / name, iter(documents))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert list(read_documents(tmp_path / "one")) == documents
