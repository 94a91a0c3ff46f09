from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import numpy as np
import pytest

from llm.data.tokenizer import Tokenizer
from llm.errors import CapacityError, SourceError
from llm.serve.retrieval import documents
from llm.serve.retrieval.config import RetrievalConfig
from llm.serve.retrieval.retriever import EmbedIds, Retriever

Opened = Callable[..., Retriever]
PLANTED = {
    "The harbour crane of Oskarsund lifts ninety tonnes.": "How much can the crane in Oskarsund lift?",
    "Rotate the signing certificate every 45 days.": "When must a signing certificate be rotated?",
    "Kettle descaling needs citric acid, never vinegar.": "What is used for descaling the kettle?",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty files of words drawn at random, three of which hold a fact."""
    draw = random.Random(0)
    words = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("ado", "eri", "ilo", "uma")]
    (tmp_path / "docs").mkdir()
    for number in range(40):
        paragraphs = [" ".join(draw.choices(words, k=40)) + "." for _ in range(6)]
        if number % 13 == 0 and number // 13 < len(PLANTED):
            paragraphs.insert(3, list(PLANTED)[number // 13])
        (tmp_path / "docs" / f"{number:02}.md").write_text("\n\n".join(paragraphs))
    return tmp_path / "docs"


@pytest.fixture
def opened(tokenizer: Tokenizer, folder: Path) -> Iterator[Opened]:
    """Opens the folder with some settings, and closes it after the test."""
    retrievers = list[Retriever]()

    def open(embed: EmbedIds | None = None, **settings: object) -> Retriever:
        config = RetrievalConfig.model_validate({"documents": str(folder), "refresh_seconds": 1000, **settings})
        retrievers.append(Retriever(config, tokenizer, embed=embed))
        return retrievers[-1]

    yield open
    for each in retrievers:
        each.close()


def letters(ids: list[list[int]]) -> np.ndarray:
    """How often each id stands in a text, as a unit vector: an embedding that anyone can check."""
    counts = np.array([np.bincount(each, minlength=600) for each in ids], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.mark.parametrize("settings", [{}, {"kind": "embedding", "embed": letters}])
def test_the_planted_passage_comes_first(opened: Opened, settings: dict[str, object]) -> None:
    retriever = opened(**settings)
    for fact, question in PLANTED.items():
        found = retriever.search(fact if settings else question, 3)
        assert fact in found[0].passage.text
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_a_passage_says_where_it_is_from(opened: Opened, folder: Path) -> None:
    (found,) = opened().search("crane Oskarsund", 1)
    text = (folder.parent / found.passage.document).read_text()
    assert text[found.passage.start :].startswith(found.passage.text)
    assert found.passage.document == "docs/00.md"


def test_a_question_about_nothing_finds_nothing(opened: Opened) -> None:
    assert opened().search("zzzz", 4) == []
    assert opened().search(" ", 4) == []


def test_only_what_changed_is_read_again(opened: Opened, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = opened()
    assert not retriever.refresh()
    read = list[str]()
    original = documents.read
    monkeypatch.setattr(documents, "read", lambda config, file: read.append(file.name) or original(config, file))  # type: ignore[func-returns-value]
    (folder / "05.md").write_text("The lighthouse keeper is called Imre.")
    (folder / "99.txt").write_text("The keeper's boat is red.")
    (folder / "00.md").unlink()
    os.utime(folder / "07.md")
    assert retriever.refresh()
    assert read == ["docs/05.md", "docs/99.txt"]
    assert retriever.search("lighthouse keeper boat", 2)[0].passage.document in ("docs/05.md", "docs/99.txt")
    assert retriever.search("crane Oskarsund", 1) == []


@pytest.mark.parametrize("settings", [{}, {"kind": "embedding", "embed": letters}])
def test_a_followed_folder_is_as_if_it_were_indexed_anew(opened: Opened, folder: Path, settings: dict[str, object]) -> None:
    draw, followed = random.Random(1), opened(**settings)
    for round in range(6):
        for _ in range(3):
            path = folder / f"{draw.randint(0, 45):02}.md"
            if path.exists() and draw.random() < 0.4:
                path.unlink()
            else:
                path.write_text(f"Notes of round {round}.\n\n{draw.random()} crane " * draw.randint(1, 9))
        followed.refresh()
        fresh = opened(**settings)
        assert sorted(followed.passages, key=lambda each: (each.document, each.start)) == list(fresh.passages)
        for question in ("crane notes round", *PLANTED.values()):
            ours, theirs = ([(each.passage.document, round_(each.score)) for each in one.search(question, 16)] for one in (followed, fresh))
            assert sorted(ours) == sorted(theirs)


def round_(score: float) -> float:
    return round(score, 4)


@pytest.mark.parametrize("settings", [{}, {"kind": "embedding", "embed": letters}])
def test_a_saved_index_is_loaded_and_nothing_read(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    first = opened(index=str(tmp_path / "kept" / "index.npz"), **settings)
    expected = first.search("crane Oskarsund", 4)
    monkeypatch.setattr(documents, "read", lambda config, file: pytest.fail("read again"))
    second = opened(index=str(tmp_path / "kept" / "index.npz"), **settings)
    assert second.search("crane Oskarsund", 4) == expected
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["index.npz"]


def test_other_settings_make_another_index(opened: Opened, tmp_path: Path) -> None:
    small = opened(index=str(tmp_path / "index.npz"), chunk_tokens=64)
    assert len(opened(index=str(tmp_path / "index.npz"), chunk_tokens=300).passages) < len(small.passages)


def test_a_damaged_index_is_made_again(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "index.npz"
    expected = opened(index=str(path)).search("crane Oskarsund", 4)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        assert opened(index=str(path)).search("crane Oskarsund", 4) == expected
    path.write_bytes(whole[: len(whole) // 2])
    assert opened(index=str(path)).search("crane Oskarsund", 4) == expected


def test_hostile_documents_are_bounded(opened: Opened, folder: Path) -> None:
    (folder / "zeros.txt").write_bytes(b"\0" * 100_000)
    (folder / "latin.txt").write_bytes(b"caf\xe9 " * 1_000)
    (folder / "word.txt").write_text("x" * 500_000)
    (folder / "table.csv").write_text("no,such\ncolumn,here\n")
    (folder / "broken.parquet").write_bytes(b"PAR1 not at all")
    (folder / "page.html").write_text("<html><script>while(1);</script><p>The tide table hangs in the pilot's office by the door.</p>" * 3)
    (folder.parent / "outside.txt").write_text("The safe opens with the word marigold.")
    (folder / "link.txt").symlink_to(folder.parent / "outside.txt")
    (folder / "folder").symlink_to(folder.parent)
    (folder / "dead.txt").symlink_to("/nowhere")
    retriever = opened()
    assert "tide table" in retriever.search("pilot's tide table", 1)[0].passage.text
    assert retriever.search("safe marigold", 1) == []
    assert all("\0" not in each.text and len(each.text) < 20_000 for each in retriever.passages)


def test_too_much_is_refused_and_what_was_there_stays(opened: Opened, folder: Path) -> None:
    with pytest.raises(CapacityError, match="max_passages"):
        opened(max_passages=10)
    with pytest.raises(CapacityError, match="max_bytes"):
        opened(max_bytes=1_000)
    with pytest.raises(SourceError, match="no such file or folder"):
        opened(documents=str(folder / "missing"))
    retriever = opened(max_bytes=200_000)
    (folder / "large.txt").write_text("crane " * 100_000)
    with pytest.raises(CapacityError, match="max_bytes"):
        retriever.refresh()
    assert retriever.search("crane Oskarsund", 1)


def test_closing_waits_for_one_batch_at_most(opened: Opened, folder: Path) -> None:
    watched, closings = threading.Event(), Queue[threading.Thread]()

    def embed(ids: list[list[int]]) -> np.ndarray:
        if watched.is_set():
            closing = threading.Thread(target=retriever.close)
            closing.start()
            closing.join(0.2)  # it has begun by then, and waits for this batch
            closings.put(closing)
        return letters(ids)

    retriever = opened(embed, kind="embedding", chunk_tokens=64, refresh_seconds=0.05)
    (folder.parent / "large.txt").write_text("\n\n".join("The ferry leaves at six. " * 8 for _ in range(200)))
    watched.set()
    (folder.parent / "large.txt").rename(folder / "large.txt")
    closing = closings.get(timeout=20)
    closing.join(20)
    assert not closing.is_alive()
    assert closings.empty(), "no batch came after"
    assert not any("ferry" in each.text for each in retriever.passages)


def test_the_folder_is_followed_without_being_asked(opened: Opened, folder: Path) -> None:
    retriever = opened(refresh_seconds=0.05)
    (folder / "later.md").write_text("The ferry leaves at six.")
    while not retriever.search("ferry", 1):
        pass
    assert retriever.search("ferry", 1)[0].passage.text == "The ferry leaves at six."
